"""A group of lanes that run together, and what its instructions do to memory and to one another.

The functions that :mod:`tests.ptx.emission` writes call it ``X``. Its methods are told the number of the instruction,
the mask of the lanes that execute it, and the operands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx import accesses, arithmetic, lanes, tensor_cores, warpgroup
from tests.ptx.findings import Lanes
from tests.ptx.memory import LOCAL_WINDOW, PARAMETER_WINDOW, SHARED_WINDOW
from tests.ptx.shared_memory import mark_in_flight

if TYPE_CHECKING:
    from tests.ptx.machine import Machine

Row = NDArray[Any]
RUNS, WAITS, ENDED, WAITS_FOR_WARP = range(4)
VIEWS = ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "u8", "i8", "f8")
UNCOMMITTED = -1
WHOLE_WARP = np.uint32(0xFFFFFFFF)


class Fault(Exception):
    """What ends a launch on a GPU, too, or what the emulator will not go on with."""


@dataclass
class AsyncCopy:
    """A ``cp.async`` in flight: its lanes, and of each lane the group of copies that it was committed with."""

    number: int
    mask: Row
    row: Row
    offset: int
    size: int
    data: Row
    commit: Row


class Group:
    """Lanes ``part`` of a machine: all of them, or one warp of each program."""

    def __init__(self, machine: Machine, part: slice) -> None:
        self.machine = machine
        self.n = part.stop - part.start
        self.u2, self.i2 = self._views("16", "u2", part), self._views("16", "i2", part)
        self.u4, self.i4, self.f4 = (self._views("32", dtype, part) for dtype in ("u4", "i4", "f4"))
        self.u8, self.i8, self.f8 = (self._views("64", dtype, part) for dtype in ("u8", "i8", "f8"))
        self.p = list(machine.files["p"][:, part])
        self.lanes = Lanes(machine.thread[part], machine.program[part], machine.first, machine.findings)
        self.special = {name: row[part] for name, row in machine.special.items()}
        self.globals = {name: np.uint64(address) for name, address in machine.memory.globals.items()}
        self.zero = np.zeros(self.n, np.uint32)
        self.ones = np.ones(self.n, bool)
        # The bytes that the lanes load or store.
        self.data = np.zeros((self.n, 16), np.uint8)
        self.buffers = {view: self.data.view(view) for view in VIEWS}
        self.local = machine.local[part]
        self.status, self.pcs = machine.status[part], machine.pcs[part]
        self.votes, self.commits = machine.votes[part], machine.commits[part]
        self.vote_rows, self.vote_of_all = machine.vote_rows[part], machine.vote_of_all[part]
        self.in_flight: list[AsyncCopy] = []
        self.wgmma = warpgroup.Products(self)
        # While all lanes are at one place it is kept in pc, otherwise in pcs.
        self.uniform, self.pc = True, 0

    def _views(self, file: str, dtype: str, part: slice) -> list[Row]:
        registers = self.machine.files[file][:, part]
        return list(registers.view(dtype)) if len(registers) else []

    def _rows(self, values: tuple[Any, ...]) -> Row:
        return np.stack([np.broadcast_to(x, (self.n,)) for x in values])

    def _row(self, x: Any) -> Row:
        return np.broadcast_to(x, (self.n,))

    # Arithmetic

    def approximate(self, x: Any, units: int) -> Row:
        """What an approximate instruction gives, which may be ``units`` in the last place away from ``x``."""
        options = self.machine.options
        if not options.perturb:
            return np.asarray(x)
        return arithmetic.perturbed(x, max(1, round(units * options.perturb)), options.seed)

    # Memory

    def globals_row(self, name: str) -> Row:
        """The address of a variable of the module."""
        return np.full(self.n, self.globals[name], np.uint64)

    def parameter(self, offset: int, dtype: str) -> Any:
        """A parameter of the kernel."""
        return np.frombuffer(self.machine.parameters, dtype, 1, offset)[0]

    def _shared(self, number: int, mask: Row, row: Row, offset: int, size: int, write: bool) -> None:
        counts = self.machine.record.stats[number]
        accesses.access_shared(
            self.machine.shared, self.lanes, number, mask, row, offset, size, self.data, write, counts
        )

    def load_shared(self, number: int, mask: Row, row: Row, offset: int, size: int) -> dict[str, Row]:
        self._shared(number, mask, row, offset, size, False)
        return self.buffers

    def store_shared(self, number: int, mask: Row, row: Row, offset: int, size: int) -> None:
        self._shared(number, mask, row, offset, size, True)

    def _global(self, number: int, mask: Row, row: Row, offset: int, size: int, write: bool) -> None:
        counts = self.machine.record.stats[number]
        accesses.access_global(
            self.machine.global_memory, self.lanes, number, mask, row, offset, size, self.data, write, counts
        )

    def load_global(self, number: int, mask: Row, row: Row, offset: int, size: int) -> dict[str, Row]:
        self._global(number, mask, row, offset, size, False)
        return self.buffers

    load_const = load_global

    def store_global(self, number: int, mask: Row, row: Row, offset: int, size: int) -> None:
        self._global(number, mask, row, offset, size, True)

    def _local(self, number: int, mask: Row, row: Row, offset: int, size: int, write: bool) -> None:
        accesses.access_local(self.local, self.lanes, number, mask, row, offset, size, self.data, write)

    def load_local(self, number: int, mask: Row, row: Row, offset: int, size: int) -> dict[str, Row]:
        self._local(number, mask, row, offset, size, False)
        return self.buffers

    def store_local(self, number: int, mask: Row, row: Row, offset: int, size: int) -> None:
        self._local(number, mask, row, offset, size, True)

    def _generic(self, number: int, mask: Row, row: Row, offset: int, size: int, write: bool) -> None:
        windows = ((0, SHARED_WINDOW, self._global), (SHARED_WINDOW, LOCAL_WINDOW, self._shared),
                   (LOCAL_WINDOW, PARAMETER_WINDOW, self._local))  # fmt: skip
        for start, end, access in windows:
            some = mask & (row >= np.uint64(start)) & (row < np.uint64(end))
            if some.any():
                access(number, some, row - np.uint64(start), offset, size, write)
        if (row[mask] >= np.uint64(PARAMETER_WINDOW)).any():
            raise Fault("a generic address of a parameter")

    def load_generic(self, number: int, mask: Row, row: Row, offset: int, size: int) -> dict[str, Row]:
        self._generic(number, mask, row, offset, size, False)
        return self.buffers

    def store_generic(self, number: int, mask: Row, row: Row, offset: int, size: int) -> None:
        self._generic(number, mask, row, offset, size, True)

    def load_param(self, number: int, mask: Row, row: Row, offset: int, size: int) -> dict[str, Row]:
        """A parameter by its address."""
        first = row[np.argmax(mask)]
        if not (row[mask] == first).all():
            raise Fault("parameters at addresses that differ")
        self.data[:, :size] = np.frombuffer(
            self.machine.parameters, np.uint8, size, int(first) - PARAMETER_WINDOW + offset
        )
        return self.buffers

    def ldmatrix(self, number: int, mask: Row, row: Row, offset: int, count: int, transposed: bool) -> Row:
        out = np.zeros((count, self.n), np.uint32)
        counts = self.machine.record.stats[number]
        accesses.ldmatrix(self.machine.shared, self.lanes, number, mask, row, offset, transposed, out, counts)
        return out

    def stmatrix(
        self, number: int, mask: Row, row: Row, offset: int, values: tuple[Any, ...], transposed: bool
    ) -> None:
        counts = self.machine.record.stats[number]
        rows = self._rows(values)
        accesses.stmatrix(self.machine.shared, self.lanes, number, mask, row, offset, transposed, rows, counts)

    def async_copy(
        self, number: int, mask: Row, row: Row, offset: int, source: Row, source_offset: int, size: int, given: Any
    ) -> None:
        """``cp.async``: reads now, writes when it is waited for. ``given``: bytes to be read, the others are zeros."""
        reading = mask
        if given is not None:
            given = self._row(given)
            if not np.isin(given[mask], (0, size)).all():
                raise Fault("cp.async of part of its bytes")
            reading = mask & (given > 0)
        self.data[:] = 0
        self._global(number, reading, source, source_offset, size, False)
        mark_in_flight(self.machine.shared, self.lanes, number, mask, row, offset, size, True)
        uncommitted = np.full(self.n, UNCOMMITTED, np.int32)
        self.in_flight.append(AsyncCopy(number, mask.copy(), row.copy(), offset, size, self.data.copy(), uncommitted))

    def async_commit(self, mask: Row) -> None:
        """``cp.async.commit_group``."""
        for copy in self.in_flight:
            copy.commit = np.where(mask & (copy.commit == UNCOMMITTED), self.commits, copy.commit)
        self.commits[mask] += 1

    def async_wait(self, mask: Row, pending: int, all_copies: bool) -> None:
        """``cp.async.wait_group``, or ``wait_all``, which waits for what is not committed, too."""
        shared = self.machine.shared
        for copy in self.in_flight:
            committed = all_copies | (copy.commit != UNCOMMITTED)
            ready = mask & copy.mask & committed & (copy.commit < self.commits - pending)
            if ready.any():
                mark_in_flight(shared, self.lanes, copy.number, ready, copy.row, copy.offset, copy.size, False)
                self.data[:] = copy.data
                accesses.access_shared(
                    shared, self.lanes, copy.number, ready, copy.row, copy.offset, copy.size, self.data, True,
                    self.machine.record.asynchronous,
                )  # fmt: skip
                copy.mask = copy.mask & ~ready
        self.in_flight = [copy for copy in self.in_flight if copy.mask.any()]

    # Warps and programs

    def shuffle(self, number: int, mask: Row, mode: int, *operands: Any) -> tuple[Row, Row]:
        out, inside = np.empty(self.n, np.uint32), np.empty(self.n, bool)
        lanes.shuffle(self.lanes, number, mask, mode, *map(self._row, operands), out, inside)
        return out, inside

    def warp_reduce(self, number: int, mask: Row, operation: int, x: Any, members: Any) -> Row:
        out = np.zeros(self.n, np.uint32)
        lanes.warp_reduce(self.lanes, number, mask, operation, self._row(x), self._row(members), out)
        return out

    def active_lanes(self, mask: Row) -> Row:
        """The lanes of each warp that execute the instruction, a bit each (``activemask``)."""
        weights = np.uint32(1) << np.arange(32, dtype=np.uint32)
        return (mask.reshape(-1, 32) * weights).sum(1).astype(np.uint32).repeat(32)

    def warp_barrier(self, number: int, mask: Row, members: Any) -> None:
        members = self._row(members)
        if (members[mask] != WHOLE_WARP).any():
            # Races are looked for by the barriers that a warp has passed, not each of its lanes.
            raise Fault("bar.warp.sync of some lanes")
        lanes.warp_barrier(self.lanes, number, mask, members)
        some = mask.reshape(-1, 32).any(1)
        warps = self.lanes.program[::32][some], (self.lanes.thread[::32] >> 5)[some]
        np.add.at(self.machine.shared.warp_barriers, warps, 1)

    def reduce_at_barrier(self, value: Row, mask: Row, operation: str, row: int) -> None:
        """``bar.red``: all lanes that wait will find in ``row`` whether any (``or``) or all (``and``) said so."""
        np.copyto(self.votes, value, where=mask)
        self.vote_rows[mask], self.vote_of_all[mask] = row, operation == "and"

    def mma_tf32(
        self, number: int, mask: Row, k: int, a: tuple[Any, ...], b: tuple[Any, ...], c: tuple[Any, ...]
    ) -> Row:
        left, right = ((self._rows(x) & tensor_cores.TF32_BITS).view("f4") for x in (a, b))
        out = np.empty((4, self.n), np.float32)
        options = self.machine.options
        group = min(options.mma_group, k)
        tensor_cores.mma_tf32(
            self.lanes, number, mask, k, group, options.mma_truncates, left, right, self._rows(c), out
        )
        return out

    def mma_f64(
        self, number: int, mask: Row, m: int, k: int, a: tuple[Any, ...], b: tuple[Any, ...], c: tuple[Any, ...]
    ) -> Row:
        out = np.empty((len(c), self.n), np.float64)
        tensor_cores.mma_f64(self.lanes, number, mask, m, k, *(self._rows(x) for x in (a, b, c)), out)
        return out

    def trap(self) -> None:
        raise Fault("trap")
