"""The machine code that ptxas made, against what was estimated of it: how many instructions the longest loop has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import triton

from tests.ptx import pipes
from tests.ptx.parser import Kernel

CUOBJDUMP = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / "cuobjdump"


class Instruction(NamedTuple):
    """Its address, opcode with modifiers, and, of a branch, where it goes."""

    address: int
    op: str
    target: int | None


def disassembled(cubin: bytes) -> list[Instruction]:
    """The instructions of a file with one kernel, without padding."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        text = subprocess.run([CUOBJDUMP, "-sass", file], check=True, capture_output=True, text=True).stdout
    pattern = r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);"
    found = []
    for address, op, operands in re.findall(pattern, text):
        target = re.search(r"0x([0-9a-f]+)", operands) if op.startswith("BRA") else None
        if op != "NOP":
            found.append(Instruction(int(address, 16), op, int(target.group(1), 16) if target else None))
    return found


def loops(code: list[Instruction]) -> list[int]:
    """How many instructions each loop has, those of inner loops included, in ascending order."""
    ends = [(i.target, i.address) for i in code if i.target is not None and i.target < i.address]
    return sorted(sum(first <= i.address <= last for i in code) for first, last in ends)


def estimated_loops(kernel: Kernel, capability: int) -> list[int]:
    """The same of what :mod:`tests.ptx.pipes` says that PTX becomes."""
    cost = [pipes.cost(instruction, capability).instructions for instruction in kernel.instructions]
    branches = [(kernel.labels[i.args[0]], i.number) for i in kernel.instructions if i.parts[0] == "bra"]
    return sorted(sum(cost[first : last + 1]) for first, last in branches if first <= last)


def ratio(cubin: bytes, kernel: Kernel, capability: int) -> float | None:
    """How many times as many instructions the longest loop has as was estimated; all of them where nothing loops.

    None where ptxas has made another number of loops: by unrolling or merging, which changes what is executed less than
    what there is.
    """
    code = disassembled(cubin)
    made, estimated = loops(code), estimated_loops(kernel, capability)
    if len(made) != len(estimated):
        return None
    if made:
        return made[-1] / estimated[-1]
    return len(code) / sum(pipes.cost(i, capability).instructions for i in kernel.instructions)
