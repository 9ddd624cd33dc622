"""Which machine instructions ptxas makes of a PTX instruction, and what they cost.

PTX is not what runs: a rounding to TF32 becomes three instructions, a move none. ``RECIPES`` says it for every
instruction of the kernels; ``tests/ptx/test_pipes.py`` compiles each and compares.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from tests.ptx.parser import Instruction
from tests.ptx.throughput import DEVICES, GLOBAL, MACHINE

# The first pattern that fits the whole of an opcode, and its machine instructions, each named by one that is priced the
# same: n in sequence as "*n", side by side as "/n". Nothing: it becomes an operand, a modifier or a name of another's.
RECIPES: tuple[tuple[str, str], ...] = (
    (r"mov\..*|cvta\..*|ld\.param\..*|(and|or|xor|not)\.pred|(abs|neg)\.(ftz\.)?f\d\d|neg\.s32", ""),
    (r"(add|sub|mul|fma|mad)\.(\w+\.)*f32", "FADD"),
    (r"(add|sub|mul|fma|mad)\.(\w+\.)*f64|setp\.\w+\.f64", "DADD"),
    (r"(min|max)\.f64", "DADD IADD3/3"),
    (r"(rsqrt|sqrt|rcp|ex2|lg2|tanh|sin|cos)\.approx\.ftz\.f32", "MUFU"),
    (r"(rsqrt|sqrt|ex2)\.approx\.f32", "IADD3 FADD MUFU FADD"),
    (r"rcp\.approx\.f32", "IADD3/2 IADD3/2 FADD MUFU FADD"),
    (r"div\.(full|approx)\.f32", "IADD3/2 FADD/2 FADD/2 MUFU FADD"),
    # What is inlined; a subroutine for the hard cases is not entered.
    (r"sqrt\.rn\.f32", "IADD3/2 MUFU FADD*4 BRA"),
    (r"rcp\.rn\.f32", "IADD3*3 MUFU FADD*3 BRA"),
    (r"div\.rn\.f32", "MUFU IADD3 FADD*6 BRA"),
    (r"div\.rn\.f64", "MUFU DADD*8 FADD IADD3/2 BRA"),
    (r"sqrt\.rn\.f64", "MUFU DADD*8 IADD3/2 BRA"),
    (r"rcp\.rn\.f64", "MUFU DADD*6 IADD3/2 BRA"),
    (r"cvt\.rna\.tf32\.f32", "IADD3 IMAD IADD3"),
    (r"cvt\.(\w+\.)*f32\.f64|cvt\.(\w+\.)*f64\.f32", "F2F"),
    (r"cvt\.(\w+\.)*f\d\d\.[us]\d\d|cvt\.(\w+\.)*[us]\d\d\.f\d\d", "I2F"),
    (r"cvt\.[us]64\.s32", "IADD3"),
    (r"cvt\.[us](32|64)\.[us](32|64)", ""),
    (r"cvt\.[us]\d+\.[us]\d+", "IADD3"),
    (r"(mul|mad)\.(lo|wide|hi)\.[us](16|32)", "IMAD"),
    (r"(mul|mad)\.lo\.[us]64", "IMAD/2 IMAD IADD3"),
    (r"(add|sub)\.[us]64|shl\.b64", "IADD3 IMAD"),
    (r"(and|or|xor|not)\.b64|shr\.[us]64|selp\.[fbus]64|setp\.\w+\.[us]64|setp\.(eq|ne)\.b64", "IADD3/2"),
    (r"(bfe|bfi)\.[usb]32|clz\.b32", "IADD3/2"),
    (r"(div|rem)\.[us]32", "IADD3*12 IMAD*5 I2F MUFU I2F"),
    (r"(div|rem)\.[us]64", "IADD3*45 IMAD*30 I2F MUFU I2F BRA"),  # a subroutine
    (r"(add|sub|min|max|shl|shr|and|or|xor|not|abs|sad|prmt|shf|lop3|selp|slct|copysign|popc|brev)\..*", "IADD3"),
    (r"set\..*|setp\..*|vote\..*|activemask\..*|match\..*|elect\..*", "IADD3"),
    (r"redux\..*", "REDUX"),
    (r"shfl\..*", "SHFL"),
    (r"bra(\.\w+)?|ret|exit|trap", "BRA"),
    (r"(bar|barrier)(\.cta)?\.(sync|red|arrive).*", "BAR"),
    (r"bar\.warp\..*|membar\..*|fence\..*|griddepcontrol\..*|wgmma\.(fence|commit_group|wait_group).*", "NOP"),
    (r"cp\.async\.(commit_group|wait_group|wait_all)|prefetch\..*|mbarrier\..*", "NOP"),
    (r"ld\.(\w+\.)*shared.*", "LDS"),
    (r"ldmatrix\..*", "LDSM"),
    (r"ldu?\.(\w+\.)*(global|const).*", "LDG"),
    (r"ld\..*", "LDG"),
    (r"(st|stmatrix|cp|atom|red)\..*", "STS"),
    (r"mma\..*tf32.*", "HMMA"),
    (r"mma\..*f64.*", "DMMA"),
    (r"wgmma\.mma_async.*tf32.*", "HGMMA"),
)


class Cost(NamedTuple):
    """Of one warp instruction of PTX: its machine instructions, the pipes' share in them, and its latency."""

    instructions: int
    pipes: Mapping[str, float]
    latency: int


class Step(NamedTuple):
    """A machine instruction so many ``times``, in sequence or side by side."""

    name: str
    times: int
    sequential: bool


@cache
def recipe(op: str) -> tuple[Step, ...]:
    """The machine instructions of an opcode."""
    for pattern, made in RECIPES:
        if re.fullmatch(pattern, op):
            parts = (re.fullmatch(r"(\w+?)(?:([*/])(\d+))?", part).groups() for part in made.split())  # type: ignore[union-attr]
            return tuple(Step(name, int(count or 1), sign == "*") for name, sign, count in parts)
    raise KeyError(f"{op}: tests/ptx/pipes.py does not say what machine instructions it becomes")


@cache
def _priced(op: str, capability: int) -> Cost:
    steps = recipe(op)
    pipes: dict[str, float] = {}
    for step in steps:
        for pipe in MACHINE[step.name][0]:
            pipes[pipe] = pipes.get(pipe, 0) + step.times
    latency = sum(MACHINE[step.name][1] * (step.times if step.sequential else 1) for step in steps)
    if capability >= 90 and re.fullmatch(r"cvt\.(\w+\.)*f32\.[us]32", op):  # I2FP there
        pipes = {"alu": 1}
    if steps and steps[0].name == "LDG":
        latency = GLOBAL[capability]
    return Cost(sum(step.times for step in steps), pipes, latency)


def cost(instruction: Instruction, capability: int) -> Cost:
    """What one warp pays for an instruction, tensor cores in cycles; without the passes of shared memory."""
    priced = _priced(instruction.op, capability)
    shape = re.search(r"\bm(\d+)n(\d+)k(\d+)\b", instruction.op)
    if shape is None or instruction.parts[0] not in ("mma", "wgmma"):
        return priced
    m, n, k = (int(size) for size in shape.groups())
    kind = f"{instruction.parts[0]} {'f64' if 'f64' in instruction.parts else 'tf32'}"
    share = 4 if kind.startswith("wgmma") else 1  # the four warps of a group count one each
    cycles = m * n * k / share / DEVICES[capability].tensor[kind]
    return Cost(priced.instructions, {"tensor": cycles}, priced.latency)
