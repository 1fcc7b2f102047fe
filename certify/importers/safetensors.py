"""The safetensors format, read strictly.

Layout: an 8-byte little-endian length, that many bytes of JSON (name -> dtype, shape,
data_offsets), then the data, which the tensors must cover without gap or overlap
(https://github.com/huggingface/safetensors, section Format).
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from certify.core.errors import BadInput, LimitExceeded, Unsupported, one_line
from certify.ops.builder import LARGEST_TENSOR

_LONGEST_HEADER = 100_000_000
_KINDS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}


def parse_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """Tensors by name, as views of ``data``; bfloat16 is widened to float32.

    Raises:
        BadInput: the header is malformed, or tensors overlap, leave gaps or exceed the file.
        LimitExceeded: more elements than any tensor may have.
        Unsupported: an element type that is not read.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _LONGEST_HEADER):
        raise BadInput("not a safetensors file: its header is longer than the file")
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as problem:
        if isinstance(problem, BadInput):
            raise
        raise BadInput("safetensors header is not JSON") from None
    if not isinstance(header, dict):
        raise BadInput("safetensors header is not a JSON object")
    header.pop("__metadata__", None)
    body = memoryview(data)[8 + length :]
    spans = {name: _span(name, entry, len(body)) for name, entry in header.items()}
    _check_cover(spans, len(body))
    return {name: _tensor(name, header[name], body[a:b]) for name, (a, b) in spans.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadInput("safetensors header names a key twice")
    return found


def _span(name: str, entry: Any, size: int) -> tuple[int, int]:
    what = f"tensor '{one_line(name, 60)}'"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadInput(f"{what}: needs dtype, shape and data_offsets")
    offsets = entry["data_offsets"]
    if not _sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size:
        raise BadInput(f"{what}: its data_offsets are outside the file")
    return offsets[0], offsets[1]


def _sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _check_cover(spans: dict[str, tuple[int, int]], size: int) -> None:
    at = 0
    for name, (start, end) in sorted(spans.items(), key=lambda item: item[1]):
        if start != at:
            word = "overlaps another" if start < at else "leaves a gap before it"
            raise BadInput(f"tensor '{one_line(name, 60)}' {word}")
        at = end
    if at != size:
        raise BadInput(f"{size - at} bytes belong to no tensor")


def _tensor(name: str, entry: dict[str, Any], part: memoryview) -> np.ndarray:
    what = f"tensor '{one_line(name, 60)}'"
    code = entry["dtype"]
    if not isinstance(code, str) or code not in _KINDS:
        raise Unsupported(f"{what}: element type {one_line(code, 20)} is not supported")
    if not _sizes(entry["shape"]) or len(entry["shape"]) > 16:
        raise BadInput(f"{what}: its shape is not a short list of sizes")
    count = math.prod(entry["shape"])
    if max((count, *entry["shape"])) > LARGEST_TENSOR:
        raise LimitExceeded(f"{what}: beyond {LARGEST_TENSOR} elements")
    kind = np.dtype(_KINDS[code])
    if len(part) != count * kind.itemsize:
        needed = count * kind.itemsize
        raise BadInput(f"{what}: {len(part)} bytes where shape and type need {needed}")
    flat = np.frombuffer(part, kind, count)
    if code == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(entry["shape"])
