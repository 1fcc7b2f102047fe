"""A batch of images judged: predicted, bounded, attacked, and searched where still open."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from certify.bounds.budget import Limits
from certify.bounds.decide import Means, Question, decide
from certify.bounds.methods import fit
from certify.bounds.program import prepare
from certify.core.certificate import Verdict
from certify.core.graph import Graph
from certify.core.region import BALLS, Region
from certify.core.semantics import Semantics
from certify.core.spec import Spec
from certify.evaluation.attacks.ensemble import Ensemble, effort_named
from certify.evaluation.finding import Finding
from certify.evaluation.plan import Plan
from certify.search.replay import confirm, replay
from certify.verify import verify

_LARGEST_GROUP = 256  # examples bounded together
_GROUP_OPERATIONS = 4e8  # about this many per step of a group


def judge(graph: Graph, x: np.ndarray, y: np.ndarray, plan: Plan, first: int = 0) -> list[Finding]:
    """Findings about images, in order.

    Every verdict is about the model itself: predictions and broken examples are its own answers
    (`certify.search.replay`), and certified means proved with all rounding accounted for. Certified
    examples are attacked too, briefly: that no attack succeeds on one is a test of this program.

    Args:
        x: ``(N, ...)`` in [0, 1], of the network's input size.
        y: labels ``(N,)``.
        first: index of the first of them in the data.
    """
    x = np.asarray(x, dtype=np.float32).reshape(len(y), *graph.input_shapes[0])
    found = [Finding(first + i, plan.eps, int(label), predicted(graph, image))
             for i, (image, label) in enumerate(zip(x, y, strict=True))]
    right = np.array([i for i, f in enumerate(found) if f.predicted == f.label], dtype=np.int64)
    if not len(right):
        return found
    region = fit(BALLS[plan.norm](x[right].astype(np.float64), plan.eps, clip=(0.0, 1.0)), graph)
    case = _Case(graph, region, y[right].astype(np.int64), plan)
    for place, verdict in zip(right, case.decided(), strict=True):
        found[place] = replace(found[place], **verdict)
    return found


def predicted(graph: Graph, image: np.ndarray) -> int:
    """The class the model itself gives an image; -1 for a tie or for scores that are NaN."""
    scores = replay(graph, image)
    best = int(np.argmax(scores))
    return best if (np.delete(scores, best) < scores[best]).all() else -1


@dataclass(frozen=True, eq=False)
class _Case:
    """Rightly classified images: their regions, labels and what is asked."""

    graph: Graph
    region: Region
    labels: np.ndarray
    plan: Plan

    def decided(self) -> list[dict[str, Any]]:
        """Fields of `Finding` for each."""
        verdicts: list[dict[str, Any]] = [{} for _ in self.labels]
        open_ = np.arange(len(self.labels))
        for method in self.plan.methods:
            open_ = self._bounded(method, open_, verdicts)
        broken = self._attacked(open_)
        for place, name in broken.items():
            verdicts[place]["broken"] = name
        open_ = np.array([i for i in open_ if int(i) not in broken], dtype=np.int64)
        for method in self.plan.late:
            open_ = self._bounded(method, open_, verdicts)
        for example in open_:
            verdicts[example] |= self._searched(int(example))
        return verdicts

    def _bounded(self, method: str, open_: np.ndarray,
                 verdicts: list[dict[str, Any]]) -> np.ndarray:
        """Try to prove the open examples by one method; the ones it leaves open."""
        left = []
        operations = max(1.0, prepare(self.graph).operations)
        size = max(1, min(_LARGEST_GROUP, int(_GROUP_OPERATIONS / operations)))
        for start in range(0, len(open_), size):
            group = open_[start : start + size]
            rows = Spec.classify(self.labels[group], self._classes).rows()
            bound = np.broadcast_to(rows.bound, (len(group), rows.bound.shape[-1]))
            question = Question(self.region.rows(group), rows, np.array(bound))
            means = Means(Semantics(self.plan.semantics), self.plan.device,
                          Limits(self.plan.memory))
            decision = decide(self.graph, question, method, means)
            least = decision.margins.min(axis=1)
            for example, margin, proved in zip(group, least, decision.proved, strict=True):
                verdict = verdicts[example]
                if np.isfinite(margin):
                    verdict["margin"] = max(float(margin), verdict.get("margin", -np.inf))
                if proved:
                    verdict["certified"] = method
                else:
                    left.append(example)
        return np.array(left, dtype=np.int64)

    def _attacked(self, open_: np.ndarray) -> dict[int, str]:
        """Broken examples and what broke them."""
        if self.plan.attack == "none":
            return {}
        ensemble = Ensemble(self.graph, self.region, self.labels, self.plan.eps, self._confirm,
                            self.plan.device, self.plan.seed)
        proved = np.setdiff1d(np.arange(len(self.labels)), open_)
        return (ensemble.broken(effort_named("quick"), proved)
                | ensemble.broken(effort_named(self.plan.attack), open_))

    def _confirm(self, example: int, x: np.ndarray) -> bool:
        region, spec = self.region.rows([example]), self._spec(example)
        return confirm(self.graph, region, spec, x, self.plan.semantics) is not None

    def _searched(self, example: int) -> dict[str, Any]:
        """What a complete search says; open where none is wanted."""
        plan = self.plan
        if not plan.complete:
            return {"why": f"{plan.verifier} does not prove it and no attack breaks it"}
        started = time.monotonic()
        certificate = verify(
            self.graph, self.region.rows([example]), self._spec(example), plan.timeout,
            semantics=plan.semantics, seed=plan.seed, device=plan.device, memory=plan.memory,
            workers=max(1, torch.get_num_threads()))
        spent: dict[str, Any] = {"seconds": round(time.monotonic() - started, 3)}
        if certificate.verdict is Verdict.HOLDS:
            return {"certified": "complete", **spent}
        if certificate.verdict is Verdict.VIOLATED:
            return {"broken": "complete", **spent}
        return {"why": f"{certificate.verdict.word}: {certificate.reason}", **spent}

    def _spec(self, example: int) -> Spec:
        return Spec.classify(int(self.labels[example]), self._classes)

    @property
    def _classes(self) -> int:
        return int(np.prod(self.graph.output_shape))
