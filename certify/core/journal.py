"""Results, one JSON line each, on the disk as soon as there is one."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from certify.core.errors import BadInput, CannotWrite, one_line

_BLOCK = 2**16


class Journal:
    """A file of JSON lines that only grows; one process at a time appends to it.

    Opening cuts back a last line that an earlier run could not finish.

    Raises:
        CannotWrite: no permission, disk full, not a regular file, or another run has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            mode = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._handle = os.open(path, mode, 0o666)
        except OSError as problem:
            raise self._cannot(problem) from None
        try:
            self._lock()
            self._cut_back()
            _flush_folder(path.parent)
        except OSError as problem:
            self.close()
            raise self._cannot(problem) from None
        except CannotWrite:
            self.close()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line and flush it to the disk.

        Raises:
            CannotWrite: disk full, for example; the file is left as it was.
        """
        line = json.dumps(record, allow_nan=False).encode("ascii") + b"\n"
        before = os.fstat(self._handle).st_size
        try:
            while line:
                line = line[os.write(self._handle, line) :]
            os.fsync(self._handle)
        except OSError as problem:
            with suppress(OSError):
                os.ftruncate(self._handle, before)
            raise self._cannot(problem) from None

    def close(self) -> None:
        """Let go of the file; calling it twice does no harm."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            if problem.errno in (errno.EAGAIN, errno.EACCES):
                raise CannotWrite(f"{one_line(self.path, 120)}: another run is writing to it; wait "
                                  "for it, or choose another folder or shard") from None
            if problem.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise  # some network file systems have no locks: go on without one

    def _cut_back(self) -> None:
        """Drop what follows the last line end."""
        size = os.fstat(self._handle).st_size
        at = size
        while at > 0:
            begin = max(0, at - _BLOCK)
            block = os.pread(self._handle, at - begin, begin)
            end = block.rfind(b"\n")
            if end >= 0:
                at = begin + end + 1
                break
            at = begin
        if at < size:
            os.ftruncate(self._handle, at)
            os.fsync(self._handle)

    def _cannot(self, problem: OSError) -> CannotWrite:
        reason = problem.strerror or type(problem).__name__
        return CannotWrite(f"{one_line(self.path, 120)}: cannot be written: {reason}; what was "
                           "finished is kept")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The finished lines of a journal; an unfinished last line does not count.

    Raises:
        BadInput: missing, unreadable, or a line that is not a record.
    """
    try:
        raw = path.read_bytes()
    except OSError as problem:
        reason = problem.strerror or type(problem).__name__
        raise BadInput(f"{one_line(path, 120)}: cannot be read: {reason}") from None
    found = []
    for number, line in enumerate(raw.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("key"), str):
            raise BadInput(f"{one_line(path, 120)}, line {number}: not a record of a campaign; "
                           "delete the line to have its item done again")
        found.append(record)
    return found


def _flush_folder(folder: Path) -> None:
    """Make the file's name survive a power failure too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
