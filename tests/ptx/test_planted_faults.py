"""Faults planted into PTX: the emulator finds each, and nothing where none is.

A fault may show in the output only in some orders of the warps. The checks have to find it in every order.
"""

# ruff: noqa: E501 (tables of PTX: a line for a case)

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.ptx import handwritten, machine
from tests.ptx.group import Fault

RACE, WARP_RACE, PROGRAM_RACE = "race between warps", "race within a warp", "race between programs in global memory"
OUTSIDE, MISALIGNED, UNWRITTEN = "out of bounds", "misaligned", "read of bytes never written"
DISAGREE = "lanes write different values to one place in one instruction"
IN_FLIGHT = "access to bytes of a cp.async in flight"
INACTIVE, NOT_CONVERGED = "shuffle from an inactive lane", "a warp-wide instruction without all lanes"
NOT_NAMED = "a warp-wide instruction by a lane that it does not name"
PLACES = "barriers of different places meet"
# Faults that end a launch.
DEADLOCK = "deadlock"


@dataclass(frozen=True)
class Program:
    """A kernel without a fault. It reads words from %rd0 and writes a word a thread to %rd1.

    Args:
        text: its instructions.
        shared: how many bytes of the shared array ``buffer`` it has.
        threads, grid: of its launch.
        together: whether lanes wait for one another at warp-wide instructions, as in what nvcc compiles.
        read: how many words it may read.
    """

    text: str
    shared: int = 0
    threads: int = 64
    grid: int = 1
    together: bool = False
    read: int = 0

    def run(self, text: str, order: str) -> tuple[set[str], np.ndarray]:
        """What is found, and the output."""
        threads = self.threads * self.grid
        source = np.arange(1, (self.read or threads) + 1, dtype=np.uint32) * np.uint32(0x01000193)
        out = handwritten.unwritten(threads)
        try:
            record = handwritten.run(
                text, [source, out], threads=self.threads, grid=self.grid, together=self.together, order=order,
                declarations=f".shared .align 16 .b8 buffer[{self.shared}];" if self.shared else "",
            )  # fmt: skip
        except Fault as fault:
            return {str(fault).split(":")[0]}, out
        return handwritten.found(record), out


@dataclass(frozen=True)
class Planted:
    """A change of a program's text, and of what kinds a finding has to be."""

    name: str
    program: Program
    old: str
    new: str
    kinds: set[str] = field(compare=False)

    def text(self) -> str:
        assert self.program.text.count(self.old) == 1, f"{self.name}: {self.old!r} does not stand there once"
        return self.program.text.replace(self.old, self.new)


