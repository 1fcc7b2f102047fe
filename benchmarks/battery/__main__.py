"""Random small networks whose answers are known, against `certify.verify`.

Thresholds are put just beside the true minimum, so that answers are close calls. Piecewise linear
networks have exact minima by mixed-integer programming; for the others a point known to be unsafe
must never be contradicted by a proof. Every answer of a case depends on the seed and its number
alone: ``--only N`` repeats one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.battery.exact import Least, exact_minimum, searched_minimum
from benchmarks.battery.networks import EXACT, KINDS, Layers, random_network, run
from benchmarks.battery.onnx_file import write as write_model
from benchmarks.machine import describe, header
from benchmarks.report import RESULTS, table, write

Clauses = list[tuple[np.ndarray, np.ndarray]]  # coefficients and offsets of each clause's rows

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


def main() -> int:
    """Run, print, write; exit code 1 after a disagreement."""
    options = _arguments()
    numbers = range(options.count) if options.only is None else [options.only]
    work = [(options.seed, n, options.timeout) for n in numbers]
    machine = describe()
    print(header(machine), "\n", file=sys.stderr)
    cases: list[Case] = []
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for case in pool.imap_unordered(_one, work, chunksize=8):
            cases.append(case)
            if case.wrong:
                print(f"WRONG {case}", file=sys.stderr)
            if len(cases) % 500 == 0:
                print(f"{len(cases)} of {len(work)}", file=sys.stderr)
    cases.sort()
    text = _report(machine, cases, options)
    print(text)
    if options.only is None:
        write(options.out, "battery", text, {"machine": machine, "seed": options.seed,
                                             "cases": [c._asdict() for c in cases]})
    return int(any(c.wrong for c in cases))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.battery", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="this one case")
    parser.add_argument("--timeout", type=float, default=20.0, metavar="S", help="per question")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


def _one(work: tuple[int, int, float]) -> Case:
    """Ask one question."""
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
    attack, semantics = bool(rng.random() < 0.5), str(rng.choice(["real", "real", "float32"]))
    with tempfile.TemporaryDirectory() as folder:
        network = certify.load(write_model(Path(folder) / "net.onnx", layers, inputs))
        started = time.monotonic()
        found = certify.verify(network, certify.Box(low[None], high[None]), spec, timeout,
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


def _report(machine: dict[str, Any], cases: list[Case], options: argparse.Namespace) -> str:
    lines = [[kind, truth, *_counts([c for c in cases if (c.kind, c.truth) == (kind, truth)])]
             for kind in KINDS for truth in ("sat", "unsat", "?")
             if any((c.kind, c.truth) == (kind, truth) for c in cases)]
    lines.append(["all", "", *_counts(cases)])
    wrong = sum(bool(c.wrong) for c in cases)
    return "\n".join([
        "# Differential battery\n", header(machine),
        f"\n`python -m benchmarks.battery --count {options.count} --seed {options.seed}`: random "
        "networks, half of them asked with the attack off; `?`: no sure answer known. "
        f"Disagreements: **{wrong}**.\n",
        table(["kind", "answer", "questions", "sat", "unsat", "unknown", "timeout", "wrong",
               "median s", "most s"], lines)]) + "\n"


def _counts(cases: list[Case]) -> list[object]:
    said = Counter(c.said for c in cases)
    seconds = [c.seconds for c in cases]
    return [len(cases), *(said[w] for w in ("sat", "unsat", "unknown", "timeout")),
            sum(bool(c.wrong) for c in cases), float(np.median(seconds)), max(seconds)]


if __name__ == "__main__":
    sys.exit(main())
