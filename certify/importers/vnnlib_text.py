"""The text of an untrusted specification file: size limits, compression, encoding."""

from __future__ import annotations

import hashlib
import re
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

from certify.core.errors import BadInput, LimitExceeded

_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_GZIP = b"\x1f\x8b"
_SMALL = 1 << 20  # below this no compression ratio is suspicious


@dataclass(frozen=True)
class Limits:
    """What a file may ask for before it is refused.

    Attributes:
        size: bytes of text, after decompression.
        ratio: decompressed bytes per compressed byte.
        clauses: clauses after the and/or structure is expanded.
        atoms: comparisons in them.
    """

    size: int = 256 << 20
    ratio: int = 200
    clauses: int = 100_000
    atoms: int = 5_000_000


@dataclass(frozen=True)
class Text:
    """A file's text without its comments (line breaks stay) and its SHA-256, uncompressed."""

    plain: str
    sha256: str

    def line(self, position: int) -> int:
        """1-based line number of a character position."""
        return self.plain.count("\n", 0, position) + 1


def read_text(path: Path, limits: Limits) -> Text:
    """Read a plain or gzipped file.

    Raises:
        BadInput: not a readable regular file, damaged compression, control characters, not UTF-8.
        LimitExceeded: more text than ``limits`` allow.
    """
    data = _read(path, limits)
    if data.startswith(_GZIP):
        data = _decompress(data, limits)
    control = _CONTROL.search(data)
    if control is not None:
        line = data.count(b"\n", 0, control.start()) + 1
        raise BadInput(f"line {line}: control character 0x{data[control.start()]:02x}: "
                       "this is not a text file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(f"line {line}: not UTF-8 text") from error
    return Text(re.sub(r";[^\n]*+", "", text), hashlib.sha256(data).hexdigest())


def _read(path: Path, limits: Limits) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadInput("not a regular file")
        if status.st_size > limits.size:
            raise _too_large(limits)
        with path.open("rb") as file:
            data = file.read(limits.size + 1)
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}") from error
    if len(data) > limits.size:
        raise _too_large(limits)
    return data


def _too_large(limits: Limits) -> LimitExceeded:
    return LimitExceeded(f"the text has a size above the limit of {limits.size} bytes")


def _decompress(data: bytes, limits: Limits) -> bytes:
    most = min(limits.size, max(_SMALL, limits.ratio * len(data)))
    parts, total, rest = [], 0, data
    while rest:
        member = zlib.decompressobj(31)
        try:
            part = member.decompress(rest, most - total + 1)
        except zlib.error as error:
            raise BadInput(f"damaged gzip data: {error}") from error
        total += len(part)
        if total > most:
            raise LimitExceeded(f"the decompressed text has a size above the limit of {most} bytes "
                                f"for {len(data)} compressed bytes")
        if not member.eof:
            raise BadInput("the gzip data is cut off")
        parts.append(part)
        rest = member.unused_data
    return b"".join(parts)
