"""Plants known faults in copies of the package and counts how many the tests notice.

Each mutation replaces one piece of text, which must occur exactly once, in a fresh copy of the
package; the tests likely to notice run against the copy, in a process of their own. A fault counts
as killed when a test fails; one that only makes them run out of time counts, too, but is
marked. The unchanged copy is tested first, because a failing baseline would kill everything.

    python benchmarks/mutation/run.py                # all of them: several minutes
    python benchmarks/mutation/run.py --only eps     # those whose name contains "eps"
    python benchmarks/mutation/run.py --list
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("certify", "kernels", "tests", "pyproject.toml", "setup.py")
TIMEOUT = 300.0


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of what the tests need, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        folder = Path(name)
        for part in COPIED:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(
                    source,
                    folder / part,
                    ignore=shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc"),
                )
            else:
                shutil.copy(source, folder / part)
        yield folder


def plant(folder: Path, mutation: Mutation) -> None:
    """Apply a mutation to a copy.

    Raises:
        SystemExit: its text is not there exactly once; the mutation must follow the code.
    """
    path = folder / mutation.file
    text = path.read_text()
    count = text.count(mutation.old)
    if count != 1:
        raise SystemExit(
            f"{mutation.name}: its text occurs {count} times in {mutation.file}, must be once"
        )
    path.write_text(text.replace(mutation.old, mutation.new))


def tested(folder: Path, files: tuple[str, ...]) -> str:
    """``survived``, ``killed``, ``timeout`` or ``broken`` (the tests could not run)."""
    data = os.environ.get("CERTIFY_DATA", str(ROOT.parent / "shared" / "data"))
    settings = {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONDONTWRITEBYTECODE": "1",
        "CERTIFY_DATA": data,
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        *files,
    ]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "timeout"
    names = {0: "survived", 1: "killed"}
    return names.get(done.returncode, "broken")


def main() -> int:
    """Run the mutations asked for and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="part of a mutation's name")
    parser.add_argument("--list", action="store_true", help="only list the mutations")
    parser.add_argument(
        "--no-baseline", action="store_true", help="do not test the unchanged copy first"
    )
    given = parser.parse_args()
    chosen = [m for m in MUTATIONS if given.only in m.name]
    if given.list or not chosen:
        print("\n".join(m.name for m in MUTATIONS))
        return 0 if given.list else 2
    for mutation in chosen:
        with copied() as folder:
            plant(folder, mutation)
    if not given.no_baseline:
        with copied() as folder:
            files = tuple(dict.fromkeys(f for m in chosen for f in m.tests))
            baseline = tested(folder, files)
        print(f"unchanged: {baseline}", flush=True)
        if baseline != "survived":
            return 1
    killed = 0
    for mutation in chosen:
        start = time.monotonic()
        with copied() as folder:
            plant(folder, mutation)
            found = tested(folder, mutation.tests)
        killed += found in ("killed", "timeout")
        print(f"{found:9} {time.monotonic() - start:6.1f} s  {mutation.name}", flush=True)
    print(f"{killed} of {len(chosen)} killed")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
