"""Each instruction that the emulator knows, against Python's integers and fractions (``exact.py``).

Sections are those of NVIDIA's "Parallel Thread Execution ISA", version 9.
"""

# ruff: noqa: E501 (tables of PTX: a line for a case)

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest

from tests.ptx import exact, handwritten
from tests.ptx.exact import WIDTHS, bits_of, number, real

PREFIX = {"pred": "%p", 8: "%h", 16: "%h", 32: "%r", 64: "%rd", "f32": "%f", "f64": "%d"}
OPERANDS = "abcef"  # d and q are the results
THREADS = 64
COUNT = 150


@dataclass(frozen=True)
class Case:
    """An instruction, with {a}, {b}, {c}, {e} for its operands and {d}, {q} for its results, and what it computes."""

    text: str
    kinds: tuple[str, ...]
    results: tuple[str, ...]
    expected: Callable[..., int | tuple[int, ...]] = field(compare=False)
    operands: list[tuple[int, ...]] | None = field(default=None, compare=False)
    immediate: bool = True  # whether the last operand may be a number

    @property
    def name(self) -> str:
        return re.split(r"\s", self.text)[0]


def register(kind: str, index: int) -> str:
    """The ``index``-th register of a kind that is neither a pointer nor a scratch register of ``compute``."""
    return f"{PREFIX.get(kind) or PREFIX[WIDTHS[kind]]}{index if kind == 'pred' else index + 20}"


