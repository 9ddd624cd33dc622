"""``make counted``: counts what the compiled kernels execute, and bounds their time on a GPU that is not here.

    python -m tests.ptx.counts [--target 90] [--products-target 80] [--only WORD] [--write | --pipe lsu]

For every bar of a GPU, ``basis_loss``, ``svd`` and ``polar_factor`` as the benchmarks call them: a few matrices go
through the emulator, which counts instructions, bank conflicts and sectors; a run without tensors' contents tells the
launches of the whole batch. Three bounds, each less than what a GPU will take:

- the pipes: what a multiprocessor's busiest pipe has to do;
- the chain: how long one program takes alone, through its dependencies and barriers, times the programs that follow one
  another on a multiprocessor;
- both, kernel by kernel: kernels run one after another, and each is bound by something else.

What ptxas makes of PTX is estimated (:mod:`tests.ptx.pipes`), and compared with the machine code for the longest loop
of each kernel. Inputs are random; Jacobi takes up to a fifth more sweeps for photographs.
"""

from __future__ import annotations

import argparse
import importlib
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from benchmarks import counted
from svdrd.backends.triton import aot
from svdrd.dispatch import routes
from tests.ptx import machine_code, pipes, triton_launch
from tests.ptx.machine import Options, Record
from tests.ptx.parser import Instruction
from tests.ptx.throughput import BLOCKS, DEVICES, H200, REGISTERS, RESERVED, WARPS, Device

RCOND = 4 * 2.0**-23


# What is executed


def executed(record: Record) -> Iterator[tuple[Instruction, int]]:
    """Each instruction with how many warps have run it."""
    for block, warps in zip(record.translated.blocks, record.warps, strict=True):
        if warps:
            for instruction in record.translated.kernel.instructions[block.first : block.last]:
                yield instruction, int(warps)


def loads(record: Record, capability: int) -> Iterator[tuple[str, Mapping[str, float]]]:
    """What each instruction loads the pipes with, all of a launch's warps together: opcode, units by pipe.

    A pass of shared memory is one of the lsu pipe, as is a shuffle, and as are 128 bytes of global memory; l2 counts
    sectors, "ptx" the instructions as they stand.
    """
    for instruction, warps in executed(record):
        cost = pipes.cost(instruction, capability)
        units = {pipe: share * warps for pipe, share in cost.pipes.items()}
        accesses, moved = (int(x) for x in record.stats[instruction.number])
        if instruction.parts[0] == "cp" or "global" in instruction.parts:
            units |= {"l2": moved, "lsu": max(accesses, moved / 4)}
        else:
            units["lsu"] = units.get("lsu", 0) + moved
        yield instruction.op, units | {"ptx": warps, "issue": warps * cost.instructions}
    yield "cp.async, into shared memory", {"lsu": int(record.asynchronous[1])}


@dataclass
class Work:
    """Of some warps, or of one program."""

    cycles: dict[str, float] = field(default_factory=dict)  # of a multiprocessor, by pipe
    ptx: float = 0.0  # warp instructions
    machine: float = 0.0  # estimated

    def add(self, other: Work, times: float) -> None:
        for pipe, cycles in other.cycles.items():
            self.cycles[pipe] = self.cycles.get(pipe, 0) + cycles * times
        self.ptx += other.ptx * times
        self.machine += other.machine * times


def work(record: Record, capability: int) -> Work:
    """What all of a launch's warps do."""
    rates, total = DEVICES[capability].pipes, defaultdict[str, float](float)
    for _, units in loads(record, capability):
        for pipe, n in units.items():
            total[pipe] += n
    ptx, machine = total.pop("ptx"), total["issue"]
    return Work({pipe: n / rates.get(pipe, 1.0) for pipe, n in total.items() if n}, ptx, machine)


def block_cycles(instructions: Sequence[Instruction], registers: set[str], capability: int) -> int:
    """Cycles of one warp alone in a basic block: its longest chain of dependencies, or one instruction a cycle.

    What was loaded from shared memory waits for the last barrier, and a barrier for all before it.
    """
    ready: dict[str, int] = {}
    end = issued = fence = 0
    for instruction in instructions:
        cost = pipes.cost(instruction, capability)
        names = [set(re.findall(r"[%$\w~.]+", argument)) & registers for argument in instruction.args]
        writes_none = instruction.parts[0] in ("st", "stmatrix", "bra", "bar", "barrier", "cp", "ret", "exit", "membar")
        sources = set().union(*names) if writes_none else set().union(*names[1:])
        if instruction.predicate:
            sources |= {instruction.predicate} | (names[0] if names and not writes_none else set())
        begin = max((ready.get(name, 0) for name in sources), default=0)
        if instruction.parts[0] in ("bar", "barrier"):
            begin = max(begin, end)
        if "LDS" in {step.name for step in pipes.recipe(instruction.op)}:
            begin = max(begin, fence)
        done = begin + cost.latency
        if instruction.parts[0] in ("bar", "barrier"):
            fence = done
        if names and not writes_none:
            ready.update(dict.fromkeys(names[0], done))
        end = max(end, done)
        issued += cost.instructions
    return max(end, issued)


