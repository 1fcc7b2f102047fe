"""What is taken for granted, in sentences that go into every certificate."""

from __future__ import annotations

_COMMON = (
    "The operators of the model mean what their records in certify.ops say.",
    "This machine adds and multiplies float64 numbers as IEEE 754 says, in any order; a self-test"
    " checked it.",
    "The C library's exp, tanh, erf and similar are accurate to the few units in the last place"
    " stated in certify.ops.",
)
_REAL = (
    "The claim is about real arithmetic on the stored weights, not about the rounding of a runtime."
)
_FLOAT32 = (
    "The claim covers every evaluation in IEEE float32 with sums in any order, with or without"
    " fused multiply-add; not Winograd or FFT convolution, TF32, half precision or quantised"
    " kernels."
)


def assumptions(semantics: str) -> tuple[str, ...]:
    """The assumptions behind a certificate in ``"real"`` or ``"float32"`` semantics."""
    return (_REAL if semantics == "real" else _FLOAT32, *_COMMON)
