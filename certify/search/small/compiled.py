"""The only place in the search that imports kernels: loading and calling them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from certify.search.small.memory import Memory, Question

SPENT, EMPTY, POINT, FULL, SOLID = range(5)  # as in certify.kernels.box_search


@lru_cache(maxsize=1)
def _kernel() -> Callable[..., int]:
    with _no_scipy():
        from certify.kernels.box_search import search
    kernel: Callable[..., int] = search
    return kernel


def step(question: Question, memory: Memory, budget: int) -> int:
    """One slice of one worker: at most ``budget`` boxes; see `certify.kernels.box_search`."""
    q = question
    return _kernel()(
        q.net,
        q.free,
        q.starts,
        q.strict,
        memory.frame,
        memory.state,
        memory.inputs,
        memory.work,
        memory.stack,
        memory.counts,
        memory.found,
        budget,
    )


def point_ranges(question: Question) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest values ``(R,)`` of the rows over the question's (tiny) box; else NaN."""
    from certify.kernels.boxes import ERROR, HIGH, LOW, forward, halve_sides

    q, memory = question, Memory(question)
    sides, state = memory.frame[0], memory.state
    sides[0], sides[1] = q.lower, q.upper
    halve_sides(sides)
    forward(q.net, q.free, sides, state, memory.inputs, memory.work)
    start = state.shape[1] - int(q.net[0][-1])
    mine = slice(start, start + len(q.strict))
    known = np.isfinite(state[ERROR, mine])
    return np.where(known, state[LOW, mine], np.nan), np.where(known, state[HIGH, mine], np.nan)


def load(question: Question) -> None:
    """Compile the search, or read it from its cache: by a call with nothing to do."""
    with _no_scipy():
        step(question, Memory(question), 1)


_GIVEN_UP: list[bool] = []  # compiling did not end in time once: not tried again in this process


def ready(seconds: float) -> bool:
    """Whether the compiled search is in its cache, or can be put there in time.

    Compiling cannot be interrupted, so it happens in a process of its own, once per machine and
    version. Where no cache can be written, the answer is no.
    """
    if _cached():
        return True
    if _GIVEN_UP:
        return False
    command = [sys.executable, "-c", "from certify.search.small import compiled; compiled.warm()"]
    try:
        subprocess.run(command, timeout=max(0.1, seconds), check=False, capture_output=True)
    except (subprocess.TimeoutExpired, OSError):
        _GIVEN_UP.append(True)
    return _cached()


def warm() -> None:
    """Compile the search and write it to its cache."""
    ends = np.zeros(1), np.ones(1)
    ones = [np.ones(n) for n in (8, 8, 0, 8, 8, 8)]
    net = (np.array([1, 4, 4]), np.ones(20), np.ones(20), *ones[2:6], np.zeros(2, dtype=np.uint8))
    starts, strict = np.array([0, 1]), np.array([False])
    load(Question(net, *ends, np.zeros(1, dtype=np.int64), starts, strict))


def _cached() -> bool:
    """Whether numba's index has the search for this machine and this source."""
    with _no_scipy():
        from numba.core.registry import cpu_target

        kernel: Any = _kernel()
        try:
            cache = kernel._cache
            wanted = cache._index_key(None, cpu_target.target_context.codegen())[1:]
            return any(key[1:] == wanted for key in cache._cache_file._load_index())
        except (AttributeError, TypeError, OSError):  # another numba keeps its cache otherwise
            return False


@contextmanager
def _no_scipy() -> Iterator[None]:
    """Where numba looks for scipy's BLAS on first use, let it find none.

    No kernel here multiplies matrices by BLAS, and importing scipy takes longer than most searches.
    """
    if "scipy" in sys.modules:
        yield
        return
    sys.modules["scipy"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["scipy"]
