"""Shared memory of the programs that run: who wrote and read each granule since when, for the detection of races."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tests.ptx.findings import IN_FLIGHT, OVERWRITTEN, RACE, UNINITIALISED, WARP_RACE, Lanes, report
from tests.ptx.memory import POISON

# What is kept of a granule: the thread that wrote, its barrier and its warp's; the thread that read, its barrier and
# its warp's; the access that wrote; how many proxy fences the writer's warp had executed; how many wgmma in flight read
# it.
WRITER, WRITTEN_AT, WRITTEN_AT_WARP, READER, READ_AT, READ_AT_WARP, WRITTEN_BY, FENCES, READING = range(9)
NOBODY, SEVERAL_WARPS = -1, -2  # a reader of -(3 + w): several lanes of warp w
# Of the fence.proxy.async of a warp: the barrier of the last, how many there were, how many before that barrier.
LAST, COUNT, SETTLED = range(3)
# How many writes would be races if they changed anything: this place of the first row of the findings.
UNCHANGED = 1


class SharedMemory(NamedTuple):
    """What the accesses see; the first axis is the program, except of the scalars.

    Args:
        bytes: the memory.
        touched: of each granule what is listed above.
        granule: bytes of a granule.
        in_flight: how many ``cp.async`` will write a granule.
        barriers: how many the program has passed.
        warp_barriers: how many barriers each warp has passed, its own and the program's.
        accesses: how many instructions have accessed memory, in a place of its own.
        proxy_fences: of each warp what is listed above.
        checked, counted: what the accesses are to do.
    """

    bytes: NDArray[np.uint8]
    touched: NDArray[np.int32]
    granule: int
    in_flight: NDArray[np.int32]
    barriers: NDArray[np.int32]
    warp_barriers: NDArray[np.int32]
    accesses: NDArray[np.int32]
    proxy_fences: NDArray[np.int32]
    checked: bool
    counted: bool

    @classmethod
    def of(cls, programs: int, size: int, warps: int, granule: int, checked: bool, counted: bool) -> SharedMemory:
        """Of so many programs, nothing written."""
        words = max(4, -(-size // 4))
        granules = 4 * words // granule + 1
        touched = np.full((programs, granules, 9), NOBODY, np.int32)
        touched[..., READING] = 0
        return cls(
            np.tile(POISON, (programs, words)),
            touched,
            granule,
            np.zeros((programs, granules), np.int32),
            np.zeros(programs, np.int32),
            np.zeros((programs, warps), np.int32),
            np.zeros(1, np.int32),
            np.tile(np.array([-1, 0, 0], np.int32), (programs, warps, 1)),
            checked,
            counted,
        )


@njit(cache=True)
def is_another_warp(reader: int, warp: int) -> bool:
    """Whether somebody outside ``warp`` has read."""
    if reader >= 0:
        return (reader >> 5) != warp
    return reader == SEVERAL_WARPS or (reader < SEVERAL_WARPS and -reader - 3 != warp)


@njit(cache=True)
def touch(
    shared: SharedMemory, lanes: Lanes, lane: int, number: int, granule: int, address: int, write: bool, same: bool
) -> None:
    """Looks whether a granule may be accessed now, and keeps that it is."""
    program = lanes.program[lane]
    kept = shared.touched[program, granule]
    if shared.in_flight[program, granule] > 0:
        report(lanes, lane, IN_FLIGHT, number, address, 0)
    if write and kept[READING] > 0:
        report(lanes, lane, OVERWRITTEN, number, address, 0)
    if not write and kept[WRITER] == NOBODY:
        report(lanes, lane, UNINITIALISED, number, address, 0)
    compare(kept, shared.barriers, shared.warp_barriers, shared.accesses[0], lanes, lane, number, address, write, same)
    if write:
        kept[FENCES] = shared.proxy_fences[program, lanes.thread[lane] >> 5, COUNT]


@njit(cache=True)
def compare(
    kept: NDArray[np.int32],
    barriers: NDArray[np.int32],
    warp_barriers: NDArray[np.int32],
    access: int,
    lanes: Lanes,
    lane: int,
    number: int,
    address: int,
    write: bool,
    same: bool,
) -> None:
    """Looks whether an access races with those before it that are ``kept`` of the same place, and keeps it.

    ``same``: the write changes nothing, as where a layout holds a value several times. It is no race, but counted.
    """
    program, thread = lanes.program[lane], lanes.thread[lane]
    warp = thread >> 5
    barrier, warp_barrier = barriers[program], warp_barriers[program, warp]
    writer = kept[WRITER]
    if writer >= 0 and kept[WRITTEN_AT] == barrier and writer != thread:
        between = (writer >> 5) != warp
        # The lanes of one instruction write at once: whether they agree is looked at when all have written.
        within = not between and kept[WRITTEN_AT_WARP] == warp_barrier and not (write and kept[WRITTEN_BY] == access)
        if between or within:
            if write and same:
                lanes.findings[0, UNCHANGED] += 1
            else:
                report(lanes, lane, RACE if between else WARP_RACE, number, address, writer)
    reader = kept[READER]
    current = reader != NOBODY and kept[READ_AT] == barrier
    if write:
        if current:
            between = is_another_warp(reader, warp)
            within = not between and reader != thread and kept[READ_AT_WARP] == warp_barrier
            if between or within:
                # Even if the write changes nothing here: in another order the reader would come after it.
                report(lanes, lane, RACE if between else WARP_RACE, number, address, reader)
        kept[WRITER], kept[WRITTEN_AT], kept[WRITTEN_AT_WARP], kept[WRITTEN_BY] = thread, barrier, warp_barrier, access
        return
    if not current:
        kept[READER] = thread
    elif is_another_warp(reader, warp):
        kept[READER] = SEVERAL_WARPS
    elif kept[READ_AT_WARP] != warp_barrier:
        kept[READER] = thread
    elif reader != thread:
        kept[READER] = -3 - warp
    kept[READ_AT], kept[READ_AT_WARP] = barrier, warp_barrier


@njit(cache=True)
def mark_in_flight(
    shared: SharedMemory,
    lanes: Lanes,
    number: int,
    mask: NDArray[np.bool_],
    row: NDArray[np.uint32],
    offset: int,
    size: int,
    begins: bool,
) -> None:
    """A ``cp.async`` begins or ends. It may not begin before all others are done with what was there."""
    for lane in range(mask.shape[0]):
        if not mask[lane]:
            continue
        address = np.int64(row[lane]) + offset
        program, thread = lanes.program[lane], lanes.thread[lane]
        warp = thread >> 5
        barrier, warp_barrier = shared.barriers[program], shared.warp_barriers[program, warp]
        if address < 0 or address + size > shared.bytes.shape[1]:
            continue  # reported when it is written
        for granule in range(address // shared.granule, (address + size - 1) // shared.granule + 1):
            if not begins:
                shared.in_flight[program, granule] -= 1
                continue
            if shared.in_flight[program, granule] > 0:
                report(lanes, lane, IN_FLIGHT, number, address, 0)
            shared.in_flight[program, granule] += 1
            kept = shared.touched[program, granule]
            writer, reader = kept[WRITER], kept[READER]
            if kept[READING] > 0:
                report(lanes, lane, OVERWRITTEN, number, address, 0)
            if writer >= 0 and kept[WRITTEN_AT] == barrier:
                if is_another_warp(writer, warp):
                    report(lanes, lane, RACE, number, address, writer)
                elif writer != thread and kept[WRITTEN_AT_WARP] == warp_barrier:
                    report(lanes, lane, WARP_RACE, number, address, writer)
            if reader != NOBODY and kept[READ_AT] == barrier:
                if is_another_warp(reader, warp):
                    report(lanes, lane, RACE, number, address, reader)
                elif reader != thread and kept[READ_AT_WARP] == warp_barrier:
                    report(lanes, lane, WARP_RACE, number, address, reader)
