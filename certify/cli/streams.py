"""stdout for results, stderr for everything else, and files; a reader that left is no crash."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO

from certify.core.errors import CannotWrite, one_line


def open_standard_streams() -> None:
    """Put the null device where stdin, stdout or stderr was closed.

    Otherwise the next file opened would get that number, and a library's message would land in it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def result(text: str) -> None:
    """Write ``text`` and a line end to stdout, at once.

    Raises:
        CannotWrite: stdout is closed, its reader has left, or the disk is full.
    """
    if sys.stdout is None:
        raise CannotWrite("standard output is closed")
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as problem:
        _abandon(sys.stdout)
        reason = problem.strerror or type(problem).__name__
        raise CannotWrite(f"cannot write to standard output: {reason}") from None


def say(text: str) -> None:
    """Write ``text`` and a line end to stderr; a closed stderr is ignored."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        _abandon(sys.stderr)


def write_file(path: str, text: str) -> None:
    """Write a text file.

    Raises:
        CannotWrite: no such folder, no permission, disk full.
    """
    try:
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except (OSError, ValueError) as problem:
        raise cannot_write(path, problem) from None


def cannot_write(path: str, problem: Exception) -> CannotWrite:
    """The error for an output file that failed."""
    reason = getattr(problem, "strerror", None) or one_line(problem)
    return CannotWrite(f"{one_line(path, 120)}: cannot be written: {reason}")


def check_target(path: str | None, device: bool = False) -> None:
    """Refuse an output file that cannot be one, before any work is done.

    Args:
        device: a pipe or a device such as ``/dev/stdout`` will do.

    Raises:
        CannotWrite: its folder is missing, or something else is in its place.
    """
    if path is None:
        return
    reason = ""
    if "\0" in path or not path:
        reason = "not a file name"
    elif not Path(path).absolute().parent.is_dir():
        reason = "its folder does not exist"
    elif Path(path).is_dir():
        reason = "it is a folder"
    elif not device and (Path(path).is_symlink() or _is_odd(Path(path))):
        reason = "it is not a regular file"
    if reason:
        raise CannotWrite(f"{one_line(path, 120)}: cannot be written: {reason}")


def _is_odd(path: Path) -> bool:
    """Whether something other than a regular file is there."""
    return path.exists() and not path.is_file()


def _abandon(stream: IO[str]) -> None:
    """Send what is left in the buffer nowhere, so that the interpreter's last flush succeeds."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):  # a stream without a file: nothing left to flush
        return
