"""PTX's numbers in Python's integers and fractions, without numpy: what the emulator's arithmetic is compared with.

A value is its bits, an ``int``, beside the name of its type as PTX writes it: ``u32``, ``f64``, ``pred``.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from fractions import Fraction

WIDTHS = {
    "pred": 1, "u8": 8, "s8": 8, "b8": 8, "u16": 16, "s16": 16, "b16": 16, "u32": 32, "s32": 32, "b32": 32, "u64": 64,
    "s64": 64, "b64": 64, "f32": 32, "f64": 64,
}  # fmt: skip
PRECISION = {"f32": 24, "f64": 53}
SMALLEST_EXPONENT = {"f32": -126, "f64": -1022}
ROUNDINGS: dict[str, Callable[[Fraction], int]] = {
    "rni": round,
    "rzi": math.trunc,
    "rmi": math.floor,
    "rpi": math.ceil,
}
NAN = {"f32": 0x7FFFFFFF, "f64": 0x7FFFFFFFFFFFFFFF}


def number(bits: int, kind: str) -> int:
    """The integer that ``bits`` stand for."""
    width = WIDTHS[kind]
    bits &= (1 << width) - 1
    return bits - (1 << width) if kind[0] == "s" and bits >> (width - 1) else bits


def bits_of(value: int, kind: str) -> int:
    """An integer's low bits."""
    return value & ((1 << WIDTHS[kind]) - 1)


def real(bits: int, kind: str) -> float:
    """The floating-point number that ``bits`` stand for; every float32 is a Python float too."""
    return float(
        struct.unpack("<f", struct.pack("<I", bits))[0]
        if kind == "f32"
        else struct.unpack("<d", struct.pack("<Q", bits))[0]
    )


def bits_of_real(x: float, kind: str) -> int:
    """The bits of ``x``, that has to be a number of the type."""
    if kind == "f64":
        return int(struct.unpack("<Q", struct.pack("<d", x))[0])
    bits = int(struct.unpack("<I", struct.pack("<f", x))[0])
    assert math.isnan(x) or real(bits, "f32") == x
    return bits


def sign_bit(kind: str) -> int:
    return 1 << (WIDTHS[kind] - 1)


def nearest(x: Fraction, kind: str) -> int:
    """The bits of the number nearest to ``x``, of two the one that is even (IEEE 754, roundTiesToEven)."""
    precision, smallest = PRECISION[kind], SMALLEST_EXPONENT[kind]
    sign = sign_bit(kind) if x < 0 else 0
    x = abs(x)
    if x == 0:
        return sign
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    if Fraction(2) ** exponent > x:
        exponent -= 1
    exponent = max(exponent, smallest)
    quotient, remainder = divmod(x / Fraction(2) ** (exponent - precision + 1), 1)
    if remainder > Fraction(1, 2) or (remainder == Fraction(1, 2) and quotient & 1):
        quotient += 1
    # The significand's highest bit adds 1 to the exponent's field, whether it was there or rounding carried into it.
    bits = ((exponent - smallest) << (precision - 1)) + quotient
    infinity = ((1 << (WIDTHS[kind] - precision)) - 1) << (precision - 1)
    return sign | min(bits, infinity)


def is_nan(bits: int, kind: str) -> bool:
    return math.isnan(real(bits, kind))


def flushed(bits: int, kind: str) -> int:
    """Subnormal numbers become zeros of their sign (``.ftz``)."""
    exponent = (bits & ~sign_bit(kind)) >> (PRECISION[kind] - 1)
    return bits if exponent else bits & sign_bit(kind)


def _special(x: float, kind: str) -> int:
    return NAN[kind] if math.isnan(x) else bits_of_real(x, kind)


def add(a: int, b: int, kind: str) -> int:
    """``a + b``, rounded once. Python's floats decide over infinities, NaN and the sign of zero."""
    x, y = real(a, kind), real(b, kind)
    if not (math.isfinite(x) and math.isfinite(y)):
        return _special(x + y, kind)
    exact = Fraction(x) + Fraction(y)
    return nearest(exact, kind) if exact else _special(x + y, kind)


def subtract(a: int, b: int, kind: str) -> int:
    return add(a, b ^ sign_bit(kind), kind)


def multiply(a: int, b: int, kind: str) -> int:
    x, y = real(a, kind), real(b, kind)
    if not (math.isfinite(x) and math.isfinite(y)):
        return _special(x * y, kind)
    exact = Fraction(x) * Fraction(y)
    return nearest(exact, kind) if exact else _special(x * y, kind)


def fused(a: int, b: int, c: int, kind: str) -> int:
    """``a b + c``, rounded once."""
    x, y, z = (real(v, kind) for v in (a, b, c))
    if math.isfinite(x) and math.isfinite(y):
        if not math.isfinite(z):
            return _special(z, kind)
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        if exact:
            return nearest(exact, kind)
        # A sum of zeros is -0 if all of them are; what cancels gives +0.
        return sign_bit(kind) & (a ^ b) & c if x == 0 or y == 0 else 0
    return _special(x * y + z, kind)


def divide(a: int, b: int, kind: str) -> int:
    x, y = real(a, kind), real(b, kind)
    sign = (a ^ b) & sign_bit(kind)
    if math.isnan(x) or math.isnan(y) or (math.isinf(x) and math.isinf(y)) or (x == 0 and y == 0):
        return NAN[kind]
    if math.isinf(x) or y == 0:
        return sign | bits_of_real(math.inf, kind)
    if math.isinf(y) or x == 0:
        return sign
    return nearest(Fraction(x) / Fraction(y), kind)


