"""The ``.npy`` format, read strictly: the header is data, checked before anything is allocated."""

from __future__ import annotations

import ast
import math
import re

import numpy as np

from certify.core.errors import BadInput, LimitExceeded, Refused, one_line
from certify.ops.builder import LARGEST_TENSOR

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 4096
_MOST_AXES = 16
_TYPE = re.compile(r"[<>=|](?:b1|[iu][1248]|f[248])")
_KEYS = {"descr", "fortran_order", "shape"}


def parse_npy(data: bytes) -> np.ndarray:
    """The array in the bytes of an ``.npy`` file (format 1.0 to 3.0), read-only.

    Raises:
        BadInput: header or payload malformed.
        LimitExceeded: more elements than any tensor may have.
        Refused: an object array, which only pickle could read.
    """
    header, start = _header(data)
    kind, shape = _kind(header["descr"]), _shape(header["shape"])
    if not isinstance(header["fortran_order"], bool):
        raise BadInput("npy header: fortran_order is not a truth value")
    count = math.prod(shape)
    if count > LARGEST_TENSOR:
        raise LimitExceeded(f"npy shape {one_line(shape, 60)} is beyond {LARGEST_TENSOR} elements")
    needed, held = count * kind.itemsize, len(data) - start
    if held != needed:
        raise BadInput(f"npy data is {held} bytes where the header needs {needed}")
    flat = np.frombuffer(data, kind, count, start)
    array = flat.reshape(shape, order="F" if header["fortran_order"] else "C")
    return array if kind.isnative else array.astype(kind.newbyteorder("="))


def _header(data: bytes) -> tuple[dict[str, object], int]:
    if data[:6] != _MAGIC or len(data) < 10:
        raise BadInput("not an npy file")
    if data[6] not in (1, 2, 3):
        raise BadInput(f"npy format {data[6]} does not exist")
    width = 2 if data[6] == 1 else 4
    length = int.from_bytes(data[8 : 8 + width], "little")
    start = 8 + width + length
    if length > _LONGEST_HEADER or start > len(data):
        raise BadInput(f"npy header of {length} bytes is too long or cut")
    try:
        header = ast.literal_eval(data[8 + width : start].decode("utf-8").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise BadInput("npy header is not a plain dictionary") from None
    if not isinstance(header, dict) or set(header) != _KEYS:
        raise BadInput("npy header must hold descr, fortran_order and shape")
    return header, start


def _kind(descr: object) -> np.dtype:
    if isinstance(descr, str) and descr.lstrip("|<>=")[:1] == "O":
        raise Refused("npy holds Python objects (type object), which only unsafe pickle can read")
    if not isinstance(descr, str) or not _TYPE.fullmatch(descr):
        raise BadInput(f"npy element type {one_line(descr, 30)} is not numeric")
    return np.dtype(descr)


def _shape(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > _MOST_AXES:
        raise BadInput("npy shape is not a short tuple")
    if any(type(n) is not int or n < 0 for n in shape):
        raise BadInput("npy shape must hold numbers >= 0")
    if any(n > LARGEST_TENSOR for n in shape):
        raise LimitExceeded(f"npy shape {one_line(shape, 60)} is beyond {LARGEST_TENSOR} elements")
    return shape