INDEX = """
    mov.u32 %r10, buffer;
    mad.lo.u32 %r11, %r0, 4, %r10;
    mad.wide.u32 %rd10, %r0, 4, %rd0;
    mad.wide.u32 %rd11, %r0, 4, %rd1;
    ld.global.u32 %r20, [%rd10];
"""
# Each thread reads what the thread opposite has written, then what that one has written over it.
EXCHANGE = Program(
    INDEX
    + """
    sub.u32 %r12, 63, %r0;
    mad.lo.u32 %r12, %r12, 4, %r10;
    st.shared.u32 [%r11], %r20;
    bar.sync 0; // first
    ld.shared.u32 %r21, [%r12];
    bar.sync 0; // second
    add.u32 %r22, %r21, 1;
    st.shared.u32 [%r11], %r22;
    bar.sync 0; // third
    ld.shared.u32 %r23, [%r12];
    mad.lo.u32 %r24, %r23, 3, %r21;
    st.global.u32 [%rd11], %r24;
    """,
    shared=256,
)
# The same within each warp.
WARP_EXCHANGE = Program(
    INDEX
    + """
    xor.b32 %r12, %r0, 31;
    mad.lo.u32 %r12, %r12, 4, %r10;
    st.shared.u32 [%r11], %r20;
    bar.warp.sync -1; // first
    ld.shared.u32 %r21, [%r12];
    bar.warp.sync -1; // second
    add.u32 %r22, %r21, 1;
    st.shared.u32 [%r11], %r22;
    bar.warp.sync -1; // third
    ld.shared.u32 %r23, [%r12];
    mad.lo.u32 %r24, %r23, 3, %r21;
    st.global.u32 [%rd11], %r24;
    """,
    shared=256,
)
# One and the same store, by other lanes each time round: a write after a write.
WARP_LOOP = Program(
    INDEX
    + """
    mov.u32 %r30, 0;
    LOOP:
    bar.warp.sync -1; // in the loop
    add.u32 %r31, %r0, %r30;
    and.b32 %r31, %r31, 31;
    and.b32 %r32, %r0, 32;
    or.b32 %r31, %r31, %r32;
    mad.lo.u32 %r33, %r31, 4, %r10;
    add.u32 %r34, %r20, %r30;
    st.shared.u32 [%r33], %r34;
    add.u32 %r30, %r30, 1;
    setp.lt.u32 %p0, %r30, 3;
    @%p0 bra LOOP;
    bar.warp.sync -1;
    ld.shared.u32 %r35, [%r11];
    st.global.u32 [%rd11], %r35;
    """,
    shared=256,
)
BLOCK_LOOP = Program(
    WARP_LOOP.text.replace("and.b32 %r31, %r31, 31;", "and.b32 %r31, %r31, 63;")
    .replace("or.b32 %r31, %r31, %r32;", "")
    .replace("bar.warp.sync -1;", "bar.sync 0;"),
    shared=256,
)
# A stage of a pipeline is read by all threads while the next one is on its way. 16 bytes a thread and stage.
PIPELINE = Program(
    """
    mov.u32 %r10, buffer;
    mad.lo.u32 %r11, %r0, 16, %r10;
    sub.u32 %r12, 63, %r0;
    mad.lo.u32 %r12, %r12, 16, %r10;
    mad.wide.u32 %rd10, %r0, 16, %rd0;
    mad.wide.u32 %rd11, %r0, 4, %rd1;
    mov.u32 %r30, 0;
    cp.async.cg.shared.global [%r11], [%rd10], 16;
    cp.async.commit_group; // of the first stage
    mov.u32 %r31, 0;
    LOOP:
    add.u64 %rd10, %rd10, 1024;
    xor.b32 %r32, %r31, 1024;
    add.u32 %r33, %r11, %r32;
    setp.lt.u32 %p0, %r30, 3;
    @%p0 cp.async.cg.shared.global [%r33], [%rd10], 16;
    cp.async.commit_group; // of the next
    cp.async.wait_group 1;
    bar.sync 0; // after the wait
    add.u32 %r34, %r12, %r31;
    ld.shared.v4.u32 {%r20, %r21, %r22, %r23}, [%r34];
    add.u32 %r24, %r24, %r20;
    mad.lo.u32 %r24, %r23, 5, %r24;
    bar.sync 0; // before the stage is used again
    mov.u32 %r31, %r32;
    add.u32 %r30, %r30, 1;
    setp.lt.u32 %p1, %r30, 4;
    @%p1 bra LOOP;
    st.global.u32 [%rd11], %r24;
    """.replace("mov.u32 %r30, 0;", "mov.u32 %r30, 0;\n    mov.u32 %r24, 0;"),
    shared=2048,
    read=4 * 256,
)
# The same in one warp, whose lanes wait for one another only.
WARP_PIPELINE = Program(
    PIPELINE.text.replace("sub.u32 %r12, 63, %r0;", "xor.b32 %r12, %r0, 31;").replace(
        "bar.sync 0;", "bar.warp.sync -1;"
    ),
    shared=2048,
    read=4 * 256,
)
# A branch for half of the lanes, in which they do something together; and something that all do.
COLLECTIVE = Program(
    INDEX.replace("mov.u32 %r10, buffer;", "").replace("mad.lo.u32 %r11, %r0, 4, %r10;", "")
    + """
    and.b32 %r12, %r0, 16;
    setp.ne.u32 %p0, %r12, 0;
    mov.u32 %r21, 0;
    @%p0 bra DONE;
    shfl.sync.bfly.b32 %r21, %r20, 8, 31, 0xffff; // of the half
    DONE:
    shfl.sync.bfly.b32 %r22, %r20, 16, 31, -1; // of all
    redux.sync.add.u32 %r23, %r20, -1;
    vote.sync.ballot.b32 %r24, %p0, -1;
    xor.b32 %r25, %r21, %r22;
    xor.b32 %r25, %r25, %r23;
    xor.b32 %r25, %r25, %r24;
    st.global.u32 [%rd11], %r25;
    """,
)
# Matrices of 8 x 8 halves: all of a warp's 32 words, of which ldmatrix gives each lane one, transposed or not.
MATRIX = Program(
    INDEX
    + """
    and.b32 %r12, %r0, 32;
    mad.lo.u32 %r13, %r12, 4, %r10;
    and.b32 %r14, %r0, 7;
    mad.lo.u32 %r14, %r14, 16, %r13;
    st.shared.u32 [%r11], %r20;
    bar.warp.sync -1; // after the store
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r21}, [%r14];
    ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r22}, [%r14];
    bar.warp.sync -1; // before the next store
    stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r14], {%r22};
    bar.warp.sync -1; // after stmatrix
    xor.b32 %r12, %r0, 31;
    mad.lo.u32 %r12, %r12, 4, %r10;
    ld.shared.u32 %r23, [%r12];
    xor.b32 %r24, %r23, %r21;
    st.global.u32 [%rd11], %r24;
    """,
    shared=256,
)
# Through local memory, in parts of 8 and 4 bytes, and back.
LOCAL = Program(
    """
    .local .align 8 .b8 stack[16];
    mad.wide.u32 %rd10, %r0, 8, %rd0;
    mad.wide.u32 %rd11, %r0, 4, %rd1;
    ld.global.v2.u32 {%r20, %r21}, [%rd10];
    mov.u64 %rd12, stack;
    st.local.u32 [%rd12], %r20;
    st.local.u32 [%rd12+4], %r21;
    ld.local.u64 %rd13, [%rd12];
    shr.u64 %rd14, %rd13, 32;
    add.u64 %rd14, %rd14, %rd13;
    cvt.u32.u64 %r22, %rd14;
    st.global.u32 [%rd11], %r22;
    """,
    read=128,
)
# Bytes and halves in shared memory.
NARROW = Program(
    INDEX
    + """
    st.shared.u8 [%r11], %r20;
    st.shared.u8 [%r11+1], 7;
    st.shared.u16 [%r11+2], 99; // the upper half
    ld.shared.u16 %r21, [%r11+2];
    ld.shared.u8 %r22, [%r11+1];
    ld.shared.u32 %r23, [%r11];
    add.u32 %r24, %r21, %r22;
    add.u32 %r24, %r24, %r23;
    st.global.u32 [%rd11], %r24;
    """,
    shared=256,
)
# Two arrays in shared memory, each of a word a thread.
NEIGHBOURS = Program(
    INDEX
    + """
    add.u32 %r13, %r20, 1;
    st.shared.u32 [%r11], %r20; // first array
    st.shared.u32 [%r11+256], %r13; // second array
    bar.sync 0;
    ld.shared.u32 %r21, [%r11];
    ld.shared.u32 %r22, [%r11+256];
    xor.b32 %r23, %r21, %r22;
    st.global.u32 [%rd11], %r23;
    """,
    shared=512,
)
# Several programs, each with words of its own in global memory.
PROGRAMS = Program(
    """
    mad.lo.u32 %r10, %r1, 64, %r0;
    mad.wide.u32 %rd10, %r10, 4, %rd0;
    mad.wide.u32 %rd11, %r10, 4, %rd1;
    ld.global.u32 %r20, [%rd10];
    st.global.u32 [%rd11], %r20;
    """,
    grid=3,
)
# Threads hand words on through global memory.
THROUGH_GLOBAL = Program(
    """
    mad.wide.u32 %rd10, %r0, 4, %rd0;
    mad.wide.u32 %rd11, %r0, 4, %rd1;
    xor.b32 %r11, %r0, 63;
    mad.wide.u32 %rd12, %r11, 4, %rd0;
    ld.global.u32 %r20, [%rd10];
    add.u32 %r20, %r20, 3;
    st.global.u32 [%rd10], %r20;
    bar.sync 0; // between the warps
    ld.global.u32 %r21, [%rd12];
    st.global.u32 [%rd11], %r21;
    """,
)
# Lanes of a warp part, meet at a barrier, and go on.
DIVERGENT = Program(
    INDEX
    + """
    st.shared.u32 [%r11], %r20;
    and.b32 %r12, %r0, 1;
    setp.ne.u32 %p0, %r12, 0;
    mov.u32 %r21, 5;
    @%p0 bra ODD;
    mov.u32 %r21, 6;
    ODD:
    bar.sync 0; // where all meet
    xor.b32 %r13, %r0, 63;
    mad.lo.u32 %r13, %r13, 4, %r10;
    ld.shared.u32 %r22, [%r13];
    add.u32 %r22, %r22, %r21;
    shfl.sync.bfly.b32 %r23, %r22, 1, 31, -1; // all again
    st.global.u32 [%rd11], %r23;
    """,
    shared=256,
    together=True,
)

