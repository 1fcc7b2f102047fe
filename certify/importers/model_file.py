"""`load`: a network from a file, by its kind."""

from __future__ import annotations

from pathlib import Path

from certify.core.errors import Unsupported
from certify.core.graph import Graph
from certify.importers.files import shown

ONNX_ENDINGS = (".onnx", ".onnx.gz")
_CHECKPOINTS = (".pt", ".pth", ".model", ".bin", ".ckpt", ".tar", ".safetensors", ".npz")


def load(path: str | Path) -> Graph:
    """The network in an ONNX file, plain or gzip.

    Args:
        path: ends in ``.onnx`` or ``.onnx.gz``.

    Raises:
        Unsupported: another kind of file, or operators that cannot be bounded (all are named).
        BadInput: the file is missing or malformed.
    """
    name = str(path).lower()
    if name.endswith(ONNX_ENDINGS):
        from certify.importers.onnx_graph import load_onnx

        return load_onnx(path)
    if name.endswith(_CHECKPOINTS):
        raise Unsupported(
            f"{shown(path)}: holds weights, not a network; build the module in Python, fill it "
            "with certify.load_weights and pass it to certify.from_torch, or export ONNX"
        )
    raise Unsupported(f"{shown(path)}: not a known kind of model file; give .onnx or .onnx.gz")
