"""External tensor data of an ONNX model: regular files in the model's own folder, nothing else.

Reading follows no link of any kind. Symbolic links, hard links, absolute paths and ``..`` have each
been used to make an ONNX reader open somebody else's file (CVE-2024-27318, CVE-2026-27489,
CVE-2026-34446, CVE-2026-34447).
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

from certify.core.errors import BadInput, Refused, one_line
from certify.importers.files import LARGEST_FILE, open_regular, read_exactly

_KEYS = {"location", "offset", "length", "checksum", "basepath"}
_NUMBER = re.compile(r"-?[0-9]{1,19}")


class ExternalData:
    """Reads slices of the files beside one model; each file is read once and hashed."""

    def __init__(self, model_path: str, limit: int = LARGEST_FILE) -> None:
        self._folder = os.path.dirname(os.path.abspath(model_path))
        self._files: dict[str, bytes] = {}
        self._left = limit

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that was read, by location."""
        return {name: hashlib.sha256(data).hexdigest() for name, data in self._files.items()}

    def read(self, tensor: Any, what: str, size: int) -> bytes:
        """The ``size`` bytes a tensor refers to.

        Raises:
            Refused: the location leaves the model's folder or is not a plain file of its own.
            BadInput: no such file, or offset and length do not fit file and tensor exactly.
        """
        entries = [(entry.key, entry.value) for entry in tensor.external_data]
        keys = dict(entries)
        if len(keys) != len(entries) or not set(keys) <= _KEYS or "location" not in keys:
            raise BadInput(f"{what}: external data needs one location, offset and length")
        data = self._file(keys["location"], what)
        offset = _number(keys.get("offset", "0"), "offset", what)
        length = _number(keys.get("length", str(len(data) - offset)), "length", what)
        if offset > len(data) or offset + length > len(data):
            raise BadInput(
                f"{what}: external offset {offset} + length {length} exceed its {len(data)} bytes"
            )
        if length != size:
            raise BadInput(f"{what}: external length {length} where its dims and type need {size}")
        return data[offset : offset + length]

    def _file(self, location: str, what: str) -> bytes:
        if location not in self._files:
            shown = one_line(location, 60)
            parts = location.split("/")
            if "\\" in location or "\0" in location or any(p in ("", ".", "..") for p in parts):
                raise Refused(f"{what}: external data '{shown}' is outside the model's own folder")
            self._files[location] = self._read(parts, f"{what}: external file '{shown}'")
            self._left -= len(self._files[location])
        return self._files[location]

    def _read(self, parts: list[str], what: str) -> bytes:
        """Walks down one folder at a time, so no link can be slipped in between check and use."""
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts[:-1]:
                folder = _descend(folder, part, what)
            handle = _open_plain(parts[-1], folder, what)
        finally:
            os.close(folder)
        try:
            facts = os.fstat(handle)
            if facts.st_nlink != 1:
                raise Refused(f"{what}: has several hard links, so it may be somebody else's file")
            return read_exactly(handle, facts.st_size, what, self._left)
        finally:
            os.close(handle)


def _descend(folder: int, part: str, what: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        inner = os.open(part, flags, dir_fd=folder)
    except FileNotFoundError:
        raise BadInput(f"{what}: no such file") from None
    except OSError:
        raise Refused(f"{what}: a folder on the way is a link or not a folder") from None
    os.close(folder)
    return inner


def _open_plain(name: str, folder: int, what: str) -> int:
    try:
        return open_regular(name, what, folder, os.O_NOFOLLOW)
    except BadInput as problem:
        if "no such file" in str(problem):
            raise
        raise Refused(str(problem)) from None


def _number(text: str, key: str, what: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) < 0:
        raise BadInput(f"{what}: external {key} '{one_line(text, 30)}' is not a size in bytes")
    return int(text)
