"""torch checkpoints without torch: zip files (torch >= 1.6) and the older single stream.

A checkpoint is a pickle stream beside raw storages. Tensors are checked to lie inside their
storages, which torch's own loader does not do (it grows the storage).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from certify.core.errors import BadInput, LimitExceeded, Unsupported, one_line
from certify.importers.files import LARGEST_FILE
from certify.importers.torch_pickle import STORAGES, Sketch, Storage, read_stream
from certify.ops.builder import LARGEST_TENSOR

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")


def torch_zip(members: Mapping[str, bytes]) -> Any:
    """The content of a zip checkpoint (torch >= 1.6): containers and numpy arrays.

    Raises:
        BadInput: damaged.
        LimitExceeded: it unfolds into too much.
        Refused: it names code.
        Unsupported: a kind of checkpoint or tensor that is not read.
    """
    streams = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
    scripted = any("/code/" in name or name.endswith("constants.pkl") for name in members)
    if len(streams) != 1 or scripted:
        raise Unsupported("a zip without a single data.pkl is not a checkpoint made by torch.save")
    root = streams[0].removesuffix("data.pkl")
    if members.get(root + "byteorder", b"little").strip() != b"little":
        raise Unsupported("only little-endian checkpoints are read")
    stream = io.BytesIO(members[streams[0]])
    found = read_stream(stream)

    def record(storage: Storage) -> bytes:
        name = f"{root}data/{storage.key}"
        if name not in members:
            raise BadInput(f"the storage '{one_line(storage.key, 40)}' is missing")
        return members[name]

    return _Filler(record).fill(found)


def torch_legacy(data: bytes) -> Any:
    """The content of an old checkpoint (torch < 1.6); raises as `torch_zip`."""
    stream = io.BytesIO(data)
    magic, protocol, system, found, keys = (read_stream(stream) for _ in range(5))
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(keys, list):
        raise BadInput("not a checkpoint made by torch.save")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Unsupported("only little-endian checkpoints are read")
    kinds = {s.key: s for s in _storages(found)}
    parts: dict[str, bytes] = {}
    for key in keys:
        if key not in kinds or key in parts:
            raise BadInput("the list of storages does not fit the tensors")
        width = np.dtype(STORAGES[kinds[key].kind]).itemsize
        count = int.from_bytes(stream.read(8), "little")
        if count != kinds[key].elements:
            raise BadInput(f"the storage '{one_line(key, 40)}' does not have the size it claims")
        parts[key] = stream.read(count * width)
    if stream.read(1) or set(parts) != set(kinds):
        raise BadInput("the storages do not fit the tensors")
    return _Filler(lambda storage: parts[storage.key]).fill(found)


def state_dict_of(found: Any) -> dict[str, np.ndarray]:
    """The dictionary of weights inside a loaded checkpoint.

    Raises:
        BadInput: there is none; names the keys that exist.
    """
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    while isinstance(found, dict):
        arrays = {str(k): v for k, v in found.items() if isinstance(v, np.ndarray)}
        if arrays:
            return arrays
        inner = [found[k] for k in _WRAPPERS if isinstance(found.get(k), dict)]
        if not inner:
            keys = one_line(", ".join(map(str, list(found)[:6])), 80)
            raise BadInput(f"no dictionary of weights in it; its keys are {keys}")
        found = inner[0]
    raise BadInput("no dictionary of weights in it; save model.state_dict()")


def _storages(root: Any) -> set[Storage]:
    found: set[Storage] = set()
    stack = [root]
    while stack:
        value = stack.pop()
        if isinstance(value, Sketch):
            found.add(value.storage)
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, (list, tuple)):
            stack.extend(value)
    return found


class _Filler:
    """Replaces every `Sketch` of a structure by its array; equal sketches share one array."""

    def __init__(self, record: Callable[[Storage], bytes]) -> None:
        self._record = record
        self._arrays: dict[Sketch, np.ndarray] = {}
        self._left = LARGEST_FILE

    def fill(self, root: Any) -> Any:
        """``root`` with arrays in it.

        Raises:
            BadInput: a tensor does not fit its storage.
            LimitExceeded: too deep, or too large altogether.
        """
        try:
            return self._fill(root)
        except RecursionError:
            raise LimitExceeded("the pickle is nested too deeply") from None

    def _fill(self, value: Any) -> Any:
        if isinstance(value, Sketch):
            return self._cached(value)
        if isinstance(value, dict):
            return {key: self._fill(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._fill(inner) for inner in value]
        return value

    def _cached(self, sketch: Sketch) -> np.ndarray:
        if sketch not in self._arrays:
            array = _array(sketch, self._record(sketch.storage))
            self._left -= array.nbytes
            if self._left < 0:
                raise LimitExceeded(f"the tensors' size is beyond {LARGEST_FILE} bytes altogether")
            self._arrays[sketch] = array
        return self._arrays[sketch]


def _array(sketch: Sketch, data: bytes) -> np.ndarray:
    kind = np.dtype(STORAGES[sketch.storage.kind])
    if len(data) != sketch.storage.elements * kind.itemsize:
        name = one_line(sketch.storage.key, 40)
        raise BadInput(f"the storage '{name}' does not have the size it claims")
    count = math.prod(sketch.shape)
    if count > sketch.storage.elements or any(n > LARGEST_TENSOR for n in sketch.shape):
        raise BadInput("a tensor has more elements than its storage")
    steps = zip(sketch.shape, sketch.strides, strict=True)
    last = sketch.offset + sum((n - 1) * s for n, s in steps)
    if count and last >= sketch.storage.elements:
        raise BadInput("a tensor reaches beyond its storage")
    flat = np.frombuffer(data, kind)
    if sketch.storage.kind == "BFloat16Storage":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    if not count:
        return np.empty(sketch.shape, flat.dtype)
    bytes_ = tuple(s * flat.itemsize for s in sketch.strides)
    start = flat[sketch.offset :]
    view = np.lib.stride_tricks.as_strided(start, sketch.shape, bytes_, writeable=False)
    return np.ascontiguousarray(view).reshape(sketch.shape)
