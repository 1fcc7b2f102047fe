"""What the tests of elementwise functions share: the records, adversarial boxes, exact values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import mpmath as mp
import numpy as np
import torch

from certify.ops import load
from certify.ops.record import Example, Interval, Op, Site

mp.mp.dps = 60


@dataclass(frozen=True)
class Case:
    """One elementwise operator with one choice of settings, applied to vectors."""

    op: Op
    example: Example
    label: str
    picked: tuple[float, ...] = ()

    def site(self, n: int) -> Site:
        constants = tuple(() if c is None else (1,) for c in self.example.operands[1:])
        varies = (True, *(False for _ in constants))
        return Site(self.label, self.example.attrs, ((n,), *constants), varies, (n,))

    def constants(self, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """One value of each constant operand."""
        return tuple(torch.tensor([v], dtype=dtype) for v in self.picked)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op.forward(self.site(x.shape[-1]), x, *self.constants(x.dtype))

    def interval(self, x: Interval) -> Interval:
        return self.op.relaxed.interval(
            self.site(x.lower.shape[-1]), x, *self.constants(x.lower.dtype)
        )

    def relax(self, slopes: Any, x: Interval) -> Any:
        site = self.site(x.lower.shape[-1])
        return self.op.relaxed.relax(site, slopes, x, *self.constants(x.lower.dtype))

    def slopes(self, x: Interval) -> Any:
        return self.op.relaxed.slopes(
            self.site(x.lower.shape[-1]), x, *self.constants(x.lower.dtype)
        )

    def exact(self, z: Any, dtype: torch.dtype) -> Any:
        """The real function at ``z``, or None where it is not defined."""
        constants = [mp.mpf(float(c[0])) for c in self.constants(dtype)]
        attrs = {k: mp.mpf(v) if isinstance(v, float) else v for k, v in self.example.attrs.items()}
        return REFERENCE[self.op.name](mp.mpf(z), *constants, **attrs)


def _elementwise(op: Op) -> bool:
    """Whether the operator acts on one variable operand, element by element, and is relaxed."""
    if op.relaxed is None or op.affine is not None:
        return False
    for example in op.examples:
        variable = [o for o in example.operands if isinstance(o, tuple)]
        if len(variable) != 1 or not isinstance(example.operands[0], tuple):
            return False
        shapes = [o if isinstance(o, tuple) else np.shape(o) for o in example.operands]
        if tuple(op.shape(example.attrs, *shapes)) != variable[0] or not _diagonal(
            op, example, shapes
        ):
            return False
    return True


def _diagonal(op: Op, example: Example, shapes: list[Any]) -> bool:
    varies = tuple(isinstance(o, tuple) for o in example.operands)
    site = Site("probe", example.attrs, tuple(shapes), varies, shapes[0])
    constants = [None if c is None else torch.as_tensor(c).double() for c in example.operands[1:]]
    x = torch.linspace(example.low, example.high, int(np.prod(shapes[0])), dtype=torch.float64)
    base = op.forward(site, x.reshape(shapes[0]), *constants).flatten()
    for i in range(len(x)):
        moved = x.clone()
        moved[i] += 0.37 * (example.high - example.low)
        changed = op.forward(site, moved.reshape(shapes[0]), *constants).flatten() != base
        changed[i] = False
        if bool(changed.any()):
            return False
    return True


def _cases() -> list[Case]:
    found: dict[str, Case] = {}
    for op in load().ops.values():
        if not _elementwise(op):
            continue
        for example in op.examples:
            settings = ",".join(f"{k}={v:.4g}" for k, v in example.attrs.items())
            for picked in product(*(np.ravel(c).tolist() for c in example.operands[1:])):
                label = f"{op.name}({settings}{''.join(f' {v:g}' for v in picked)})"
                found.setdefault(label, Case(op, example, label, picked))
    return list(found.values())


def _pool(dtype: torch.dtype, rng: np.random.Generator) -> np.ndarray:
    real = np.float32 if dtype == torch.float32 else np.float64
    info = np.finfo(real)
    special = [
        0.0,
        -0.0,
        info.tiny,
        info.smallest_subnormal,
        3e-39,
        1e-30,
        1e-9,
        0.5,
        1.0,
        1.5,
        2.5,
        3.0,
        6.0,
        20.0,
        1e3,
        1e9,
        1e30,
    ]
    ordinary = rng.normal(size=60) * np.exp(rng.uniform(-4, 4, 60))
    wild = np.exp(rng.uniform(-60, 60, 20))
    return np.concatenate([special, ordinary, wild]).astype(real)


def boxes(case: Case, dtype: torch.dtype, count: int, seed: int = 0) -> Interval:
    """``(1, count)`` intervals: zeros, denormals, an ulp apart, huge, equal, ordinary."""
    rng = np.random.default_rng(seed)
    pool = _pool(dtype, rng)
    a, b = rng.choice(pool, count), rng.choice(pool, count)
    a, b = a * rng.choice([-1, 1], count), b * rng.choice([-1, 1], count)
    kind = rng.integers(0, 8, count)
    b = np.where(kind == 0, a, b)
    b = np.where(kind == 1, np.nextafter(a, np.asarray(np.inf, a.dtype)), b)
    b = np.where(kind == 2, a * np.asarray(1 + 1e-4, a.dtype), b)
    near = rng.normal(size=(2, count)) * 3
    a, b = (np.where(kind >= 5, n, v) for n, v in zip(near, (a, b), strict=True))
    if case.example.low >= 0:  # mostly where the function is defined
        keep = rng.random(count) < 0.05
        a, b = (np.where(keep, v, np.abs(v)) for v in (a, b))
    low, high = np.minimum(a, b), np.maximum(a, b)
    return Interval(*(torch.tensor(v, dtype=dtype).unsqueeze(0) for v in (low, high)))


def points(x: Interval, count: int, seed: int = 1) -> torch.Tensor:
    """``(count, *x)`` places in the boxes, ends and middle included, in the boxes' precision."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand((count, *x.lower.shape), generator=generator, dtype=torch.float64)
    share[0], share[1], share[2] = 0.0, 1.0, 0.5
    low, high = x.lower.double(), x.upper.double()
    z = (low * (1 - share) + high * share).to(x.lower.dtype)
    zero = torch.zeros_like(z[3])
    z[3] = zero  # kinks and poles like to be there
    return torch.minimum(torch.maximum(z, x.lower), x.upper)


