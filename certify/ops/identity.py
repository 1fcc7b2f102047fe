"""Calls that change no real number, and constants made to the shape of a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np

from certify.core.errors import Unsupported
from certify.ops.builder import Builder, Call, Value
from certify.ops.record import REGISTRY, Composite


def _same(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    return x


def _aten_dropout(b: Builder, call: Call) -> Value:
    if call.arg(2, False) and float(call.arg(1, 0.5)) > 0:
        raise Unsupported(
            f"{call.where or call.name}: dropout in training mode is random; "
            f"call eval() on the model"
        )
    return _same(b, call)


def _filled(value: float | None) -> Any:
    def translate(b: Builder, call: Call) -> Value:
        """A constant; its shape does not depend on the input's values."""
        number = float(call.inputs[1]) if value is None else value
        return b.constant(np.full(call.inputs[0].shape, number))

    return translate


def _new_filled(value: float | None) -> Any:
    def translate(b: Builder, call: Call) -> Value:
        number = float(call.inputs[2]) if value is None else value
        return b.constant(np.full(tuple(int(n) for n in call.inputs[1]), number))

    return translate


REGISTRY.add(
    Composite(
        "identity",
        aten={
            **dict.fromkeys(
                (
                    "aten.contiguous.default",
                    "aten.clone.default",
                    "aten.detach.default",
                    "aten.detach_.default",
                    "aten.alias.default",
                    "aten.lift_fresh_copy.default",
                    "aten.lift_fresh.default",
                    "aten.to.dtype",
                    "aten.to.dtype_layout",
                    "aten.to.device",
                    "aten.to.other",
                    "aten.type_as.default",
                    "aten._to_copy.default",
                    "aten.positive.default",
                    "aten._conj.default",
                    "aten.conj.default",
                    "aten.resolve_conj.default",
                ),
                _same,
            ),
            **dict.fromkeys(
                (
                    "aten.dropout.default",
                    "aten.feature_dropout.default",
                    "aten.alpha_dropout.default",
                    "aten.native_dropout.default",
                ),
                _aten_dropout,
            ),
        },
        summary="copies, casts between float types, dropout in evaluation: the value itself",
    )
)

REGISTRY.add(
    Composite(
        "filled",
        aten={
            "aten.zeros_like.default": _filled(0.0),
            "aten.ones_like.default": _filled(1.0),
            "aten.full_like.default": _filled(None),
            "aten.new_zeros.default": _new_filled(0.0),
            "aten.new_ones.default": _new_filled(1.0),
            "aten.new_full.default": _new_filled(None),
        },
        summary="constants of the shape of a tensor",
    )
)