PROGRAM_NAMES = {
    "exchange": EXCHANGE, "warp exchange": WARP_EXCHANGE, "warp loop": WARP_LOOP, "block loop": BLOCK_LOOP,
    "pipeline": PIPELINE, "warp pipeline": WARP_PIPELINE, "collective": COLLECTIVE, "matrix": MATRIX, "local": LOCAL,
    "narrow": NARROW, "neighbours": NEIGHBOURS, "programs": PROGRAMS, "through global": THROUGH_GLOBAL,
    "divergent": DIVERGENT,
}  # fmt: skip

PLANTED = [
    Planted("barrier before a read", EXCHANGE, "bar.sync 0; // first", "", {RACE}),
    Planted("barrier before a write", EXCHANGE, "bar.sync 0; // second", "", {RACE}),
    Planted("barrier before the last read", EXCHANGE, "bar.sync 0; // third", "", {RACE}),
    Planted("barrier of warps in place of the block's", EXCHANGE, "bar.sync 0; // first", "bar.warp.sync -1;", {RACE}),
    Planted("barrier of a warp before a read", WARP_EXCHANGE, "bar.warp.sync -1; // first", "", {WARP_RACE}),
    Planted("barrier of a warp before a write", WARP_EXCHANGE, "bar.warp.sync -1; // second", "", {WARP_RACE}),
    Planted("barrier of a warp before the last read", WARP_EXCHANGE, "bar.warp.sync -1; // third", "", {WARP_RACE}),
    Planted("barrier of a warp between stores of one instruction", WARP_LOOP, "bar.warp.sync -1; // in the loop", "", {WARP_RACE}),
    Planted("barrier between stores of one instruction", BLOCK_LOOP, "bar.sync 0; // in the loop", "", {RACE}),
    Planted("barrier between stores and loads of global memory", THROUGH_GLOBAL, "bar.sync 0; // between the warps", "", {RACE}),
    Planted("load behind the buffer", EXCHANGE, "ld.global.u32 %r20, [%rd10];", "ld.global.u32 %r20, [%rd10+4];", {OUTSIDE}),
    Planted("load before the buffer", EXCHANGE, "ld.global.u32 %r20, [%rd10];", "ld.global.u32 %r20, [%rd10+-4];", {OUTSIDE}),
    Planted("store behind the buffer", EXCHANGE, "st.global.u32 [%rd11], %r24;", "st.global.u32 [%rd11+4], %r24;", {OUTSIDE}),
    Planted("store before the buffer", EXCHANGE, "st.global.u32 [%rd11], %r24;", "st.global.u32 [%rd11+-4], %r24;", {OUTSIDE}),
    Planted("load behind shared memory", EXCHANGE, "ld.shared.u32 %r21, [%r12];", "ld.shared.u32 %r21, [%r12+4];", {OUTSIDE}),
    Planted("load before shared memory", EXCHANGE, "ld.shared.u32 %r21, [%r12];", "ld.shared.u32 %r21, [%r12+-4];", {OUTSIDE}),
    Planted("store behind shared memory", EXCHANGE, "st.shared.u32 [%r11], %r20;", "st.shared.u32 [%r11+4], %r20;", {OUTSIDE}),
    Planted("store before shared memory", EXCHANGE, "st.shared.u32 [%r11], %r20;", "st.shared.u32 [%r11+-4], %r20;", {OUTSIDE}),
    Planted("store into the next array", NEIGHBOURS, "st.shared.u32 [%r11], %r20; // first", "st.shared.u32 [%r11+4], %r20; // first", {UNWRITTEN, RACE}),
    Planted("load of the next array", NEIGHBOURS, "ld.shared.u32 %r22, [%r11+256];", "ld.shared.u32 %r22, [%r11+260];", {OUTSIDE}),
    Planted("store behind the frame", LOCAL, "st.local.u32 [%rd12+4], %r21;", "st.local.u32 [%rd12+16], %r21;", {OUTSIDE}),
    Planted("load before the frame", LOCAL, "ld.local.u64 %rd13, [%rd12];", "ld.local.u64 %rd13, [%rd12+-8];", {OUTSIDE}),
    Planted("copy from behind the buffer", PIPELINE, "setp.lt.u32 %p0, %r30, 3;", "setp.lt.u32 %p0, %r30, 4;", {OUTSIDE}),
    Planted("copy to behind shared memory", PIPELINE, "cp.async.cg.shared.global [%r33]", "cp.async.cg.shared.global [%r33+16]", {OUTSIDE}),
    Planted("misaligned load of a pair", LOCAL, "ld.global.v2.u32 {%r20, %r21}, [%rd10];", "ld.global.v2.u32 {%r20, %r21}, [%rd10+4];", {MISALIGNED}),
    Planted("misaligned local load", LOCAL, "ld.local.u64 %rd13, [%rd12];", "ld.local.u64 %rd13, [%rd12+4];", {MISALIGNED}),
    Planted("misaligned shared load", PIPELINE, "[%r34];", "[%r34+8];", {MISALIGNED}),
    Planted("misaligned half", NARROW, "ld.shared.u16 %r21, [%r11+2];", "ld.shared.u16 %r21, [%r11+1];", {MISALIGNED}),
    Planted("misaligned copy", PIPELINE, "cp.async.cg.shared.global [%r11], [%rd10], 16;", "cp.async.cg.shared.global [%r11], [%rd10+8], 16;", {MISALIGNED}),
    Planted("misaligned row of a matrix", MATRIX, "mad.lo.u32 %r14, %r14, 16, %r13;", "mad.lo.u32 %r14, %r14, 12, %r13;", {MISALIGNED}),
    Planted("shared memory that nobody wrote", EXCHANGE, "st.shared.u32 [%r11], %r20;", "", {UNWRITTEN}),
    Planted("shared memory that one thread did not write", EXCHANGE, "st.shared.u32 [%r11], %r20;", "setp.ne.u32 %p0, %r0, 40;\n@%p0 st.shared.u32 [%r11], %r20;", {UNWRITTEN}),
    Planted("local memory that nobody wrote", LOCAL, "st.local.u32 [%rd12], %r20;", "", {UNWRITTEN}),
    Planted("local memory of which half is written", LOCAL, "st.local.u32 [%rd12+4], %r21;", "", {UNWRITTEN}),
    Planted("byte that nobody wrote", NARROW, "st.shared.u8 [%r11+1], 7;", "", {UNWRITTEN}),
    Planted("half that nobody wrote", NARROW, "st.shared.u16 [%r11+2], 99; // the upper half", "", {UNWRITTEN}),
    Planted("output read before it is written", PROGRAMS, "ld.global.u32 %r20, [%rd10];", "ld.global.u32 %r20, [%rd11];", {UNWRITTEN}),
    Planted("matrix that nobody wrote", MATRIX, "st.shared.u32 [%r11], %r20;", "", {UNWRITTEN}),
    Planted("wait for one group too few", PIPELINE, "cp.async.wait_group 1;", "cp.async.wait_group 2;", {IN_FLIGHT}),
    Planted("no wait", PIPELINE, "cp.async.wait_group 1;", "", {IN_FLIGHT}),
    Planted("copies without a group", PIPELINE, "cp.async.commit_group; // of the first stage", "", {IN_FLIGHT}),
    Planted("no barrier after the wait", PIPELINE, "bar.sync 0; // after the wait", "", {RACE}),
    Planted("no barrier before a copy over what is read", PIPELINE, "bar.sync 0; // before the stage is used again", "", {RACE}),
    Planted("no warp barrier after the wait", WARP_PIPELINE, "bar.warp.sync -1; // after the wait", "", {WARP_RACE}),
    Planted("no warp barrier before a copy over what is read", WARP_PIPELINE, "bar.warp.sync -1; // before the stage is used again", "", {WARP_RACE}),
    Planted("two copies on their way to one place", PIPELINE, "xor.b32 %r32, %r31, 1024;", "mov.u32 %r32, %r31;", {IN_FLIGHT}),
    Planted("store to where a copy is on its way", PIPELINE, "cp.async.wait_group 1;", "st.shared.u32 [%r33], %r0;\ncp.async.wait_group 1;", {IN_FLIGHT}),
    Planted("shuffle names lanes that are elsewhere", COLLECTIVE, "8, 31, 0xffff; // of the half", "8, 31, -1;", {NOT_CONVERGED}),
    Planted("shuffle from a lane that is elsewhere", COLLECTIVE, "8, 31, 0xffff; // of the half", "16, 31, 0xffff;", {INACTIVE}),
    Planted("shuffle from a lane that is not named", COLLECTIVE, "16, 31, -1; // of all", "16, 31, 0xfffffffe;", {INACTIVE}),
    Planted("shuffle by a lane that is not named", COLLECTIVE, "16, 31, -1; // of all", "0, 31, 0xff7fffff;", {NOT_NAMED}),
    Planted("reduction in a branch", COLLECTIVE, "DONE:\n", "redux.sync.add.u32 %r23, %r20, -1;\nDONE:\n", {NOT_CONVERGED}),
    Planted("vote in a branch", COLLECTIVE, "DONE:\n", "vote.sync.any.pred %p1, %p0, -1;\nDONE:\n", {NOT_CONVERGED}),
    Planted("barrier of a warp in a branch", COLLECTIVE, "DONE:\n", "bar.warp.sync -1;\nDONE:\n", {NOT_CONVERGED}),
    Planted("matrix in a branch", MATRIX, "ldmatrix.sync.aligned.m8n8.x1.shared", "setp.gt.u32 %p1, %r0, 3;\n@%p1 ldmatrix.sync.aligned.m8n8.x1.shared", {NOT_CONVERGED}),
    Planted("row of a matrix outside", MATRIX, "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r21}, [%r14];", "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r21}, [%r14+16];", {OUTSIDE}),
    Planted("row of a matrix of another warp", MATRIX, "and.b32 %r14, %r0, 7;", "and.b32 %r14, %r0, 7;\nsub.u32 %r14, 8, %r14;", {RACE, OUTSIDE}),
    Planted("no barrier before a matrix is read", MATRIX, "bar.warp.sync -1; // after the store", "", {WARP_RACE}),
    Planted("no barrier before a matrix is written", MATRIX, "bar.warp.sync -1; // before the next store", "", {WARP_RACE}),
    Planted("no barrier after a matrix is written", MATRIX, "bar.warp.sync -1; // after stmatrix", "", {WARP_RACE}),
    Planted("two rows of a matrix to one place", MATRIX, "stmatrix.sync", "and.b32 %r14, %r14, 0xffffffef;\nstmatrix.sync", {DISAGREE}),
    Planted("lanes store to one place in shared memory", WARP_EXCHANGE, "mad.lo.u32 %r11, %r0, 4, %r10;", "and.b32 %r9, %r0, 62;\nmad.lo.u32 %r11, %r9, 4, %r10;", {DISAGREE}),
    Planted("lanes store to one place in global memory", EXCHANGE, "mad.wide.u32 %rd11, %r0, 4, %rd1;", "and.b32 %r9, %r0, 62;\nmad.wide.u32 %rd11, %r9, 4, %rd1;", {DISAGREE}),
    Planted("warps store to one place in global memory", EXCHANGE, "mad.wide.u32 %rd11, %r0, 4, %rd1;", "and.b32 %r9, %r0, 31;\nmad.wide.u32 %rd11, %r9, 4, %rd1;", {RACE}),
    Planted("programs store to one place", PROGRAMS, "mad.wide.u32 %rd11, %r10, 4, %rd1;", "mad.wide.u32 %rd11, %r0, 4, %rd1;", {PROGRAM_RACE}),
    Planted("programs overlap by a word", PROGRAMS, "mad.lo.u32 %r10, %r1, 64, %r0;", "mad.lo.u32 %r10, %r1, 63, %r0;", {PROGRAM_RACE}),
    Planted("program reads what another writes", PROGRAMS, "st.global.u32 [%rd11], %r20;", "st.global.u32 [%rd11], %r20;\nxor.b32 %r9, %r10, 64;\nsetp.lt.u32 %p0, %r9, 128;\nmad.wide.u32 %rd12, %r9, 4, %rd1;\n@%p0 ld.global.u32 %r21, [%rd12];", {PROGRAM_RACE}),
    Planted("barrier in a branch, a shuffle elsewhere", DIVERGENT, "ODD:\n    bar.sync 0; // where all meet", "bar.sync 0;\n    ODD:", {DEADLOCK}),
    Planted("barriers of two branches", DIVERGENT, "ODD:\n    bar.sync 0; // where all meet", "bar.sync 0;\n    bra MEET;\n    ODD:\n    bar.sync 0;\n    MEET:", {PLACES}),
]  # fmt: skip