def _expit(z: Any) -> Any:
    return 1 / (1 + mp.exp(-z))


def _softplus(z: Any, beta: Any, threshold: Any) -> Any:
    return z if beta * z > threshold else mp.log1p(mp.exp(beta * z)) / beta


def _elu(z: Any, alpha: Any, scale: Any = 1) -> Any:
    return scale * (z if z > 0 else alpha * mp.expm1(z))


def _pow(z: Any, exponent: Any) -> Any:
    if (z == 0 and exponent < 0) or (z < 0 and exponent != int(exponent)):
        return None
    return z ** int(exponent) if exponent == int(exponent) else z**exponent


def _round(z: Any) -> Any:
    down = mp.floor(z)
    rest = z - down
    if rest == mp.mpf(1) / 2:
        return down if int(down) % 2 == 0 else down + 1
    return down if rest < mp.mpf(1) / 2 else down + 1


def _clip(z: Any, min: Any, max: Any) -> Any:
    low = z if z > min else min
    return low if low < max else max


def _shrink(z: Any, lambd: Any, bias: Any) -> Any:
    return z + bias if z < -lambd else z - bias if z > lambd else mp.mpf(0)


REFERENCE: dict[str, Callable[..., Any]] = {
    "relu": lambda z: z if z > 0 else mp.mpf(0),
    "leaky_relu": lambda z, alpha: z if z > 0 else alpha * z,
    "prelu": lambda z, slope: z if z > 0 else slope * z,
    "abs": abs,
    "clip": _clip,
    "hard_sigmoid": lambda z, alpha, beta: _clip(alpha * z + beta, 0, 1),
    "hard_swish": lambda z: z * _clip(z + 3, 0, 6) / 6,
    "sign": mp.sign,
    "floor": mp.floor,
    "ceil": mp.ceil,
    "round": _round,
    "heaviside": lambda z, at_zero: mp.mpf(0) if z < 0 else (at_zero if z == 0 else mp.mpf(1)),
    "threshold": lambda z, at, below: z if z > at else below,
    "shrink": _shrink,
    "sigmoid": _expit,
    "log_sigmoid": lambda z: -mp.log1p(mp.exp(-z)),
    "tanh": mp.tanh,
    "atan": mp.atan,
    "erf": mp.erf,
    "gelu": lambda z: z * mp.erfc(-z / mp.sqrt(2)) / 2,
    "gelu_tanh": lambda z: z * _expit(2 * mp.sqrt(2 / mp.pi) * (z + mp.mpf("0.044715") * z**3)),
    "tanh_gate": lambda z, linear, cubic: z * _expit(linear * z + cubic * z**3),
    "silu": lambda z: z * _expit(z),
    "mish": lambda z: z * mp.tanh(mp.log1p(mp.exp(z))),
    "elu": _elu,
    "selu": _elu,
    "celu": lambda z, alpha: z if z > 0 else alpha * mp.expm1(z / alpha),
    "softplus": _softplus,
    "softsign": lambda z: z / (1 + abs(z)),
    "exp": mp.exp,
    "log": lambda z: mp.log(z) if z > 0 else None,
    "sqrt": lambda z: mp.sqrt(z) if z >= 0 else None,
    "rsqrt": lambda z: 1 / mp.sqrt(z) if z > 0 else None,
    "reciprocal": lambda z: 1 / z if z != 0 else None,
    "square": lambda z: z * z,
    "pow": _pow,
    "sin": mp.sin,
    "cos": mp.cos,
}

CASES = _cases()
