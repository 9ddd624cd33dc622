"""Sorts instructions by the unit of a multiprocessor that executes them."""

from __future__ import annotations

import re

from tests.ptx.parser import Instruction

ARITHMETIC = ("add", "sub", "mul", "fma", "mad")
# One instruction of a special function unit in float32; in float64 a subroutine, unless only approximate.
SPECIAL_FUNCTIONS = ("rsqrt", "rcp", "ex2", "lg2", "sin", "cos", "tanh")


def classify(instruction: Instruction) -> str:
    """The class under which an instruction is counted."""
    parts = instruction.parts
    op, kind = parts[0], parts[-1]
    if op == "mma":
        return f"mma {'f64' if 'f64' in parts else 'tf32'} {next(p for p in parts if re.match(r'm[0-9]+n[0-9]+k', p))}"
    if op == "wgmma":
        return f"wgmma tf32 {parts[4]}" if parts[1] == "mma_async" else "wgmma order"
    if op in ("shfl", "ldmatrix", "stmatrix", "mov"):
        return op
    if op in ("redux", "vote", "match", "activemask"):
        return "vote"
    if op in ("bar", "barrier"):
        return "barrier warp" if parts[1] == "warp" else "barrier"
    if op in ("ld", "st", "atom", "red"):
        return f"{op} {memory_space(instruction)}"
    if op == "cp":
        return "cp.async" if len(instruction.args) > 1 else "other"
    if op in ("bra", "ret", "exit"):
        return "branch"
    if op in SPECIAL_FUNCTIONS or (op == "sqrt" and "approx" in parts):
        return "slow f64" if kind == "f64" else "mufu"
    if op in ("div", "sqrt", "rem"):
        return f"slow {kind if kind in ('f32', 'f64') else 'int'}"
    if op == "cvt":
        return "cvt f64" if "f64" in parts else "cvt f32" if {"f32", "tf32"} & set(parts) else "cvt int"
    if kind == "f64":
        return "fp64" if op in (*ARITHMETIC, "min", "max") else "setp f64" if op == "setp" else "int"
    if kind == "f32":
        return "fp32" if op in ARITHMETIC else "int"
    return "imad" if op in ("mul", "mad") else "int"


def memory_space(instruction: Instruction) -> str:
    """Which memory a load or a store names; generic if none."""
    for part in instruction.parts:
        space = part.split("::")[0]
        if space in ("global", "shared", "local", "param", "const"):
            return space
    return "generic"
