"""Runs a translated kernel: programs side by side on one axis of lanes, and the barriers between their warps."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx import control, warpgroup
from tests.ptx.classes import classify
from tests.ptx.findings import KEPT, KINDS, no_findings
from tests.ptx.group import ENDED, RUNS, WAITS, Fault, Group
from tests.ptx.memory import POISON, Memory
from tests.ptx.shared_memory import UNCHANGED, SharedMemory
from tests.ptx.translation import Translated

ORDERS = ("lockstep", "forward", "reverse", "random")
NO_VOTE = -1


@dataclass
class Options:
    """How to run.

    Args:
        order: of the warps: all in step, or each up to the next barrier, forward, reverse or at random.
        seed: of the random numbers.
        check, count: whether to look for races, and whether to count passes and sectors.
        lanes: so many at a time, in whole programs.
        perturb: which share of their documented errors approximate instructions err by, at random.
        mma_group: how many products a tensor core of tf32 sums exactly before it rounds.
        mma_truncates: whether it rounds towards zero.
        limit: seconds that a launch may take.
    """

    order: str = "lockstep"
    seed: int = 0
    check: bool = True
    count: bool = True
    lanes: int = 2048
    perturb: float = 0.0
    mma_group: int = 4
    mma_truncates: bool = True
    limit: float = 600.0


@dataclass
class Record:
    """What a launch did.

    Args:
        name: of the kernel.
        grid, threads, shared: programs, threads of each, bytes of shared memory of each that the launch asked for.
        translated: the kernel.
        warps: of each block, how many warps have run it.
        stats: of each instruction, how many accesses of warps, and their passes (shared) or sectors (global).
        asynchronous: the same of what ``cp.async`` writes.
        errors: how often each kind of fault was found, by kind and number of the instruction.
        examples: one of each in words.
        same_value: writes that would be races if they changed anything.
        partial: executions of blocks by some lanes of a warp.
        seconds: how long it took.
        constants: what the kernel was compiled for.
        compiled: what Triton made of it.
    """

    name: str
    grid: int
    threads: int
    shared: int
    translated: Translated
    warps: NDArray[np.int64]
    stats: NDArray[np.int64]
    asynchronous: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))
    errors: Counter[Any] = field(default_factory=Counter)
    examples: dict[Any, str] = field(default_factory=dict)
    same_value: int = 0
    partial: int = 0
    seconds: float = 0.0
    constants: dict[str, Any] = field(default_factory=dict)
    compiled: Any = None

    def classes(self) -> Counter[str]:
        """Warp instructions of the whole grid by class."""
        total: Counter[str] = Counter()
        for warps, block in zip(self.warps, self.translated.classes, strict=True):
            for name, count in block.items():
                total[name] += int(warps) * count
        return total

    def memory(self) -> Counter[str]:
        """Accesses of warps to memory by class, and the passes or sectors that they took."""
        total: Counter[str] = Counter()
        rows = [(classify(i), self.stats[i.number]) for i in self.translated.kernel.instructions]
        for name, (accesses, passes) in [*rows, ("cp.async to shared", self.asynchronous)]:
            if accesses:
                total[f"{name} accesses"] += int(accesses)
                total[f"{name} passes"] += int(passes)
        return total


class Machine:
    """Programs ``first`` to ``first + programs`` of a grid."""

    def __init__(
        self,
        translated: Translated,
        memory: Memory,
        parameters: bytes,
        first: int,
        programs: int,
        options: Options,
        record: Record,
    ) -> None:
        self.translated, self.memory, self.parameters = translated, memory, parameters
        self.first, self.programs, self.options, self.record = first, programs, options, record
        threads = record.threads
        if threads % 32:
            raise NotImplementedError("parts of warps")
        warps = threads // 32
        # lane = (warp * programs + program) * 32 + l: a warp of all programs lies together
        w, c, l = np.meshgrid(np.arange(warps), np.arange(programs), np.arange(32), indexing="ij")
        self.thread = (w * 32 + l).reshape(-1).astype(np.int32)
        self.program = c.reshape(-1).astype(np.int32)
        self.lanes = n = programs * threads
        self.special = self._special_registers()
        self.files = {
            file: np.full((translated.counts[file], n), fill, dtype)
            for file, dtype, fill in (
                ("p", "?", False), ("16", "u2", 0xDEAD), ("32", "u4", 0x7FC0DEAD), ("64", "u8", 0x7FF8DEAD7FC0DEAD),
            )
        }  # fmt: skip
        shared = max(record.shared, translated.shared_static)
        granules = translated.granules
        self.shared = SharedMemory.of(programs, shared, warps, granules["shared"], options.check, options.count)
        progress = self.shared.barriers, self.shared.warp_barriers, self.shared.accesses
        self.global_memory = memory.view(progress, granules["global"], options.check, options.count)
        self.local = np.tile(POISON, (n, -(-translated.local_bytes // 4)))
        self.status, self.pcs = np.full(n, RUNS, np.int8), np.zeros(n, np.int32)
        # Of each lane at a barrier that reduces: what it said, the row of predicates that the result is for, and
        # whether all have to say so, or any. Programs can wait at different barriers.
        self.votes, self.vote_rows, self.vote_of_all = np.zeros(n, bool), np.full(n, NO_VOTE), np.zeros(n, bool)
        self.commits = np.zeros(n, np.int32)
        # A hash of the wgmma instructions that each warp has executed.
        self.wgmmas = np.zeros((programs, warps), np.uint64)
        self.findings = no_findings()
        self.steps = 0
        self.deadline = time.monotonic() + options.limit
        self.random = np.random.default_rng(options.seed)
        size = n if options.order == "lockstep" else programs * 32
        self.groups = [Group(self, slice(start, start + size)) for start in range(0, n, size)]

    def _special_registers(self) -> dict[str, NDArray[np.uint32]]:
        one, none = np.ones(self.lanes, np.uint32), np.zeros(self.lanes, np.uint32)
        lane = (self.thread & 31).astype("u4")
        registers = {
            "%tid.x": self.thread.astype("u4"),
            "%ntid.x": one * np.uint32(self.record.threads),
            "%ctaid.x": (self.program + self.first).astype("u4"),
            "%nctaid.x": one * np.uint32(self.record.grid),
            "%laneid": lane,
            "%warpid": (self.thread >> 5).astype("u4"),
            "%lanemask_lt": (np.uint32(1) << lane) - np.uint32(1),
        }
        for axis in "yz":
            registers |= {f"%tid.{axis}": none, f"%ctaid.{axis}": none, f"%ntid.{axis}": one, f"%nctaid.{axis}": one}
        return registers

    def tick(self) -> None:
        """Ends a launch that takes too long."""
        self.steps += 1
        if self.steps & 4095 == 0 and time.monotonic() > self.deadline:
            raise Fault("takes too long")

    def release(self) -> bool:
        """Lets those programs go on whose lanes all wait, except those that have ended; whether there are any."""
        waiting = self.status == WAITS
        waits = np.bincount(self.program[waiting], minlength=self.programs)
        alive = np.bincount(self.program[self.status != ENDED], minlength=self.programs)
        go = (waits == alive) & (waits > 0)
        if not go.any():
            return False
        lanes = go[self.program] & waiting
        lowest, highest = np.full(self.programs, np.iinfo("i4").max), np.zeros(self.programs, np.int32)
        np.minimum.at(lowest, self.program[lanes], self.pcs[lanes])
        np.maximum.at(highest, self.program[lanes], self.pcs[lanes])
        if (lowest[go] != highest[go]).any():
            self.record.errors["barriers of different places meet"] += 1
        self._compare_warps(go)
        for row in np.unique(self.vote_rows[lanes]):
            if row != NO_VOTE:
                here = lanes & (self.vote_rows == row)
                said, asked = (np.bincount(self.program[x], minlength=self.programs) for x in (here & self.votes, here))
                result = np.where(self.vote_of_all, (said == asked)[self.program], (said > 0)[self.program])
                np.copyto(self.files["p"][row], result, where=here)
        self.vote_rows[lanes] = NO_VOTE
        self.status[lanes] = RUNS
        self.shared.barriers[go] += 1
        self.shared.warp_barriers[go] += 1
        return True

    def _compare_warps(self, programs: NDArray[np.bool_]) -> None:
        if self.wgmmas.any() and (apart := warpgroup.warps_apart(self.wgmmas[programs])):
            self.record.errors[warpgroup.APART] += apart

    def run(self) -> None:
        """Until all programs have ended."""
        order = list(range(len(self.groups)))
        with np.errstate(all="ignore"):
            while not (self.status == ENDED).all():
                if self.options.order == "random":
                    self.random.shuffle(order)
                for k in reversed(order) if self.options.order == "reverse" else order:
                    control.run(self.groups[k])
                if not (self.status == ENDED).all() and not self.release():
                    self.collect()
                    places = Counter(zip(self.status.tolist(), self.pcs.tolist(), strict=True))
                    raise Fault(f"deadlock: {places.most_common(5)}")
        self._compare_warps(np.ones(self.programs, bool))
        self.collect()

    def collect(self) -> None:
        """Puts into the record what was found."""
        found = int(self.findings[0, 0])
        self.record.same_value += int(self.findings[0, UNCHANGED])
        for row in self.findings[1 : found + 1]:
            kind, number, program, thread, address, other = (int(x) for x in row)
            i = self.translated.kernel.instructions[number]
            self.record.errors[KINDS[kind], number] += 1
            self.record.examples.setdefault(
                (KINDS[kind], number),
                f"{KINDS[kind]}: {i.text} (PTX line {i.line}, {i.source}), program {program}, thread {thread}, "
                f"address {address:#x}, other {other}",
            )
        if found > KEPT:
            self.record.errors["more than are kept"] += found - KEPT
        self.findings[:] = 0


def launch(
    translated: Translated, grid: int, threads: int, shared: int, parameters: bytes, memory: Memory, options: Options
) -> Record:
    """Runs the grid, as many programs at a time as ``options.lanes`` allow."""
    kernel = translated.kernel
    if kernel.threads and kernel.threads != threads:
        raise ValueError(f"{kernel.name} is for {kernel.threads} threads, not {threads}")
    blocks, instructions = len(translated.blocks), len(kernel.instructions)
    stats = np.zeros((instructions, 2), np.int64)
    record = Record(kernel.name, grid, threads, shared, translated, np.zeros(blocks, np.int64), stats)
    for fault, i in translated.register_faults:
        record.errors[fault, i.number] += 1
        record.examples[fault, i.number] = f"{fault}: {i.text} (PTX line {i.line}, {i.source})"
    start = time.monotonic()
    step = max(1, options.lanes // threads)
    for first in range(0, grid, step):
        Machine(translated, memory, parameters, first, min(step, grid - first), options, record).run()
    record.seconds = time.monotonic() - start
    return record
