"""ONNX Runtime on the very bytes that were checked and imported."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from certify.core.errors import BadInput, one_line
from certify.core.graph import Graph
from certify.importers.onnx_graph import load_onnx

_FATAL = 4
_NUMPY = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


class Runtime:
    """Evaluates an imported ONNX model the way its users run it.

    No file is opened and no custom operator is registered: the session gets the bytes the importer
    kept. Inputs of several tensors, and several outputs, are flat and joined in the model's order.
    """

    def __init__(self, model: Graph | str | Path, threads: int = 1, optimise: bool = True) -> None:
        """``optimise=False`` runs the operators one by one as they are written in the file.

        Raises:
            BadInput: not an ONNX graph, or ONNX Runtime rejects it.
        """
        graph = model if isinstance(model, Graph) else load_onnx(model)
        if "bytes" not in graph.source:
            raise BadInput("the network is not from an ONNX file, so ONNX Runtime cannot run it")
        self._session = _session(graph.source["bytes"], threads, optimise)
        kinds = {v.name: _NUMPY.get(v.type, np.float32) for v in self._session.get_inputs()}
        self._inputs = [
            (name, node.shape, kinds[name])
            for name, node in zip(graph.source["inputs"], graph.inputs, strict=True)
        ]
        self._outputs = list(graph.source["outputs"])
        self._size = sum(math.prod(shape) for _, shape, _ in self._inputs)
        self._batches: bool | None = None if graph.source["symbolic"] else False

    def run(self, x: np.ndarray) -> np.ndarray:
        """The outputs, flat, for one example of any shape with the right number of elements.

        ``x`` is rounded to the model's input type; give values that are exact in it where that
        matters.
        """
        found: np.ndarray = self._run(np.asarray(x).reshape(1, -1), 1)[0]
        return found

    def run_batch(self, x: np.ndarray) -> np.ndarray:
        """``(B, ...)`` examples -> ``(B, outputs)``.

        A model with a symbolic batch axis runs them at once, if its first such answer agrees with
        single runs; any other model runs them one by one.
        """
        flat = np.asarray(x).reshape(len(x), -1)
        if len(flat) > 1 and self._batches is not False:
            found = self._together(flat)
            if found is not None:
                return found
        if not len(flat):
            raise BadInput("no examples were given")
        return np.stack([self.run(row) for row in flat])

    def _together(self, flat: np.ndarray) -> np.ndarray | None:
        try:
            found = self._run(flat, len(flat))
        except (BadInput, ValueError):
            self._batches = False
            return None
        if self._batches is None:  # a symbolic first axis does not promise independent rows
            ends = [self.run(flat[0]), self.run(flat[-1])]
            same = found.shape == (len(flat), ends[0].size)
            self._batches = same and np.allclose(found[[0, -1]], ends, rtol=1e-3, atol=1e-5)
        return found if self._batches else None

    def _run(self, flat: np.ndarray, count: int) -> np.ndarray:
        if flat.shape[1] != self._size:
            raise BadInput(f"{flat.shape[1]} values for a network with {self._size} inputs")
        feed: dict[str, np.ndarray] = {}
        at = 0
        for name, shape, kind in self._inputs:
            size = math.prod(shape)
            lead = (count * shape[0], *shape[1:]) if shape else ()
            feed[name] = np.ascontiguousarray(flat[:, at : at + size], kind).reshape(lead)
            at += size
        try:
            found = self._session.run(self._outputs, feed)
        except Exception as problem:  # the C++ library raises types of its own
            raise BadInput(one_line(f"ONNX Runtime cannot run the model: {problem}")) from None
        return np.concatenate([np.asarray(y).reshape(count, -1) for y in found], axis=1)


def _session(data: bytes, threads: int, optimise: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.load_model_format", "ONNX")
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    )
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # the C++ library raises types of its own
        raise BadInput(one_line(f"ONNX Runtime rejects the model: {problem}")) from None