@pytest.mark.parametrize("order", machine.ORDERS)
@pytest.mark.parametrize("program", PROGRAM_NAMES.values(), ids=PROGRAM_NAMES)
def test_nothing_is_found_where_no_fault_is(program: Program, order: str) -> None:
    """All words are written, and are the same in every order."""
    found, out = program.run(program.text, order)
    assert not found
    assert not handwritten.words_unwritten(out)
    assert (out == program.run(program.text, "lockstep")[1]).all()


@pytest.mark.parametrize("order", machine.ORDERS)
@pytest.mark.parametrize("planted", PLANTED, ids=[p.name for p in PLANTED])
def test_planted_faults_are_found(planted: Planted, order: str) -> None:
    found, _ = planted.program.run(planted.text(), order)
    assert found & planted.kinds, f"found {found or 'nothing'}"


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ("", 64),
        ("setp.ne.u32 %p5, %r0, 17;\n@%p5 st.global.u32 [%rd11], %r24;", 1),
        ("cvt.u64.u32 %rd20, %r0;\nst.global.u16 [%rd11], %r24;", 0),
    ],
)
def test_output_that_nobody_wrote(new: str, words: int) -> None:
    """Words of which nothing is written hold poison afterwards; of which a part is written, no longer all of it."""
    found, out = EXCHANGE.run(EXCHANGE.text.replace("st.global.u32 [%rd11], %r24;", new), "lockstep")
    assert not found
    assert handwritten.words_unwritten(out) == words
