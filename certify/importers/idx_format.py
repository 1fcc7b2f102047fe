"""The IDX format of MNIST: one array of bytes behind a header of sizes."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from certify.core.errors import BadInput, LimitExceeded
from certify.importers.files import read_file, shown
from certify.ops.builder import LARGEST_TENSOR

_BYTES = 0x08  # the element type, the only one MNIST and its relatives use


def read_idx(path: str | Path) -> np.ndarray:
    """The uint8 array in an IDX file, plain or gzip.

    Raises:
        BadInput: missing, not IDX, of another element type, or not as long as its header says.
        LimitExceeded: more elements than any tensor may have.
    """
    data, name = read_file(path).data, shown(path)
    if len(data) < 4 or data[:2] != b"\0\0":
        raise BadInput(f"{name}: not an IDX file (it does not begin with two zero bytes)")
    kind, axes = data[2], data[3]
    start = 4 + 4 * axes
    if kind != _BYTES or not 1 <= axes <= 4 or len(data) < start:
        raise BadInput(f"{name}: an IDX file of type 0x{kind:02x} with {axes} axes; only unsigned "
                       "bytes (0x08) with 1 to 4 axes are read")
    shape = struct.unpack(f">{axes}I", data[4:start])
    count = math.prod(shape)
    if count > LARGEST_TENSOR:
        raise LimitExceeded(f"{name}: {count} elements are beyond {LARGEST_TENSOR}")
    if len(data) - start != count:
        raise BadInput(f"{name}: {len(data) - start} bytes where the header needs {count}")
    return np.frombuffer(data, np.uint8, count, start).reshape(shape)
