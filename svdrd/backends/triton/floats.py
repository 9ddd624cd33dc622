"""Arithmetic of powers of two and of the dtype's finite range, for use in kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def power_of_two(exponent: tl.tensor, like: tl.tensor) -> tl.tensor:
    """``2^exponent`` in the dtype of ``like``, for exponents of normal numbers."""
    if like.dtype == tl.float64:
        bits = (exponent.to(tl.int64) + 1023) << 52
    else:
        bits = (exponent + 127) << 23
    return bits.to(like.dtype, bitcast=True)


@triton.jit
def exponent_of(x: tl.tensor) -> tl.tensor:
    """The e with ``x 2^-e`` in [1/2, 1), 0 for 0; x is finite and not negative."""
    if x.dtype == tl.float64:
        denormal = x < 2.0**-1000
        bits = tl.where(denormal, x * 2.0**128, x).to(tl.int64, bitcast=True)
        exponent = ((bits >> 52) & 2047).to(tl.int32) - 1022 - tl.where(denormal, 128, 0)
    else:
        denormal = x < 2.0**-100
        bits = tl.where(denormal, x * 2.0**64, x).to(tl.int32, bitcast=True)
        exponent = ((bits >> 23) & 255) - 126 - tl.where(denormal, 64, 0)
    return tl.where(x == 0, 0, exponent)


@triton.jit
def scaled(x: tl.tensor, exponent: tl.tensor) -> tl.tensor:
    """``x 2^exponent`` with one rounding at most: in two steps, since 2^149 itself is no float32."""
    half = exponent >> 1
    first, second = power_of_two(half, x), power_of_two(exponent - half, x)
    if len(x.shape) == 2:
        first, second = first[:, None], second[:, None]
    return x * first * second


@triton.jit
def largest_of(like: tl.constexpr) -> tl.tensor:
    """The largest finite number of a dtype."""
    return 1.7976931348623157e308 if like == tl.float64 else 3.4028234663852886e38


@triton.jit
def clamped(x: tl.tensor) -> tl.tensor:
    """Clamps x to the finite range of its type; NaN stays NaN."""
    bound = largest_of(x.dtype)
    return tl.where(tl.abs(x) > bound, tl.where(x > 0, bound, -bound), x)


@triton.jit
def times_power_of_two(x: tl.tensor, exponent: tl.tensor) -> tl.tensor:
    """``2^exponent x`` for float64, in two steps because ``2^exponent`` alone may overflow."""
    exponent = tl.minimum(tl.maximum(exponent, -2000), 2000)
    half = exponent >> 1
    return x * power_of_two(half, x) * power_of_two(exponent - half, x)