def size(kind: str) -> int:
    return max(4, WIDTHS[kind] // 8)


def immediate(bits: int, kind: str) -> str:
    if kind == "f32":
        return f"0f{bits:08X}"
    if kind == "f64":
        return f"0d{bits:016X}"
    return str(number(bits, kind))


def load(kind: str, index: int, buffer: int) -> str:
    target = register(kind, index)
    at = f"mad.wide.u32 %rd40, %r40, {size(kind)}, %rd{buffer};\n"
    if kind == "pred":
        return f"{at}ld.global.u32 %r41, [%rd40];\nsetp.ne.u32 {target}, %r41, 0;\n"
    if WIDTHS[kind] < 32:
        return f"{at}ld.global.u32 %r41, [%rd40];\ncvt.u16.u32 {target}, %r41;\n"
    return f"{at}ld.global.b{WIDTHS[kind]} {target}, [%rd40];\n"


def store(kind: str, index: int, buffer: int, row: int, rows: int) -> str:
    """``rows`` values an item lie one after the other."""
    source = register(kind, index)
    at = f"mad.wide.u32 %rd40, %r40, {size(kind) * rows}, %rd{buffer};\n"
    place = f"[%rd40+{row * size(kind)}]"
    if kind == "pred":
        return f"{at}selp.u32 %r41, 1, 0, {source};\nst.global.u32 {place}, %r41;\n"
    if WIDTHS[kind] < 32:
        return f"{at}cvt.u32.u16 %r41, {source};\nst.global.u32 {place}, %r41;\n"
    return f"{at}st.global.b{WIDTHS[kind]} {place}, {source};\n"


# How an instruction can be run: by all lanes, by those of a predicate, by those that took a branch.
WAYS = ("all", "predicated", "branch")


def compute(case: Case, operands: list[tuple[int, ...]], last: str | None = None) -> list[dict[str, tuple[int, ...]]]:
    """For each tuple of operands, for each way, the bits of the results. ``last`` takes the place of the last operand.

    A lane that the predicate or the branch leaves out keeps what the result's register held, all ones.
    """
    inputs = []
    for k, kind in enumerate(case.kinds):
        column = [row[k] for row in operands]
        inputs.append(np.array(column, np.uint64 if WIDTHS[kind] == 64 else np.uint32))
    outputs = [np.zeros(len(WAYS) * len(operands), np.uint64 if WIDTHS[k] == 64 else np.uint32) for k in case.results]
    first = 5
    names = {OPERANDS[k]: register(kind, k + 1) for k, kind in enumerate(case.kinds)}
    if last is not None:
        names[OPERANDS[len(case.kinds) - 1]] = last
    lines = [
        f"mad.lo.u32 %r40, %r1, {THREADS}, %r0;",
        f"setp.ge.u32 %p15, %r40, {len(operands)};\n@%p15 ret;",
        "and.b32 %r41, %r40, 1;\nsetp.ne.u32 %p14, %r41, 0;",
    ]
    lines += [load(kind, k + 1, k) for k, kind in enumerate(case.kinds)]
    for way, path in enumerate(WAYS):
        targets = {}
        for k, kind in enumerate(case.results):
            index = first + len(case.results) * way + k
            targets["dq"[k]] = register(kind, index)
            ones = {"pred": "1", "f32": "0fFFFFFFFF", "f64": "0dFFFFFFFFFFFFFFFF"}.get(kind, "-1")
            bits = "pred" if kind == "pred" else f"b{max(16, WIDTHS[kind])}"
            lines.append(f"mov.{kind if kind in ('f32', 'f64') else bits} {register(kind, index)}, {ones};")
        text = case.text.format(**targets, **names) + ";"
        if path == "predicated":
            text = f"@%p14 {text}"
        elif path == "branch":
            text = f"@!%p14 bra SKIP;\n{text}\nSKIP:"
        lines.append(text)
    for way in range(len(WAYS)):
        for k, kind in enumerate(case.results):
            lines.append(store(kind, first + len(case.results) * way + k, len(inputs) + k, way, len(WAYS)))
    record = handwritten.run(
        "\n".join(lines), [*inputs, *outputs], threads=THREADS, grid=-(-len(operands) // THREADS), limit=60.0
    )
    assert not record.errors, record.examples
    columns = [o.reshape(-1, len(WAYS)).tolist() for o in outputs]
    return [
        {path: tuple(column[n][way] for column in columns) for way, path in enumerate(WAYS)}
        for n in range(len(operands))
    ]


def same(kind: str, got: int, expected: int) -> bool:
    """Bits are equal; of NaN only that it is one, as its payload is not promised."""
    if kind in ("f32", "f64") and exact.is_nan(expected, kind):
        return exact.is_nan(got, kind)
    return got == expected


def check(case: Case, judge: Callable[[str, int, int], bool] = same) -> None:
    operands = case.operands or exact.tuples(case.kinds, COUNT)
    operands = operands[: len(operands) // 2 * 2]
    untouched = tuple((1 << max(16, WIDTHS[k])) - 1 if k != "pred" else 1 for k in case.results)

    def compare(rows: list[tuple[int, ...]], last: str | None) -> None:
        for n, (row, got) in enumerate(zip(rows, compute(case, rows, last), strict=True)):
            expected = case.expected(*row)
            expected = expected if isinstance(expected, tuple) else (expected,)
            for path in WAYS:
                wanted = expected if path == "all" or n % 2 else untouched
                for kind, value, other in zip(case.results, got[path], wanted, strict=True):
                    shown = f"{case.text} of {[hex(x) for x in row]}, {path}, last {last}: {value:#x}, not {other:#x}"
                    assert value == other if wanted is untouched else judge(kind, value, other), shown

    compare(operands, None)
    if case.immediate and case.kinds[-1] != "pred" and len(case.kinds) > 1:
        for row in (operands[5], operands[-1]):
            text = immediate(row[-1], case.kinds[-1])
            compare([(*other[:-1], row[-1]) for other in operands[:32]], text)


def cases(*groups: list[Case]) -> Any:
    chosen = [case for group in groups for case in group]
    return pytest.mark.parametrize("case", chosen, ids=[case.name for case in chosen])


# 9.7.1: integer arithmetic


def integer(
    text: str, kind: str, function: Callable[..., int], count: int = 2, result: str | None = None, **more: Any
) -> Case:
    """A function of integers; the result wraps."""
    result = result or kind
    return Case(
        f"{text}.{kind} {{d}}, {', '.join('{' + x + '}' for x in 'abc'[:count])}",
        (kind,) * count, (result,), lambda *v: bits_of(function(*(number(x, kind) for x in v)), result), **more,
    )  # fmt: skip


def quotient(a: int, b: int) -> int:
    """Towards zero, which Python's is not."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def divisible(kind: str) -> list[tuple[int, ...]]:
    """Without what PTX leaves open: division by zero, and the quotient that is out of range."""
    lowest = 1 << (WIDTHS[kind] - 1)
    rows = exact.tuples((kind, kind), COUNT)
    rows += [(bits_of(a, kind), bits_of(b, kind)) for a in (7, -7, 8, -8) for b in (2, -2, 3, -3)]
    return [(a, b) for a, b in rows if b and not (kind[0] == "s" and a == lowest and number(b, kind) == -1)]


INTEGERS = ["u16", "s16", "u32", "s32", "u64", "s64"]
ARITHMETIC = [
    case
    for kind in INTEGERS
    for case in (
        integer("add", kind, lambda a, b: a + b),
        integer("sub", kind, lambda a, b: a - b),
        integer("mul.lo", kind, lambda a, b: a * b),
        integer("mul.hi", kind, lambda a, b, w=WIDTHS[kind]: a * b >> w),
        integer("mad.lo", kind, lambda a, b, c: a * b + c, 3),
        integer("mad.hi", kind, lambda a, b, c, w=WIDTHS[kind]: (a * b >> w) + c, 3),
        integer("min", kind, min),
        integer("max", kind, max),
        integer("div", kind, quotient, operands=divisible(kind)),
        integer("rem", kind, lambda a, b: a - quotient(a, b) * b, operands=divisible(kind)),
    )
]
ARITHMETIC += [
    integer(op, kind, f, 1) for kind in ("s16", "s32", "s64") for op, f in (("neg", lambda a: -a), ("abs", abs))
]
WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
ARITHMETIC += [integer("mul.wide", kind, lambda a, b: a * b, result=wide) for kind, wide in WIDE.items()]
ARITHMETIC += [
    Case(
        f"mad.wide.{kind} {{d}}, {{a}}, {{b}}, {{c}}", (kind, kind, wide), (wide,),
        lambda a, b, c, kind=kind, wide=wide: bits_of(number(a, kind) * number(b, kind) + number(c, wide), wide),
    )
    for kind, wide in WIDE.items()
]  # fmt: skip


@cases(ARITHMETIC)
def test_integer_arithmetic(case: Case) -> None:
    check(case)


# 9.7.8 and 9.7.1: bits


def shift_left(a: int, n: int, width: int) -> int:
    """Amounts beyond the width count as the width (shl, shr)."""
    return (a << min(n, width)) & ((1 << width) - 1)


def extract(a: int, position: int, length: int, kind: str) -> int:
    """bfe, as its pseudocode has it."""
    position, length, highest = position & 255, length & 255, WIDTHS[kind] - 1
    sign = 0 if kind[0] == "u" or not length else a >> min(position + length - 1, highest) & 1
    result = 0
    for k in range(highest + 1):
        bit = a >> (position + k) & 1 if k < length and position + k <= highest else sign
        result |= bit << k
    return result


def insert(a: int, b: int, position: int, length: int, width: int) -> int:
    """bfi, as its pseudocode has it."""
    position, length = position & 255, length & 255
    for k in range(length):
        if position + k < width:
            b = b & ~(1 << (position + k)) | (a >> k & 1) << (position + k)
    return b


def permute(a: int, b: int, selector: int) -> int:
    """prmt without a mode: each byte of the result is chosen by 4 bits, of which the highest replicates the sign."""
    source = (b << 32 | a).to_bytes(8, "little")
    result = []
    for k in range(4):
        choice = selector >> 4 * k & 15
        byte = source[choice & 7]
        result.append((255 if byte & 128 else 0) if choice & 8 else byte)
    return int.from_bytes(bytes(result), "little")


def funnel(side: str, mode: str) -> Callable[[int, int, int], int]:
    def function(a: int, b: int, c: int) -> int:
        n = min(c, 32) if mode == "clamp" else c & 31
        both = b << 32 | a
        return (both >> n if side == "r" else both << n >> 32) & 0xFFFFFFFF

    return function


def fields(kind: str, count: int) -> list[tuple[int, ...]]:
    """Operands whose last two are a position and a length, also beyond the width."""
    values = exact.integers(kind, COUNT, 3)
    pairs = [(p, n) for p in (0, 1, 5, 16, 31, 32, 40, 63, 64, 255, 256 + 3) for n in (0, 1, 7, 31, 32, 33, 64, 255)]
    return [
        (*(values[(k + j) % len(values)] for j in range(count)), *pairs[k % len(pairs)]) for k in range(2 * len(pairs))
    ]


BITS = [
    Case(f"{op}.{kind} {{d}}, {{a}}, {{b}}", (kind, kind), (kind,), f)
    for kind in ("b16", "b32", "b64", "pred")
    for op, f in (("and", lambda a, b: a & b), ("or", lambda a, b: a | b), ("xor", lambda a, b: a ^ b))
]
BITS += [
    Case(f"not.{kind} {{d}}, {{a}}", (kind,), (kind,), lambda a, w=WIDTHS[kind]: ~a & ((1 << w) - 1))
    for kind in ("b16", "b32", "b64", "pred")
]
BITS += [
    Case(f"shl.b{w} {{d}}, {{a}}, {{b}}", (f"b{w}", "u32"), (f"b{w}",), lambda a, n, w=w: shift_left(a, n, w))
    for w in (16, 32, 64)
]
BITS += [
    Case(f"shr.{kind} {{d}}, {{a}}, {{b}}", (kind, "u32"), (kind,),
         lambda a, n, kind=kind: bits_of(number(a, kind) >> min(n, WIDTHS[kind]), kind))
    for kind in ("u16", "s16", "b16", "u32", "s32", "b32", "u64", "s64", "b64")
]  # fmt: skip
BITS += [
    Case(f"shf.{side}.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}}", ("b32", "b32", "u32"), ("b32",), funnel(side, mode))
    for side in "lr"
    for mode in ("wrap", "clamp")
]
BITS += [
    Case(f"bfe.{kind} {{d}}, {{a}}, {{b}}, {{c}}", (kind, "u32", "u32"), (kind,),
         lambda a, p, n, kind=kind: extract(a, p, n, kind), fields(kind, 1))
    for kind in ("u32", "s32", "u64", "s64")
]  # fmt: skip
BITS += [
    Case(f"bfi.b{w} {{d}}, {{a}}, {{b}}, {{c}}, {{e}}", (f"b{w}", f"b{w}", "u32", "u32"), (f"b{w}",),
         lambda a, b, p, n, w=w: insert(a, b, p, n, w), fields(f"b{w}", 2))
    for w in (32, 64)
]  # fmt: skip
BITS += [
    Case("prmt.b32 {d}, {a}, {b}, {c}", ("b32", "b32", "b32"), ("b32",), permute),
    Case("popc.b32 {d}, {a}", ("b32",), ("u32",), lambda a: a.bit_count()),
    Case("popc.b64 {d}, {a}", ("b64",), ("u32",), lambda a: a.bit_count()),
    Case("clz.b32 {d}, {a}", ("b32",), ("u32",), lambda a: 32 - a.bit_length()),
    Case("clz.b64 {d}, {a}", ("b64",), ("u32",), lambda a: 64 - a.bit_length()),
    Case("brev.b32 {d}, {a}", ("b32",), ("b32",), lambda a: int(f"{a:032b}"[::-1], 2)),
]


@cases(BITS)
def test_bits(case: Case) -> None:
    check(case)


def test_lop3() -> None:
    """All 256 tables at once: the operands run through all combinations of three bits, so the result is the table."""
    lines = [f"lop3.b32 %r10, 0xF0, %r3, 0xAA, {t};\nst.global.u32 [%rd0+{4 * t}], %r10;" for t in range(256)]
    out = handwritten.unwritten(256)
    record = handwritten.run("mov.u32 %r3, 0xCC;\nsetp.ne.u32 %p0, %r0, 0;\n@%p0 ret;\n" + "\n".join(lines), [out])
    assert not record.errors
    # Of bits 8 to 31 all operands are 0: there the result is the table's lowest bit.
    assert out.tolist() == [t | (0xFFFFFF00 if t & 1 else 0) for t in range(256)]


# 9.7.3: floating point


def floating(text: str, kind: str, function: Callable[..., int], count: int, **more: Any) -> Case:
    ftz = ".ftz" in text

    def expected(*values: int) -> int:
        if ftz:
            return exact.flushed(function(*(exact.flushed(v, kind) for v in values), kind=kind), kind)
        return function(*values, kind=kind)

    return Case(
        f"{text}.{kind} {{d}}, {', '.join('{' + x + '}' for x in 'abc'[:count])}",
        (kind,) * count,
        (kind,),
        expected,
        **more,
    )


def ftz(kind: str) -> tuple[str, ...]:
    return ("", ".ftz") if kind == "f32" else ("",)


FLOATING = [
    case
    for kind in ("f32", "f64")
    for f in ftz(kind)
    for case in (
        floating(f"add{f}", kind, exact.add, 2),
        floating(f"sub{f}", kind, exact.subtract, 2),
        floating(f"mul{f}", kind, exact.multiply, 2),
        floating(f"add.rn{f}", kind, exact.add, 2),
        floating(f"sub.rn{f}", kind, exact.subtract, 2),
        floating(f"mul.rn{f}", kind, exact.multiply, 2),
        floating(f"fma.rn{f}", kind, exact.fused, 3),
        floating(f"mad.rn{f}", kind, exact.fused, 3),
        floating(f"div.rn{f}", kind, exact.divide, 2),
        floating(f"sqrt.rn{f}", kind, exact.square_root, 1),
        floating(f"rcp.rn{f}", kind, lambda a, kind: exact.divide(exact.bits_of_real(1.0, kind), a, kind), 1),
        floating(f"min{f}", kind, exact.minimum, 2),
        floating(f"max{f}", kind, exact.maximum, 2),
        floating(f"neg{f}", kind, lambda a, kind: a ^ exact.sign_bit(kind), 1),
        floating(f"abs{f}", kind, lambda a, kind: a & ~exact.sign_bit(kind), 1),
    )
]
FLOATING += [
    floating(f"{op}{f}.NaN", "f32", lambda a, b, kind, function=function: function(a, b, kind, True), 2)
    for f in ("", ".ftz")
    for op, function in (("min", exact.minimum), ("max", exact.maximum))
]
FLOATING += [
    floating("min", "f32", lambda a, b, c, kind: exact.minimum(exact.minimum(a, b, kind), c, kind), 3),
    floating("max", "f32", lambda a, b, c, kind: exact.maximum(exact.maximum(a, b, kind), c, kind), 3),
]
# copysign d, a, b: the sign of a and the rest of b.
FLOATING += [
    floating("copysign", kind, lambda a, b, kind: a & exact.sign_bit(kind) | b & ~exact.sign_bit(kind), 2)
    for kind in ("f32", "f64")
]


@cases(FLOATING)
def test_floating_point(case: Case) -> None:
    check(case)


def test_fma_is_rounded_once() -> None:
    """(1 + eps)^2 - (1 + 2 eps) is eps^2, which a product that was rounded before loses."""
    for kind, eps in (("f32", 2.0**-23), ("f64", 2.0**-52)):
        a, c = exact.bits_of_real(1 + eps, kind), exact.bits_of_real(-(1 + 2 * eps), kind)
        case = floating("fma.rn", kind, exact.fused, 3)
        (got, _) = compute(case, [(a, a, c)] * 2)
        assert real(got["all"][0], kind) == eps**2


APPROXIMATE: list[tuple[str, str, int, Callable[..., Any]]] = [
    ("div.full", "f32", 2, lambda a, b: a / b),
    ("div.approx", "f32", 2, lambda a, b: a / b),
    ("rcp.approx", "f32", 1, lambda a: 1 / a),
    ("sqrt.approx", "f32", 1, mpmath.sqrt),
    ("rsqrt.approx", "f32", 1, lambda a: 1 / mpmath.sqrt(a)),
    ("rsqrt.approx", "f64", 1, lambda a: 1 / mpmath.sqrt(a)),
    ("ex2.approx", "f32", 1, lambda a: mpmath.power(2, a)),
    ("lg2.approx", "f32", 1, lambda a: mpmath.log(a, 2)),
]


def approximate_operands(op: str, kind: str, count: int) -> list[tuple[int, ...]]:
    """Finite operands for which the result is an ordinary number; test_limits_of_approximations has the others."""
    rows = exact.tuples((kind,) * count, COUNT)

    def ordinary(row: tuple[int, ...]) -> bool:
        x = [real(v, kind) for v in row]
        if not all(abs(v) < 2.0**100 and abs(v) > 2.0**-100 for v in x):
            return False
        if op == "ex2.approx":
            return abs(x[0]) < 100
        return min(x) > 0 or op.startswith(("div", "rcp"))

    return [row for row in rows if ordinary(row)]


def to_bits(x: Any, kind: str) -> int:
    """The bits of a number of mpmath's, rounded."""
    sign, significand, exponent, _ = x._mpf_
    return exact.nearest(Fraction(-significand if sign else significand) * Fraction(2) ** exponent, kind)


@pytest.mark.parametrize("flush", ["", ".ftz"])
@pytest.mark.parametrize(("op", "kind", "count", "function"), APPROXIMATE, ids=[f"{a[0]}.{a[1]}" for a in APPROXIMATE])
def test_approximate_instructions(op: str, kind: str, count: int, function: Callable[..., Any], flush: str) -> None:
    """Unless perturbed they are the function rounded once, but for ties of its last bits: within one unit."""
    if flush and kind == "f64":
        pytest.skip("rsqrt.approx.ftz.f64 is another, coarser instruction, which test_what_is_refused has")

    def expected(*values: int, kind: str) -> int:
        with mpmath.workdps(60):
            return to_bits(function(*(mpmath.mpf(real(v, kind)) for v in values)), kind)

    def close(_: str, got: int, wanted: int) -> bool:
        return abs(got - wanted) <= 1

    case = floating(f"{op}{flush}", kind, expected, count, operands=approximate_operands(op, kind, count))
    check(case, close)


def test_limits_of_approximations() -> None:
    """Their special values, by the tables of section 9.7.3: signs of zeros and infinities, domains, flushed operands."""
    inf, nan = float("inf"), float("nan")
    tables: dict[str, list[tuple[float, ...]]] = {
        "rcp.approx.ftz.f32": [(0.0, inf), (-0.0, -inf), (inf, 0.0), (-inf, -0.0), (nan, nan), (1e-40, inf), (2.0**127, 0.0)],
        "rcp.approx.f32": [(0.0, inf), (-0.0, -inf), (inf, 0.0), (-inf, -0.0), (nan, nan)],
        "sqrt.approx.ftz.f32": [(0.0, 0.0), (-0.0, -0.0), (inf, inf), (-1.0, nan), (-inf, nan), (nan, nan), (1e-40, 0.0), (-1e-40, -0.0)],
        "sqrt.approx.f32": [(0.0, 0.0), (-0.0, -0.0), (inf, inf), (-1.0, nan), (-inf, nan), (nan, nan)],
        "rsqrt.approx.ftz.f32": [(0.0, inf), (-0.0, -inf), (inf, 0.0), (-1.0, nan), (-inf, nan), (nan, nan), (1e-40, inf), (-1e-40, -inf)],
        "rsqrt.approx.f32": [(0.0, inf), (-0.0, -inf), (inf, 0.0), (-1.0, nan), (-inf, nan), (nan, nan)],
        "rsqrt.approx.f64": [(0.0, inf), (-0.0, -inf), (inf, 0.0), (-1.0, nan), (-inf, nan), (nan, nan)],
        "ex2.approx.ftz.f32": [(0.0, 1.0), (-0.0, 1.0), (inf, inf), (-inf, 0.0), (nan, nan), (1e-40, 1.0), (-127.0, 0.0), (128.0, inf)],
        "lg2.approx.ftz.f32": [(0.0, -inf), (-0.0, -inf), (inf, inf), (-1.0, nan), (-inf, nan), (nan, nan), (1e-40, -inf), (8.0, 3.0)],
        # div.approx is a * (1/b), whose reciprocal is 0 for |b| in (2^126, 2^128).
        "div.approx.f32": [(1.0, 2.0**127, 0.0), (-1.0, 2.0**127, -0.0), (inf, 2.0**127, nan), (1.0, 0.0, inf), (0.0, 0.0, nan), (inf, inf, nan)],
        "div.full.f32": [(2.0**127, 2.0**127, 1.0), (1.0, 0.0, inf), (-1.0, 0.0, -inf), (0.0, 0.0, nan), (inf, inf, nan), (1.0, inf, 0.0)],
    }  # fmt: skip
    for text, rows in tables.items():
        kind = text[-3:]
        bits = [tuple(as_bits(x, kind) for x in row) for row in rows]
        count = len(rows[0]) - 1
        case = Case(
            f"{text} {{d}}, {', '.join('{' + x + '}' for x in 'ab'[:count])}", (kind,) * count, (kind,), lambda *_: 0
        )
        operands = [row[:-1] for row in bits] * 2
        for row, got in zip(bits * 2, compute(case, operands), strict=True):
            assert same(kind, got["all"][0], row[-1]), (
                f"{text} of {[hex(x) for x in row[:-1]]}: {got['all'][0]:#x}, not {row[-1]:#x}"
            )


def as_bits(x: float, kind: str) -> int:
    """The bits of the number nearest to ``x``."""
    if x != x:
        return exact.NAN[kind]
    return exact.convert(exact.bits_of_real(x, "f64"), "f64", kind)


PROPERTIES: dict[str, Callable[[float], bool]] = {
    "finite": math.isfinite,
    "infinite": math.isinf,
    "notanumber": math.isnan,
}
TESTS = [
    Case(f"testp.{name}.{kind} {{d}}, {{a}}", (kind,), ("pred",), lambda a, f=f, kind=kind: int(f(real(a, kind))))
    for kind in ("f32", "f64")
    for name, f in PROPERTIES.items()
]


# 9.7.6: comparison and selection

ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
INTEGER_ORDERS = ORDERED | {name: ORDERED[same] for name, same in UNSIGNED.items()}
BOOLEAN: dict[str, Callable[[int, int], int]] = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


def compare_reals(name: str, kind: str, flush: bool = False) -> Callable[[int, int], int]:
    """Ordered comparisons with a NaN are false, those that end in u are true; ``num`` and ``nan`` ask for one."""

    def function(a: int, b: int) -> int:
        if flush:
            a, b = exact.flushed(a, kind), exact.flushed(b, kind)
        x, y = real(a, kind), real(b, kind)
        unordered = math.isnan(x) or math.isnan(y)
        if name in ("num", "nan"):
            return int(unordered == (name == "nan"))
        if unordered:
            return int(name not in ORDERED)
        return int(ORDERED[name.removesuffix("u")](x, y))

    return function


COMPARISONS = [
    Case(f"setp.{name}.{kind} {{d}}, {{a}}, {{b}}", (kind, kind), ("pred",),
         lambda a, b, f=INTEGER_ORDERS[name], kind=kind: int(f(number(a, kind), number(b, kind))))
    for kind in (*INTEGERS, "b16", "b32", "b64")
    for name in (["eq", "ne"] if kind[0] == "b" else [*ORDERED, *(UNSIGNED if kind[0] == "u" else [])])
]  # fmt: skip
COMPARISONS += [
    Case(f"setp.{name}{f}.{kind} {{d}}, {{a}}, {{b}}", (kind, kind), ("pred",), compare_reals(name, kind, bool(f)))
    for kind in ("f32", "f64")
    for f in ftz(kind)
    for name in [*ORDERED, *(f"{x}u" for x in ORDERED), "num", "nan"]
]
# Two results: the comparison, and its opposite.
COMPARISONS += [
    Case(
        f"setp.lt.{kind} {{d}}|{{q}}, {{a}}, {{b}}",
        (kind, kind),
        ("pred", "pred"),
        lambda a, b, f=f: (f(a, b), 1 - f(a, b)),
    )
    for kind, f in (("f32", compare_reals("lt", "f32")), ("u32", lambda a, b: int(a < b)))
]
# p = (a op b) and c, q = not (a op b) and c.
COMPARISONS += [
    Case(f"setp.{name}.{combination}.f32 {{d}}|{{q}}, {{a}}, {{b}}, {negation}{{c}}", ("f32", "f32", "pred"), ("pred", "pred"),
         lambda a, b, c, f=f, g=g, n=bool(negation): (g(f(a, b), c ^ n), g(1 - f(a, b), c ^ n)))
    for name, f in (("gtu", compare_reals("gtu", "f32")), ("eq", compare_reals("eq", "f32")))
    for combination, g in BOOLEAN.items()
    for negation in ("", "!")
]  # fmt: skip
COMPARISONS += [
    Case(f"setp.lt.{combination}.s32 {{d}}, {{a}}, {{b}}, {{c}}", ("s32", "s32", "pred"), ("pred",),
         lambda a, b, c, g=g: g(int(number(a, "s32") < number(b, "s32")), c))
    for combination, g in BOOLEAN.items()
]  # fmt: skip
SELECTIONS = [
    Case(f"selp.{kind} {{d}}, {{a}}, {{b}}, {{c}}", (kind, kind, "pred"), (kind,), lambda a, b, c: a if c else b)
    for kind in ("b16", "u16", "s16", "b32", "u32", "s32", "b64", "u64", "s64", "f32", "f64")
]


def same_bits(_: str, got: int, expected: int) -> bool:
    return got == expected


@cases(TESTS, COMPARISONS)
def test_comparison(case: Case) -> None:
    check(case)


@cases(SELECTIONS)
def test_selection(case: Case) -> None:
    """A chosen NaN keeps its payload."""
    check(case, same_bits)


# 9.7.9: data movement and conversion

MOVES = [
    Case(f"mov.{kind} {{d}}, {{a}}", (kind,), (kind,), lambda a: a)
    for kind in ("b16", "u16", "s16", "b32", "u32", "s32", "b64", "u64", "s64", "f32", "f64", "pred")
]
PACKS = [
    Case("mov.b32 {d}, {{{a}, {b}}}", ("b16", "b16"), ("b32",), lambda a, b: a | b << 16, immediate=False),
    Case("mov.b64 {d}, {{{a}, {b}}}", ("b32", "b32"), ("b64",), lambda a, b: a | b << 32, immediate=False),
    Case("mov.b64 {d}, {{{a}, {b}, {c}, {e}}}", ("b16",) * 4, ("b64",), lambda *v: sum(x << 16 * k for k, x in enumerate(v)), immediate=False),
    Case("mov.b32 {{{d}, {q}}}, {a}", ("b32",), ("b16", "b16"), lambda a: (a & 0xFFFF, a >> 16)),
    Case("mov.b64 {{{d}, {q}}}, {a}", ("b64",), ("b32", "b32"), lambda a: (a & 0xFFFFFFFF, a >> 32)),
    Case("mov.b64 {{{d}, _}}, {a}", ("b64",), ("b32",), lambda a: a & 0xFFFFFFFF),
    Case("mov.b64 {{_, {d}}}, {a}", ("b64",), ("b32",), lambda a: a >> 32),
    Case("mov.b64 {{{d}, {q}}}, {a}", ("f64",), ("f32", "f32"), lambda a: (a & 0xFFFFFFFF, a >> 32)),
]  # fmt: skip


@cases(MOVES, PACKS)
def test_moves(case: Case) -> None:
    check(case, same_bits)


WHOLE = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]


def converted(bits: int, source: str, target: str) -> int:
    """An integer cut to the target's width, then extended by the target's sign to its register, of at least 16 bits."""
    return number(number(bits, source), target) & ((1 << max(16, WIDTHS[target])) - 1)


CONVERSIONS = [
    Case(f"cvt.{target}.{source} {{d}}, {{a}}", ("u16" if WIDTHS[source] == 8 else source,),
         ("u16" if WIDTHS[target] == 8 else target,), lambda a, s=source, t=target: converted(a, s, t))
    for source in WHOLE
    for target in WHOLE
]  # fmt: skip
CONVERSIONS += [
    Case(f"cvt.rn.{target}.{source} {{d}}, {{a}}", ("u16" if WIDTHS[source] == 8 else source,), (target,),
         lambda a, s=source, t=target: exact.nearest(Fraction(number(a, s)), t))
    for source in WHOLE
    for target in ("f32", "f64")
]  # fmt: skip
CONVERSIONS += [
    Case(f"cvt.{rounding}.{target}.{source} {{d}}, {{a}}", (source,), (target,),
         lambda a, s=source, t=target, r=rounding: exact.to_integer(a, s, t, r))
    for rounding in ("rni", "rzi", "rmi", "rpi")
    for source in ("f32", "f64")
    for target in INTEGERS
]  # fmt: skip
CONVERSIONS += [
    Case(
        f"cvt.{rounding}.{kind}.{kind} {{d}}, {{a}}",
        (kind,),
        (kind,),
        lambda a, k=kind, r=rounding: exact.round_to_integer(a, k, r),
    )
    for rounding in ("rni", "rzi", "rmi", "rpi")
    for kind in ("f32", "f64")
]
CONVERSIONS += [
    Case("cvt.f64.f32 {d}, {a}", ("f32",), ("f64",), lambda a: exact.convert(a, "f32", "f64")),
    Case("cvt.ftz.f64.f32 {d}, {a}", ("f32",), ("f64",), lambda a: exact.convert(exact.flushed(a, "f32"), "f32", "f64")),
    Case("cvt.rn.f32.f64 {d}, {a}", ("f64",), ("f32",), lambda a: exact.convert(a, "f64", "f32")),
    Case("cvt.rn.ftz.f32.f64 {d}, {a}", ("f64",), ("f32",), lambda a: exact.flushed(exact.convert(a, "f64", "f32"), "f32")),
    Case("cvt.rzi.ftz.s32.f32 {d}, {a}", ("f32",), ("s32",), lambda a: exact.to_integer(exact.flushed(a, "f32"), "f32", "s32", "rzi")),
    Case("cvt.rpi.ftz.s32.f32 {d}, {a}", ("f32",), ("s32",), lambda a: exact.to_integer(exact.flushed(a, "f32"), "f32", "s32", "rpi")),
]  # fmt: skip


@cases(CONVERSIONS)
def test_conversion(case: Case) -> None:
    check(case)


def tf32(bits: int, ties_away: bool) -> int:
    """10 bits of significand. The value is a fraction of 2^13 units of the last place, as the significand is linear."""
    magnitude, sign = bits & 0x7FFFFFFF, bits & 0x80000000
    quotient, rest = divmod(magnitude, 1 << 13)
    if rest > 1 << 12 or (rest == 1 << 12 and (ties_away or quotient & 1)):
        quotient += 1
    return sign | quotient << 13


@pytest.mark.parametrize("rounding", ["rna", "rn"])
def test_conversion_to_tf32(rounding: str) -> None:
    """Ties away from zero, or to even; all but NaN. What exceeds the range becomes infinity."""
    operands = exact.tuples(("f32",), COUNT)
    ties = [
        (0x3F801000,),
        (0x3F803000,),
        (0xBF801000,),
        (0xBF803000,),
        (0x7F7FFFFF,),
        (0x3F800FFF,),
        (0x3F801001,),
        (0x00001000,),
    ]
    operands = [row for row in operands + ties if not exact.is_nan(row[0], "f32")]
    check(
        Case(
            f"cvt.{rounding}.tf32.f32 {{d}}, {{a}}", ("f32",), ("b32",), lambda a: tf32(a, rounding == "rna"), operands
        )
    )
    (got, _) = compute(
        Case(f"cvt.{rounding}.tf32.f32 {{d}}, {{a}}", ("f32",), ("b32",), lambda a: 0), [(exact.NAN["f32"],)] * 2
    )
    assert exact.is_nan(got["all"][0] & 0xFFFFE000, "f32")


REFUSED = [
    "add.sat.s32 %r9, %r9, 1", "add.cc.u32 %r9, %r9, 1", "mul.sat.f32 %f1, %f1, %f1", "fma.rn.sat.f32 %f1, %f1, %f1, %f1",
    "add.rz.f32 %f1, %f1, %f1", "mul.rm.f64 %d1, %d1, %d1", "fma.rp.f32 %f1, %f1, %f1, %f1", "div.rz.f32 %f1, %f1, %f1",
    "sqrt.rz.f32 %f1, %f1", "rcp.rz.f64 %d1, %d1", "cvt.rz.f32.f64 %f1, %d1", "cvt.sat.f32.f64 %f1, %d1",
    "cvt.rni.sat.s32.f32 %r9, %f1", "cvt.rn.f16.f32 %h1, %f1", "rcp.approx.ftz.f64 %d1, %d1",
    "rsqrt.approx.ftz.f64 %d1, %d1", "prmt.b32.f4e %r9, %r9, %r9, %r9", "min.relu.s32 %r9, %r9, %r9",
    "max.xorsign.abs.f32 %f1, %f1, %f1", "vote.sync.uni.pred %p1, %p1, -1", "sin.approx.f32 %f1, %f1",
    "tanh.approx.f32 %f1, %f1", "atom.global.add.u32 %r9, [%rd0], 1", "red.global.add.u32 [%rd0], 1",
    "bar.arrive 0, 64", "bar.sync 1, 64", "bar.red.popc.u32 %r9, 0, %p1", "match.any.sync.b32 %r9, %r9, -1",
    "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2}, {%r3}, {%f1, %f2, %f3, %f4}",
    "@%p1 bar.sync 0",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text: str) -> None:
    """An instruction or a modifier that is not emulated ends the launch; it is not run as if it were another."""
    with pytest.raises(NotImplementedError):
        handwritten.run(f"setp.eq.u32 %p1, %r0, %r0;\n{text};", [np.zeros(1, np.uint32)])


@pytest.mark.parametrize(("op", "units"), [("rcp.approx.f32", 1), ("rsqrt.approx.f32", 2), ("div.full.f32", 2)])
def test_approximations_err_when_perturbed(op: str, units: int) -> None:
    """By at most what is documented, and not by nothing."""
    rows = approximate_operands(op.removesuffix(".f32"), "f32", 2)
    rows = [row for row in rows if min(real(v, "f32") for v in row) > 0]
    inputs = [np.array([row[k] for row in rows][:128], np.uint32) for k in range(2)]
    text = f"{op} %f3, %f1, %f2;" if op.startswith("div") else f"{op} %f3, %f1;"
    body = "mad.lo.u32 %r2, %r1, 32, %r0;\n" + "".join(
        f"mad.wide.u32 %rd10, %r2, 4, %rd{k};\nld.global.b32 %f{k + 1}, [%rd10];\n" for k in range(2)
    )
    body += f"{text}\nmad.wide.u32 %rd10, %r2, 4, %rd2;\nst.global.b32 [%rd10], %f3;"
    results = []
    for perturb in (0.0, 1.0):
        out = np.zeros(len(inputs[0]), np.uint32)
        handwritten.run(body, [*inputs, out], grid=len(out) // 32, perturb=perturb)
        results.append(out[: len(out) // 32 * 32].astype(np.int64))
    apart = np.abs(results[0] - results[1])
    assert 0 < apart.max() <= units
