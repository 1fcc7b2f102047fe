"""Certified accuracy of a character network against substitutions, on the Stanford sentences."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.data import folder
from benchmarks.machine import describe, header
from benchmarks.report import RESULTS, table, write

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def main() -> int:
    """Train, certify, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text", description=__doc__)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--limit", type=int, default=50, help="test sentences (default: 50)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    sys.path.insert(0, str(EXAMPLES))
    import text_substitution as example

    machine, started = describe(), time.process_time()
    rows = example.report(example.corpus(folder("sst")), options.epochs, options.limit)
    seconds = time.process_time() - started
    text = "\n".join([
        "# Character substitutions\n", header(machine),
        f"\n`python -m benchmarks.text --epochs {options.epochs} --limit {options.limit}`: SST "
        f"binary, first {example.LENGTH} characters, one keyboard neighbour per character, network "
        "and training of `examples/text_substitution.py`; certified by `certify.verify` "
        "over `Substitutions`, 10 seconds at most; exhaustive: every sentence tried. Per cent "
        f"of the first {options.limit} test sentences. {seconds:.0f} CPU seconds in all, training "
        "included.\n", table(rows[0], rows[1:])])
    print(text)
    write(options.out, "text", text, {"machine": machine, "rows": rows, "cpu_seconds": seconds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
