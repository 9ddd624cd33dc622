"""Cuts a kernel into basic blocks: instructions that are executed one after another, with one way out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.ptx.parser import Kernel

# Instructions that a warp executes together.
TOGETHER = ("shfl", "vote", "redux", "mma", "ldmatrix", "stmatrix", "activemask", "match", "elect", "wgmma")
# Barriers of a warp end no block: lanes that run together are at the same place.
Ending = Literal["fall", "jump", "branch", "barrier", "exit", "conditional exit", "trap"]


@dataclass
class Block:
    """Instructions ``first`` to ``last``, without the latter.

    Args:
        ending: how it is left. Where it falls through or does not branch, the next block follows.
        target: the block that it jumps or branches to.
        predicate, negated: the condition of a branch or of a conditional exit.
        together: whether the lanes of a warp have to wait for one another before it.
    """

    number: int
    first: int
    last: int
    ending: Ending = "fall"
    target: int = -1
    predicate: str = ""
    negated: bool = False
    together: bool = False


def basic_blocks(kernel: Kernel, split_together: bool) -> list[Block]:
    """The blocks of a kernel; with ``split_together`` one begins at each warp-wide instruction."""
    code = kernel.instructions

    def is_together(number: int) -> bool:
        return split_together and (code[number].parts[0] in TOGETHER or code[number].op.startswith("bar.warp"))

    leaders = {0, *kernel.labels.values()}
    for i in code:
        if i.parts[0] in ("bra", "ret", "exit", "trap") or _is_barrier(i.parts):
            leaders.add(i.number + 1)
        if is_together(i.number):
            leaders.add(i.number)
    ordered = sorted(first for first in leaders if first < len(code))
    numbers = {first: number for number, first in enumerate(ordered)}
    blocks = []
    for number, (first, last) in enumerate(zip(ordered, [*ordered[1:], len(code)], strict=True)):
        block = Block(number, first, last, together=is_together(first))
        end = code[last - 1]
        if end.parts[0] == "bra":
            block.ending = "branch" if end.predicate else "jump"
            block.target = numbers[kernel.labels[end.args[0]]]
        elif end.parts[0] in ("ret", "exit"):
            block.ending = "conditional exit" if end.predicate else "exit"
        elif _is_barrier(end.parts):
            block.ending = "barrier"
        elif end.parts[0] == "trap":
            block.ending = "trap"
        block.predicate, block.negated = end.predicate or "", end.negated
        blocks.append(block)
    return blocks


def _is_barrier(parts: list[str]) -> bool:
    """Whether it is a barrier of the program's warps."""
    return parts[0] in ("bar", "barrier") and parts[1] != "warp"
