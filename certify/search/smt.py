"""Tiny ReLU networks in exact rational arithmetic, asked of the SMT solver z3: a second opinion.

A solver's word proves nothing here. A model it finds counts only once the network itself has been
run on it; "unsat" is left to a bound or a search of this toolkit to establish. What the solver says
is for comparing answers in tests, and for finding counterexamples by other means.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from certify.core.certificate import Counterexample, Verdict
from certify.core.errors import BadInput, LimitExceeded, Unsupported
from certify.core.graph import INPUT, Graph, Node
from certify.search.boxes import Frame
from certify.search.replay import confirm

if TYPE_CHECKING:
    from certify.core.region import Region
    from certify.core.spec import Clause, Spec

MOST_RELUS = 200
_MOST_TERMS = 200_000  # nonzero weights
Terms = NDArray[Any]  # z3 terms, an array of objects
Rule = Callable[["_Encoding", Node], Terms]


@dataclass(frozen=True, eq=False)
class SmtReport:
    """What the solver said.

    Attributes:
        answer: ``"unsat"``, ``"sat"`` or ``"unknown"``, of the exact function of the stored weights
            over the region's float64 ends.
        reason: why it is unknown, or why a model was not confirmed; "" otherwise.
        point: the solver's model, all inputs flat and joined, exact; None for none.
        counterexample: the same point once the network has been run on it and answered unsafely.
    """

    answer: str
    reason: str = ""
    point: tuple[Fraction, ...] | None = None
    counterexample: Counterexample | None = None

    @property
    def verdict(self) -> Verdict:
        """VIOLATED for a confirmed counterexample; otherwise UNKNOWN: no proof rests on z3."""
        return Verdict.UNKNOWN if self.counterexample is None else Verdict.VIOLATED


def ask(
    network: Graph, region: Region, spec: Spec, timeout: float = 60.0, seed: int = 0
) -> SmtReport:
    """Ask z3 whether a specification is violated (Katz et al. 2017 and Ehlers 2017 ask alike).

    Args:
        network: dense layers, ReLUs, leaky ReLUs, sums and reshapes; at most 200 ReLUs.
        region: `Box` or `Linf`, or a `Product` of them; one example.
        spec: of one example.
        timeout: seconds for the solver.

    Raises:
        Unsupported: z3 is not installed, or an operator has no encoding.
        LimitExceeded: more ReLUs or weights than that.
        BadInput: region or specification do not fit.
    """
    z3 = _solver()
    frame = _frame(network, region, spec)
    _check_size(network)
    encoding = _Encoding(z3, network, frame)
    inputs, outputs = encoding.run()
    solver = z3.SolverFor("QF_LRA")
    solver.set("timeout", max(1, int(1000 * timeout)))
    solver.set("random_seed", seed)
    solver.add(encoding.facts)
    pieces = [encoding.clause(clause, inputs, outputs) for clause in spec.clauses]
    solver.add(z3.Or(pieces))
    answer = str(solver.check())
    if answer != "sat":
        return SmtReport(answer, "" if answer == "unsat" else str(solver.reason_unknown()))
    model = solver.model()
    point = tuple(_fraction(model.eval(x, model_completion=True)) for x in inputs)
    found = confirm(network, region, spec, np.array([float(v) for v in point]))
    reason = "" if found else "the network's own answer there, rounded, is not unsafe"
    return SmtReport("sat", reason, point, found)


def _solver() -> Any:
    try:
        import z3
    except ImportError:
        raise Unsupported("asking an SMT solver needs z3: pip install 'certify[z3]', or "
                          "pip install z3-solver") from None
    return z3


def _fraction(value: Any) -> Fraction:
    return Fraction(value.numerator_as_long(), value.denominator_as_long())


def _frame(network: Graph, region: Region, spec: Spec) -> Frame:
    from certify.core.region import Product, as_inputs

    parts = as_inputs(region, list(network.input_shapes))
    whole = parts[0] if len(parts) == 1 else Product(parts)
    if whole.batch != 1 or spec.batch != 1:
        raise BadInput("a solver is asked about one example; give a region and a spec of batch 1")
    if spec.num_outputs != math.prod(network.output_shape):
        raise BadInput(f"the specification is about {spec.num_outputs} outputs, the network has "
                       f"{math.prod(network.output_shape)}")
    frame = Frame.of(whole)
    if frame is None:
        raise BadInput("a solver is asked about a box: give a Box or Linf region")
    return frame


def _check_size(network: Graph) -> None:
    missing = sorted({n.op for n in network.nodes if n.op != INPUT and n.op not in _RULES})
    if missing:
        raise Unsupported(f"no exact encoding of {', '.join(missing)}; there is one of "
                          f"{', '.join(sorted(_RULES))}")
    relus = sum(math.prod(n.shape) for n in network.nodes if n.op in ("relu", "leaky_relu"))
    terms = sum(int(np.count_nonzero(np.asarray(c))) for c in network.constants.values())
    if relus > MOST_RELUS or terms > _MOST_TERMS:
        raise LimitExceeded(f"{relus} ReLUs and {terms} weights are too many for an exact "
                            f"encoding: at most {MOST_RELUS} and {_MOST_TERMS}")


class _Encoding:
    """A network's elements as z3 terms, and what is known of them.

    Attributes:
        facts: constraints so far.
    """

    def __init__(self, z3: Any, network: Graph, frame: Frame) -> None:
        self.z3, self.network, self.frame = z3, network, frame
        self.facts: list[Any] = []
        self.values: dict[str, Terms] = {}
        self._fresh = itertools.count()

    def run(self) -> tuple[list[Any], list[Any]]:
        """All inputs and all outputs, flat."""
        inputs: list[Any] = []
        for node in self.network.nodes:
            if node.op == INPUT:
                self.values[node.name] = self._variables(node.shape)
                inputs += self.values[node.name].reshape(-1).tolist()
            else:
                self.values[node.name] = _RULES[node.op](self, node).reshape(node.shape)
        for x, low, high in zip(inputs, self.frame.lower, self.frame.upper, strict=True):
            self.facts += [x >= self.number(low), x <= self.number(high)]
        return inputs, self.values[self.network.output].reshape(-1).tolist()

    def number(self, value: Any) -> Any:
        """A number, exactly."""
        return self.z3.RealVal(str(Fraction(value)))

    def numbers(self, array: Any) -> Terms:
        """An array of numbers, exactly."""
        plain = np.asarray(array, dtype=np.float64)
        found = np.empty(plain.size, dtype=object)
        found[:] = [self.number(v) for v in plain.reshape(-1).tolist()]
        return found.reshape(plain.shape)

    def operand(self, name: str) -> Terms:
        """A node's terms, or a constant's numbers."""
        found = self.values.get(name)
        return self.numbers(_plain(self.network.constants[name])) if found is None else found

    def weighted(self, weights: Any, terms: Any) -> Any:
        """``sum w x`` over weights that are not 0."""
        chosen = [(w, x) for w, x in zip(weights, terms, strict=True) if w]
        parts = [self.number(w) * x for w, x in chosen]
        return self.z3.Sum(parts) if parts else self.z3.RealVal(0)

    def named(self, terms: Terms) -> Terms:
        """Variables equal to terms, so that terms do not grow from layer to layer."""
        found = self._variables(terms.shape)
        pairs = zip(found.reshape(-1), terms.reshape(-1), strict=True)
        self.facts += [v == t for v, t in pairs]
        return found

    def bent(self, terms: Terms, slope: float) -> Terms:
        """``t`` where it is not negative, ``slope t`` where it is."""
        z3, low = self.z3, self.number(slope)
        x, y = self.named(terms), self._variables(terms.shape)
        for a, b in zip(x.reshape(-1), y.reshape(-1), strict=True):
            self.facts.append(z3.Or(z3.And(a >= 0, b == a), z3.And(a <= 0, b == low * a)))
        return y

    def clause(self, clause: Clause, inputs: list[Any], outputs: list[Any]) -> Any:
        """All rows of a clause together, with its thresholds as they were stated."""
        rows = []
        for i, strict in enumerate(clause.strict):
            total = self.weighted(clause.y[0, i].tolist(), outputs)
            if clause.x is not None:
                total = total + self.weighted(clause.x[0, i].tolist(), inputs)
            stated = clause.bound.reshape(-1)[i] if clause.exact is None else clause.exact[i]
            bound = self.number(stated)
            rows.append(total < bound if strict else total <= bound)
        return self.z3.And(rows)

    def _variables(self, shape: tuple[int, ...]) -> Terms:
        found = np.empty(math.prod(shape), dtype=object)
        found[:] = [self.z3.Real(f"v{next(self._fresh)}") for _ in range(found.size)]
        return found.reshape(shape)


def _plain(array: Any) -> NDArray[np.float64]:
    from certify.core.arrays import is_tensor

    given = array.detach().cpu().double().numpy() if is_tensor(array) else array
    return np.asarray(given, dtype=np.float64)


def _linear(e: _Encoding, node: Node) -> Terms:
    weight = _plain(e.network.constants[node.inputs[1]])
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] else None
    found = _products(e, e.operand(node.inputs[0]), weight)
    return e.named(found if bias is None else found + e.operand(bias))


def _matmul(e: _Encoding, node: Node) -> Terms:
    left, right = node.inputs
    if right in e.network.constants and _plain(e.network.constants[right]).ndim == 2:
        weight = _plain(e.network.constants[right])
        return e.named(_products(e, e.operand(left), weight.T))
    raise Unsupported(f"node {node.name!r}: a product is encoded with a constant matrix on the "
                      "right only")


def _products(e: _Encoding, terms: Terms, weight: NDArray[np.float64]) -> Terms:
    """``(..., n)`` terms times the transpose of ``(m, n)`` weights."""
    rows = terms.reshape(-1, terms.shape[-1])
    found = np.empty((len(rows), len(weight)), dtype=object)
    for i, j in np.ndindex(found.shape):
        found[i, j] = e.weighted(weight[j].tolist(), rows[i])
    return found.reshape(*terms.shape[:-1], len(weight))


def _added(e: _Encoding, node: Node, sign: int) -> Terms:
    a, b = (e.operand(name) for name in node.inputs)
    return np.asarray(a + b if sign > 0 else a - b, dtype=object)


def _relu(e: _Encoding, node: Node) -> Terms:
    return e.bent(e.operand(node.inputs[0]), float(node.attrs.get("alpha", 0.0)))


def _moved(e: _Encoding, node: Node) -> Terms:
    return e.operand(node.inputs[0])


_RULES: dict[str, Rule] = {
    "linear": _linear,
    "matmul": _matmul,
    "add": partial(_added, sign=1),
    "sub": partial(_added, sign=-1),
    "relu": _relu,
    "leaky_relu": _relu,
    "reshape": _moved,
}
