"""Loads, stores and asynchronous copies of each space and width, control flow and barriers, by what they leave in memory.

Sections are those of NVIDIA's "Parallel Thread Execution ISA", version 9.
"""

# ruff: noqa: E501 (tables of PTX: a line for a case)

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.ptx import handwritten, machine
from tests.ptx.memory import ORIGIN, Memory

INDEX = "mul.wide.u32 %rd10, %r0, 4;\n"


def clean(record: machine.Record) -> None:
    assert not record.errors, list(record.examples.values())


def words(count: int, seed: int = 0) -> np.ndarray:
    generator = random.Random(seed)
    return np.array([generator.getrandbits(32) for _ in range(count)], np.uint32)


SPACES = {
    "global": ("", "add.u64 %rd20, %rd1, %rd11;", "%rd20"),
    "shared": (".shared .align 16 .b8 buffer[2048];", "mov.u64 %rd12, buffer;\nadd.u64 %rd20, %rd12, %rd11;", "%rd20"),
    "shared::cta": (".shared .align 16 .b8 buffer[2048];", "mov.u32 %r20, buffer;\ncvt.u32.u64 %r21, %rd11;\nadd.u32 %r20, %r20, %r21;", "%r20"),
    "local": (".local .align 16 .b8 stack[64];", "mov.u64 %rd20, stack;\nadd.u64 %rd20, %rd20, 32;", "%rd20"),
}  # fmt: skip
VECTORS = [
    (kind, count)
    for kind in ("b8", "u16", "b32", "f32", "b64", "f64")
    for count in (1, 2, 4)
    if int(kind[1:]) * count <= 128
]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("kind", "count"), VECTORS)
def test_copies_of_each_width_through_each_space(space: str, kind: str, count: int) -> None:
    """Every thread copies its element, of one to four parts, to a space and back (ld, st)."""
    declaration, address, register = SPACES[space]
    if space == "global":
        declaration = ".global .align 16 .b8 scratch[2048];"
        address = "mov.u64 %rd12, scratch;\nadd.u64 %rd20, %rd12, %rd11;"
    size = int(kind[1:]) // 8
    prefix = {"f32": "%f", "f64": "%d"}.get(kind, {1: "%h", 2: "%h", 4: "%r", 8: "%rd"}[size])
    vector = f".v{count}" if count > 1 else ""

    def registers(first: int) -> str:
        names = [f"{prefix}{first + k}" for k in range(count)]
        return "{" + ", ".join(names) + "}" if count > 1 else names[0]

    body = f"""
    mul.wide.u32 %rd11, %r0, {size * count};
    add.u64 %rd13, %rd0, %rd11;
    ld.global{vector}.{kind} {registers(30)}, [%rd13];
    {address}
    st.{space}{vector}.{kind} [{register}], {registers(30)};
    ld.{space}{vector}.{kind} {registers(40)}, [{register}];
    add.u64 %rd14, %rd1, %rd11;
    st.global{vector}.{kind} [%rd14], {registers(40)};
    """
    threads = 64
    source = words(threads * size * count // 4)
    out = handwritten.unwritten(len(source))
    module = declaration if space == "global" else ""
    clean(
        handwritten.run(body, [source, out], threads=threads, declarations="" if module else declaration, module=module)
    )
    assert (out == source).all()


@pytest.mark.parametrize(("kind", "register", "expected"), [
    ("u8", 16, 0x00F3), ("s8", 16, 0xFFF3), ("u8", 32, 0x000000F3), ("s8", 32, 0xFFFFFFF3), ("u16", 32, 0x000080F3),
    ("s16", 32, 0xFFFF80F3), ("s32", 64, 0xFFFFFFFF_FEDC80F3), ("u32", 64, 0xFEDC80F3), ("s8", 64, 0xFFFFFFFF_FFFFFFF3),
])  # fmt: skip
@pytest.mark.parametrize("space", ["global", "param", "shared"])
def test_loads_into_wider_registers(space: str, kind: str, register: int, expected: int) -> None:
    """Signed types are extended by their sign, others by zeros (9.4.1, operand size exceeding instruction type)."""
    name = {16: "%h1", 32: "%r20", 64: "%rd20"}[register]
    source = {"global": "[%rd0]", "shared": "[buffer]", "param": "[a2]"}[space]
    body = f"ld.global.u32 %r30, [%rd0];\nst.shared.u32 [buffer], %r30;\nbar.warp.sync -1;\nld.{space}.{kind} {name}, {source};\n"
    body += {16: f"cvt.u32.u16 %r20, {name};\ncvt.u64.u32 %rd20, %r20;", 32: "cvt.u64.u32 %rd20, %r20;", 64: ""}[
        register
    ]
    body += "\nsetp.ne.u32 %p0, %r0, 0;\n@%p0 ret;\nst.global.u64 [%rd1], %rd20;"
    body = body.replace("st.shared.u32", "@!%p1 st.shared.u32").replace(
        "ld.global.u32", "setp.ne.u32 %p1, %r0, 0;\nld.global.u32", 1
    )
    text = handwritten.text_of(body, 3, ".shared .align 4 .b8 buffer[4];")
    value = np.array([0xFEDC80F3], np.uint32)
    out = np.zeros(1, np.uint64)
    kernel = handwritten.translated(text)
    memory = Memory([(b.ctypes.data, b.nbytes) for b in (value, out)], [])
    parameters = b"".join(memory.address(b.ctypes.data).to_bytes(8, "little") for b in (value, out))
    clean(machine.launch(kernel, 1, 32, 0, parameters + value.tobytes() + bytes(4), memory, machine.Options()))
    memory.copy_back()
    assert int(out[0]) == expected


def test_stores_of_parts_of_registers() -> None:
    """A narrow store takes the low bits; what lies beside stays."""
    out = np.full(4, 0x11111111, np.uint32)
    body = "setp.ne.u32 %p0, %r0, 0;\n@%p0 ret;\nmov.u32 %r9, 0xAABBCCDD;\nmov.u64 %rd9, 0x8877665544332211;\n"
    body += "st.global.u8 [%rd0+1], %r9;\nst.global.b16 [%rd0+6], %r9;\nst.global.b32 [%rd0+8], %rd9;\nst.global.u8 [%rd0+12], %rd9;"
    clean(handwritten.run(body, [out]))
    assert [hex(x) for x in out] == ["0x1111dd11", "0xccdd1111", "0x44332211", "0x11111111"]


def test_vector_loads_skip_sinks() -> None:
    source, out = words(4), handwritten.unwritten(2)
    body = "ld.global.v4.b32 {_, %r10, _, %r11}, [%rd0];\nsetp.ne.u32 %p0, %r0, 0;\n@!%p0 st.global.v2.b32 [%rd1], {%r10, %r11};"
    clean(handwritten.run(body, [source, out]))
    assert out.tolist() == [source[1], source[3]]


def test_constants_and_module_variables() -> None:
    module = ".const .align 4 .u32 table[3] = {5, 6, 4000000000};\n.global .align 8 .f64 one = 0d3FF0000000000000;"
    out = np.zeros(4, np.uint64)
    body = """
    setp.ne.u32 %p0, %r0, 0;
    @%p0 ret;
    ld.const.u32 %r10, [table+8];
    cvt.u64.u32 %rd10, %r10;
    st.global.u64 [%rd0], %rd10;
    mov.u64 %rd11, table;
    ld.const.u32 %r11, [%rd11+4];
    cvt.u64.u32 %rd12, %r11;
    st.global.u64 [%rd0+8], %rd12;
    ld.global.f64 %d0, [one];
    st.global.f64 [%rd0+16], %d0;
    ld.global.nc.u64 %rd13, [one];
    st.global.u64 [%rd0+24], %rd13;
    """
    clean(handwritten.run(body, [out], module=module))
    assert out.tolist() == [4000000000, 6, 0x3FF0000000000000, 0x3FF0000000000000]


@pytest.mark.parametrize("space", ["shared", "local"])
def test_generic_addresses(space: str) -> None:
    """cvta makes of an address in a space a generic one, and of a generic one that of the space."""
    out = handwritten.unwritten(64)
    body = f"""
    mov.u64 %rd11, buffer;
    cvta.{space}.u64 %rd12, %rd11;
    {"mad.wide.u32 %rd12, %r0, 4, %rd12;" if space == "shared" else ""}
    mad.lo.u32 %r10, %r0, 3, 7;
    st.u32 [%rd12], %r10;
    cvta.to.{space}.u64 %rd13, %rd12;
    ld.{space}.u32 %r11, [%rd13];
    ld.u32 %r12, [%rd12];
    {INDEX}
    cvta.to.global.u64 %rd14, %rd0;
    add.u64 %rd15, %rd14, %rd10;
    cvta.global.u64 %rd15, %rd15;
    add.u32 %r13, %r11, %r12;
    st.u32 [%rd15], %r13;
    """
    clean(handwritten.run(body, [out], threads=64, declarations=f".{space} .align 4 .b8 buffer[256];"))
    assert out.tolist() == [2 * (3 * t + 7) for t in range(64)]


def test_parameters_by_address() -> None:
    out = np.zeros(1, np.uint64)
    body = "mov.b64 %rd10, a0;\nld.param.u64 %rd11, [%rd10];\nsetp.ne.u32 %p0, %r0, 0;\n@!%p0 st.global.u64 [%rd11], %rd11;"
    record = handwritten.run(body, [out])
    clean(record)
    assert int(out[0]) == ORIGIN + Memory.GAP


def test_hints_change_nothing() -> None:
    """Fences and prefetches order or hasten what here is seen at once."""
    out = handwritten.unwritten(32)
    body = f"{INDEX}add.u64 %rd11, %rd0, %rd10;\nprefetch.global.L1 [%rd11];\nst.volatile.global.u32 [%rd11], %r0;\nmembar.gl;\n"
    body += "fence.acq_rel.gpu;\ngriddepcontrol.wait;\nld.relaxed.gpu.global.u32 %r9, [%rd11];\nst.global.wb.u32 [%rd11], %r9;"
    clean(handwritten.run(body, [out]))
    assert out.tolist() == list(range(32))


# 9.7.9.25: cp.async


@pytest.mark.parametrize("size", [4, 8, 16])
def test_asynchronous_copies(size: int) -> None:
    """What a source size of 0 says not to read is zero; data are there after the wait (cp.async)."""
    source, out = words(64 * size // 4), handwritten.unwritten(64 * size // 4)
    level, vector = ("cg" if size == 16 else "ca"), {4: "", 8: ".v2", 16: ".v4"}[size]
    registers = {4: "%r20", 8: "{%r20, %r21}", 16: "{%r20, %r21, %r22, %r23}"}[size]
    body = f"""
    mul.wide.u32 %rd10, %r0, {size};
    add.u64 %rd11, %rd0, %rd10;
    cvt.u32.u64 %r10, %rd10;
    mov.u32 %r11, buffer;
    add.u32 %r11, %r11, %r10;
    and.b32 %r12, %r0, 3;
    setp.eq.u32 %p0, %r12, 3;
    selp.b32 %r13, 0, {size}, %p0;
    cp.async.{level}.shared.global [%r11], [%rd11], {size}, %r13;
    cp.async.commit_group;
    cp.async.wait_group 0;
    ld.shared{vector}.b32 {registers}, [%r11];
    add.u64 %rd12, %rd1, %rd10;
    st.global{vector}.b32 [%rd12], {registers};
    """
    clean(handwritten.run(body, [source, out], threads=64, declarations=".shared .align 16 .b8 buffer[1024];"))
    expected = source.reshape(64, -1).copy()
    expected[3::4] = 0
    assert (out.reshape(64, -1) == expected).all()


def test_asynchronous_copies_arrive_by_groups() -> None:
    """Three groups: after ``wait_group 2`` the first is there, after ``wait_group 0`` all. ``wait_all`` needs no commit."""
    source, out = words(4 * 32), handwritten.unwritten(4 * 32)
    lines = [INDEX, "add.u64 %rd11, %rd0, %rd10;\nadd.u64 %rd12, %rd1, %rd10;\ncvt.u32.u64 %r10, %rd10;"]
    lines += ["mov.u32 %r11, buffer;\nadd.u32 %r11, %r11, %r10;"]
    for k in range(3):
        lines.append(f"cp.async.ca.shared.global [%r11+{128 * k}], [%rd11+{128 * k}], 4;\ncp.async.commit_group;")
    lines += [
        "cp.async.wait_group 2;\nld.shared.u32 %r20, [%r11];\nst.global.u32 [%rd12], %r20;\ncp.async.wait_group 0;"
    ]
    lines += [f"ld.shared.u32 %r20, [%r11+{128 * k}];\nst.global.u32 [%rd12+{128 * k}], %r20;" for k in (1, 2)]
    lines += ["cp.async.ca.shared.global [%r11+384], [%rd11+384], 4;\ncp.async.wait_all;"]
    lines += ["ld.shared.u32 %r20, [%r11+384];\nst.global.u32 [%rd12+384], %r20;"]
    clean(handwritten.run("\n".join(lines), [source, out], declarations=".shared .align 16 .b8 buffer[512];"))
    assert (out == source).all()


# 9.7.12 and 9.7.13: control flow and barriers


@pytest.mark.parametrize("order", machine.ORDERS)
def test_loops_that_lanes_leave_at_different_times(order: str) -> None:
    """Steps of Collatz's sequence until 1: lanes, warps and programs each go round as often as they need."""
    out = handwritten.unwritten(3 * 96)
    body = """
    mad.lo.u32 %r10, %r1, 96, %r0;
    add.u32 %r11, %r10, 1;
    mov.u32 %r12, 0;
    bra.uni TEST;
    ODD:
    mad.lo.u32 %r11, %r11, 3, 1;
    bra NEXT;
    LOOP:
    and.b32 %r13, %r11, 1;
    setp.ne.u32 %p1, %r13, 0;
    @%p1 bra ODD;
    shr.u32 %r11, %r11, 1;
    NEXT:
    add.u32 %r12, %r12, 1;
    TEST:
    setp.gt.u32 %p0, %r11, 1;
    @%p0 bra LOOP;
    mad.wide.u32 %rd11, %r10, 4, %rd0;
    st.global.u32 [%rd11], %r12;
    """
    clean(handwritten.run(body, [out], threads=96, grid=3, order=order))

    def steps(n: int) -> int:
        count = 0
        while n > 1:
            n, count = (3 * n + 1 if n & 1 else n // 2), count + 1
        return count

    assert out.tolist() == [steps(n + 1) for n in range(3 * 96)]


def test_returns_and_jumps_under_predicates() -> None:
    """Lanes below 8 leave by ret, those below 16 by exit, lanes of 24 and more jump by a negated predicate."""
    out = np.zeros(32, np.uint32)
    body = f"""{INDEX}add.u64 %rd11, %rd0, %rd10;
    setp.lt.u32 %p0, %r0, 8;
    @%p0 ret;
    setp.lt.u32 %p1, %r0, 16;
    @%p1 exit;
    setp.lt.u32 %p2, %r0, 24;
    @!%p2 bra LATE;
    st.global.u32 [%rd11], 1;
    ret;
    LATE:
    st.global.u32 [%rd11], 2;
    """
    clean(handwritten.run(body, [out]))
    assert out.tolist() == [0] * 16 + [1] * 8 + [2] * 8


def test_scopes_hide_registers() -> None:
    """A register that braces declare is another than that of the same name outside."""
    out = np.zeros(1, np.uint32)
    body = """
    .reg .b32 t;
    mov.u32 t, 3;
    {
    .reg .b32 t;
    mov.u32 t, 5;
    mov.u32 %r10, t;
    }
    mad.lo.u32 %r11, t, 10, %r10;
    setp.ne.u32 %p0, %r0, 0;
    @!%p0 st.global.u32 [%rd0], %r11;
    """
    clean(handwritten.run(body, [out]))
    assert out.tolist() == [35]


@pytest.mark.parametrize("barrier", ["bar.sync 0", "barrier.sync 0", "barrier.sync.aligned 0"])
@pytest.mark.parametrize("order", machine.ORDERS)
def test_barriers_between_warps(order: str, barrier: str) -> None:
    """Threads read what the thread opposite wrote, then write again: two barriers a round, in two rounds."""
    threads = 128
    out = handwritten.unwritten(2 * threads)
    body = f"""
    mov.u32 %r10, buffer;
    mad.lo.u32 %r11, %r0, 4, %r10;
    sub.u32 %r12, {threads - 1}, %r0;
    mad.lo.u32 %r12, %r12, 4, %r10;
    mad.lo.u32 %r13, %r1, 1000, %r0;
    mov.u32 %r14, 0;
    LOOP:
    st.shared.u32 [%r11], %r13;
    {barrier};
    ld.shared.u32 %r15, [%r12];
    {barrier};
    mad.lo.u32 %r13, %r15, 3, %r0;
    add.u32 %r14, %r14, 1;
    setp.lt.u32 %p0, %r14, 2;
    @%p0 bra LOOP;
    mad.lo.u32 %r16, %r1, {threads}, %r0;
    mad.wide.u32 %rd10, %r16, 4, %rd0;
    st.global.u32 [%rd10], %r13;
    """
    clean(
        handwritten.run(
            body, [out], threads=threads, grid=2, order=order, declarations=".shared .align 4 .b8 buffer[512];"
        )
    )
    for program in range(2):
        values = [1000 * program + t for t in range(threads)]
        for _ in range(2):
            values = [3 * values[threads - 1 - t] + t for t in range(threads)]
        assert out[program * threads : (program + 1) * threads].tolist() == values


@pytest.mark.parametrize("order", machine.ORDERS)
@pytest.mark.parametrize(("operation", "results"), [("or", [0, 1, 1]), ("and", [0, 0, 1])])
def test_barriers_that_reduce(operation: str, results: list[int], order: str) -> None:
    """bar.red over a predicate that holds in no thread, in one, in all: a program of each kind, whatever their barriers."""
    out = handwritten.unwritten(3 * 64)
    body = f"""
    setp.eq.u32 %p0, %r0, 37;
    setp.eq.u32 %p1, %r1, 1;
    and.pred %p2, %p0, %p1;
    setp.eq.u32 %p3, %r1, 2;
    or.pred %p4, %p2, %p3;
    not.pred %p5, %p4;
    setp.eq.u32 %p9, %r1, 1;
    @%p9 bra OTHER;
    bar.red.{operation}.pred %p6, 0, %p4;
    bra DONE;
    OTHER:
    bar.red.{operation}.pred %p6, 0, !%p5;
    DONE:
    selp.u32 %r10, 1, 0, %p6;
    mad.lo.u32 %r11, %r1, 64, %r0;
    mad.wide.u32 %rd10, %r11, 4, %rd0;
    st.global.u32 [%rd10], %r10;
    """
    clean(handwritten.run(body, [out], threads=64, grid=3, order=order))
    assert out.reshape(3, 64).T.tolist() == [results] * 64


def test_reduction_of_one_program_does_not_reach_another() -> None:
    """A program at a plain barrier keeps its predicate while another reduces at its own barrier."""
    out = handwritten.unwritten(2 * 64)
    body = """
    setp.ne.u32 %p6, %r0, 999;
    setp.eq.u32 %p0, %r1, 0;
    setp.eq.u32 %p1, %r0, 999;
    @%p0 bra REDUCES;
    bar.sync 0;
    bra DONE;
    REDUCES:
    bar.red.or.pred %p6, 0, %p1;
    DONE:
    selp.u32 %r10, 1, 0, %p6;
    mad.lo.u32 %r11, %r1, 64, %r0;
    mad.wide.u32 %rd10, %r11, 4, %rd0;
    st.global.u32 [%rd10], %r10;
    """
    clean(handwritten.run(body, [out], threads=64, grid=2))
    assert out.tolist() == [0] * 64 + [1] * 64


def test_threads_that_have_left_are_not_waited_for() -> None:
    out = np.zeros(64, np.uint32)
    body = "setp.ge.u32 %p0, %r0, 32;\n@%p0 ret;\nbar.sync 0;\nmad.wide.u32 %rd10, %r0, 4, %rd0;\nst.global.u32 [%rd10], 1;"
    clean(handwritten.run(body, [out], threads=64))
    assert out.tolist() == [1] * 32 + [0] * 32


def test_trap() -> None:
    with pytest.raises(machine.Fault, match="trap"):
        handwritten.run("trap;", [np.zeros(1, np.uint32)])


def test_a_loop_without_end_is_given_up() -> None:
    with pytest.raises(machine.Fault, match="too long"):
        handwritten.run("LOOP:\nadd.u32 %r9, %r9, 1;\nbra LOOP;", [np.zeros(1, np.uint32)], limit=0.05)


@pytest.mark.parametrize("lanes", [32, 64, 4096])
def test_grids_run_in_parts(lanes: int) -> None:
    """Programs see their own number, however many of them run side by side."""
    out = handwritten.unwritten(5 * 32)
    body = "mov.u32 %r9, %nctaid.x;\nmov.u32 %r10, %ntid.x;\nmad.lo.u32 %r11, %r1, %r10, %r0;\nmad.lo.u32 %r12, %r9, 1000, %r11;\n"
    body += "mov.u32 %r13, %laneid;\nmad.lo.u32 %r12, %r13, 10000, %r12;\nmad.wide.u32 %rd10, %r11, 4, %rd0;\nst.global.u32 [%rd10], %r12;"
    clean(handwritten.run(body, [out], grid=5, lanes=lanes))
    assert out.tolist() == [5000 + k + 10000 * (k % 32) for k in range(5 * 32)]
