"""What an operator is: one record per operator, registered once.

A record holds the operator's meaning (``forward``), its result shape, how linear bounds pass
through it, its import names, and example operands. Importers, every bound method, ``certify
supports`` and the generated tests read the registry and nothing else.

Conventions every rule keeps:

* A *variable* operand depends on the model's input. Its tensor carries any number of leading batch
  axes: ``(..., *shape)``. A *constant* operand has exactly its own shape. ``Site.varies`` tells.
* Axes in ``Site.attrs`` are negative (counted from the end), so leading axes never matter.
* Variable operands of one node have equal rank, and a constant never has a higher rank than the
  result (`Builder` inserts a reshape where a model breaks this).
* Coefficients of linear bounds are ``(B, R, *shape)``: B examples, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from certify.core.graph import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from certify.ops.builder import Builder, Call, Value


class Interval(NamedTuple):
    """Elementwise bounds of a variable operand, both ``(B, *shape)``."""

    lower: Tensor
    upper: Tensor


Operand = Any  # Interval where the operand varies, Tensor where it is constant, None where omitted


@dataclass(frozen=True)
class Site:
    """An operator at one place: everything static that a rule may look at.

    Attributes:
        name: node name, for messages.
        attrs: static settings.
        shapes: operand shapes, one example.
        varies: which operands depend on the model's input.
        shape: result shape, one example.
    """

    name: str
    attrs: Mapping[str, Any]
    shapes: tuple[Shape, ...]
    varies: tuple[bool, ...]
    shape: Shape


@dataclass(frozen=True)
class AffineRule:
    """The result is ``L x + b`` in its variable operands jointly.

    Attributes:
        linear: ``(site, *operands) -> L x``: forward without the offset.
        absolute: ``(site, *operands) -> |L| x`` for ``x >= 0``; constant operands listed in
            ``weights`` arrive as absolute values, so the default is ``linear`` itself.
        transpose: ``(site, A, *operands) -> one tensor per operand`` (None for constants): the
            adjoint of ``linear``. ``A`` is ``(..., *site.shape)``; results ``(..., *shape_i)``.
        summands: ``site -> (forward, backward)``: the most products added up in one element of the
            result, and of the transposed result; 0 where values are only moved, never rounded.
        weights: constant operands that multiply; biases: constant operands that are added.
        monotone: every coefficient of L is >= 0, so bounds go straight through ``forward``.
        roundings: extra relative roundings inside a coefficient (batch norm's division and root).
        offset_size: ``(site, *operands) -> |b|``-like bound on the terms that make up the offset,
            of the result's shape; None: the offset is one stored constant, so its size is ``|b|``.
    """

    linear: Callable[..., Tensor]
    absolute: Callable[..., Tensor]
    transpose: Callable[..., tuple[Tensor | None, ...]]
    summands: Callable[[Site], tuple[int, int]]
    weights: tuple[int, ...] = ()
    biases: tuple[int, ...] = ()
    monotone: bool = False
    roundings: int = 0
    offset_size: Callable[..., Tensor] | None = None


class Slope(NamedTuple):
    """One optimisable tensor of a relaxation: any value in ``[low, high]`` is sound.

    All three are ``(B, 1, *shape)``-broadcastable; an optimiser may widen axis 1 to R rows.
    """

    start: Tensor
    low: Tensor
    high: Tensor


class Relaxation(Protocol):
    """Linear bounds ``lower(x) <= op(x) <= upper(x)`` over the operands' intervals.

    The bounds hold in exact arithmetic for the stored floating-point coefficients. Coefficients
    are always finite; an intercept may be infinite in the sound direction.
    """

    def backward(self, A: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor]:
        """``A (B,R,*shape)`` -> coefficients per operand ``(B,R,*shape_i)`` and a bias ``(B,R)``
        such that ``A . op(x) >= sum_i coefficient_i . x_i + bias`` for every x in the box."""
        ...

    def weight(self, magnitudes: tuple[Tensor | None, ...]) -> Tensor:
        """``sum_i max|coefficient_i| * magnitude_i + max|intercept|``, ``(B, *shape)``; the engine
        multiplies it by a few units of roundoff to bound the error of ``backward``."""
        ...


@dataclass(frozen=True)
class RelaxedRule:
    """An operator that is not affine here.

    Attributes:
        interval: ``(site, *operands) -> Interval``: sound elementwise bounds, never NaN. Operands
            are `Interval` where variable, Tensor where constant.
        relax: ``(site, slopes, *operands) -> Relaxation``; ``slopes`` is None for the default.
        slopes: ``(site, *operands) -> tuple[Slope, ...]``; None when nothing is optimisable.
        ambiguous: ``(site, Interval) -> bool mask``: where tighter bounds of the (only variable)
            operand would help, such as a ReLU's input with ``lower < 0 < upper``; None: wherever
            lower < upper.
        elementwise: each result element depends on one operand element and its interval is exact.
        inner: ``(site, weight, slopes, *operands) -> (B, R, *shape)``, float64: per element a
            lower bound of ``weight op(x) - sum_i slopes_i x_i`` over the operands' intervals, all
            rounding accounted for: the inner problem of the dual (Dvijotham et al. 2018). Weight
            and slopes are ``(B, R, *shape)``, a slope per variable operand, each of the result's
            shape; differentiable, by the envelope theorem. With ``soft=t > 0`` gradients may mix
            near ties. None: the relaxation serves instead.
        halves: ``(site, like, *constants) -> (left, right)``, float64: the slopes of a function of
            two straight halves that meet in 0; None for other functions.
    """

    interval: Callable[..., Interval]
    relax: Callable[..., Relaxation]
    slopes: Callable[..., tuple[Slope, ...]] | None = None
    ambiguous: Callable[[Site, Interval], Tensor] | None = None
    elementwise: bool = False
    inner: Callable[..., Tensor] | None = None
    halves: Callable[..., tuple[Tensor, Tensor]] | None = None


class Example(NamedTuple):
    """Operands for the generated tests.

    Attributes:
        operands: a shape for a variable operand, a numpy array for a constant one, or None.
        attrs: settings.
        low, high: where variable operands are drawn from.
    """

    operands: tuple[Any, ...]
    attrs: Mapping[str, Any] = {}
    low: float = -2.0
    high: float = 2.0


Translate = Callable[["Builder", "Call"], "Value | tuple[Value, ...]"]


@dataclass(frozen=True)
class Op:
    """One operator.

    Attributes:
        name: registry key.
        forward: ``(site, *operands) -> Tensor``: the meaning, in torch.
        shape: ``(attrs, *operand shapes) -> result shape``, without torch.
        affine, relaxed: at least one. With both, `linear_when` picks by site.
        examples: operands for the generated tests; at least one.
        onnx: ONNX operator types -> translation into builder calls (None: same operands, no attrs).
        aten: ATen overload names such as ``"aten.relu.default"`` -> translation, likewise.
        linear_when: ``site -> bool``; default: exactly one operand varies.
        float32_roundings: roundings of a float32 implementation per result element, relative to
            the result (0 for exact operators such as ReLU, 1 for IEEE add, multiply, divide and
            root); None where no accuracy is guaranteed by any standard (exp, tanh, sin ...).
        summary: one line for the documentation.
    """

    name: str
    forward: Callable[..., Tensor]
    shape: Callable[..., Shape]
    examples: tuple[Example, ...]
    affine: AffineRule | None = None
    relaxed: RelaxedRule | None = None
    onnx: Mapping[str, Translate | None] = field(default_factory=dict)
    aten: Mapping[str, Translate | None] = field(default_factory=dict)
    linear_when: Callable[[Site], bool] = lambda site: sum(site.varies) == 1
    float32_roundings: int | None = None
    summary: str = ""

    def rule(self, site: Site) -> AffineRule | RelaxedRule:
        """The rule that applies at this site."""
        if self.affine is None or (self.relaxed is not None and not self.linear_when(site)):
            if self.relaxed is None:
                raise TypeError(f"operator {self.name} has no rule at {site.name}")
            return self.relaxed
        return self.affine


@dataclass(frozen=True)
class Composite:
    """Import names that expand into a small graph of other operators and need no rules."""

    name: str
    onnx: Mapping[str, Translate] = field(default_factory=dict)
    aten: Mapping[str, Translate] = field(default_factory=dict)
    summary: str = ""


class Registry:
    """All operators by name and by import name. Duplicates and incomplete records are refused."""

    def __init__(self) -> None:
        self.ops: dict[str, Op] = {}
        self.composites: dict[str, Composite] = {}
        self.onnx: dict[str, tuple[str, Translate | None]] = {}
        self.aten: dict[str, tuple[str, Translate | None]] = {}

    def add(self, record: Op | Composite) -> Op | Composite:
        """Register ``record``.

        Raises:
            ValueError: a name is taken, or the record is incomplete.
        """
        if record.name in self.ops or record.name in self.composites:
            raise ValueError(f"operator {record.name!r} is registered twice")
        complete = not isinstance(record, Op) or (
            record.examples and (record.affine or record.relaxed)
        )
        if not complete:
            raise ValueError(f"operator {record.name!r} needs a rule and an example")
        for table, names in ((self.onnx, record.onnx), (self.aten, record.aten)):
            for key, translate in names.items():
                if key in table:
                    raise ValueError(f"{key!r} is claimed by {record.name!r} and {table[key][0]!r}")
                table[key] = (record.name, translate)
        if isinstance(record, Op):
            self.ops[record.name] = record
        else:
            self.composites[record.name] = record
        return record


REGISTRY = Registry()
