"""Hopper's ``wgmma``: products of matrices that a warpgroup of four warps executes asynchronously, with their checks.

Sources: PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions" (register fragments, canonical
layouts, matrix descriptor, ``wgmma.fence``, ``wgmma.commit_group``, ``wgmma.wait_group``) and "Async proxy".

- Each warp computes its 16 of the 64 rows at the instruction, from what shared memory holds then. What a wgmma in
  flight reads is marked until its ``wait_group``: to write there is a fault.
- Registers in flight and those without a ``wgmma.fence`` are found without running, by :func:`register_faults`.
- Matrices in shared memory are read through the async proxy. What was stored through the generic proxy, as by ``st``
  and ``cp.async``, needs a ``fence.proxy.async`` on its way: of the warp that wrote, before the barrier, or of the warp
  that reads, after it.

Only ``.f32.tf32.tf32`` is executed. Its operands are K-major: PTX has no other layout for 32-bit elements.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tests.ptx.findings import (
    IN_FLIGHT,
    NOT_UNIFORM,
    OUT_OF_BOUNDS,
    RACE,
    RESERVED,
    UNFENCED,
    UNINITIALISED,
    Lanes,
    report,
    warp_is_active,
)
from tests.ptx.parser import Instruction, Kernel, split_list
from tests.ptx.shared_memory import (
    COUNT,
    FENCES,
    LAST,
    NOBODY,
    READ_AT,
    READER,
    READING,
    SETTLED,
    SEVERAL_WARPS,
    WRITER,
    WRITTEN_AT,
    SharedMemory,
)
from tests.ptx.tensor_cores import TF32_BITS, single

if TYPE_CHECKING:
    from tests.ptx.blocks import Block
    from tests.ptx.group import Group

WARPS = 4  # of a warpgroup
DEPTH = 8  # columns of A and rows of B, for 32-bit elements
WORD = 4
# By the swizzling mode of a descriptor: bytes of a row within the pattern, and how many bits of an address are changed.
PITCH = np.array([16, 128, 64, 32], np.int64)
SWIZZLED_BITS = np.array([0, 3, 2, 1], np.int64)
# Faults that are found without running, and where the warps of a program meet.
ACCESSED = "register of a wgmma in flight"
NOT_FENCED = "wgmma without a wgmma.fence since its registers were accessed"
APART = "the warps of a warpgroup execute different wgmma instructions"
UNCOMMITTED = -1
# Of commit groups: wait_group can name no older one.
OLDEST = 8


@njit(cache=True)
def element_address(descriptor: int, row: int, column: int) -> int:
    """Address of an element of a K-major matrix with 8 columns of 32 bits.

    Bits of the descriptor: 0-13 start address, 16-29 leading and 32-45 stride dimension byte offset, all without their
    low four bits; 49-51 base offset; 62-63 swizzling mode. Eight rows of 16 * 2^B bytes are a pattern; the stride
    dimension byte offset leads to the next. Without swizzling (B = 0) the leading dimension byte offset leads from four
    columns to the next four. Swizzle<B, 4, 3>: of the bits 4, 5, 6 of an address the lowest B are xored with the bits
    7, 8, 9. The base offset is (start of the pattern >> 7) & 7; bits 7 to 9 are taken relative to it, as the pattern
    begins there.
    """
    mode = np.int64(descriptor >> np.uint64(62))
    start = np.int64(descriptor & np.uint64(0x3FFF)) << 4
    leading = np.int64((descriptor >> np.uint64(16)) & np.uint64(0x3FFF)) << 4
    stride = np.int64((descriptor >> np.uint64(32)) & np.uint64(0x3FFF)) << 4
    base = np.int64((descriptor >> np.uint64(49)) & np.uint64(7))
    address = start + (row >> 3) * stride + (row & 7) * PITCH[mode] + (column & 3) * WORD
    address += (column >> 2) * (leading if mode == 0 else 16)
    return address ^ ((((address >> 7) - base) & ((1 << SWIZZLED_BITS[mode]) - 1)) << 4)


@njit(cache=True)
def has_reserved_bits(descriptor: int) -> bool:
    """Whether bits without a meaning are set: 14-15, 30-31, 46-48, 52-61."""
    return (descriptor & np.uint64(0x3FF1C000C000C000)) != np.uint64(0)


@njit(cache=True)
def read_matrix(
    shared: SharedMemory, lanes: Lanes, lane: int, number: int, descriptor: int, first: int, words: NDArray[np.uint32]
) -> None:
    """Reads the rows ``first`` and following of a matrix into ``words``; of each kind one fault is reported."""
    program, warp = lanes.program[lane], lanes.thread[lane] >> 5
    barrier = shared.barriers[program]
    size = shared.bytes.shape[1]
    outside = unwritten = in_flight = race = unfenced = writer = np.int64(-1)
    for i in range(words.shape[0]):
        for k in range(DEPTH):
            address = element_address(descriptor, first + i, k)
            word = np.uint32(0)
            if address + WORD > size:
                outside = address
                words[i, k] = word
                continue
            for b in range(WORD):
                word |= np.uint32(shared.bytes[program, address + b]) << np.uint32(8 * b)
            words[i, k] = word
            if not shared.checked:
                continue
            for granule in range(address // shared.granule, (address + WORD - 1) // shared.granule + 1):
                kept = shared.touched[program, granule]
                if shared.in_flight[program, granule] > 0:
                    in_flight = address
                if kept[WRITER] == NOBODY:
                    unwritten = address
                else:
                    # All four warps read, and no more than one of them wrote: a barrier has to be between.
                    now = kept[WRITTEN_AT] == barrier
                    if now:
                        race, writer = address, kept[WRITER]
                    # A fence of the writer counts if a barrier followed, except for the writer.
                    fences = shared.proxy_fences[program, kept[WRITER] >> 5]
                    settled = fences[LAST] < barrier or now or (kept[WRITER] >> 5) == warp
                    by_writer = fences[COUNT if settled else SETTLED] > kept[FENCES]
                    if not by_writer and shared.proxy_fences[program, warp, LAST] <= kept[WRITTEN_AT]:
                        unfenced, writer = address, kept[WRITER]
                kept[READER], kept[READ_AT] = SEVERAL_WARPS, barrier
                kept[READING] += 1
    if outside >= 0:
        report(lanes, lane, OUT_OF_BOUNDS, number, outside, size)
    if unwritten >= 0:
        report(lanes, lane, UNINITIALISED, number, unwritten, 0)
    if in_flight >= 0:
        report(lanes, lane, IN_FLIGHT, number, in_flight, 0)
    if race >= 0:
        report(lanes, lane, RACE, number, race, writer)
    if unfenced >= 0:
        report(lanes, lane, UNFENCED, number, unfenced, writer)


@njit(cache=True)
def end_reading(shared: SharedMemory, program: int, descriptor: int, first: int, rows: int) -> None:
    """One warp's part of a wgmma has ended; those of the other warps may go on until the next barrier."""
    for i in range(rows):
        for k in range(DEPTH):
            address = element_address(descriptor, first + i, k)
            if address + WORD <= shared.bytes.shape[1]:
                for granule in range(address // shared.granule, (address + WORD - 1) // shared.granule + 1):
                    kept = shared.touched[program, granule]
                    kept[READER], kept[READ_AT] = SEVERAL_WARPS, shared.barriers[program]
                    kept[READING] -= 1


@njit(cache=True)
def finish(
    shared: SharedMemory,
    lanes: Lanes,
    mask: NDArray[np.bool_],
    a: NDArray[np.uint64],
    a_shared: bool,
    b: NDArray[np.uint64],
    columns: int,
) -> None:
    """The wgmma with these descriptors has ended for the warps of the mask."""
    for base in range(0, mask.shape[0], 32):
        if mask[base]:
            program = lanes.program[base]
            end_reading(shared, program, b[base], 0, columns)
            if a_shared:
                end_reading(shared, program, a[base], 16 * ((lanes.thread[base] >> 5) & 3), 16)


@njit(cache=True)
def multiply(
    shared: SharedMemory,
    lanes: Lanes,
    number: int,
    mask: NDArray[np.bool_],
    a: NDArray[np.uint64],
    registers: NDArray[np.uint32],
    b: NDArray[np.uint64],
    accumulates: NDArray[np.bool_],
    sign: float,
    group: int,
    truncated: bool,
    c: NDArray[np.float32],
    d: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> None:
    """D = A B + C, or A B where ``accumulates`` is false.

    Lane 4 g + t of warp w has in register i of A row 16 w + g + 8 (i % 2), column t + 4 (i / 2); in register i of C and
    D row 16 w + g + 8 (i / 2 % 2), column 8 (i / 4) + 2 t + i % 2. ``registers`` is A, of (4, lanes), or of (0, lanes)
    if A is in shared memory; ``a`` and ``b`` are the descriptors. ``sign`` is the product of the operands' signs.

    Of the operands the low 13 bits are ignored. How Hopper sums within a wgmma is not documented; here ``group``
    products at a time are summed exactly with the accumulator and rounded, as in :mod:`tests.ptx.tensor_cores`.
    """
    columns = 2 * c.shape[0]
    a_words, b_words = np.empty((16, DEPTH), np.uint32), np.empty((columns, DEPTH), np.uint32)
    a_shared = registers.shape[0] == 0
    sums = np.empty((16, columns))
    for base in range(0, mask.shape[0], 32):
        if not warp_is_active(lanes, base, mask, number):
            continue
        warp = lanes.thread[base] >> 5
        for l in range(1, 32):
            other = base + l
            if b[other] != b[base] or accumulates[other] != accumulates[base] or (a_shared and a[other] != a[base]):
                report(lanes, other, NOT_UNIFORM, number, 0, lanes.thread[base])
                break
        if has_reserved_bits(b[base]) or (a_shared and has_reserved_bits(a[base])):
            report(lanes, base, RESERVED, number, 0, 0)
        read_matrix(shared, lanes, base, number, b[base], 0, b_words)
        if a_shared:
            read_matrix(shared, lanes, base, number, a[base], 16 * (warp & 3), a_words)
        else:
            for l in range(32):
                for i in range(4):
                    a_words[(l >> 2) + 8 * (i & 1), (l & 3) + 4 * (i >> 1)] = registers[i, base + l]
        if shared.counted and warp & 3 == 0:
            counts[0] += 1
            counts[1] += (columns + (64 if a_shared else 0)) * DEPTH * WORD // 128
        for i in range(16):
            for k in range(DEPTH):
                a_words[i, k] &= TF32_BITS
        for i in range(columns):
            for k in range(DEPTH):
                b_words[i, k] &= TF32_BITS
        left, right = a_words.view(np.float32), b_words.view(np.float32)
        for l in range(32):
            for i in range(c.shape[0]):
                total = np.float64(c[i, base + l]) if accumulates[base] else 0.0
                sums[(l >> 2) + 8 * ((i >> 1) & 1), 8 * (i >> 2) + 2 * (l & 3) + (i & 1)] = total
        for i in range(16):
            for j in range(columns):
                total = sums[i, j]
                for first in range(0, DEPTH, group):
                    for k in range(first, first + group):
                        total += sign * np.float64(left[i, k]) * np.float64(right[j, k])
                    total = np.float64(single(total, truncated))
                sums[i, j] = total
        for l in range(32):
            for i in range(c.shape[0]):
                total = sums[(l >> 2) + 8 * ((i >> 1) & 1), 8 * (i >> 2) + 2 * (l & 3) + (i & 1)]
                d[i, base + l] = np.float32(total)


@njit(cache=True)
def fence_proxy(shared: SharedMemory, lanes: Lanes, mask: NDArray[np.bool_]) -> None:
    """``fence.proxy.async`` of whole warps: orders what they wrote, and what they will read through the async proxy."""
    for base in range(0, mask.shape[0], 32):
        whole = True
        for l in range(32):
            whole &= mask[base + l]
        if whole:
            program = lanes.program[base]
            fences, barrier = shared.proxy_fences[program, lanes.thread[base] >> 5], shared.barriers[program]
            if fences[LAST] < barrier:
                fences[LAST], fences[SETTLED] = barrier, fences[COUNT]
            fences[COUNT] += 1


@njit(cache=True)
def keep_sequence(
    executed: NDArray[np.uint64],
    lanes: Lanes,
    number: int,
    mask: NDArray[np.bool_],
    a: NDArray[np.uint64],
    b: NDArray[np.uint64],
    accumulates: NDArray[np.bool_],
) -> None:
    """Adds an instruction and its operands to what each warp has executed, as an FNV-1a hash."""
    for base in range(0, mask.shape[0], 32):
        if mask[base]:
            program, warp = lanes.program[base], lanes.thread[base] >> 5
            for word in (np.uint64(2 * number + accumulates[base]), a[base], b[base]):
                executed[program, warp] = (executed[program, warp] ^ word) * np.uint64(0x100000001B3)


def warps_apart(executed: NDArray[np.uint64]) -> int:
    """How many warpgroups have warps that have not executed the same; ``executed`` is of programs and warps."""
    groups = executed.reshape(len(executed), -1, WARPS)
    return int((groups != groups[..., :1]).any(-1).sum())


@dataclass
class Product:
    """A ``wgmma.mma_async`` in flight: its warps, and of each lane the group that it was committed with."""

    mask: NDArray[np.bool_]
    a: NDArray[np.uint64]
    a_shared: bool
    b: NDArray[np.uint64]
    columns: int
    commit: NDArray[np.int32]


class Products:
    """The wgmma instructions of a group of lanes."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.commits = np.zeros(group.n, np.int32)
        self.in_flight: list[Product] = []
        self.nothing = np.zeros(group.n, np.uint64)

    def _row(self, x: Any, dtype: str) -> NDArray[Any]:
        if np.shape(x) == (self.group.n,):
            return np.asarray(x, dtype)
        return np.full(self.group.n, x, dtype)

    def multiply(
        self,
        number: int,
        mask: NDArray[np.bool_],
        c: tuple[Any, ...],
        a: Any,
        b: Any,
        accumulates: Any,
        sign: float,
    ) -> NDArray[np.float32]:
        """``wgmma.mma_async``: the registers of D; ``a`` is a descriptor or a tuple of four registers."""
        group, machine = self.group, self.group.machine
        if machine.record.threads % (32 * WARPS):
            raise NotImplementedError("wgmma in a program of parts of warpgroups")
        in_registers = isinstance(a, tuple)
        registers = np.stack([self._row(x, "u4") for x in a]) if in_registers else np.empty((0, group.n), np.uint32)
        a = self.nothing if in_registers else self._row(a, "u8").copy()
        b, accumulates = self._row(b, "u8").copy(), self._row(accumulates, "?")
        values = np.stack([self._row(x, "f4") for x in c])
        out = np.empty_like(values)
        keep_sequence(machine.wgmmas, group.lanes, number, mask, a, b, accumulates)
        options = machine.options
        multiply(
            machine.shared, group.lanes, number, mask, a, registers, b, accumulates, sign,
            min(options.mma_group, DEPTH), options.mma_truncates, values, out, machine.record.stats[number],
        )  # fmt: skip
        if options.check:
            uncommitted = np.full(group.n, UNCOMMITTED, np.int32)
            self.in_flight.append(Product(mask.copy(), a, not in_registers, b, 2 * len(c), uncommitted))
        return out

    def commit(self, number: int, mask: NDArray[np.bool_]) -> None:
        """``wgmma.commit_group``."""
        self._keep(number, mask)
        for product in self.in_flight:
            product.commit = np.where(mask & (product.commit == UNCOMMITTED), self.commits, product.commit)
        self.commits[mask] += 1

    def wait(self, number: int, mask: NDArray[np.bool_], pending: int) -> None:
        """``wgmma.wait_group``: until at most ``pending`` groups are in flight."""
        self._keep(number, mask)
        group = self.group
        for product in self.in_flight:
            committed = product.commit != UNCOMMITTED
            ready = mask & product.mask & committed & (product.commit < self.commits - pending)
            if ready.any():
                shared = group.machine.shared
                finish(shared, group.lanes, ready, product.a, product.a_shared, product.b, product.columns)
                product.mask = product.mask & ~ready
        self.in_flight = [product for product in self.in_flight if product.mask.any()]

    def _keep(self, number: int, mask: NDArray[np.bool_]) -> None:
        group = self.group
        keep_sequence(group.machine.wgmmas, group.lanes, number, mask, self.nothing, self.nothing, group.ones)

    def fence_proxy(self, number: int, mask: NDArray[np.bool_]) -> None:
        """``fence.proxy.async``."""
        fence_proxy(self.group.machine.shared, self.group.lanes, mask)


@dataclass(frozen=True)
class Use:
    """Of a register in flight: as what, by a wgmma of which shape, how many groups were committed, its own too."""

    role: Literal["A", "D"]
    shape: str
    commits: int = 0


@dataclass
class State:
    """What may be at a place of the control flow: registers in flight; those accessed since the last ``wgmma.fence``.

    Where paths meet, a register is in flight if it is so on one of them, with the fewest commits.
    """

    in_flight: dict[str, Use] = field(default_factory=dict)
    accessed: set[str] = field(default_factory=set)
    fenced: bool = False

    def copy(self) -> State:
        return State(dict(self.in_flight), set(self.accessed), self.fenced)

    def take_in(self, other: State) -> bool:
        """Whether that changes anything."""
        before = self.copy()
        self.accessed |= other.accessed
        self.fenced &= other.fenced
        for register, use in other.in_flight.items():
            if register not in self.in_flight or self.in_flight[register].commits > use.commits:
                self.in_flight[register] = use
        return self != before

    def execute(self, i: Instruction, operands: set[str]) -> str | None:
        """Goes past an instruction; the fault, if it is one. ``operands``: the registers that matter."""
        if i.parts[0] != "wgmma":
            used = {name for argument in i.args for name in re.findall(r"[%$\w~]+", argument)} & operands
            self.accessed |= used
            return ACCESSED if used & self.in_flight.keys() else None
        match i.parts[1]:
            case "fence":
                self.accessed.clear()
                self.fenced = True
            case "commit_group":
                self.in_flight = {
                    r: Use(use.role, use.shape, min(use.commits + 1, OLDEST)) for r, use in self.in_flight.items()
                }
            case "wait_group":
                pending = int(i.args[0])
                self.in_flight = {r: use for r, use in self.in_flight.items() if use.commits <= pending}
            case _:
                return self._start(i)
        return None

    def _start(self, i: Instruction) -> str | None:
        shape = i.parts[4]
        uses = {r: Use("A", shape) for r in fragment(i.args[1])} | {r: Use("D", shape) for r in fragment(i.args[0])}
        fault = None if self.fenced and not uses.keys() & self.accessed else NOT_FENCED
        for register, use in uses.items():
            before = self.in_flight.get(register)
            # A may be that of several; accumulators are ordered among wgmmas of one shape.
            if before and (before.role != use.role or (use.role == "D" and before.shape != shape)):
                fault = ACCESSED
        self.in_flight |= uses
        return fault


def fragment(operand: str) -> list[str]:
    """The registers of ``{a, b, c}``; none of a descriptor."""
    return split_list(operand.strip("{} ")) if operand.startswith("{") else []


def register_faults(kernel: Kernel, blocks: list[Block]) -> list[tuple[str, Instruction]]:
    """Accesses to registers of a wgmma in flight, and wgmmas without the ``wgmma.fence`` that they need, on some path.

    PTX forbids to read such a register as well as to write it, be it of A or of D; so whatever names it accesses it.
    Paths are those of the control flow, whether or not a launch takes them.
    """
    asynchronous = [i for i in kernel.instructions if i.parts[:2] == ["wgmma", "mma_async"]]
    if not asynchronous:
        return []
    operands = {register for i in asynchronous for operand in i.args[:2] for register in fragment(operand)}
    states = {0: State()}
    waiting = [0]
    faults: dict[tuple[str, int], Instruction] = {}
    while waiting:
        block = blocks[waiting.pop()]
        state = states[block.number].copy()
        for i in kernel.instructions[block.first : block.last]:
            if fault := state.execute(i, operands):
                faults[fault, i.number] = i
        following = [block.target] if block.ending in ("jump", "branch") else []
        if block.ending not in ("jump", "exit", "trap") and block.number + 1 < len(blocks):
            following.append(block.number + 1)
        for number in following:
            if number not in states:
                states[number] = state.copy()
                waiting.append(number)
            elif states[number].take_in(state):
                waiting.append(number)
    return [(fault, i) for (fault, _), i in faults.items()]
