"""Files that are either complete or not there."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from certify.core.errors import CannotWrite, one_line


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside its place, flush it to the disk, then move it there.

    Raises:
        CannotWrite: any failure of the file system, or something other than a regular file in that
            place: moving there would replace a device, or a link such as ``/dev/stdout``. What was
            at ``path`` is then untouched.
    """
    try:
        spare = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise CannotWrite(f"{one_line(path, 120)}: cannot be written: not a regular file")
    except (OSError, ValueError):
        raise CannotWrite(f"{one_line(path, 120)}: not a file name") from None
    try:
        with open(spare, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(spare, path)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            spare.unlink(missing_ok=True)
        raise CannotWrite(
            f"{one_line(path, 120)}: cannot be written: {one_line(error, 100)}"
        ) from None


__all__ = ["write_whole"]
