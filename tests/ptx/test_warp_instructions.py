"""What the lanes of a warp do together: shuffles, votes, reductions, matrices of 8 x 8, products on tensor cores.

Sections are those of NVIDIA's "Parallel Thread Execution ISA", version 9.
"""

# ruff: noqa: E501 (tables of PTX: a line for a case)

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.ptx import emission, exact, handwritten, machine
from tests.ptx.exact import number, real
from tests.ptx.group import Fault

WARPS = 2
LANES = range(32)


def clean(record: machine.Record) -> None:
    assert not record.errors, list(record.examples.values())


def words(count: int, seed: int = 0) -> np.ndarray:
    generator = random.Random(seed)
    return np.array([generator.getrandbits(32) for _ in range(count)], np.uint32)


def each_thread(body: str, inputs: list[np.ndarray], results: int, **options: object) -> list[list[int]]:
    """Thread t finds word t of input k in %r(10 + k) and leaves results in %r30, %r31, ...; a list for each thread."""
    threads = len(inputs[0])
    loads = [f"mad.wide.u32 %rd40, %r0, 4, %rd{k};\nld.global.u32 %r{10 + k}, [%rd40];" for k in range(len(inputs))]
    stores = [f"mad.wide.u32 %rd40, %r0, {4 * results}, %rd{len(inputs)};"]
    stores += [f"st.global.u32 [%rd40+{4 * k}], %r{30 + k};" for k in range(results)]
    out = handwritten.unwritten(threads * results)
    clean(handwritten.run("\n".join([*loads, body, *stores]), [*inputs, out], threads=threads, **options))
    return [[int(x) for x in row] for row in out.reshape(threads, results)]


# 9.7.9.6: shfl.sync


