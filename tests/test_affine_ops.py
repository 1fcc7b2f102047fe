"""Every affine record against its own matrix, written out in float64 by probing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from certify import ops
from certify.ops.families import _derived_transpose, affine_rule
from certify.ops.record import AffineRule, Example, Op, Site

REGISTRY = ops.load()
LEADS = ((), (1,), (2, 3))


@dataclass(frozen=True)
class Case:
    """A record at one place, with float64 constants."""

    op: Op
    rule: AffineRule
    site: Site
    constants: tuple[Any, ...]

    @property
    def sizes(self) -> list[int]:
        return [math.prod(s) for s, v in zip(self.site.shapes, self.site.varies, strict=True) if v]

    def operands(self, flat: torch.Tensor, absolute: bool = False) -> list[Any]:
        """Operands from ``(..., all variables flattened one after the other)``."""
        found, start = [], 0
        for i, (shape, varies) in enumerate(zip(self.site.shapes, self.site.varies, strict=True)):
            if varies:
                part = flat[..., start : start + math.prod(shape)]
                found.append(part.reshape((*flat.shape[:-1], *shape)))
                start += math.prod(shape)
            else:
                c = self.constants[i]
                found.append(c.abs() if absolute and i in self.rule.weights else c)
        return found

    def flat(self, value: torch.Tensor) -> torch.Tensor:
        return value.reshape((*value.shape[: value.dim() - len(self.site.shape)], -1))

    def forward(self, flat: torch.Tensor) -> torch.Tensor:
        return self.flat(self.op.forward(self.site, *self.operands(flat)))

    def linear(self, flat: torch.Tensor) -> torch.Tensor:
        return self.flat(self.rule.linear(self.site, *self.operands(flat)))

    def absolute(self, flat: torch.Tensor) -> torch.Tensor:
        return self.flat(self.rule.absolute(self.site, *self.operands(flat, absolute=True)))

    def transpose(self, A: torch.Tensor) -> torch.Tensor:
        blanks = [None if v else c for v, c in zip(self.site.varies, self.constants, strict=True)]
        rows = A.reshape((*A.shape[:-1], *self.site.shape))
        parts = self.rule.transpose(self.site, rows, *blanks)
        assert [p is not None for p in parts] == list(self.site.varies)
        lead = A.shape[:-1]
        kept = [(p, s) for p, s in zip(parts, self.site.shapes, strict=True) if p is not None]
        assert [tuple(p.shape) for p, s in kept] == [(*lead, *s) for p, s in kept]
        return torch.cat([p.reshape((*lead, -1)) for p, s in kept], -1)

    def matrix(self) -> torch.Tensor:
        """L, as (result elements, variable elements)."""
        return self.linear(torch.eye(sum(self.sizes), dtype=torch.float64)).T


def case_of(op: Op, example: Example) -> Case | None:
    shapes, varies, constants = [], [], []
    for operand in example.operands:
        variable = isinstance(operand, tuple)
        array = None if variable or operand is None else np.asarray(operand)
        shapes.append(operand if variable else () if array is None else array.shape)
        varies.append(variable)
        tensor = None if array is None else torch.as_tensor(array)
        floating = tensor is not None and tensor.is_floating_point()
        constants.append(tensor.double() if floating else tensor)
    shape = tuple(op.shape(example.attrs, *shapes))
    site = Site(op.name, example.attrs, tuple(shapes), tuple(varies), shape)
    rule = op.rule(site)
    return Case(op, rule, site, tuple(constants)) if isinstance(rule, AffineRule) else None


def all_cases() -> list[Any]:
    found = []
    for name, op in sorted(REGISTRY.ops.items()):
        cases = [case_of(op, e) for e in op.examples] if op.affine else []
        present = [c for c in cases if c is not None]
        if op.affine:
            assert present, f"no example of {name} is affine"
        found += [pytest.param(c, id=f"{name}-{k}") for k, c in enumerate(present)]
    return found


@pytest.fixture(params=all_cases())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))
    )


@pytest.mark.parametrize("lead", LEADS)
def test_shape_rule_is_the_shape_of_forward(case: Case, lead: tuple[int, ...]) -> None:
    operands = case.operands(draw(*lead, sum(case.sizes)))
    assert tuple(case.op.forward(case.site, *operands).shape) == (*lead, *case.site.shape)


def test_forward_is_affine(case: Case) -> None:
    x, y = draw(4, sum(case.sizes)), draw(4, sum(case.sizes)).flip(0)
    between = case.forward(0.3 * x + 0.7 * y)
    torch.testing.assert_close(between, 0.3 * case.forward(x) + 0.7 * case.forward(y))
    offset = case.forward(torch.zeros_like(x))
    torch.testing.assert_close(case.forward(x), case.linear(x) + offset)


@pytest.mark.parametrize("lead", LEADS)
def test_batch_axes_do_not_matter(case: Case, lead: tuple[int, ...]) -> None:
    x = draw(*lead, sum(case.sizes))
    one_by_one = torch.stack([case.forward(v) for v in x.reshape(-1, x.shape[-1])])
    torch.testing.assert_close(case.forward(x).reshape(one_by_one.shape), one_by_one)


def check_adjoint(case: Case, lead: tuple[int, ...]) -> None:
    x, A = draw(*lead, sum(case.sizes)), draw(*lead, math.prod(case.site.shape))
    left, right = (A * case.linear(x)).sum(-1), (case.transpose(A) * x).sum(-1)
    torch.testing.assert_close(left, right)
    torch.testing.assert_close(case.transpose(A), A @ case.matrix())


@pytest.mark.parametrize("lead", LEADS)
def test_transpose_is_the_adjoint(case: Case, lead: tuple[int, ...]) -> None:
    check_adjoint(case, lead)


def test_hand_written_transpose_is_the_derived_one(case: Case) -> None:
    blanks = [None if v else c for v, c in zip(case.site.varies, case.constants, strict=True)]
    A = draw(2, 3, *case.site.shape)
    derived = _derived_transpose(case.rule.linear)(case.site, A, *blanks)
    written = case.rule.transpose(case.site, A, *blanks)
    for one, other in zip(derived, written, strict=True):
        torch.testing.assert_close(one, other)


def test_transpose_is_differentiable(case: Case) -> None:
    A = draw(2, math.prod(case.site.shape)).requires_grad_()
    (slope,) = torch.autograd.grad(case.transpose(A).sum(), A)
    torch.testing.assert_close(slope, case.matrix().sum(1).expand_as(slope))


def check_absolute(case: Case) -> None:
    size = draw(5, sum(case.sizes)).abs()
    torch.testing.assert_close(case.absolute(size), size @ case.matrix().abs().T)
    if case.rule.monotone:
        assert bool((case.matrix() >= 0).all())


def test_absolute_is_the_absolute_matrix(case: Case) -> None:
    check_absolute(case)


def test_interval_holds_samples_and_is_attained(case: Case) -> None:
    n = sum(case.sizes)
    middle, radius = draw(n), draw(n).abs()
    centre, reach = case.forward(middle), case.absolute(radius)
    samples = case.forward(middle + radius * (2 * torch.rand(200, n, dtype=torch.float64) - 1))
    slack = 1e-12 * (1 + reach + centre.abs())
    assert bool((samples <= centre + reach + slack).all())
    assert bool((samples >= centre - reach - slack).all())
    corners = case.forward(middle + radius * case.matrix().sign())  # one corner per result element
    torch.testing.assert_close(corners.diagonal(), centre + reach)


def check_summands(case: Case) -> None:
    matrix = case.matrix()
    forward, backward = case.rule.summands(case.site)
    for count, terms in ((forward, (matrix != 0).sum(1)), (backward, (matrix != 0).sum(0))):
        most = int(terms.max()) if terms.numel() else 0
        assert (most if count else min(most, 1)) >= most, f"{most} products, {count} stated"
        assert count == 0 or count >= most
    if (forward, backward) == (0, 0):
        assert bool(((matrix == 0) | (matrix.abs() == 1)).all()), "values are multiplied, not moved"


def test_summands_cover_every_product(case: Case) -> None:
    check_summands(case)


def test_offset_size_covers_the_offset(case: Case) -> None:
    if case.rule.offset_size is None:
        listed = set(case.rule.weights) | set(case.rule.biases)
        assert listed <= set(range(len(case.site.shapes)))
        return
    operands = [
        None if v else c.abs() if i in case.rule.weights + case.rule.biases else c
        for i, (v, c) in enumerate(zip(case.site.varies, case.constants, strict=True))
    ]
    size = case.rule.offset_size(case.site, *operands).expand(case.site.shape).flatten()
    assert bool(
        (
            case.forward(torch.zeros(sum(case.sizes), dtype=torch.float64)).abs() <= size + 1e-12
        ).all()
    )


def planted(name: str, **changes: Any) -> Case:
    """A first example of ``name`` with a faulty rule."""
    found = case_of(REGISTRY.ops[name], REGISTRY.ops[name].examples[0])
    assert found is not None
    return Case(
        found.op,
        affine_rule(**{"forward": found.op.forward, **changes}),
        found.site,
        found.constants,
    )


@pytest.mark.parametrize(
    ("check", "case"),
    [
        (check_absolute, planted("neg")),
        (check_absolute, planted("sub", biases=())),
        (check_absolute, planted("conv", biases=(2,))),
        (check_absolute, planted("linear", biases=(2,), weights=(1,), monotone=True)),
        (check_summands, planted("conv", biases=(2,), summands=lambda site: (3, 3))),
        (check_summands, planted("expand", summands=lambda site: (0, 0))),
        (check_summands, planted("reduce_mean", summands=lambda site: (0, 0))),
        (
            lambda case: check_adjoint(case, ()),
            planted("transpose", transpose=lambda site, A, x: (A.reshape(site.shapes[0]),)),
        ),
    ],
    ids=lambda v: v.op.name if isinstance(v, Case) else "",
)
def test_the_checks_notice_planted_faults(check: Any, case: Case) -> None:
    with pytest.raises(AssertionError):
        check(case)
