"""Arithmetic of PTX that numpy lacks: fused multiply-add, bit fields, and results where numpy's are undefined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types, vectorize
from numba.extending import intrinsic
from numpy.typing import NDArray

from tests.ptx.parser import SIZES

# numpy's name of each type; where only bits matter, unsigned.
NUMPY = {
    "pred": "?", "b8": "u1", "u8": "u1", "s8": "i1", "b16": "u2", "u16": "u2", "s16": "i2", "b32": "u4", "u32": "u4",
    "s32": "i4", "f32": "f4", "b64": "u8", "u64": "u8", "s64": "i8", "f64": "f8", "u16x2": "u4", "s16x2": "u4",
    "f32x2": "u8",
}  # fmt: skip


@intrinsic
def fused(context: Any, a: types.Float, b: types.Float, c: types.Float) -> Any:
    """``a b + c``, rounded once: LLVM's instruction."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return a(a, b, c), generate


@vectorize(["f4(f4,f4,f4)", "f8(f8,f8,f8)"], cache=True)
def fma(a: Any, b: Any, c: Any) -> Any:
    """``a b + c``, rounded once."""
    return fused(a, b, c)


def flush(x: Any) -> NDArray[Any]:
    """Subnormal numbers as zeros of their sign (``.ftz``)."""
    x = np.asarray(x)
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def ordered(x: Any, operation: str) -> NDArray[np.uint32]:
    """float32 as signed integers of the same order, for ``redux`` max and min; a NaN loses against every number."""
    bits = np.ascontiguousarray(np.asarray(x)).view(np.int32)
    info = np.iinfo(np.int32)
    key = np.where(bits < 0, bits ^ info.max, bits)
    return np.where(np.isnan(x), info.min if operation == "max" else info.max, key).astype(np.int32).view(np.uint32)


def unordered(key: Any) -> NDArray[np.float32]:
    """The inverse of :func:`ordered`; what only NaN gives is NaN, because no number has that key."""
    bits = np.ascontiguousarray(np.asarray(key)).view(np.int32)
    return np.where(bits < 0, bits ^ np.iinfo(np.int32).max, bits).astype(np.int32).view(np.float32)


def fma_ftz(a: Any, b: Any, c: Any) -> NDArray[Any]:
    """``fma.ftz``."""
    return flush(fma(flush(a), flush(b), flush(c)))


def inverse_root(x: Any) -> NDArray[Any]:
    """``x^(-1/2)``, rounded once."""
    x = np.asarray(x)
    wide = x.astype("f8" if x.dtype == np.float32 else np.longdouble)
    return (1 / np.sqrt(wide)).astype(x.dtype)


def in_double(function: Callable[[Any], Any], x: Any) -> NDArray[Any]:
    """A function of float32, rounded once."""
    return function(np.asarray(x).astype("f8")).astype("f4")


