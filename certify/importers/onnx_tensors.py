"""ONNX tensors -> numpy, with every claim of the file checked before anything is allocated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from certify.core.errors import BadInput, LimitExceeded, Refused, Unsupported, one_line
from certify.importers.onnx_external import ExternalData
from certify.ops.builder import LARGEST_TENSOR

# TensorProto.DataType -> (numpy type, typed storage field, values per element in that field).
# Codes are fixed by the ONNX standard (onnx.proto, TensorProto.DataType).
_STORED: dict[int, tuple[str, str]] = {
    1: ("<f4", "float_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
    9: ("|b1", "int32_data"),
    10: ("<f2", "int32_data"),
    11: ("<f8", "double_data"),
    16: ("<u2", "int32_data"),  # bfloat16, widened to float32 below
}
_BFLOAT16 = 16
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
MOST_AXES = 16
FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}


def quoted(name: object, limit: int = 60) -> str:
    """A name from the file, fit for a message."""
    return f"'{one_line(name, limit)}'"


def type_name(code: int) -> str:
    """The ONNX name of a data type code, or the code itself."""
    import onnx

    names = onnx.TensorProto.DataType
    return str(names.Name(code)).lower() if code in names.values() else str(code)


def to_array(tensor: Any, what: str, external: ExternalData | None = None) -> np.ndarray:
    """The tensor as a numpy array of its own.

    ``what`` names it in messages (``initializer 'W0'``). bfloat16 widens to float32 exactly.

    Raises:
        BadInput: dims, type and payload disagree, or it holds a NaN.
        LimitExceeded: more elements than any tensor may have.
        Unsupported: a type that real-valued bounds do not cover.
        Refused: external data where it is not allowed.
    """
    kind, field = _storage(tensor, what)
    dims = tuple(int(n) for n in tensor.dims)
    if any(n < 0 for n in dims):
        raise BadInput(f"{what}: negative dimension in {_short(dims)}")
    if len(dims) > MOST_AXES:
        raise BadInput(f"{what}: {len(dims)} axes; the limit is {MOST_AXES}")
    count = math.prod(dims)
    if max((count, *dims)) > LARGEST_TENSOR:
        raise LimitExceeded(f"{what}: {_short(dims)} is beyond {LARGEST_TENSOR} elements")
    flat = _payload(tensor, what, np.dtype(kind), field, count, external)
    if tensor.data_type == _BFLOAT16:
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    if flat.dtype.kind == "f" and np.isnan(flat).any():
        raise BadInput(f"{what}: holds a NaN")
    return flat.reshape(dims)


def _storage(tensor: Any, what: str) -> tuple[str, str]:
    import onnx

    code = tensor.data_type
    if code == 0 or code not in onnx.TensorProto.DataType.values():
        raise BadInput(f"{what}: data type {code} does not exist")
    if code not in _STORED:
        raise Unsupported(
            f"{what}: {type_name(code)} tensors are not supported; export it in floating point"
        )
    if tensor.HasField("segment"):
        raise Unsupported(f"{what}: segmented tensors are not supported")
    return _STORED[code]


def _payload(
    tensor: Any, what: str, kind: np.dtype, field: str, count: int, external: ExternalData | None
) -> np.ndarray:
    used = [name for name in _FIELDS if len(getattr(tensor, name))]
    raw = tensor.HasField("raw_data")
    outside = len(tensor.external_data) > 0 or tensor.data_location == 1
    if len(used) + raw + outside > 1:
        raise BadInput(f"{what}: more than one storage field is set, so its values are ambiguous")
    if outside:
        if external is None:
            raise Refused(f"{what}: external data is only allowed for initializers")
        return np.frombuffer(external.read(tensor, what, count * kind.itemsize), kind).copy()
    if raw:
        data = tensor.raw_data
        if len(data) != count * kind.itemsize:
            needed = count * kind.itemsize
            raise BadInput(f"{what}: {len(data)} bytes of data; its dims and type need {needed}")
        return np.frombuffer(data, kind).copy()
    if used and used != [field]:
        raise BadInput(f"{what}: values are in {used[0]}, expected {field}")
    return _typed(getattr(tensor, field), what, kind, field, count)


def _typed(stored: Any, what: str, kind: np.dtype, field: str, count: int) -> np.ndarray:
    if len(stored) != count:
        raise BadInput(f"{what}: {len(stored)} values where its dims need {count}")
    if field != "int32_data" or kind.kind == "i":
        return np.array(stored, kind)
    wide = np.array(stored, np.int64)
    top = 2 if kind.kind == "b" else 2**16
    if ((wide < 0) | (wide >= top)).any():
        raise BadInput(f"{what}: a stored value does not fit its type")
    return wide.astype(np.bool_) if kind.kind == "b" else wide.astype(np.uint16).view(kind)


def _short(dims: tuple[int, ...]) -> str:
    return one_line(f"shape {list(dims)}", 60)
