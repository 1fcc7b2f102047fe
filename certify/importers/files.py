"""Bounded reading of untrusted files, plain or gzip."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

from certify.core.errors import BadInput, LimitExceeded, one_line

LARGEST_FILE = 2**30  # bytes, after decompression
LARGEST_RATIO = 100  # decompressed : compressed ...
RATIO_FREE = 2**26  # ... enforced beyond this many bytes; small repetitive specs compress better
_CHUNK = 2**20


@dataclass(frozen=True)
class Contents:
    """A file's content.

    Attributes:
        path: as the user wrote it.
        data: the bytes, decompressed when the file was gzip.
        sha256: hexadecimal digest of ``data``.
    """

    path: str
    data: bytes
    sha256: str


def shown(path: str | Path, limit: int = 100) -> str:
    """``path`` for a message: printable, and its end when it is long."""
    text = one_line(path, 10_000)
    return text if len(text) <= limit else "..." + text[3 - limit :]


def read_file(path: str | Path, limit: int = LARGEST_FILE) -> Contents:
    """The content of a regular file, decompressed when it starts like gzip.

    Raises:
        BadInput: missing, unreadable, not a regular file, or broken gzip.
        LimitExceeded: larger than ``limit`` bytes, or a decompression bomb.
    """
    name = shown(path)
    handle = open_regular(path, name)
    try:
        raw = read_exactly(handle, os.fstat(handle).st_size, name, limit)
    finally:
        os.close(handle)
    data = _gunzip(raw, name, limit) if raw[:2] == b"\x1f\x8b" else raw
    return Contents(str(path), data, hashlib.sha256(data).hexdigest())


def open_regular(path: str | Path, name: str, folder: int | None = None, flags: int = 0) -> int:
    """A read-only descriptor of a regular file; never blocks on a pipe or a device.

    Raises:
        BadInput: missing, unreadable, or a folder, pipe, socket or device.
    """
    try:
        mode = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags
        handle = os.open(path, mode, dir_fd=folder)
    except FileNotFoundError:
        raise BadInput(f"{name}: no such file") from None
    except (OSError, ValueError) as problem:
        if getattr(problem, "errno", None) == errno.ELOOP:
            raise BadInput(f"{name}: is a symbolic link") from None
        reason = getattr(problem, "strerror", None) or problem
        raise BadInput(f"{name}: cannot be opened: {reason}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        kind = _kind(os.fstat(handle).st_mode)
        os.close(handle)
        raise BadInput(f"{name}: is a {kind}, not a regular file")
    return handle


def read_exactly(handle: int, size: int, name: str, limit: int) -> bytes:
    """``size`` bytes of an open file.

    Raises:
        BadInput: the file became shorter meanwhile.
        LimitExceeded: ``size`` is beyond ``limit``.
    """
    if size > limit:
        raise LimitExceeded(f"{name}: file size {size} is beyond the limit of {limit} bytes")
    pieces: list[bytes] = []
    left = size
    while left:
        piece = os.read(handle, min(left, _CHUNK))
        if not piece:
            raise BadInput(f"{name}: changed while it was read")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _kind(mode: int) -> str:
    for test, word in (
        (stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"),
    ):
        if test(mode):
            return word
    return "device"


def _gunzip(raw: bytes, name: str, limit: int) -> bytes:
    allowed = min(limit, max(RATIO_FREE, LARGEST_RATIO * len(raw)))
    pieces: list[bytes] = []
    total = 0
    rest = raw
    while rest:  # a gzip file may hold several members
        member = zlib.decompressobj(31)
        while not member.eof:
            try:
                piece = member.decompress(rest, _CHUNK)
            except zlib.error as problem:
                raise BadInput(f"{name}: broken gzip data: {problem}") from None
            rest = member.unused_data if member.eof else member.unconsumed_tail
            total += len(piece)
            if total > allowed:
                raise LimitExceeded(f"{name}: decompressed size is beyond {allowed} bytes")
            if not piece and not rest and not member.eof:
                raise BadInput(f"{name}: gzip data ends early")
            pieces.append(piece)
    return b"".join(pieces)
