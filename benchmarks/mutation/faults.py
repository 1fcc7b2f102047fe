"""The faults that `run` plants: text to find, once, and what takes its place."""

from __future__ import annotations

from dataclasses import dataclass

ANSWERS, EVERY, ROUNDING, META, TRAPS = (
    f"tests/test_{name}.py"
    for name in ("exact_answers", "every_method", "rounding", "metamorphic", "traps")
)
ALL = (ANSWERS, META, ROUNDING, TRAPS, EVERY)
BALL, SDP = "tests/test_ball.py", "tests/test_semidefinite.py"


@dataclass(frozen=True)
class Mutation:
    """One planted fault: ``old``, found once in ``file``, becomes ``new``."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ALL


BOUNDS, OPS, CORE = "certify/bounds", "certify/ops", "certify/core"
MUTATIONS = (
    Mutation(
        "relu: chord intercept dropped",
        f"{OPS}/relu.py",
        "c = torch.maximum(up * (-left).clamp(max=info.max), (1 - up) * right)",
        "c = torch.zeros_like(up * right)",
    ),
    Mutation(
        "relu: chord intercept x0.95",
        f"{OPS}/relu.py",
        "c * (1 + 4 * info.eps) + 2 * info.eps * up * right + info.tiny",
        "c * 0.95",
    ),
    Mutation(
        "relu: chord intercept short by 1e-9",
        f"{OPS}/relu.py",
        "c * (1 + 4 * info.eps) + 2 * info.eps * up * right + info.tiny",
        "c * (1 - 2.0**-30)",
        (ROUNDING, TRAPS),
    ),
    Mutation(
        "relu: chord slope x0.98 after the intercept",
        f"{OPS}/relu.py",
        "ReluLines(site, (slope,), None, (up,), c)",
        "ReluLines(site, (slope,), None, (up * 0.98,), c)",
    ),
    Mutation(
        "relu: alpha up to 1.2",
        f"{OPS}/relu.py",
        "(start.bool() | unstable).to(low.dtype))",
        "(start.bool() | unstable).to(low.dtype) * 1.2)",
    ),
    Mutation(
        "relu: alpha down to -0.1",
        f"{OPS}/relu.py",
        "start * ~unstable, (start",
        "start * ~unstable - 0.1, (start",
    ),
    Mutation(
        "relu: u < 0.05 treated as dead",
        f"{OPS}/relu.py",
        "unstable = ~(active | (high <= 0))",
        "unstable = ~(active | (high <= 0.05))",
    ),
    Mutation(
        "relu: l > -0.05 treated as active",
        f"{OPS}/relu.py",
        "active = low >= 0",
        "active = low >= -0.05",
    ),
    Mutation(
        "relu: lower and upper line swapped",
        f"{OPS}/relu.py",
        "torch.where(A > 0, low, up)",
        "torch.where(A < 0, low, up)",
    ),
    Mutation(
        "two slopes: gap at the kink forgotten",
        f"{OPS}/relu.py",
        "m = torch.where(inside, m - m.clamp(min=0), m)",
        "m = m * 1",
    ),
    Mutation(
        "lines: lower and upper swapped",
        f"{OPS}/families.py",
        "positive, negative = A.clamp(min=0), A.clamp(max=0)",
        "negative, positive = A.clamp(min=0), A.clamp(max=0)",
        (EVERY,),
    ),
    Mutation(
        "oracle: best candidate is the largest",
        f"{OPS}/oracle.py",
        "best = torch.minimum(best, other)",
        "best = torch.maximum(best, other)",
        (EVERY,),
    ),
    Mutation(
        "maximum: upper plane forgets one corner",
        f"{OPS}/maximum.py",
        "found = torch.maximum(at(1 - a, x.upper) - at(b, y.lower), "
        "at(1 - b, y.upper) - at(a, x.lower))",
        "found = at(1 - a, x.upper) - at(b, y.lower)",
        (EVERY,),
    ),
    Mutation(
        "conv transpose: paddings swapped backward",
        f"{OPS}/conv_transpose.py",
        "bordered(flat, window.begins, ends)",
        "bordered(flat, ends, window.begins)",
        (EVERY, ANSWERS),
    ),
    Mutation(
        "conv: wrong padding backward",
        f"{OPS}/conv.py",
        "tuple(-p for p in window.begins)",
        "tuple(-p for p in window.ends)",
        (EVERY, ANSWERS),
    ),
    Mutation(
        "backward: bias dropped",
        f"{BOUNDS}/backward.py",
        "            self._add_bias(signed)\n",
        "            pass\n",
    ),
    Mutation(
        "backward: a branch overwrites the other",
        f"{BOUNDS}/backward.py",
        "total = dense(old) + dense(part)",
        "total = dense(part)",
    ),
    Mutation(
        "backward: mirrored sign lost",
        f"{BOUNDS}/backward.py",
        "self.coefficients[index] = torch.cat((A, -A), 1)",
        "self.coefficients[index] = torch.cat((A, A), 1)",
    ),
    Mutation(
        "backward: mirrored bias not negated",
        f"{BOUNDS}/backward.py",
        "torch.cat((self.bias, -self.bias), 1)",
        "torch.cat((self.bias, self.bias), 1)",
    ),
    Mutation(
        "backward: rounding of affine steps not charged",
        f"{BOUNDS}/backward.py",
        "size is not None:\n            self.error = self.error + size\n",
        "size is not None:\n            pass\n",
        (ROUNDING,),
    ),
    Mutation(
        "patches: places one off",
        f"{BOUNDS}/patches.py",
        "top, left = place // OW * sy - py,",
        "top, left = place // OW * sy - py + 1,",
        (EVERY, ANSWERS),
    ),
    Mutation(
        "patches: strides ignored",
        f"{BOUNDS}/patches.py",
        "top, left = rows.top * sy - py,",
        "top, left = rows.top - py,",
        (EVERY, ANSWERS),
    ),
    Mutation(
        "patches: what hangs over the edge is kept",
        f"{BOUNDS}/patches.py",
        "values=self.values * inside.unsqueeze(-1)",
        "values=self.values",
        (EVERY, ANSWERS),
    ),
    Mutation(
        "crown: unit rows read another example's bounds",
        f"{BOUNDS}/rows.py",
        "flat = per_example(values).expand(self.index.shape[0], -1)",
        "flat = per_example(values).expand(self.index.shape[0], -1).roll(1, 0)",
        (EVERY,),
    ),
    Mutation(
        "crown: relaxation of the wrong example",
        f"{BOUNDS}/crown.py",
        "found = step.curve.relax(step.site, None, *step.operands(self.bounds))",
        "found = step.curve.relax(step.site, None, *step.operands("
        "[None if b is None else Interval(b.lower[:1].expand_as(b.lower), "
        "b.upper[:1].expand_as(b.upper)) for b in self.bounds]))",
        (EVERY,),
    ),
    Mutation(
        "crown: intermediate bounds 1 % too tight",
        f"{BOUNDS}/crown.py",
        "torch.fmax(low, rows.pick(lower))",
        "torch.fmax(low + 0.01 * low.abs(), rows.pick(lower))",
    ),
    Mutation(
        "ibp: |W| forgotten",
        f"{BOUNDS}/interval.py",
        "radius: list[Any] = list(step.sizes)",
        "radius: list[Any] = list(step.constants)",
        (EVERY,),
    ),
    Mutation(
        "rounding: own error of affine steps removed",
        f"{BOUNDS}/rounding.py",
        "own = 3 * gamma(terms, unit) * total",
        "own = 0 * gamma(terms, unit) * total",
        (ROUNDING,),
    ),
    Mutation(
        "rounding: deployed error removed",
        f"{BOUNDS}/rounding.py",
        "return own, torch.where(total > LARGEST32, torch.inf, deployed)",
        "return own, None",
        (ROUNDING, TRAPS),
    ),
    Mutation(
        "rounding: float32 overflow not seen",
        f"{BOUNDS}/rounding.py",
        "return own, torch.where(total > LARGEST32, torch.inf, deployed)",
        "return own, deployed",
        (ROUNDING, TRAPS),
    ),
    Mutation(
        "rounding: batch norm's own roundings not counted",
        f"{BOUNDS}/rounding.py",
        "roundings = forward + 2 + rule.roundings",
        "roundings = 1",
        (ROUNDING,),
    ),
    Mutation(
        "input box rounded to nearest in float32",
        f"{BOUNDS}/crown.py",
        "return torch.where(inside, torch.nextafter(near, torch.full_like(near, outward)), near)",
        "return near",
        (ROUNDING,),
    ),
    Mutation(
        "concretise: |A| partly missing",
        f"{CORE}/linear_minimum.py",
        "    terms, size = a.shape[-1], a.abs()\n    largest = mid.abs() + rad\n"
        "    value = dot(a, mid) - dot(size, rad)",
        "    terms, size = a.shape[-1], a.abs()\n    largest = mid.abs() + rad\n"
        "    value = dot(a, mid) - dot(size[..., 1:], rad[..., 1:])",
    ),
    Mutation(
        "concretise: eps x0.99",
        f"{CORE}/region_centred.py",
        "center, eps = widened(self.center), expand(widened(self.size), shape)",
        "center, eps = widened(self.center), 0.99 * expand(widened(self.size), shape)",
        (ROUNDING, EVERY),
    ),
    Mutation(
        "concretise: dual norm of the wrong ball",
        f"{CORE}/region_ball.py",
        'q = float("inf") if p == 1 else p / (p - 1)',
        'q = float("inf")',
        (ROUNDING, EVERY),
    ),
    Mutation(
        "verdict: last row skipped",
        f"{CORE}/spec.py",
        "np.logical_or.reduceat(single, self._starts(), axis=1).all(axis=1)",
        "np.logical_or.reduceat(single, self._starts(), axis=1)[:, :-1].all(axis=1)",
        (META, ANSWERS),
    ),
    Mutation(
        "verdict: any clause is enough",
        f"{CORE}/spec.py",
        "np.logical_or.reduceat(single, self._starts(), axis=1).all(axis=1)",
        "np.logical_or.reduceat(single, self._starts(), axis=1).any(axis=1)",
        (META, ANSWERS),
    ),
    Mutation(
        "verdict: every row of a clause is needed",
        f"{CORE}/spec.py",
        "np.logical_or.reduceat(single, self._starts(), axis=1).all(axis=1)",
        "np.logical_and.reduceat(single, self._starts(), axis=1).all(axis=1)",
        (META,),
    ),
    Mutation(
        "verdict: strict and closed swapped",
        f"{CORE}/spec.py",
        "single = np.where(self.strict, margins >= 0, margins > 0)",
        "single = np.where(self.strict, margins > 0, margins >= 0)",
        (META,),
    ),
    Mutation(
        "verdict: NaN decides",
        f"{CORE}/spec.py",
        "single = np.where(self.strict, margins >= 0, margins > 0)",
        "single = np.where(self.strict, ~(margins < 0), ~(margins <= 0))",
        (META,),
    ),
    Mutation(
        "verdict: tolerance of 1e-3",
        f"{BOUNDS}/decide.py",
        "margins = values.cpu().numpy().astype(np.float64) - question.bound",
        "margins = values.cpu().numpy().astype(np.float64) - question.bound + 1e-3",
        (ANSWERS, TRAPS),
    ),
    Mutation(
        "verdict: plain floats prove",
        f"{CORE}/semantics.py",
        "return self is not Semantics.SEARCH",
        "return False",
        (ROUNDING, ANSWERS),
    ),
    Mutation(
        "vnnlib: decimal bounds rounded to nearest",
        f"{CORE}/decimals.py",
        "lo, hi = (near, math.nextafter(near, math.inf)) if stored < exact else (",
        "lo, hi = (near, near) if stored < exact else (",
        ("tests/test_vnnlib.py",),
    ),
    Mutation(
        "self-test: flushed subnormals accepted",
        f"{BOUNDS}/selftest.py",
        "    if bool((tiny * half == 0).any()):",
        "    if False:",
        (ROUNDING,),
    ),
    Mutation(
        "ball: radius half as large",
        f"{BOUNDS}/ball.py",
        "total = total + norm * self._radius[source]",
        "total = total + 0.5 * norm * self._radius[source]",
        (BALL,),
    ),
    Mutation(
        "ball: rounding of the centre free",
        f"{BOUNDS}/ball.py",
        "total = _reach(point, centre)",
        "total = 0.0 * _reach(point, centre)",
        (BALL,),
    ),
    Mutation(
        "ball: price of the multiplier halved",
        f"{BOUNDS}/dual.py",
        "-0.5 * (1 + 2.0**-49) * k * radius**2",
        "-0.25 * (1 + 2.0**-49) * k * radius**2",
        (BALL,),
    ),
    Mutation(
        "definite: no shift for rounding",
        f"{BOUNDS}/definite.py",
        "shift = 2 * _gamma(n + 2) * float(diagonal.sum()) + n * _TINY",
        "shift = -1e-6 * float(diagonal.sum())",
        ("tests/test_definite.py",),
    ),
    Mutation(
        "sdp: shift not paid for",
        f"{BOUNDS}/semidefinite.py",
        "best = max(best, level - margin - shift * side * (1 + 2.0**-30))",
        "best = max(best, level - margin)",
        (SDP, ANSWERS),
    ),
    Mutation(
        "sdp: multipliers of either sign",
        f"{BOUNDS}/semidefinite.py",
        "w if self.free else np.maximum(w, 0.0)",
        "w",
        (SDP,),
    ),
    Mutation(
        "sdp: rounding free",
        f"{BOUNDS}/semidefinite.py",
        "return found, lost + float(most @ size @ most) * 2 * gamma(terms, UNIT64)",
        "return found, 0.0 * lost",
        (SDP, ANSWERS, ROUNDING),
    ),
    Mutation(
        "substitutions: a candidate forgotten",
        "certify/core/region_substitutions.py",
        "for choice in itertools.product(*(options[i] for i in places)):",
        "for choice in itertools.product(*(options[i][1:] for i in places)):",
        ("tests/test_structured_regions.py",),
    ),
    Mutation(
        "substitutions: the budget one short",
        "certify/core/region_substitutions.py",
        "few = torch.where(rank < budget, change.topk",
        "few = torch.where(rank + 1 < budget, change.topk",
        ("tests/test_structured_regions.py",),
    ),
    Mutation(
        "forward: float32 sums rounded to nearest",
        f"{BOUNDS}/forward.py",
        "low, up = (round_down(side.to(state.program.dtype)) for side in (low, up))",
        "low, up = (side.to(state.program.dtype) + 1e-5 for side in (low, up))",
        (ANSWERS, EVERY),
    ),
)
