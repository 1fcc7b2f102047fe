"""CPU time of `certify verify` on a tiny instance, in units of ``python -c "import torch"``."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.child import ROOT, run
from benchmarks.machine import describe, header
from benchmarks.report import RESULTS, table, write

_IMPORT_TORCH = ("-c", "import torch")
_UNSAFE = {"holds": "(assert (<= Y_0 -0.5))", "violated": "(assert (>= Y_0 1.5))"}
_ALLOWED = 1.6


def main() -> None:
    """Time, print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    machine = describe()
    with tempfile.TemporaryDirectory() as scratch:
        rows = [_row(name, command, options.repeats)
                for name, command in _commands(Path(scratch)).items()]
    titles = ("instance", "certify verify s", "import torch s", "ratio", "wall s")
    text = "\n".join([
        "# Start-up", "", header(machine), "",
        f"CPU seconds of a whole process, median of {options.repeats} taken in turn. Wanted: a "
        f"ratio of at most {_ALLOWED}.", "", table(titles, rows),
    ])
    write(options.out, "startup", text,
          {"machine": machine, "rows": [dict(zip(titles, row, strict=True)) for row in rows]})
    print(text)


def _commands(folder: Path) -> dict[str, tuple[str, ...]]:
    model = _model(folder / "tiny.onnx")
    found = {}
    for name, unsafe in _UNSAFE.items():
        spec = folder / f"{name}.vnnlib"
        spec.write_text("\n".join([
            "(declare-const X_0 Real)", "(declare-const X_1 Real)", "(declare-const Y_0 Real)",
            *(f"(assert (>= X_{i} -1.0))\n(assert (<= X_{i} 1.0))" for i in range(2)), unsafe]))
        found[f"2 inputs, 4 neurons: {name}"] = _verify(model, spec)
    digits = ROOT / "examples" / "digits"
    found["digits example"] = _verify(digits / "digits.onnx", digits / "digit0_eps1.vnnlib")
    return found


def _verify(model: Path, spec: Path) -> tuple[str, ...]:
    return "-m", "certify", "verify", str(model), str(spec), "-q"


def _row(name: str, command: tuple[str, ...], repeats: int) -> list[Any]:
    first = run(command)  # writes the bytecode caches
    if first.code not in (0, 1):
        sys.exit(f"{name}: {first.last_words}")
    pairs = [(run(command), run(_IMPORT_TORCH)) for _ in range(repeats)]
    ours, torch = (statistics.median(f.cpu for f in column) for column in zip(*pairs, strict=True))
    return [name, ours, torch, ours / torch, statistics.median(f.wall for f, _ in pairs)]


def _model(path: Path) -> Path:
    """``|x0| + |x1|``."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = {"w1": np.array([[1, -1, 0, 0], [0, 0, 1, -1]], np.float32),
               "w2": np.ones((4, 1), np.float32)}
    nodes = [helper.make_node("Gemm", ["x", "w1"], ["h"]), helper.make_node("Relu", ["h"], ["a"]),
             helper.make_node("Gemm", ["a", "w2"], ["y"])]
    graph = helper.make_graph(
        nodes, "tiny", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()])
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


if __name__ == "__main__":
    main()
