"""A kernel as Python functions: one for each basic block, one numpy operation an instruction, over all lanes.

Of each block there are two versions, for all lanes of a group and for those of a mask ``m``. They are compiled when
they are first run. :mod:`tests.ptx.emission` writes their source.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx import arithmetic
from tests.ptx.blocks import basic_blocks
from tests.ptx.classes import classify, memory_space
from tests.ptx.emission import Emission
from tests.ptx.parser import SIZES, Instruction, Kernel, Variable
from tests.ptx.warpgroup import register_faults

# Files of registers: predicates, and those of so many bits.
FILES = {0: "p", 1: "16", 2: "16", 4: "32", 8: "64"}
VIEWS = {"u1", "i1", "u2", "i2", "u4", "i4", "f4", "u8", "i8", "f8", "p"}


class Translated:
    """A kernel with its basic blocks and their functions.

    Args:
        kernel: as the parser gives it.
        split_together: whether warp-wide instructions begin a block, so that lanes wait for one another there. Triton's
            kernels need it not: their warps diverge nowhere.
    """

    def __init__(self, kernel: Kernel, split_together: bool = False) -> None:
        self.kernel = kernel
        self.constants: dict[str, Any] = {}
        self._names: dict[tuple[type, bytes], str] = {}
        # Of each register its file and its row there.
        self.rows: dict[str, tuple[str, int]] = {}
        self.counts = dict.fromkeys(FILES.values(), 0)
        for name, kind in kernel.registers.items():
            file = FILES[SIZES[kind]]
            self.rows[name] = (file, self.counts[file])
            self.counts[file] += 1
        self._place(list(kernel.variables.values()))
        # Races are looked for in words, or in bytes where something smaller is accessed or may be.
        self.granules = {
            space: 1 if any(self._is_narrow(i, space) for i in kernel.instructions) else 4
            for space in ("shared", "global")
        }
        self.blocks = basic_blocks(kernel, split_together)
        self.register_faults = register_faults(kernel, self.blocks)
        self.classes = [Counter(classify(i) for i in kernel.instructions[b.first : b.last]) for b in self.blocks]
        self.full: list[Callable[..., None] | None] = [None] * len(self.blocks)
        self.masked: list[Callable[..., None] | None] = [None] * len(self.blocks)

    @staticmethod
    def _is_narrow(instruction: Instruction, space: str) -> bool:
        if instruction.parts[0] not in ("ld", "st") or memory_space(instruction) not in (space, "generic"):
            return False
        return SIZES[instruction.parts[-1]] < 4

    def _place(self, variables: list[Variable]) -> None:
        """Gives the variables their places: shared memory whose size the launch decides follows the static one."""
        self.symbols: dict[str, int] = {}
        sizes = {"shared": 0, "local": 0}
        for v in variables:
            if v.space in sizes and not v.extern:
                self.symbols[v.name] = -(-sizes[v.space] // v.align) * v.align
                sizes[v.space] = self.symbols[v.name] + v.size
        self.shared_static, self.local_bytes = sizes["shared"], sizes["local"]
        for v in variables:
            if v.space == "shared" and v.extern:
                self.symbols[v.name] = -(-self.shared_static // 16) * 16
        self.global_variables = [v for v in variables if v.space in ("global", "const")]

    def function(self, number: int, masked: bool) -> Callable[..., None]:
        """What runs block ``number``: a function of a group of lanes and a mask of them."""
        cache = self.masked if masked else self.full
        if cache[number] is None:
            text = self.source(number, masked)
            scope = {"np": np, "A": arithmetic, **self.constants}
            exec(compile(text, f"{self.kernel.name}:{number}:{'masked' if masked else 'full'}", "exec"), scope)
            cache[number] = scope["f"]
        return cache[number]  # type: ignore[return-value]  # written above

    def source(self, number: int, masked: bool) -> str:
        """The Python source of a block's function."""
        block = self.blocks[number]
        lines = []
        for i in self.kernel.instructions[block.first : block.last]:
            if i.parts[0] not in ("bra", "ret", "exit"):
                try:
                    lines += Emission(self, i, masked).lines()
                except Exception as error:
                    raise NotImplementedError(f"PTX line {i.line}: {i.text}: {error!r}") from error
        used = {name for line in lines for name in re.findall(r"\b([a-z]\d+|p)\[", line)} & VIEWS
        head = "def f(X, m):\n" + "".join(f"    {name} = X.{name}\n" for name in sorted(used))
        return head + "".join(f"    {line}\n" for line in lines or ["pass"])

    def constant(self, value: Any) -> str:
        """The name under which the functions see ``value``, a number of numpy."""
        name = self._names.setdefault((type(value), value.tobytes()), f"K{len(self._names)}")
        self.constants[name] = value
        return name
