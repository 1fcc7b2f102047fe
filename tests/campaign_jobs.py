"""Jobs for tests of the campaign runner: good ones, and every kind of bad one."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from typing import Any


def square(item: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A result that depends on the item and the settings alone."""
    time.sleep(settings.get("pause", 0.0))
    return {"value": item["n"] ** 2 + settings["offset"]}


def process(item: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Which process did it."""
    return {"pid": os.getpid()}


_PREPARED: list[int] = []


def prepare(settings: dict[str, Any]) -> None:
    _PREPARED.append(settings["offset"])


def prepared(item: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What `prepare` has left."""
    return {"prepared": list(_PREPARED)}


def unprepared(settings: dict[str, Any]) -> None:
    raise RuntimeError("no such device")


def mixed(item: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Behave as the item says."""
    return dict(_WAYS[item["way"]]())


def _hang() -> dict[str, Any]:
    time.sleep(600)
    return {}


def _hang_alone() -> dict[str, Any]:
    """Never lets another thread of the process run."""
    return {"found": re.match(r"(a+)+$", "a" * 60 + "b") is not None}


def _abort() -> dict[str, Any]:
    sys.stderr.write("about to\nfall over\n")
    sys.stderr.flush()
    os.abort()


def _killed() -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _leave() -> dict[str, Any]:
    os._exit(3)


def _hog() -> dict[str, Any]:
    return {"size": len(bytearray(2**32))}


def _print() -> dict[str, Any]:
    sys.stdout.write('{"kind": "done"}\n' * 1000)
    sys.stdout.flush()
    os.write(1, b"raw\n")
    return {"fine": True}


def _raise() -> dict[str, Any]:
    raise ValueError("odd\nthing")


def _exit() -> dict[str, Any]:
    sys.exit("gone")


_WAYS = {
    "fine": lambda: {"fine": True}, "hang": _hang, "hang alone": _hang_alone, "abort": _abort,
    "killed": _killed, "leave": _leave, "hog": _hog, "print": _print, "raise": _raise,
    "exit": _exit, "nan": lambda: {"value": float("nan")}, "set": lambda: {"value": {1}},
    "nothing": lambda: None, "slow": lambda: time.sleep(1.0) or {"fine": True},
}