def perturbed(x: Any, units: int, seed: int) -> NDArray[Any]:
    """``x``, up to so many units in the last place away; what is not normal stays.

    The error is a hash of ``x``, because a GPU gives lanes of equal operands equal results.
    """
    x = np.ascontiguousarray(x)
    bits = x.view(f"i{x.dtype.itemsize}")
    mixed = (bits.astype("u8") + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    error = (mixed >> np.uint64(33)) % np.uint64(2 * units + 1)
    moved = (bits + error.astype(bits.dtype) - bits.dtype.type(units)).view(x.dtype)
    # Moving the bits of the smallest normal numbers, or of the largest, gives others that are not normal.
    normal = np.isfinite(x) & (np.abs(x) > 2 * np.finfo(x.dtype).tiny) & np.isfinite(moved)
    return np.where(normal, moved, x)


def multiply_high(a: Any, b: Any, kind: str) -> NDArray[Any]:
    """The upper half of the product of integers (``mul.hi``)."""
    a, b = np.broadcast_arrays(a, b)
    if SIZES[kind] < 8:
        wide = f"{NUMPY[kind][0]}8"
        return ((a.astype(wide) * b.astype(wide)) >> np.array(8 * SIZES[kind], wide)).astype(NUMPY[kind])
    x, y = a.astype("u8"), b.astype("u8")
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    first = x1 * y0 + ((x0 * y0) >> half)
    second = x0 * y1 + (first & low)
    high = x1 * y1 + (first >> half) + (second >> half)
    if kind == "s64":
        high = high - np.where(a.astype("i8") < 0, y, np.uint64(0)) - np.where(b.astype("i8") < 0, x, np.uint64(0))
    return high.view(NUMPY[kind])


def add_halves(a: Any, b: Any) -> NDArray[Any]:
    """The sums of the upper and of the lower 16 bits (``add.u16x2``)."""
    upper, lower = np.uint32(0xFFFF0000), np.uint32(0xFFFF)
    return ((a & upper) + (b & upper)) | (((a & lower) + (b & lower)) & lower)


def paired(function: Callable[..., Any], *operands: Any) -> NDArray[Any]:
    """A function of float32, of the upper and of the lower halves of 64 bits (``.f32x2``)."""
    pairs = function(*(np.atleast_1d(x).view("f4").reshape(-1, 2) for x in operands))
    return np.ascontiguousarray(pairs).view("u8").reshape(-1)


def shifted(shift: Callable[[Any, Any], Any], x: Any, amount: Any, kind: str) -> NDArray[Any]:
    """``x`` shifted by as much as its width or more is zero, or its sign."""
    bits, dtype = 8 * SIZES[kind], np.dtype(NUMPY[kind])
    result = shift(x, np.minimum(amount, bits - 1).astype(dtype))
    if kind[0] == "s" and shift is np.right_shift:
        return result
    return np.where(amount >= bits, dtype.type(0), result)


def funnel(low: Any, high: Any, amount: Any, side: str, mode: str) -> NDArray[Any]:
    """``shf``: two words shifted as one; the lower or the upper of them."""
    amount = np.minimum(amount, np.uint32(32)) if mode == "clamp" else amount & np.uint32(31)
    both = np.asarray(low).astype("u8") | (np.asarray(high).astype("u8") << np.uint64(32))
    if side == "r":
        return (both >> amount.astype("u8")).astype("u4")
    return ((both << amount.astype("u8")) >> np.uint64(32)).astype("u4")


def to_tf32(bits: Any, mode: str) -> NDArray[Any]:
    """float32, its bits, to the nearest number of 10 bits of mantissa: of two the even one or (``rna``) the larger."""
    bits = np.asarray(bits)
    half = np.uint32(0x1000) if mode == "rna" else np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    rounded = (bits + half) & np.uint32(0xFFFFE000)
    x = bits.view("f4")
    return np.where(np.isfinite(x), rounded, np.where(np.isnan(x), np.uint32(0x7FFFFFFF), bits))


def to_integer(x: Any, dtype: str) -> NDArray[Any]:
    """Integral floating point to integers: the nearest that there is.

    NaN is 0 from float32 to at most 32 bits, and otherwise the highest bit alone (PTX ISA, ``cvt``).
    """
    x, info = np.asarray(x), np.iinfo(dtype)
    # The largest integer itself may not be a floating-point number; the power of 2 above it is.
    above, below = x >= float(info.max) + 1, x < float(info.min)
    inside = np.where(above | below | np.isnan(x), 0, x).astype(dtype)
    result = np.where(above, info.max, np.where(below, info.min, inside)).astype(dtype)
    if x.dtype == np.float64 or info.bits == 64:
        highest = np.array(info.min if info.min < 0 else 1 << (info.bits - 1), dtype)
        result = np.where(np.isnan(x), highest, result)
    return result


@vectorize(["u4(u4,u4,u4)"], cache=True)
def prmt(a: Any, b: Any, selector: Any) -> Any:
    """Four of the eight bytes of ``a`` and ``b``, or of their signs."""
    both = np.uint64(a) | (np.uint64(b) << np.uint64(32))
    result = np.uint32(0)
    for i in range(4):
        choice = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = np.uint32((both >> np.uint64(8 * (choice & np.uint32(7)))) & np.uint64(255))
        if choice & np.uint32(8):
            byte = np.uint32(255) if byte & np.uint32(128) else np.uint32(0)
        result |= byte << np.uint32(8 * i)
    return result


@vectorize(["u4(u4,u4,u4)", "u8(u8,u4,u4)"], cache=True)
def bfe_u(a: Any, position: Any, length: Any) -> Any:
    """``length`` bits of ``a`` from ``position`` on."""
    p, n = position & np.uint32(255), length & np.uint32(255)
    if p > 63 or n == 0:
        return 0
    x = np.uint64(a) >> np.uint64(p)
    return x & ((np.uint64(1) << np.uint64(n)) - np.uint64(1)) if n < 64 else x


@vectorize(["i8(i8,u4,u4,u4)"], cache=True)
def bfe_s(a: Any, position: Any, length: Any, bits: Any) -> Any:
    """Beyond the field its highest bit, or the operand's highest where the field ends beyond the operand."""
    p, n = min(np.int64(position & np.uint32(255)), np.int64(bits) - 1), np.int64(length & np.uint32(255))
    if n == 0:
        return 0
    x = np.int64(a) >> p
    if p + n >= np.int64(bits):
        return x
    return (x << (64 - n)) >> (64 - n)


@vectorize(["u8(u8,u8,u4,u4)"], cache=True)
def bfi(a: Any, b: Any, position: Any, length: Any) -> Any:
    """``b`` with the lowest ``length`` bits of ``a`` from ``position`` on."""
    p, n = np.uint64(position & np.uint32(255)), np.uint64(length & np.uint32(255))
    if p > np.uint64(63) or n == np.uint64(0):
        return b
    mask = ((np.uint64(1) << n) - np.uint64(1) if n < np.uint64(64) else ~np.uint64(0)) << p
    return (b & ~mask) | ((a << p) & mask)


@vectorize(["u2(u2,u2)", "u4(u4,u4)", "u8(u8,u8)"], cache=True)
def divide_unsigned(a: Any, b: Any) -> Any:
    """Division by zero gives all ones (PTX: unspecified)."""
    return a // b if b else ~(a & b)


@vectorize(["i2(i2,i2)", "i4(i4,i4)", "i8(i8,i8)"], cache=True)
def divide_signed(a: Any, b: Any) -> Any:
    """Towards zero. The lowest number by -1 wraps, and division by zero gives -1 (PTX: unspecified)."""
    if b == 0:
        return -1
    if b == -1:
        return -a
    q = a // b
    return q + 1 if q < 0 and q * b != a else q


@vectorize(["u2(u2,u2)", "u4(u4,u4)", "u8(u8,u8)"], cache=True)
def remainder_unsigned(a: Any, b: Any) -> Any:
    """Of :func:`divide_unsigned`."""
    return a % b if b else a


@vectorize(["i2(i2,i2)", "i4(i4,i4)", "i8(i8,i8)"], cache=True)
def remainder_signed(a: Any, b: Any) -> Any:
    """Of the dividend's sign."""
    if b == 0:
        return a
    if b == -1:
        return 0
    r = a % b
    return r - b if r != 0 and (r < 0) != (a < 0) else r


@vectorize(["f4(f4,f4)", "f8(f8,f8)"], cache=True)
def minimum(a: Any, b: Any) -> Any:
    """Of a number and a NaN the number; -0 is smaller than +0."""
    if a != a or a == b:
        return a if a == b and np.signbit(a) else b
    return b if b < a else a


@vectorize(["f4(f4,f4)", "f8(f8,f8)"], cache=True)
def maximum(a: Any, b: Any) -> Any:
    """Of a number and a NaN the number; +0 is larger than -0."""
    if a != a or a == b:
        return b if a != a or np.signbit(a) else a
    return b if b > a else a


def minimum_nan(a: Any, b: Any) -> NDArray[Any]:
    """As :func:`minimum`, but of a number and a NaN a NaN."""
    return np.where(np.isnan(a) | np.isnan(b), np.minimum(a, b), minimum(a, b))


def maximum_nan(a: Any, b: Any) -> NDArray[Any]:
    """As :func:`maximum`, but of a number and a NaN a NaN."""
    return np.where(np.isnan(a) | np.isnan(b), np.maximum(a, b), maximum(a, b))


@vectorize(["u4(u8)"], cache=True)
def leading_zeros(a: Any) -> Any:
    """How many of the 64 uppermost bits are 0 before the first 1."""
    n = 0
    while n < 64 and not (a >> np.uint64(63 - n)) & np.uint64(1):
        n += 1
    return n


@vectorize(["u4(u8)"], cache=True)
def popc(a: Any) -> Any:
    """How many bits are 1."""
    n = 0
    while a:
        n += 1
        a &= a - np.uint64(1)
    return n


@vectorize(["u4(u4)"], cache=True)
def brev(a: Any) -> Any:
    """The bits in reverse order."""
    result = np.uint32(0)
    for i in range(32):
        result |= ((a >> np.uint32(i)) & np.uint32(1)) << np.uint32(31 - i)
    return result