def program_cycles(record: Record, capability: int) -> float:
    """How long a program takes that has a multiprocessor for itself: its blocks one after another, the mean warp's."""
    kernel = record.translated.kernel
    registers = set(kernel.registers)
    cycles = sum(
        int(warps) * block_cycles(kernel.instructions[block.first : block.last], registers, capability)
        for block, warps in zip(record.translated.blocks, record.warps, strict=True)
        if warps
    )
    return cycles / (record.grid * record.threads // 32)


class Residence(NamedTuple):
    """How a kernel fills a multiprocessor."""

    registers: int
    programs: int
    warps: int

    @classmethod
    def of(cls, registers: int, threads: int, shared: int, device: Device) -> Residence:
        """Of programs that take so many registers a thread, threads, and bytes of shared memory."""
        warps = threads // 32
        by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
        by_memory = device.shared_memory // (-(-shared // 128) * 128 + RESERVED)
        programs = min(by_registers, by_memory, WARPS // warps, BLOCKS)
        return cls(registers, programs, programs * warps)

    @classmethod
    def of_record(cls, record: Record, device: Device) -> Residence:
        registers, _ = aot.resource_usage(record.compiled.asm["cubin"])
        return cls.of(registers, record.threads, record.shared, device)


# Launches of the whole batch


class Launch(NamedTuple):
    """One of them: the kernel's form, its programs, and the bytes of its tensors."""

    form: tuple[Any, ...]
    programs: int
    bytes: int


def form(kernel: JITFunction, arguments: Sequence[Any], constants: dict[str, Any]) -> tuple[Any, ...]:
    """What tells the compiled code: the kernel, its constants and options, and what its pointers point to."""
    types = tuple(str(value.dtype) for value in arguments if isinstance(value, Tensor))
    return kernel.__name__, types, tuple(sorted((name, str(value)) for name, value in constants.items()))


def launches(call: Callable[[], Any]) -> list[Launch]:
    """Those of a call on tensors without contents (device ``meta``)."""
    found: list[Launch] = []

    def run(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        tensors = {(t.untyped_storage()._cdata, t.storage_offset()): t for t in arguments if isinstance(t, Tensor)}
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        found.append(Launch(form(self, arguments, constants), math.prod(grid), size))

    with mock.patch.object(JITFunction, "run", run):
        call()
    return found


# Cases


@dataclass(frozen=True)
class Case:
    """A bar, or one of its alternatives: ``family`` is the module below svdrd.backends.triton that computes it.

    Args:
        sample: rows and columns of the blocks that the emulator runs.
    """

    op: str
    mode: str
    batch: int
    n: int
    family: str
    sample: tuple[int, int]

    @property
    def data_decides(self) -> bool:
        """Whether control flow depends on what tensors hold. That of the products depends on their other arguments."""
        return self.family != "products"

    def __str__(self) -> str:
        return f"{self.family} {self.op} {self.mode} {self.batch} x {self.n}^2"

    def calls(self, rows: int, columns: int, device: str) -> list[Callable[[], Any]]:
        """The launchers' calls on ``rows x columns`` blocks, one after another."""
        module = importlib.import_module(f"svdrd.backends.triton.{self.family}")
        generator = torch.Generator().manual_seed(self.n)
        shape = (1, rows * self.n, columns * self.n)
        if device == "meta":
            x = x_hat = torch.empty(shape, device="meta")
        else:
            x = torch.rand(shape, generator=generator)
            x_hat = (x + 0.05 * torch.randn(shape, generator=generator)).clamp(0, 1)
        if self.op == "basis_loss":
            need = self.mode == "both"
            return [lambda: module.basis_loss(x_hat, x, self.n, self.n, RCOND, 0.0, need, False)]
        a = x_hat.reshape(rows, self.n, columns, self.n).transpose(1, 2).reshape(-1, self.n, self.n)
        if self.op == "svd":
            return [lambda: module.svd(a)]
        saves = self.family == "jacobi" and self.mode == "both"
        forward: list[Any] = []

        def value() -> Any:
            forward[:] = [module.polar_factor(a, RCOND, 0.0, saves)]
            return forward[0]

        def derivative() -> Any:
            return module.polar_factor_backward(torch.ones_like(a), a, *forward[0], RCOND, 0.0)

        return [value] if self.mode == "forward" else [value, derivative]


def cases() -> Iterator[Case]:
    """Every bar of a GPU, by the kernels that compute it and, at 64 columns, by those that could."""
    few = {
        "jacobi": {8: (8, 16), 16: (4, 8), 32: (2, 6), 64: (1, 4)},
        "products": {64: (1, 2), 256: (1, 1)},
    }

    def case(op: str, mode: str, batch: int, n: int, family: str) -> Case:
        return Case(op, mode, batch, n, family, few[family][n])

    for n in (8, 16, 32):
        yield case("basis_loss", "both", 100_000, n, "jacobi")
    for family in ("jacobi", "products"):
        yield case("basis_loss", "both", 1536, 64, family)
    yield case("basis_loss", "both", 96, 256, "products")
    for n in (16, 32):
        for op, mode in (("basis_loss", "forward"), ("polar_factor", "forward"), ("polar_factor", "both")):
            yield case(op, mode, 100_000, n, "jacobi")
    for n, batch in ((8, 100_000), (16, 100_000), (32, 100_000), (64, 1536)):
        yield case("svd", "forward", batch, n, "jacobi")


def chosen(case: Case) -> bool:
    """Whether these are the kernels that svdrd takes by itself: Jacobi wherever it takes the case."""
    of_routes = routes.Case(case.n, case.n, torch.float32, torch.device("cuda"), RCOND)
    return case.family == "jacobi" or not routes.takes("triton.jacobi", case.op, of_routes)


# The sample


def emulated(case: Case, capability: int) -> list[tuple[tuple[Any, ...], Record]]:
    """The launches of the case's sample with what they did.

    Where the data do not decide, only the first of launches that differ in nothing else is run, and its record stands
    for all.
    """
    found: list[tuple[tuple[Any, ...], Record]] = []
    known: dict[Any, Record] = {}
    options = Options(check=False, limit=3600.0)
    with triton_launch.emulation(capability, options, assembled=True) as records:
        run = JITFunction.run

        def counting(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **constants: Any) -> Any:
            what = form(self, arguments, constants)
            key = (what, grid, tuple(value for value in arguments if not isinstance(value, Tensor)))
            if case.data_decides or key not in known:
                records.clear()
                run(self, *arguments, grid=grid, warmup=warmup, **constants)
                (known[key],) = records
            found.append((what, known[key]))

        with mock.patch.object(JITFunction, "run", counting):
            for call in case.calls(*case.sample, "cpu"):
                call()
    return found


# Bounds


class Share(NamedTuple):
    """What one compiled kernel does in the whole batch; times in seconds.

    Args:
        busy: of the busiest pipe; ``chain``: of programs that wait for their own results.
        memory: of device memory, for its tensors once or for its sectors if they are fewer.
        machine_code: :func:`tests.ptx.machine_code.ratio`.
    """

    work: Work
    busy: float
    chain: float
    memory: float
    residence: Residence
    machine_code: float | None

    @classmethod
    def of(cls, sample: Sequence[Record], whole: Sequence[Launch], device: Device, capability: int) -> Share:
        programs, count = sum(record.grid for record in sample), sum(launch.programs for launch in whole)
        done = Work()
        for record in sample:
            done.add(work(record, capability), count / programs)
        residence = Residence.of_record(sample[0], device)
        alone = sum(program_cycles(record, capability) * record.grid for record in sample) / programs
        turns = sum(-(-launch.programs // (residence.programs * device.multiprocessors)) for launch in whole)
        sectors = 32 * device.pipes["l2"] * done.cycles.get("l2", 0)
        code = sample[0].compiled.asm["cubin"], sample[0].translated.kernel, sample[0].compiled.metadata.target.arch
        return cls(
            done, max(done.cycles.values()) / (device.multiprocessors * device.clock), turns * alone / device.clock,
            min(sectors, sum(launch.bytes for launch in whole)) / device.memory, residence, machine_code.ratio(*code),
        )  # fmt: skip

    @property
    def bound(self) -> float:
        return max(self.busy, self.chain)


def bounds(case: Case, capability: int, compiled_for: int) -> dict[str, float]:
    """Quantity by name, as :class:`benchmarks.counted.Counted` has them; times in milliseconds.

    Args:
        compiled_for: the kernels' target, which may be older than the device's.
    """
    device = DEVICES[capability]
    records: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for what, record in emulated(case, compiled_for):
        records[what].append(record)
    columns = max(k for k in range(1, math.isqrt(case.batch) + 1) if case.batch % k == 0)
    whole = [launch for call in case.calls(case.batch // columns, columns, "meta") for launch in launches(call)]
    if {launch.form for launch in whole} != set(records):
        raise AssertionError(f"{case}: the sample's kernels are not those of the whole batch")
    shares = [
        Share.of(sample, [launch for launch in whole if launch.form == what], device, capability)
        for what, sample in records.items()
    ]
    total = Work()
    for share in shares:
        total.add(share.work, 1)
    names = {"bound": "bound", "pipes": "busy", "chain": "chain", "memory": "memory"}
    found = {f"{name} ms": 1e3 * sum(getattr(share, what) for share in shares) for name, what in names.items()}
    per_ms = device.multiprocessors * device.clock / 1e3
    found |= {f"{pipe} ms": cycles / per_ms for pipe, cycles in total.cycles.items()}
    found |= {"PTX instructions": total.ptx / case.batch, "machine instructions": total.machine / case.batch}
    longest = max(shares, key=lambda share: share.bound).residence
    found |= {"launches": len(whole), "registers": longest.registers, "resident warps": longest.warps}
    compared = [(share.bound, share.machine_code) for share in shares if share.machine_code is not None]
    known = sum(bound for bound, _ in compared)
    if known > sum(share.bound for share in shares) / 2:
        found["machine code / estimate"] = sum(bound * ratio for bound, ratio in compared) / known
    return found


def count(case: Case, capability: int, compiled_for: int) -> counted.Counted:
    """One row of the table."""
    quantities = bounds(case, capability, compiled_for)
    return counted.Counted(
        op=case.op, mode=case.mode, batch=case.batch, n=case.n, family=case.family, chosen=chosen(case),
        device=DEVICES[capability].name, target=f"sm_{compiled_for}", triton=triton.__version__,
        sample=case.sample[0] * case.sample[1], quantities=quantities,
    )  # fmt: skip


def heaviest(case: Case, capability: int, compiled_for: int, pipe: str, most: int = 12) -> Iterator[str]:
    """The instructions that load a pipe most, with their share; of the sample."""
    total = defaultdict[tuple[str, str], float](float)
    for _, record in emulated(case, compiled_for):
        for op, units in loads(record, capability):
            total[record.name, op] += units.get(pipe, 0)
    whole = sum(total.values())
    for (kernel, op), share in sorted(total.items(), key=lambda pair: -pair[1])[:most]:
        yield f"{share / whole:6.1%}  {kernel}  {op}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.ptx.counts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", type=int, default=90, choices=sorted(DEVICES), help="of the device and the kernels")
    parser.add_argument("--products-target", type=int, choices=sorted(DEVICES), help="of the products' kernels")
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose name has it: 'jacobi basis_loss both'")
    parser.add_argument("--pipe", choices=sorted(H200.pipes), help="show which instructions load it most, and no more")
    parser.add_argument("--csv", type=Path, default=counted.CSV)
    parser.add_argument("--docs", type=Path, default=counted.DOCS)
    parser.add_argument("--write", action="store_true", help="into the CSV and the table of the docs")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args(argv)
    chosen_cases = [case for case in cases() if arguments.only in str(case)]
    targets = [
        arguments.products_target or arguments.target if case.family == "products" else arguments.target
        for case in chosen_cases
    ]
    if arguments.pipe:
        for case, compiled_for in zip(chosen_cases, targets, strict=True):
            found = heaviest(case, arguments.target, compiled_for, arguments.pipe)
            print(f"{case}, sm_{compiled_for}", *found, sep="\n  ", flush=True)
        return 0
    # What takes long first; the rows stay in the order of the cases.
    order = sorted(range(len(chosen_cases)), key=lambda k: chosen_cases[k].family != "products")
    rows: dict[int, counted.Counted] = {}
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        waiting = {pool.submit(count, chosen_cases[k], arguments.target, targets[k]): k for k in order}
        for done in as_completed(waiting):
            k = waiting[done]
            rows[k] = done.result()
            values = ", ".join(f"{name} {value:.4g}" for name, value in rows[k].quantities.items())
            print(f"{chosen_cases[k]}, sm_{targets[k]}\n    {values}", flush=True)
    if arguments.write:
        found_rows = [rows[k] for k in sorted(rows)]
        counted.write(arguments.csv, found_rows)
        counted.write_docs(arguments.docs, found_rows, counted.read(counted.BEFORE))
    return 0


if __name__ == "__main__":
    sys.exit(main())
