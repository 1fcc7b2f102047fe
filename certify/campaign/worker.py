"""The worker process: one item after the other, from standard input to standard output.

It speaks JSON lines. In: the job, then items. Out: ``ready``, then ``took`` and ``done`` or
``failed`` for each item. Whatever the job itself prints goes to stderr.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from certify.campaign.job import named
from certify.core.errors import CertifyError, one_line

_Tell = Callable[[Mapping[str, Any]], None]


def main() -> None:
    """Serve until standard input ends."""
    tell = _open_answers()
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    job = orders.get()
    try:
        _limit_memory(job["memory"])
        function = named(job["function"])
        if job["prepare"]:
            named(job["prepare"])(job["settings"])
    except BaseException as problem:
        traceback.print_exc()
        tell({"kind": "cannot", "error": _words(problem)})
        _exit(1)
    tell({"kind": "ready"})
    while _serve(orders.get(), function, job, tell):
        pass
    _exit(0)


def _exit(code: int) -> NoReturn:
    """Leave at once: an ordinary exit would wait for the thread that reads orders."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _open_answers() -> _Tell:
    """Keep standard output for answers; prints of the job then go to stderr."""
    handle = os.dup(1)
    os.dup2(2, 1)
    answers = os.fdopen(handle, "w", encoding="ascii")

    def tell(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message, allow_nan=False) + "\n")
        answers.flush()

    return tell


def _listen(orders: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Pass orders on; when they end, the parent has left, and so does this process."""
    for line in sys.stdin.buffer:
        orders.put(json.loads(line))
    os._exit(0)


def _limit_memory(most: int | None) -> None:
    """Bound heap and private mappings: what a job allocates, not the code it maps."""
    if most is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _serve(order: dict[str, Any], function: Any, job: Mapping[str, Any], tell: _Tell) -> bool:
    """Do one item. False after an error nobody expected: the next item gets a new process."""
    tell({"kind": "took"})
    _reset_peak()
    wall, cpu = time.monotonic(), time.process_time()
    if order["limit"] is not None:
        # Works even if the job never lets another thread run, and says on stderr where it hung.
        faulthandler.dump_traceback_later(order["limit"] + job["grace"], exit=True)
    failure: dict[str, Any] = {}
    try:
        result = dict(function(order["data"], dict(job["settings"])))
        json.dumps(result, allow_nan=False)
    except BaseException as problem:
        traceback.print_exc()
        failure = {"kind": "failed", "error": _words(problem)}
    faulthandler.cancel_dump_traceback_later()
    spent = time.process_time()
    costs = {"seconds": time.monotonic() - wall, "cpu_seconds": spent - cpu, "cpu_total": spent,
             "peak_memory": _peak()}
    tell({**failure, **costs} if failure else {"kind": "done", "result": result, **costs})
    return not failure


def _words(problem: BaseException) -> str:
    if isinstance(problem, MemoryError):
        return "out of memory"
    kind = "" if isinstance(problem, CertifyError) else f"{type(problem).__name__}: "
    return one_line(f"{kind}{problem}", 300)


def _reset_peak() -> None:
    """Begin to measure peak memory anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _peak() -> int | None:
    """Bytes resident at the worst moment since `_reset_peak`."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    return None
