"""One question of the battery: a network, thresholds beside its minimum, and what was said."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.battery.exact import Least, exact_minimum, searched_minimum
from benchmarks.battery.networks import EXACT, KINDS, Layers, random_network, run
from benchmarks.battery.onnx_file import write as write_model

Clauses = list[tuple[np.ndarray, np.ndarray]]  # coefficients and offsets of each clause's rows

_WITH_ATTACK = 0.875  # share of questions; the others cannot be answered sat, only wrongly unsat
_WITHOUT = 1.0  # seconds, at most, with the attack off
_SURE = 1e-4  # the solver's tolerances, relative: closer thresholds have no sure answer


class Case(NamedTuple):
    """One question and its answer.

    Attributes:
        truth: ``"sat"``, ``"unsat"``, or ``"?"`` where nobody knows.
        said: verdict word.
        wrong: in words, or "".
    """

    number: int
    kind: str
    truth: str
    attack: bool
    semantics: str
    said: str
    wrong: str
    seconds: float


def ask(work: tuple[int, int, float]) -> Case:
    """Ask one question: seed, number and seconds allowed."""
    import torch

    import certify
    from certify.core.spec import Row

    torch.set_num_threads(1)
    seed, number, timeout = work
    rng = np.random.default_rng([seed, number])
    kind = KINDS[number % len(KINDS)]
    layers, inputs, outputs = random_network(kind, rng)
    low, high = _box(rng, inputs)
    clauses = [(rng.normal(size=(r, outputs)), rng.normal(size=r) * 0.3)
               for r in rng.integers(1, 4, size=int(rng.integers(1, 4)))]
    least = [_least(kind, layers, (low, high), C, base, rng) for C, base in clauses]
    shift, truth = _threshold(least, rng)
    rows = [[Row(c, float(b + shift)) for c, b in zip(C, base, strict=True)]
            for C, base in clauses]
    spec = certify.Spec.unsafe(rows, outputs)
    attack = bool(rng.random() < _WITH_ATTACK)
    semantics = str(rng.choice(["real", "real", "float32"]))
    with tempfile.TemporaryDirectory() as folder:
        network = certify.load(write_model(Path(folder) / "net.onnx", layers, inputs))
        started = time.monotonic()
        allowed = timeout if attack else min(timeout, _WITHOUT)
        found = certify.verify(network, certify.Box(low[None], high[None]), spec, allowed,
                               attack=attack, semantics=semantics, workers=1)
        seconds = time.monotonic() - started
    point = None if found.counterexample is None else found.counterexample.flat
    wrong = _wrong(found.verdict.word, truth, layers, clauses, shift, point)
    return Case(number, kind, truth, attack, semantics, found.verdict.word, wrong, seconds)


def _box(rng: np.random.Generator, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    centre, radius = rng.normal(size=inputs) * 0.5, 10 ** rng.uniform(-1.5, 0.3)
    reach = radius * rng.random(inputs)
    reach[rng.random(inputs) < 0.1] = 0.0  # fixed inputs
    if inputs > 8:
        reach[rng.permutation(inputs)[8:]] *= 0.2
    ends = (centre - reach).astype(np.float32), (centre + reach).astype(np.float32)
    return ends[0].astype(np.float64), ends[1].astype(np.float64)


def _least(kind: str, layers: Layers, box: tuple[np.ndarray, np.ndarray], C: np.ndarray,
           base: np.ndarray, rng: np.random.Generator) -> Least:
    if kind in EXACT:
        try:
            return exact_minimum(layers, box, C, base)
        except ArithmeticError:  # the solver stumbled over its tolerances
            pass
    return searched_minimum(layers, box, C, base, rng)


def _threshold(least: list[Least], rng: np.random.Generator) -> tuple[float, str]:
    """A shift of all thresholds, and the answer it makes true."""
    low, high = min(f.low for f in least), min(f.high for f in least)
    scale = 1 + abs(high)
    gap = scale * 10 ** rng.uniform(-3, -0.5)
    if rng.random() < 0.5:
        return high + gap, "sat"
    return high - gap, "unsat" if low > high - gap + _SURE * scale else "?"


def _wrong(said: str, truth: str, layers: Layers, clauses: Clauses, shift: float,
           point: np.ndarray | None) -> str:
    if {said, truth} == {"sat", "unsat"}:
        return f"said {said}, is {truth}"
    if said == "sat":
        if point is None:
            return "sat without a counterexample"
        y = run(layers, point[None].astype(np.float64))[0]
        value = min(float((C @ y - base).max()) for C, base in clauses)
        if value > shift + _SURE * (1 + abs(shift)):
            return "its counterexample is safe"
    return ""
