"""Worker processes that stay warm: each serves many items, and a broken one is replaced."""

from __future__ import annotations

import os
import selectors
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from certify.campaign.job import Item, Job, Outcome
from certify.campaign.seat import Seat
from certify.core.errors import BadInput, UsageError, one_line

_LOOK = 1.0  # seconds between looks at processes that say nothing
_TRIES = 3  # workers in a row that may fail before they are ready


class Pool:
    """Up to ``workers`` processes doing one job; a context manager that leaves none behind.

    Args:
        environment: variables that workers get on top of this process's own.

    Raises:
        UsageError: not one worker.
    """

    def __init__(
        self, job: Job, workers: int = 1, environment: Mapping[str, str] | None = None
    ) -> None:
        if workers < 1:
            raise UsageError(f"at least one worker is needed, got {workers}")
        self._job, self._workers = job, workers
        self._environment = {**os.environ, **(environment or {})}
        self._seats: list[Seat] = []
        self._waiting: deque[Item] = deque()
        self._failures = 0

    def outcomes(self, items: Iterable[Item]) -> Iterator[Outcome]:
        """What comes of every item, in the order in which they finish.

        Raises:
            BadInput: no worker gets ready: the job cannot be imported, for example.
        """
        self._waiting.extend(items)
        while self._waiting or any(seat.item for seat in self._seats):
            self._staff()
            self._hand_out()
            yield from self._hear()

    def close(self) -> None:
        """End all workers."""
        for seat in self._seats:
            seat.kill()
        while self._seats:
            self._seats.pop().leave()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _staff(self) -> None:
        """Start workers for what waits."""
        busy = sum(seat.item is not None for seat in self._seats)
        wanted = min(self._workers, busy + len(self._waiting))
        while len(self._seats) < wanted:
            self._seats.append(Seat(self._job, self._environment))

    def _hand_out(self) -> None:
        for seat in self._seats:
            if seat.free and self._waiting:
                seat.give(self._waiting.popleft())

    def _hear(self) -> Iterator[Outcome]:
        """Wait for news and pass them on; end workers that are overdue."""
        now = time.monotonic()
        patience = min([_LOOK, *(max(0.0, seat.due() - now) for seat in self._seats)])
        with selectors.DefaultSelector() as selector:
            for seat in self._seats:
                selector.register(seat, selectors.EVENT_READ)
            news = {id(key.fileobj) for key, _ in selector.select(patience)}
        now = time.monotonic()
        for seat in list(self._seats):
            overdue = now >= seat.due()
            if overdue:
                seat.kill()
            if overdue or id(seat) in news or seat.gone():
                yield from self._attend(seat)

    def _attend(self, seat: Seat) -> Iterator[Outcome]:
        """Everything one worker has said, and its end if it has come to it."""
        gone = seat.gone()  # first: what it said before it went is then there to be read
        messages, ended = seat.hear()
        for message in messages:
            if message["kind"] == "cannot":
                self._failed(message["error"])
            elif message["kind"] == "ready":
                seat.ready, self._failures = True, 0
            elif message["kind"] == "took":
                seat.taken = True
            else:
                yield seat.finished(message)
                if message["kind"] == "failed":
                    seat.retire()
        if ended or gone:
            yield from self._bury(seat, any(m["kind"] == "cannot" for m in messages))

    def _bury(self, seat: Seat, explained: bool) -> Iterator[Outcome]:
        self._seats.remove(seat)
        item, ready, taken, words = seat.item, seat.ready, seat.taken, seat.last_words()
        outcome = seat.leave()
        if outcome is not None:
            yield outcome
        elif item is not None and not taken:
            self._waiting.appendleft(item)  # it never began with it
        if not ready and not explained:
            self._failed(_last_line(words) or "it ended before it was ready")

    def _failed(self, why: Any) -> None:
        self._failures += 1
        if self._failures >= _TRIES:
            raise BadInput(f"no worker can start: {one_line(why, 200)}")


def _last_line(text: str) -> str:
    return text.splitlines()[-1] if text else ""
