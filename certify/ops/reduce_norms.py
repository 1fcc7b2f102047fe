"""ONNX reductions that are another reduction of another function: L1, L2, squares, log of a sum."""

from __future__ import annotations

from certify.ops.arguments import axes_of, integers
from certify.ops.builder import Builder, Call, Value
from certify.ops.record import REGISTRY, Composite, Translate

AXES_INPUT_SINCE = 18


def _reduced(before: str | None, after: str | None) -> Translate:
    """``after(sum(before(x)))`` over axes; with no axes to reduce, each element alone."""

    def translate(b: Builder, call: Call) -> Value:
        x: Value = call.inputs[0]
        given = call.static(1) if call.opset >= AXES_INPUT_SINCE else call.attr("axes")
        keep = bool(call.attr("keepdims", 1))
        alone = bool(call.attr("noop_with_empty_axes", 0)) and not integers(given)
        if before is not None:
            x = b.add(before, x)
        if not alone:
            x = b.add("reduce_sum", x, axes=axes_of(call, given, x.rank), keepdims=keep)
        return x if after is None else b.add(after, x, name=call.name)

    return translate


REGISTRY.add(
    Composite(
        "reduce_norms",
        onnx={
            "ReduceL1": _reduced("abs", None),
            "ReduceL2": _reduced("square", "sqrt"),
            "ReduceSumSquare": _reduced("square", None),
            "ReduceLogSum": _reduced(None, "log"),
        },
        summary="L1 and L2 norms, sums of squares, logs of sums over axes",
    )
)
