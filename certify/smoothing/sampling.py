"""Counts votes: many inputs in one batch, in one pass, with nothing stored but counts.

A *plan* is a generator: it yields an `Ask` (samples of a stage of its input's stream), is sent the
`Tally`, and returns `Votes` at last. `drive` runs many plans together and fills every batch with
samples of whichever inputs still want some, so that one that stops early leaves no gap.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from certify.core.votes import Votes
from certify.smoothing.base import Base
from certify.smoothing.noise import Noise
from certify.smoothing.streams import stream_key

if TYPE_CHECKING:
    from torch import Tensor

    from certify.smoothing.ledger import Ledger

CHUNK = 10_000  # samples after which a ledger is written


class Ask(NamedTuple):
    """Samples that a plan wants.

    Attributes:
        stage: names the stream; stages share no samples.
        samples: how many, going on where the last ask of this stage ended.
        moment: class whose noise moment is wanted too: the sum of ``e (1(vote = class) - 1/2)``
            over the samples, in units of the noise's ``sigma``; -1 for none.
    """

    stage: str
    samples: int
    moment: int = -1


class Tally(NamedTuple):
    """What came of an `Ask`: ``votes (heads, classes + 1)`` int64, ``moment (size,)`` float64."""

    votes: np.ndarray
    moment: np.ndarray | None = None


Plan = Generator[Ask, Tally, Votes]


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws and counts.

    Attributes:
        seed: of the run; with an input's name it decides every sample.
        batch: samples per forward pass.
        ledger: where counts are kept, and looked up before anything is drawn.
    """

    base: Base
    noise: Noise
    seed: int = 0
    batch: int = 1000
    ledger: Ledger | None = None

    def key(self, name: str, stage: str) -> int:
        """Of the stream of one input's stage; noise that all inputs share has one stream."""
        return stream_key(self.seed, "" if getattr(self.noise, "shared", False) else name, stage)


@dataclass(eq=False)
class _Job:
    """A part of an ask that goes through the model in one piece of one or several batches."""

    number: int
    x: Tensor
    key: int
    first: int
    ask: Ask
    votes: np.ndarray
    moment: Tensor | None = None


def drive(
    sampler: Sampler,
    inputs: Sequence[tuple[str, Tensor]],
    plans: Sequence[Plan],
    done: Callable[[int, Votes], None] | None = None,
) -> list[Votes]:
    """Run all plans to their end.

    Args:
        inputs: name and flat values ``(size,)`` of each plan's input, on the sampler's device.
        done: told the number and the votes of each plan as it ends.
    """
    results: list[Votes | None] = [None] * len(plans)
    position: dict[tuple[int, str], int] = {}
    asks = {i: next(plan) for i, plan in enumerate(plans)}
    while asks:
        jobs = [_job(sampler, inputs[i], i, ask, position) for i, ask in asks.items()]
        _count(sampler, jobs, inputs)
        for job in jobs:
            at = job.number
            position[at, job.ask.stage] = job.first + job.ask.samples
            moment = None if job.moment is None else job.moment.double().cpu().numpy()
            try:
                asks[at] = plans[at].send(Tally(job.votes, moment))
            except StopIteration as end:
                results[at] = end.value
                del asks[at]
                if done is not None:
                    done(at, end.value)
    return [votes for votes in results if votes is not None]


def _job(
    sampler: Sampler,
    place: tuple[str, Tensor],
    number: int,
    ask: Ask,
    position: dict[tuple[int, str], int],
) -> _Job:
    import torch

    name, x = place
    votes = np.zeros((len(sampler.base.heads), sampler.base.classes + 1), np.int64)
    moment = (
        torch.zeros(x.numel(), dtype=torch.float64, device=x.device) if ask.moment >= 0 else None
    )
    first = position.get((number, ask.stage), 0)
    return _Job(number, x, sampler.key(name, ask.stage), first, ask, votes, moment)


def _count(sampler: Sampler, jobs: Sequence[_Job], inputs: Sequence[tuple[str, Tensor]]) -> None:
    """Fill the jobs' votes: from the ledger where it knows them, by sampling elsewhere."""
    pieces: list[tuple[_Job, int, int]] = []  # job, first sample, samples
    for job in jobs:
        at, end = job.first, job.first + job.ask.samples
        while at < end:
            step = min(CHUNK - at % CHUNK, end - at)
            known = _known(sampler, job, inputs[job.number][0], at, step)
            if known is None:
                pieces.append((job, at, step))
            else:
                job.votes += known
            at += step
    for (job, first, count), votes in zip(pieces, _tallied(sampler, pieces), strict=True):
        job.votes += votes
        if sampler.ledger is not None and job.moment is None:
            name = inputs[job.number][0]
            sampler.ledger.append(_place(job, name), first, count, votes)


def _known(sampler: Sampler, job: _Job, name: str, first: int, count: int) -> np.ndarray | None:
    if sampler.ledger is None or job.moment is not None:
        return None
    return sampler.ledger.find(_place(job, name), first, count)


def _place(job: _Job, name: str) -> str:
    return f"{name}/{job.ask.stage}"


def _tallied(sampler: Sampler, pieces: Sequence[tuple[_Job, int, int]]) -> list[np.ndarray]:
    """Votes of every piece; batches are cut from all pieces in a row."""
    import torch

    base = sampler.base
    width = base.classes + 1
    totals = [np.zeros((len(base.heads), width), np.int64) for _ in pieces]
    if not pieces:
        return totals
    device = pieces[0][0].x.device
    buffer = torch.empty(sampler.batch, base.size, device=device)
    for rows in _batches(pieces, sampler.batch):
        used = sum(count for *_, count in rows)
        at = 0
        for number, first, count in rows:
            job = pieces[number][0]
            sampler.noise.fill(job.x, job.key, first, buffer[at : at + count])
            at += count
        owner = torch.repeat_interleave(
            torch.arange(len(rows), device=device),
            torch.tensor([count for *_, count in rows], device=device),
        )
        answers = base.answers(buffer[:used])
        flat = torch.stack(
            [torch.bincount(owner * width + a, minlength=len(rows) * width) for a in answers]
        )
        _moments(sampler, pieces, rows, buffer, answers[0])
        counts = flat.view(len(answers), len(rows), width).cpu().numpy()
        for place, (number, *_) in enumerate(rows):
            totals[number] += counts[:, place]
    return totals


def _moments(
    sampler: Sampler,
    pieces: Sequence[tuple[_Job, int, int]],
    rows: Any,
    buffer: Tensor,
    answer: Tensor,
) -> None:
    """Add ``sum e (1(vote = class) - 1/2)``, e the noise in units of sigma: one product, no
    copy."""
    at = 0
    for number, _, count in rows:
        job = pieces[number][0]
        if job.moment is not None:
            weight = (answer[at : at + count] == job.ask.moment).to(buffer.dtype) - 0.5
            total = (weight @ buffer[at : at + count]).double() - weight.sum().double() * job.x
            job.moment += total / sampler.noise.parameters["sigma"]
        at += count


def _batches(
    pieces: Sequence[tuple[_Job, int, int]], batch: int
) -> Generator[list[tuple[int, int, int]], None, None]:
    """Rows ``(piece, first sample, samples)`` of at most ``batch`` samples together."""
    rows: list[tuple[int, int, int]] = []
    room = batch
    for number, (_, first, count) in enumerate(pieces):
        while count:
            step = min(count, room)
            rows.append((number, first, step))
            first, count, room = first + step, count - step, room - step
            if not room:
                yield rows
                rows, room = [], batch
    if rows:
        yield rows