def square_root(a: int, kind: str) -> int:
    """Rounded once: the integer root of the operand, scaled so that it has more bits than the result."""
    x = real(a, kind)
    if math.isnan(x) or x < 0:
        return NAN[kind]
    if x == 0 or math.isinf(x):
        return a
    shift = 4 * 300
    exact = Fraction(x) * (1 << (2 * shift))
    root = math.isqrt(exact.numerator // exact.denominator)
    remainder = exact != root * root
    # A sticky bit below all others keeps roundings that are not ties from looking like ties.
    return nearest(Fraction(2 * root + remainder, 2 << shift), kind)


def minimum(a: int, b: int, kind: str, propagate: bool = False) -> int:
    """PTX ISA, min: of a number and a NaN the number, unless ``.NaN`` is given; +0 is larger than -0."""
    if is_nan(a, kind) or is_nan(b, kind):
        if propagate or (is_nan(a, kind) and is_nan(b, kind)):
            return NAN[kind]
        return b if is_nan(a, kind) else a
    x, y = real(a, kind), real(b, kind)
    if x == y:
        return a if a & sign_bit(kind) else b
    return a if x < y else b


def maximum(a: int, b: int, kind: str, propagate: bool = False) -> int:
    sign = sign_bit(kind)
    if is_nan(a, kind) or is_nan(b, kind):
        return minimum(a, b, kind, propagate)
    return minimum(a ^ sign, b ^ sign, kind) ^ sign


def to_integer(bits: int, kind: str, target: str, rounding: str) -> int:
    """PTX ISA, cvt: clamped to the target's range.

    NaN is 0 from float32 to at most 32 bits, else the highest bit alone.
    """
    x = real(bits, kind)
    width = WIDTHS[target]
    low, high = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if target[0] == "s" else (0, (1 << width) - 1)
    if math.isnan(x):
        return 0 if kind == "f32" and width < 64 else 1 << (width - 1)
    if math.isinf(x):
        return bits_of(high if x > 0 else low, target)
    rounded = ROUNDINGS[rounding](Fraction(x))
    return bits_of(min(max(rounded, low), high), target)


def round_to_integer(bits: int, kind: str, rounding: str) -> int:
    """A floating-point number rounded to an integral one; a zero keeps the operand's sign."""
    x = real(bits, kind)
    if math.isnan(x):
        return NAN[kind]
    if math.isinf(x):
        return bits
    rounded = ROUNDINGS[rounding](Fraction(x))
    return nearest(Fraction(rounded), kind) | (bits & sign_bit(kind))


def convert(bits: int, kind: str, target: str) -> int:
    x = real(bits, kind)
    if not math.isfinite(x):
        return _special(x, target)
    return nearest(Fraction(x), target) | (sign_bit(target) if bits & sign_bit(kind) else 0)


def integers(kind: str, count: int, seed: int) -> list[int]:
    """Bits of integers: the ends of the range, powers of two and their neighbours, and random ones of all sizes."""
    generator = random.Random(f"{kind}{seed}")
    width = WIDTHS[kind]
    ends = [0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 255, -1, -2, -7, -33, 1 << (width - 1), (1 << (width - 1)) - 1]
    some = [generator.getrandbits(width) >> generator.randrange(width) for _ in range(count)]
    some += [-x for x in some[::3]]
    chosen = [bits_of(x, kind) for x in ends + some]
    generator.shuffle(chosen)
    return chosen[:count] + [bits_of(x, kind) for x in ends]


def reals(kind: str, count: int, seed: int) -> list[int]:
    """Bits of floating-point numbers: zeros, subnormal, ends of the range, halves, infinities, NaN; and random ones."""
    generator = random.Random(f"{kind}{seed}")
    precision, smallest = PRECISION[kind], SMALLEST_EXPONENT[kind]
    tiny, one = 2.0**smallest, 2.0 ** (1 - precision)
    largest = (2 - 2.0 ** (1 - precision)) * 2.0 ** (1 - smallest)
    values = [0.0, 1.0, 1 + one, 1 - one / 2, 0.5, 1.5, 2.5, 3.0, 127.5, 2.0**31, 2.0**32, 2.0**63, 2.0**64,
              2.0**24 + 2,
              tiny, tiny * (1 - one), tiny * one, tiny / 2, largest, largest / 2, math.inf]  # fmt: skip
    bits = [bits_of_real(x, kind) for x in values] + [NAN[kind]]
    bits += [x ^ sign_bit(kind) for x in bits[:-1]]
    some = []
    for k in range(count):
        if k % 4 == 0:
            some.append(generator.getrandbits(WIDTHS[kind]))
        else:
            x = generator.uniform(-2, 2) * 2.0 ** generator.randrange(-30, 31)
            some.append(nearest(Fraction(x), kind))
    return bits + some


def tuples(kinds: tuple[str, ...], count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Operands: every special value beside shuffled others of each operand."""
    generator = random.Random(f"{kinds}{seed}")
    columns = []
    for k, kind in enumerate(kinds):
        if kind == "pred":
            column = [0, 1] * count
        else:
            column = (reals if kind[0] == "f" else integers)(kind, count, seed + k)
        columns.append(column)
    rows = [tuple(generator.choice(column) for column in columns) for _ in range(count)]
    for k, column in enumerate(columns):
        for value in column[:44]:
            row = [generator.choice(other) for other in columns]
            row[k] = value
            rows.append(tuple(row))
    if len(kinds) > 1 and kinds[0] == kinds[1] and kinds[0][0] == "f":
        # Every pair of zeros, infinities, NaN and subnormal numbers.
        infinity, sign = bits_of_real(math.inf, kinds[0]), sign_bit(kinds[0])
        corners = [0, sign, 1, sign | 2, infinity, infinity | sign, NAN[kinds[0]], bits_of_real(1.0, kinds[0])]
        rows += [(a, b, *(generator.choice(column) for column in columns[2:])) for a in corners for b in corners]
    return rows