def source_of(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """Which lane a shuffle reads, and its predicate: the pseudocode of shfl.sync."""
    step, clamp, segment = b & 31, c & 31, c >> 8 & 31
    limit = lane & segment | clamp & ~segment & 31
    first = lane & segment
    other = {"up": lane - step, "down": lane + step, "bfly": lane ^ step, "idx": first | step & ~segment & 31}[mode]
    inside = other >= limit if mode == "up" else other <= limit
    return (other if inside else lane), inside


@pytest.mark.parametrize("mode", ["idx", "bfly", "up", "down"])
@pytest.mark.parametrize("segment", [32, 16, 8, 1])
def test_shuffles(mode: str, segment: int) -> None:
    """In segments of each size, with lanes that differ; lane's own value and false where the other is outside."""
    values, steps = words(64), words(64, 1) % 40
    clamp = (32 - segment) << 8 | (0 if mode == "up" else 31)
    body = f"shfl.sync.{mode}.b32 %r30|%p0, %r10, %r11, {clamp}, -1;\nselp.u32 %r31, 1, 0, %p0;"
    body += f"\nshfl.sync.{mode}.b32 %r32, %r10, 1, {clamp}, 0xffffffff;"
    got = each_thread(body, [values, steps], 3)
    for thread, row in enumerate(got):
        base, lane = thread & ~31, thread & 31
        other, inside = source_of(mode, lane, int(steps[thread]), clamp)
        always, _ = source_of(mode, lane, 1, clamp)
        assert row == [values[base + other], inside, values[base + always]], (thread, segment)


def test_shuffles_of_part_of_a_warp() -> None:
    """Lanes 0 to 15 took a branch and name each other as members."""
    values = words(32)
    body = """
    mov.u32 %r30, 0;
    setp.ge.u32 %p0, %r0, 16;
    @%p0 bra DONE;
    shfl.sync.bfly.b32 %r30, %r10, 15, 31, 0xffff;
    DONE:
    """
    got = each_thread(body, [values], 1)
    assert [row[0] for row in got] == [int(values[15 - t]) if t < 16 else 0 for t in LANES]


# 9.7.13: redux, vote, activemask

REDUCTIONS: dict[str, Callable[[list[int]], int]] = {
    "add": sum, "min": min, "max": max, "and": lambda v: fold(v, int.__and__), "or": lambda v: fold(v, int.__or__),
    "xor": lambda v: fold(v, int.__xor__),
}  # fmt: skip


def fold(values: list[int], f: Callable[[int, int], int]) -> int:
    first, *others = values
    for x in others:
        first = f(first, x)
    return first


@pytest.mark.parametrize(
    ("operation", "kind"),
    [(o, k) for o in ("add", "min", "max") for k in ("u32", "s32")] + [(o, "b32") for o in ("and", "or", "xor")],
)
def test_reductions(operation: str, kind: str) -> None:
    """Of a whole warp; of its halves, which name their own members in one and the same instruction."""
    values = words(64, 3)
    if operation in ("and", "or"):
        # Each lane has one bit of its own, so that every lane that is left out, or counted too much, shows.
        values = np.array([1 << t % 32 for t in range(64)], np.uint32)
        values = ~values if operation == "and" else values
    body = f"redux.sync.{operation}.{kind} %r30, %r10, -1;\nand.b32 %r20, %r0, 16;\nsetp.ne.u32 %p0, %r20, 0;\n"
    body += f"selp.b32 %r21, 0xffff0000, 0x0000ffff, %p0;\nredux.sync.{operation}.{kind} %r31, %r10, %r21;"
    got = each_thread(body, [values], 2)
    for thread, row in enumerate(got):
        whole = [number(int(x), kind) for x in values[thread & ~31 :][:32]]
        half = [number(int(x), kind) for x in values[thread & ~15 :][:16]]
        assert row == [exact.bits_of(REDUCTIONS[operation](v), kind) for v in (whole, half)]


@pytest.mark.parametrize("operation", ["min", "max"])
def test_reductions_of_floats(operation: str) -> None:
    """sm_100. A NaN counts only where there is nothing else; -0 is less than +0."""
    values = np.random.default_rng(5).standard_normal(96).astype(np.float32)
    values[[3, 40]] = np.nan
    values[[7, 8]] = np.inf, -np.inf
    values[32:64] = np.where(np.arange(32) % 2, np.float32(0), np.float32(-0.0))
    values[40] = np.nan
    values[64:] = np.nan
    got = each_thread(f"redux.sync.{operation}.f32 %r30, %r10, -1;", [values.view(np.uint32)], 1)
    extreme = np.float32(np.inf if operation == "max" else -np.inf)
    zero = np.float32(0.0 if operation == "max" else -0.0)
    bits = [int(x.view(np.uint32)) for x in (extreme, zero)]
    assert [row[0] for row in got[:64]] == [bits[0]] * 32 + [bits[1]] * 32
    assert all(np.isnan(np.uint32(row[0]).view(np.float32)) for row in got[64:])


@pytest.mark.parametrize("members", ["whole", "halves"])
def test_votes(members: str) -> None:
    """Of predicates that hold in no lane, in some, in all of a warp or of a half of it (vote.sync)."""
    patterns = [0, 1 << 7, 0xFFFFFFFF, 0x0000FFFF, 0xFFFF0000, 0x12345678]
    values = np.array([p >> lane & 1 for p in patterns for lane in LANES], np.uint32)
    body = "setp.ne.u32 %p0, %r10, 0;\nmov.u32 %r21, -1;\n"
    if members == "halves":
        body += "and.b32 %r20, %r0, 16;\nsetp.ne.u32 %p1, %r20, 0;\nselp.b32 %r21, 0xffff0000, 0x0000ffff, %p1;\n"
    body += "vote.sync.any.pred %p2, %p0, %r21;\nvote.sync.all.pred %p3, %p0, %r21;\nvote.sync.ballot.b32 %r32, %p0, %r21;\n"
    body += "vote.sync.all.pred %p4, !%p0, %r21;\nselp.u32 %r30, 1, 0, %p2;\nselp.u32 %r31, 1, 0, %p3;\nselp.u32 %r33, 1, 0, %p4;"
    got = each_thread(body, [values], 4)
    for thread, row in enumerate(got):
        mask = 0xFFFFFFFF if members == "whole" else 0xFFFF0000 if thread & 16 else 0xFFFF
        ballot = patterns[thread // 32] & mask
        assert row == [ballot != 0, ballot == mask, ballot, ballot == 0], thread


def test_votes_and_the_mask_of_lanes_in_a_branch() -> None:
    values = np.array([t % 3 == 0 for t in LANES], np.uint32)
    body = """
    mov.u32 %r30, 7;
    mov.u32 %r31, 7;
    mov.u32 %r32, 7;
    activemask.b32 %r33;
    setp.ne.u32 %p0, %r10, 0;
    setp.lt.u32 %p1, %r0, 9;
    @!%p1 bra DONE;
    activemask.b32 %r30;
    vote.sync.ballot.b32 %r31, %p0, 0x1ff;
    vote.sync.all.pred %p2, %p1, 0x1ff;
    selp.u32 %r32, 1, 0, %p2;
    DONE:
    """
    got = each_thread(body, [values], 4)
    assert got == [[0x1FF, 0b001001001, 1, 0xFFFFFFFF] if t < 9 else [7, 7, 7, 0xFFFFFFFF] for t in LANES]


def test_warp_barriers_exchange_through_shared_memory() -> None:
    values = words(64, 5)
    body = """
    mov.u32 %r20, buffer;
    mad.lo.u32 %r21, %r0, 4, %r20;
    st.shared.u32 [%r21], %r10;
    bar.warp.sync -1;
    xor.b32 %r22, %r0, 31;
    mad.lo.u32 %r23, %r22, 4, %r20;
    ld.shared.u32 %r30, [%r23];
    bar.warp.sync 0xffffffff;
    add.u32 %r24, %r10, 1;
    st.shared.u32 [%r21], %r24;
    bar.warp.sync -1;
    ld.shared.u32 %r31, [%r23];
    """
    got = each_thread(body, [values], 2, declarations=".shared .align 4 .b8 buffer[256];")
    assert got == [[int(values[t ^ 31]), exact.bits_of(int(values[t ^ 31]) + 1, "u32")] for t in range(64)]


def test_warp_barriers_of_some_lanes_are_refused() -> None:
    """The check for races counts the barriers of a warp, not those of a lane."""
    with pytest.raises(Fault, match="some lanes"):
        handwritten.run("setp.lt.u32 %p0, %r0, 16;\n@%p0 bar.warp.sync 0xffff;", [words(1)])


@pytest.mark.parametrize("order", machine.ORDERS)
def test_lanes_meet_again_at_warp_wide_instructions(order: str) -> None:
    """After a branch the lanes of a warp wait for one another where the kernel says so (.sync)."""
    values = words(64, 6)
    body = """
    setp.lt.u32 %p0, %r10, 0x80000000;
    @%p0 bra LOW;
    add.u32 %r11, %r10, 5;
    shfl.sync.bfly.b32 %r30, %r11, 1, 31, -1;
    bra DONE;
    LOW:
    add.u32 %r11, %r10, 7;
    bra JOIN;
    DONE:
    bra END;
    JOIN:
    END:
    mov.u32 %r30, %r11;
    shfl.sync.bfly.b32 %r30, %r11, 1, 31, -1;
    """
    body = body.replace("    shfl.sync.bfly.b32 %r30, %r11, 1, 31, -1;\n", "", 1)
    got = each_thread(body, [values], 1, together=True, order=order)
    sums = [exact.bits_of(int(v) + (7 if v < 0x80000000 else 5), "u32") for v in values]
    assert [row[0] for row in got] == [sums[t ^ 1] for t in range(64)]


# 9.7.14.5.15 and 16: ldmatrix, stmatrix


def entry(lane: int, half: int, transposed: bool) -> tuple[int, int]:
    """Row and column of the 16 bits ``half`` of a lane's register: 8 rows of 4 lanes, a row's address from one lane."""
    row, column = lane // 4, 2 * (lane % 4) + half
    return (column, row) if transposed else (row, column)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_from_shared_memory(count: int, transposed: bool) -> None:
    """Row r of matrix k is at the address that lane 8 k + r gives: here in an order of its own, 48 bytes apart."""
    generator = random.Random(count)
    places = generator.sample(range(32), 32)
    values = words(32 * 12, 7)
    registers = "{" + ", ".join(f"%r{30 + k}" for k in range(count)) + "}"
    body = f"""
    mov.u32 %r20, buffer;
    mad.lo.u32 %r21, %r0, 4, %r20;
    {"".join(f"mad.wide.u32 %rd20, %r0, 4, %rd1;{chr(10)}ld.global.u32 %r22, [%rd20+{128 * k}];{chr(10)}st.shared.u32 [%r21+{128 * k}], %r22;{chr(10)}" for k in range(12))}
    bar.warp.sync -1;
    mad.lo.u32 %r23, %r10, 48, %r20;
    ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 {registers}, [%r23];
    mad.wide.u32 %rd40, %r0, {4 * count}, %rd2;
    {"".join(f"st.global.u32 [%rd40+{4 * k}], %r{30 + k};{chr(10)}" for k in range(count))}
    """
    out = handwritten.unwritten(32 * count)
    body = "mad.wide.u32 %rd20, %r0, 4, %rd0;\nld.global.u32 %r10, [%rd20];\n" + body
    inputs = [np.array(places, np.uint32), values]
    clean(handwritten.run(body, [*inputs, out], declarations=".shared .align 16 .b8 buffer[1536];"))
    halves = values.view(np.uint16).reshape(32, 24)
    for lane in LANES:
        for k in range(count):
            wanted = 0
            for half in range(2):
                row, column = entry(lane, half, transposed)
                wanted |= int(halves[places[8 * k + row], column]) << 16 * half
            assert int(out[lane * count + k]) == wanted


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_to_shared_memory(count: int, transposed: bool) -> None:
    generator = random.Random(count + 9)
    places = generator.sample(range(8 * count), 8 * count) + [0] * (32 - 8 * count)
    values = words(32 * count, 8)
    registers = "{" + ", ".join(f"%r{30 + k}" for k in range(count)) + "}"
    body = f"""
    mad.wide.u32 %rd20, %r0, 4, %rd0;
    ld.global.u32 %r10, [%rd20];
    mov.u32 %r20, buffer;
    mad.lo.u32 %r23, %r10, 16, %r20;
    mad.wide.u32 %rd40, %r0, {4 * count}, %rd1;
    {"".join(f"ld.global.u32 %r{30 + k}, [%rd40+{4 * k}];{chr(10)}" for k in range(count))}
    stmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 [%r23], {registers};
    bar.warp.sync -1;
    mad.lo.u32 %r21, %r0, 4, %r20;
    mad.wide.u32 %rd41, %r0, 4, %rd2;
    {"".join(f"ld.shared.u32 %r22, [%r21+{128 * k}];{chr(10)}st.global.u32 [%rd41+{128 * k}], %r22;{chr(10)}" for k in range(count))}
    """
    out = handwritten.unwritten(32 * count)
    inputs = [np.array(places, np.uint32), values]
    clean(handwritten.run(body, [*inputs, out], declarations=".shared .align 16 .b8 buffer[512];"))
    halves = out.view(np.uint16).reshape(8 * count, 8)
    for lane in LANES:
        for k in range(count):
            for half in range(2):
                row, column = entry(lane, half, transposed)
                assert int(halves[places[8 * k + row], column]) == int(values[lane * count + k]) >> 16 * half & 0xFFFF


# 9.7.14.5: mma, the fragments of each shape


def fragment_a(lane: int, i: int) -> tuple[int, int]:
    """Row and column of A's element i (figures of m16n8k4, m16n8k8 and m16n8k16 with .tf32 and .f64)."""
    return lane // 4 + (8 if i % 2 else 0), lane % 4 + 4 * (i // 2)


def fragment_b(lane: int, i: int) -> tuple[int, int]:
    return lane % 4 + 4 * i, lane // 4


def fragment_c(lane: int, i: int) -> tuple[int, int]:
    return lane // 4 + (8 if i >= 2 else 0), 2 * (lane % 4) + i % 2


SHAPES = {"m8n8k4": (8, 4), "m16n8k4": (16, 4), "m16n8k8": (16, 8), "m16n8k16": (16, 16)}


def product(
    kind: str, shape: str, a: list[list[float]], b: list[list[float]], c: list[list[float]]
) -> list[list[float]]:
    """D = A B + C by the instruction, for matrices in Python's lists."""
    rows, depth = SHAPES[shape]
    dtype, operand, size = (np.float32, "r", 4) if kind == "tf32" else (np.float64, "d", 8)
    counts = {"a": rows * depth // 32, "b": depth * 8 // 32, "c": rows * 8 // 32}
    places = {"a": fragment_a, "b": fragment_b, "c": fragment_c}
    matrices = {"a": a, "b": b, "c": c}
    buffers, lines, vectors = [], [], {}
    for k, name in enumerate("abc"):
        values = [
            [matrices[name][i][j] for i, j in (places[name](lane, e) for e in range(counts[name]))] for lane in LANES
        ]
        buffers.append(np.array(values, dtype).reshape(-1))
        register = "f" if name == "c" and kind == "tf32" else operand
        names = [f"%{register}{10 + 10 * k + e}" for e in range(counts[name])]
        vectors[name] = "{" + ", ".join(names) + "}"
        lines.append(f"mad.wide.u32 %rd40, %r0, {size * counts[name]}, %rd{k};")
        lines += [f"ld.global.b{8 * size} {n}, [%rd40+{size * e}];" for e, n in enumerate(names)]
    results = [f"%{'f' if kind == 'tf32' else 'd'}{40 + e}" for e in range(counts["c"])]
    types = "f32.tf32.tf32.f32" if kind == "tf32" else "f64.f64.f64.f64"
    lines.append(
        f"mma.sync.aligned.{shape}.row.col.{types} {{{', '.join(results)}}}, {vectors['a']}, {vectors['b']}, {vectors['c']};"
    )
    lines.append(f"mad.wide.u32 %rd40, %r0, {size * counts['c']}, %rd3;")
    lines += [f"st.global.b{8 * size} [%rd40+{size * e}], {n};" for e, n in enumerate(results)]
    out = np.zeros(32 * counts["c"], dtype)
    clean(handwritten.run("\n".join(lines), [*buffers, out]))
    d = [[0.0] * 8 for _ in range(rows)]
    for lane in LANES:
        for e in range(counts["c"]):
            i, j = fragment_c(lane, e)
            d[i][j] = float(out[lane * counts["c"] + e])
    return d


CORES = [
    ("tf32", "m16n8k4"),
    ("tf32", "m16n8k8"),
    ("f64", "m8n8k4"),
    ("f64", "m16n8k4"),
    ("f64", "m16n8k8"),
    ("f64", "m16n8k16"),
]


@pytest.mark.parametrize(("kind", "shape"), CORES)
def test_layouts_of_tensor_cores(kind: str, shape: str) -> None:
    """Small integers, whose products and sums are exact: any element at a wrong place changes the result."""
    generator = random.Random(shape)
    rows, depth = SHAPES[shape]
    a, b, c = (
        [[generator.randrange(-99, 100) for _ in range(n)] for _ in range(m)]
        for m, n in ((rows, depth), (depth, 8), (rows, 8))
    )
    wanted = [[sum(a[i][k] * b[k][j] for k in range(depth)) + c[i][j] for j in range(8)] for i in range(rows)]
    assert product(kind, shape, a, b, c) == wanted


@pytest.mark.parametrize("shape", ["m8n8k4", "m16n8k8"])
def test_products_in_double_are_fused(shape: str) -> None:
    """A chain of fma.rn in the order of k, each rounded once; PTX promises at least that, not the order."""
    generator = random.Random(5)
    rows, depth = SHAPES[shape]
    a, b, c = (
        [[generator.uniform(-2, 2) for _ in range(n)] for _ in range(m)]
        for m, n in ((rows, depth), (depth, 8), (rows, 8))
    )
    got = product("f64", shape, a, b, c)
    for i in range(rows):
        for j in range(8):
            total = exact.bits_of_real(c[i][j], "f64")
            for k in range(depth):
                total = exact.fused(
                    exact.bits_of_real(a[i][k], "f64"), exact.bits_of_real(b[k][j], "f64"), total, "f64"
                )
            assert got[i][j] == real(total, "f64")


def test_tensor_cores_ignore_the_low_bits_of_their_operands() -> None:
    """tf32 has 10 bits of significand: what a kernel leaves in the lowest 13 bits is cut off (cvt.rna rounds before)."""
    low = real(0x3F801FFF, "f32")
    zero = [[0.0] * 8 for _ in range(16)]
    a = [[low] * 8 for _ in range(16)]
    b = [[low] * 8 for _ in range(8)]
    assert product("tf32", "m16n8k8", a, b, zero) == [[8.0] * 8] * 16


def test_sums_of_tensor_cores_lose_what_float32_does_not_hold() -> None:
    """Four products are summed exactly with the accumulator, which is cut to float32: towards zero, not to nearest."""
    up = 1 + 2.0**-10
    a, b = [[up] * 4 for _ in range(16)], [[up] * 8 for _ in range(4)]
    c = [[float(2**23)] * 8 for _ in range(16)]
    whole = 4 * Fraction(up) ** 2 + 2**23
    assert product("tf32", "m16n8k4", a, b, c) == [[float(int(whole))] * 8] * 16
    assert int(whole) != whole
    c = [[float(-(2**23))] * 8 for _ in range(16)]
    whole = 4 * Fraction(up) ** 2 - 2**23
    # Below 2^23 float32 holds halves.
    assert product("tf32", "m16n8k4", a, b, c) == [[float(Fraction(int(2 * whole), 2))] * 8] * 16


def test_every_instruction_of_the_emulator_is_tested() -> None:
    """The tests' PTX, that is their strings except the docstrings, has an instruction for each method of the emitter."""
    operations = {name[3:] for name in dir(emission.Emission) if name.startswith("op_")}
    assert len(operations) > 40
    ptx = []
    for path in Path(__file__).parent.glob("test_*.py"):
        tree = ast.parse(path.read_text())
        bodies = [n.body for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.FunctionDef, ast.ClassDef))]
        prose = {id(body[0].value) for body in bodies if isinstance(body[0], ast.Expr)}
        strings = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        ptx += [n.value for n in strings if id(n) not in prose]
    text = "\n".join(ptx)
    missing = {op for op in operations if not re.search(rf"(?:^|[\s;]){op}(?:[.;]|$)", text, re.M)}
    assert not missing
