"""Weights and arrays from files that are never trusted: no pickle is executed, ever."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from certify.core.errors import BadInput, CertifyError, LimitExceeded, Unsupported, one_line
from certify.importers.files import LARGEST_FILE, LARGEST_RATIO, RATIO_FREE, read_file, shown
from certify.importers.npy_format import parse_npy
from certify.importers.safetensors import parse_safetensors
from certify.importers.torch_checkpoint import state_dict_of, torch_legacy, torch_zip

_TORCH = (".pt", ".pth", ".model", ".bin", ".ckpt", ".tar")
_ZIP = b"PK\x03\x04"


def load_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Named weights from ``.safetensors``, ``.npz``, ``.npy`` or a torch checkpoint (``.pt`` ...).

    A torch checkpoint is read by a small interpreter of its own that knows tensors and containers
    and nothing else; torch is not needed. A state dict wrapped under ``state_dict``, ``model`` or
    the like, or in a list of one, is found. bfloat16 widens to float32 exactly.

    Raises:
        BadInput: missing, malformed, or a weight that is not finite.
        LimitExceeded: a size beyond a stated limit.
        Refused: it would run code.
        Unsupported: a kind of file or tensor that is not read.
    """
    try:
        return _finite(_weights(path))
    except CertifyError as problem:
        raise _about(path, problem) from None


def load_array(path: str | Path) -> np.ndarray:
    """The array in a ``.npy`` file.

    Raises:
        BadInput, LimitExceeded, Refused: as `load_weights`.
    """
    try:
        return _finite({"array": parse_npy(read_file(path).data)})["array"]
    except CertifyError as problem:
        raise _about(path, problem) from None


def _about(path: str | Path, problem: CertifyError) -> CertifyError:
    text = str(problem)
    name = shown(path)
    return type(problem)(one_line(text if text.startswith(name) else f"{name}: {text}"))


def _weights(path: str | Path) -> dict[str, np.ndarray]:
    suffix = Path(path).suffix.lower()
    if suffix not in (".safetensors", ".npy", ".npz", *_TORCH):
        kinds = " ".join((".safetensors", ".npz", ".npy", *_TORCH))
        raise Unsupported(f"{shown(path)}: not a checkpoint; weights are read from {kinds}")
    data = read_file(path).data
    if suffix == ".safetensors":
        return parse_safetensors(data)
    if suffix == ".npy":
        return {Path(path).stem: parse_npy(data)}
    if suffix == ".npz":
        return {name.removesuffix(".npy"): parse_npy(part) for name, part in unzip(data).items()}
    if data[:4] == _ZIP:
        return state_dict_of(torch_zip(unzip(data)))
    return state_dict_of(torch_legacy(data))


def unzip(data: bytes) -> dict[str, bytes]:
    """Every member of a zip archive, by name.

    Raises:
        BadInput: damaged, encrypted, or two members of one name.
        LimitExceeded: its members are too large together.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            _check_members(members, len(data))
            return {m.filename: _member(archive, m) for m in members}
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as problem:
        if isinstance(problem, CertifyError):
            raise
        raise BadInput(f"damaged zip archive: {problem}") from None
    except (NotImplementedError, RuntimeError) as problem:
        raise BadInput(f"unreadable zip archive: {problem}") from None


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with archive.open(member) as stream:
        content = stream.read(member.file_size + 1)
    if len(content) != member.file_size:
        raise BadInput(f"zip member '{one_line(member.filename, 60)}' is not as long as it says")
    return content


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    allowed = min(LARGEST_FILE, max(RATIO_FREE, LARGEST_RATIO * size))
    total = sum(m.file_size for m in members)
    if total > allowed:
        raise LimitExceeded(f"decompressed size {total} is beyond the limit of {allowed} bytes")
    seen: set[str] = set()
    for member in members:
        if member.filename in seen:
            name = one_line(member.filename, 60)
            raise BadInput(f"zip member '{name}' exists twice: readers may disagree on the weights")
        seen.add(member.filename)


def _finite(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for name, array in weights.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadInput(f"'{one_line(name, 60)}' holds a NaN or an infinity")
    return weights
