"""Imports point one way, and heavy libraries load only when they are needed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "certify"
HEAVY = {"torch", "onnx", "onnxruntime", "numba", "scipy", "cvxpy", "sklearn"}
HEAVY |= {"matplotlib", "jinja2", "rich", "PIL", "z3"}

# above search
DECIDING_FILES = {"verify", "recheck", "ladder", "climb", "small_route", "targets", "settings",
                  "wording", "smooth", "grid_search", "features"}
_BOUNDING = {"bounds", "semantic", "importers", "ops", "core"}
_DECIDING = {"verify", "training", "checker", "search", "smoothing"}
PLAN = {
    "core": set(),
    "ops": {"core"},
    "importers": {"ops", "core"},
    "semantic": {"ops", "core"},
    "bounds": {"semantic", "importers", "ops", "core", "kernels"},
    "checker": {"ops", "core"},
    "search": _BOUNDING | {"kernels"},
    "smoothing": {"core", "kernels"},
    "training": _BOUNDING,
    "verify": _BOUNDING | {"checker", "search", "smoothing"},
    "evaluation": _BOUNDING | {"search", "verify"},
    "report": {"core"},
    "campaign": {"core"} | _DECIDING,
    "cli": {"report", "campaign", "evaluation", "__init__"} | _DECIDING | _BOUNDING,
    "kernels": set(),
    "__main__": {"cli"},
}
# the only files that may import kernels: one for tensors, one for the search without torch
BACKENDS = {PACKAGE / "bounds" / "kernels.py", PACKAGE / "search" / "small" / "compiled.py",
            PACKAGE / "smoothing" / "streams.py"}


def sources() -> list[Path]:
    files = [p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"]
    return sorted([*files, *(ROOT / "kernels").rglob("*.py")])


def part(path: Path) -> str:
    """The room a file is in: ``core``, ``ops`` ... or its own name at the top level."""
    if PACKAGE not in path.parents:
        return "kernels"
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "verify" if name in DECIDING_FILES else name


def imported(path: Path) -> Iterator[str]:
    """Absolute names of everything a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import_time(path: Path) -> Iterator[str]:
    """Top-level packages imported when the module itself is, type-checking blocks left out."""
    pending: list[ast.stmt] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.If):
            guarded = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            pending += node.orelse if guarded else [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            pending += [*node.body, *node.orelse, *node.finalbody]
            pending += [s for handler in node.handlers for s in handler.body]
        elif isinstance(node, ast.ClassDef):
            pending += node.body


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = part(path)
    assert own in PLAN, f"{own} has no place in the plan"
    for name in imported(path):
        pieces = name.split(".")
        if pieces[0] != "certify":
            assert pieces[0] != "kernels", "the bare name is another project's; use certify.kernels"
            continue
        room = pieces[1] if len(pieces) > 1 else "__init__"
        room = "verify" if room in DECIDING_FILES else room if room in PLAN else "__init__"
        assert room == own or room in PLAN[own], f"{own} may not import {name}"
        entitled = own == "kernels" or path in BACKENDS
        assert room != "kernels" or entitled, "kernels come in through a backend file"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_are_imported_late(path: Path) -> None:
    allowed = {"core": set(), "ops": set(), "importers": set(), "cli": set(), "report": set(),
               "kernels": {"numba"}}.get(part(path), {"torch"})
    if part(path) == "importers" and path.name.startswith("torch_"):
        allowed = {"torch"}
    assert set(at_import_time(path)) & HEAVY <= allowed


def loaded_after(code: str, *arguments: str) -> set[str]:
    """Heavy packages in ``sys.modules`` of a fresh process that ran ``code``."""
    code += "\nimport sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True,
                          timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split()) & HEAVY | set(done.stdout.split()) & {"numpy"}


def test_importing_the_package_loads_nothing() -> None:
    assert loaded_after("import certify") == set()


def test_help_loads_nothing() -> None:
    code = ("import contextlib, io, certify.cli.main as m\n"
            "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
            "    m.main(['verify', '--help'])")
    assert loaded_after(code) == set()


def test_regions_need_numpy_only() -> None:
    code = "import certify; certify.Linf([0.5], 8 / 255, clip=(0, 1)).batched((1,)).ends()"
    assert loaded_after(code) == {"numpy"}


def test_reading_a_model_and_a_spec_needs_neither_torch_nor_a_solver(tmp_path: Path) -> None:
    model = tiny_models.absolute_sum(tmp_path / "net.onnx")
    spec = tiny_models.specification(tmp_path / "spec.vnnlib", tiny_models.HOLDS)
    code = "import sys, certify; certify.load(sys.argv[1]); certify.read_vnnlib(sys.argv[2])"
    assert loaded_after(code, str(model), str(spec)) <= {"numpy", "onnx"}


def test_public_names_exist_and_survive_imports_of_submodules() -> None:
    import certify
    import certify.verify  # the module of the same name must not hide the function

    for name in certify.__all__:
        assert getattr(certify, name) is not None
    assert callable(certify.verify)
    assert set(certify.__all__) <= set(dir(certify))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = certify.nonsense
