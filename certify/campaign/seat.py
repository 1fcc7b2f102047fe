"""One worker process as the parent sees it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from certify.campaign.job import Item, Job, Outcome
from certify.core.errors import one_line

START_LIMIT = 300.0  # seconds a worker may take until it is ready
_BACKSTOP = 1.0  # seconds after which a worker that has not ended itself is killed
_TAIL = 2000  # bytes of stderr that are kept
_BLOCK = 2**16
_BOOT = ("import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
         "from certify.campaign.worker import main; main()")


class Seat:
    """A worker process, and the item it is on.

    It has a session of its own: Ctrl-C reaches the parent alone, and killing it kills its children.

    Attributes:
        ready: it has started.
        item: what it was given; None while it waits.
        taken: it has begun with it.
    """

    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        self._job = job
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `leave`
        flags = fcntl.fcntl(self._log, fcntl.F_GETFL)
        fcntl.fcntl(self._log, fcntl.F_SETFL, flags | os.O_APPEND)
        paths = json.dumps([os.path.abspath(p) for p in sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, start_new_session=True, env=dict(environment), bufsize=0)
        if self._process.stdin is None or self._process.stdout is None:
            raise OSError("a worker without pipes")
        self._orders, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._answers.fileno(), False)
        self._buffer = b""
        self._since = time.monotonic()
        self._cpu_seen = 0.0
        self.ready, self.taken, self._retired = False, False, False
        self.item: Item | None = None
        self._send({"function": job.function, "prepare": job.prepare, "grace": job.grace,
                    "settings": {**job.settings, **job.local}, "memory": job.memory})

    @property
    def free(self) -> bool:
        """It can be given an item."""
        return self.ready and self.item is None and not self._retired

    def retire(self) -> None:
        """End it: what an item has left behind in it shall not harm the next one."""
        self._retired = True
        self.kill()

    def fileno(self) -> int:
        """Of the pipe it answers through, for selectors."""
        return self._answers.fileno()

    def give(self, item: Item) -> None:
        """Hand over an item."""
        self.item, self.taken, self._since = item, False, time.monotonic()
        os.ftruncate(self._log.fileno(), 0)
        self._send({"data": item.plain(), "limit": item.limit})

    def hear(self) -> tuple[list[dict[str, Any]], bool]:
        """Messages that have come, and whether they have ended."""
        ended = False
        while True:
            try:
                block = os.read(self._answers.fileno(), _BLOCK)
            except BlockingIOError:
                break
            if not block:
                ended = True
                break
            self._buffer += block
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines], ended

    def finished(self, message: Mapping[str, Any]) -> Outcome:
        """The outcome its ``done`` or ``failed`` message tells; it is then free again."""
        item = self._item_done()
        self._cpu_seen = message["cpu_total"]
        failed = message["kind"] == "failed"
        return Outcome(
            item, "error" if failed else "done", message["seconds"], message.get("result"),
            message.get("error", ""), self.last_words() if failed else "", message["cpu_seconds"],
            message["peak_memory"])

    def due(self) -> float:
        """When it will have to be killed, as `time.monotonic` tells it; infinity for never."""
        if not self.ready:
            return self._since + START_LIMIT
        if self.item is None or self.item.limit is None:
            return float("inf")
        return self._since + self.item.limit + self._job.grace + _BACKSTOP

    def gone(self) -> bool:
        """Whether the process has ended."""
        left = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return left is not None

    def kill(self) -> None:
        """End it and its children; harmless when it has ended."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def leave(self) -> Outcome | None:
        """Clear up after the process has ended; the outcome if it was on an item then."""
        self.kill()
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        words, code = self.last_words(), self._process.returncode
        for file in (self._log, self._orders, self._answers):
            with suppress(OSError):
                file.close()
        if self.item is None or not self.taken:
            return None
        seconds = time.monotonic() - self._since
        item = self._item_done()
        late = item.limit is not None and seconds >= item.limit + self._job.grace
        why = (f"no answer within {item.limit:g} s and {self._job.grace:g} s of grace; killed"
               if late else _ending(code))
        cpu = max(0.0, usage.ru_utime + usage.ru_stime - self._cpu_seen)
        return Outcome(item, "timeout" if late else "crashed", seconds, None, why, words, cpu,
                       usage.ru_maxrss * 1024)

    def last_words(self) -> str:
        """The end of what it wrote to stderr since it was given its item."""
        handle = self._log.fileno()
        size = os.fstat(handle).st_size
        return os.pread(handle, _TAIL, max(0, size - _TAIL)).decode(errors="replace").strip()

    def _item_done(self) -> Item:
        if self.item is None:
            raise ValueError("a worker answered without having been asked")
        item, self.item, self.taken = self.item, None, False
        return item

    def _send(self, order: Mapping[str, Any]) -> None:
        data = json.dumps(order, allow_nan=False).encode("ascii") + b"\n"
        with suppress(BrokenPipeError):  # it has just died: the end of its answers tells
            while data:
                data = data[self._orders.write(data) or 0 :]


def _ending(code: int) -> str:
    """How a process ended that should not have."""
    if code >= 0:
        return f"the worker left with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    more = " (the system may have run out of memory)" if -code == signal.SIGKILL else ""
    return one_line(f"the worker was ended by {name}{more}")
