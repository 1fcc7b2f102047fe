"""The errors a user can meet, and the exit code each one ends in."""

from __future__ import annotations

EXIT_HOLDS, EXIT_VIOLATED, EXIT_USAGE, EXIT_UNDECIDED = 0, 1, 2, 3
EXIT_BAD_INPUT, EXIT_REJECTED, EXIT_CANNOT_WRITE = 4, 5, 6

_LONGEST_MESSAGE = 300


def one_line(text: object, limit: int = _LONGEST_MESSAGE) -> str:
    """``text`` on one line, without control characters, at most ``limit`` characters.

    Names in untrusted files may hold newlines or terminal escapes; nothing of them may reach a
    terminal or forge a second line of output.
    """
    spaced = "".join(c if c.isprintable() else " " for c in str(text))
    short = " ".join(spaced.split())
    return short if len(short) <= limit else short[: limit - 3] + "..."


class CertifyError(Exception):
    """Base of every error raised on purpose. The message says what, where, why and what to do."""

    exit_code = EXIT_BAD_INPUT


class BadInput(CertifyError, ValueError):
    """A model, specification, checkpoint, data file or argument that is malformed."""


class Unsupported(CertifyError):
    """Valid input that asks for something this toolkit cannot bound; lists everything at once."""


class LimitExceeded(BadInput):
    """Input whose declared or real size is beyond a stated limit."""


class Refused(BadInput):
    """Input that would run code or read files outside its own folder."""


class UsageError(CertifyError):
    """A wrong option or argument."""

    exit_code = EXIT_USAGE


class CannotWrite(CertifyError):
    """An output file could not be written; what was finished is kept."""

    exit_code = EXIT_CANNOT_WRITE
