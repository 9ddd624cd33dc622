"""Loads and stores, each checked: bounds, alignment, what nobody has written, races; and counted as hardware does them.

``data`` has the bytes of each lane's access. ``counts``: how many accesses of warps, and how many passes or
sectors they took.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tests.ptx.findings import (
    GLOBAL_RACE,
    MISALIGNED,
    OUT_OF_BOUNDS,
    SAME_WRITE,
    UNINITIALISED,
    Lanes,
    report,
    warp_is_active,
)
from tests.ptx.memory import ORIGIN, POISON, GlobalMemory
from tests.ptx.shared_memory import SharedMemory, compare, touch

SECTOR = 32


@njit(cache=True)
def passes(addresses: NDArray[np.int64], active: NDArray[np.bool_], size: int) -> int:
    """Of a warp's access to shared memory: 4 bytes of 32 lanes at a time, 8 of 16, 16 of 8; of each bank one word."""
    together = 32 if size <= 4 else (16 if size == 8 else 8)
    words = max(1, size // 4)
    seen = np.empty(32, np.int64)
    total = 0
    for first in range(0, 32, together):
        n = 0
        banks = np.zeros(32, np.int64)
        for l in range(first, first + together):
            if active[l]:
                for word in range(addresses[l] // 4, addresses[l] // 4 + words):
                    new = True
                    for i in range(n):
                        if seen[i] == word:
                            new = False
                            break
                    if new:
                        seen[n] = word
                        n += 1
                        banks[word & 31] += 1
        total += banks.max()
    return total


@njit(cache=True)
def read(
    memory: NDArray[np.uint8],
    start: int,
    size: int,
    data: NDArray[np.uint8],
    lanes: Lanes,
    lane: int,
    number: int,
    address: int,
) -> None:
    """Copies to the lane's data; a word that is poison has not been written."""
    poison = 0
    for b in range(size):
        data[lane, b] = memory[start + b]
        poison = (0 if b & 3 == 0 else poison) + (memory[start + b] == POISON[b & 3])
        if poison == 4 and b & 3 == 3:
            report(lanes, lane, UNINITIALISED, number, address, 0)


@njit(cache=True)
def check_agreement(
    memory: NDArray[np.uint8],
    start: int,
    size: int,
    data: NDArray[np.uint8],
    lanes: Lanes,
    lane: int,
    number: int,
    address: int,
) -> None:
    """After a store each lane has to find its own: of lanes that write to one place the last has it."""
    for b in range(size):
        if memory[start + b] != data[lane, b]:
            report(lanes, lane, SAME_WRITE, number, address, 0)
            break


@njit(cache=True)
def access_shared(
    shared: SharedMemory,
    lanes: Lanes,
    number: int,
    mask: NDArray[np.bool_],
    row: NDArray[np.uint32],
    offset: int,
    size: int,
    data: NDArray[np.uint8],
    write: bool,
    counts: NDArray[np.int64],
) -> None:
    """``ld.shared`` or ``st.shared`` of ``size`` bytes a lane."""
    shared.accesses[0] += 1
    addresses = np.zeros(32, np.int64)
    inside = np.zeros(32, np.bool_)
    for base in range(0, mask.shape[0], 32):
        for l in range(32):
            lane = base + l
            inside[l] = False
            if not mask[lane]:
                continue
            address = np.int64(row[lane]) + offset
            if address < 0 or address > shared.bytes.shape[1] - size:
                report(lanes, lane, OUT_OF_BOUNDS, number, address, shared.bytes.shape[1])
                if not write:
                    data[lane, :size] = 0
                continue
            inside[l] = True
            addresses[l] = address
            if address % size:
                report(lanes, lane, MISALIGNED, number, address, size)
            memory = shared.bytes[lanes.program[lane]]
            if shared.checked:
                for granule in range(address // shared.granule, (address + size - 1) // shared.granule + 1):
                    same = write
                    if write:
                        for b in range(granule * shared.granule, (granule + 1) * shared.granule):
                            if address <= b < address + size and memory[b] != data[lane, b - address]:
                                same = False
                    touch(shared, lanes, lane, number, granule, address, write, same)
            if write:
                memory[address : address + size] = data[lane, :size]
            elif shared.checked:
                data[lane, :size] = memory[address : address + size]
            else:
                read(memory, address, size, data, lanes, lane, number, address)
        if not inside.any():
            continue
        if write and shared.checked:
            for l in range(32):
                if inside[l]:
                    memory = shared.bytes[lanes.program[base + l]]
                    check_agreement(memory, addresses[l], size, data, lanes, base + l, number, addresses[l])
        if shared.counted:
            counts[0] += 1
            counts[1] += passes(addresses, inside, size)


@njit(cache=True)
def access_global(
    memory: GlobalMemory,
    lanes: Lanes,
    number: int,
    mask: NDArray[np.bool_],
    row: NDArray[np.uint64],
    offset: int,
    size: int,
    data: NDArray[np.uint8],
    write: bool,
    counts: NDArray[np.int64],
) -> None:
    """``ld.global`` or ``st.global`` of ``size`` bytes a lane; as programs run in any order, none touches another's."""
    memory.accesses[0] += 1
    sectors = np.empty(64, np.int64)
    inside = np.zeros(32, np.bool_)
    for base in range(0, mask.shape[0], 32):
        found = 0
        for l in range(32):
            lane = base + l
            inside[l] = False
            if not mask[lane]:
                continue
            address = np.int64(row[lane]) + offset
            for k in range(memory.starts.shape[0]):
                if memory.starts[k] <= address <= memory.ends[k] - size:
                    inside[l] = True
                    break
            if not inside[l]:
                report(lanes, lane, OUT_OF_BOUNDS, number, address, 0)
                if not write:
                    data[lane, :size] = 0
                continue
            if address % size:
                report(lanes, lane, MISALIGNED, number, address, size)
            start = address - ORIGIN
            if memory.checked:
                for granule in range(start // memory.granule, (start + size - 1) // memory.granule + 1):
                    check_programs(memory, lanes, lane, number, granule, address, write)
                    same = write
                    if write:
                        for b in range(granule * memory.granule, (granule + 1) * memory.granule):
                            if start <= b < start + size and memory.bytes[b] != data[lane, b - start]:
                                same = False
                    compare(
                        memory.kept[granule], memory.barriers, memory.warp_barriers, memory.accesses[0], lanes, lane,
                        number, address, write, same,
                    )  # fmt: skip
            if write:
                memory.bytes[start : start + size] = data[lane, :size]
            else:
                read(memory.bytes, start, size, data, lanes, lane, number, address)
            if memory.counted:
                for sector in range(address // SECTOR, (address + size - 1) // SECTOR + 1):
                    new = True
                    for k in range(found):
                        if sectors[k] == sector:
                            new = False
                            break
                    if new:
                        sectors[found] = sector
                        found += 1
        if not inside.any():
            continue
        if write and memory.checked:
            for l in range(32):
                if inside[l]:
                    address = np.int64(row[base + l]) + offset
                    check_agreement(memory.bytes, address - ORIGIN, size, data, lanes, base + l, number, address)
        if memory.counted:
            counts[0] += 1
            counts[1] += found


@njit(cache=True)
def check_programs(
    memory: GlobalMemory, lanes: Lanes, lane: int, number: int, granule: int, address: int, write: bool
) -> None:
    """What one program writes no other may read or write."""
    me = lanes.program[lane] + lanes.first + 1
    writer, reader = memory.touched[granule, 0], memory.touched[granule, 1]
    if writer != 0 and writer != me:
        report(lanes, lane, GLOBAL_RACE, number, address, writer)
    if write:
        if reader != 0 and reader != me:
            report(lanes, lane, GLOBAL_RACE, number, address, reader)
        memory.touched[granule, 0] = me
    else:
        memory.touched[granule, 1] = me if reader == 0 or reader == me else -1


@njit(cache=True)
def access_local(
    local: NDArray[np.uint8],
    lanes: Lanes,
    number: int,
    mask: NDArray[np.bool_],
    row: NDArray[np.uint32],
    offset: int,
    size: int,
    data: NDArray[np.uint8],
    write: bool,
) -> None:
    """``ld.local`` or ``st.local``: memory of the lane alone."""
    for lane in range(mask.shape[0]):
        if not mask[lane]:
            continue
        address = np.int64(row[lane]) + offset
        if address < 0 or address > local.shape[1] - size:
            report(lanes, lane, OUT_OF_BOUNDS, number, address, local.shape[1])
            if not write:
                data[lane, :size] = 0
            continue
        if address % size:
            report(lanes, lane, MISALIGNED, number, address, size)
        if write:
            local[lane, address : address + size] = data[lane, :size]
        else:
            read(local[lane], address, size, data, lanes, lane, number, address)


@njit(cache=True)
def place(l: int, half: int, transposed: bool) -> tuple[int, int]:
    """Row and column, in an 8 x 8 matrix of 16 bits, of one half of lane ``l``'s register."""
    if transposed:
        return 2 * (l & 3) + half, l >> 2
    return l >> 2, 2 * (l & 3) + half


@njit(cache=True)
def check_rows(
    shared: SharedMemory,
    lanes: Lanes,
    number: int,
    base: int,
    row: NDArray[np.uint32],
    offset: int,
    counts: NDArray[np.int64],
) -> None:
    """The rows of one matrix, whose addresses are in the 8 lanes from ``base`` on: alignment, and passes."""
    banks = np.zeros(32, np.int64)
    for lane in range(base, base + 8):
        address = np.int64(row[lane]) + offset
        if address % 16:
            report(lanes, lane, MISALIGNED, number, address, 16)
        for k in range(4):
            banks[(address // 4 + k) & 31] += 1
    if shared.counted:
        counts[1] += banks.max()


@njit(cache=True)
def ldmatrix(
    shared: SharedMemory,
    lanes: Lanes,
    number: int,
    mask: NDArray[np.bool_],
    row: NDArray[np.uint32],
    offset: int,
    transposed: bool,
    out: NDArray[np.uint32],
    counts: NDArray[np.int64],
) -> None:
    """Reads matrices of 8 x 8 entries of 16 bits, a register each; ``out`` is ``(matrices, lanes)``."""
    for base in range(0, mask.shape[0], 32):
        if not warp_is_active(lanes, base, mask, number):
            continue
        memory = shared.bytes[lanes.program[base]]
        for matrix in range(out.shape[0]):
            for l in range(32):
                lane, word = base + l, np.uint32(0)
                for half in range(2):
                    i, j = place(l, half, transposed)
                    address = np.int64(row[base + 8 * matrix + i]) + offset + 2 * j
                    if address < 0 or address + 2 > memory.shape[0]:
                        report(lanes, lane, OUT_OF_BOUNDS, number, address, memory.shape[0])
                        continue
                    entry = np.uint32(memory[address]) | (np.uint32(memory[address + 1]) << np.uint32(8))
                    word |= entry << np.uint32(16 * half)
                    if shared.checked:
                        for granule in range(address // shared.granule, (address + 1) // shared.granule + 1):
                            touch(shared, lanes, lane, number, granule, address, False, False)
                out[matrix, lane] = word
            check_rows(shared, lanes, number, base + 8 * matrix, row, offset, counts)
        if shared.counted:
            counts[0] += 1


@njit(cache=True)
def stmatrix(
    shared: SharedMemory,
    lanes: Lanes,
    number: int,
    mask: NDArray[np.bool_],
    row: NDArray[np.uint32],
    offset: int,
    transposed: bool,
    values: NDArray[np.uint32],
    counts: NDArray[np.int64],
) -> None:
    """Writes what :func:`ldmatrix` reads; all rows have to lie at places of their own."""
    shared.accesses[0] += 1
    for base in range(0, mask.shape[0], 32):
        if not warp_is_active(lanes, base, mask, number):
            continue
        memory = shared.bytes[lanes.program[base]]
        for matrix in range(values.shape[0]):
            for l in range(32):
                lane = base + l
                for half in range(2):
                    i, j = place(l, half, transposed)
                    address = np.int64(row[base + 8 * matrix + i]) + offset + 2 * j
                    if address < 0 or address + 2 > memory.shape[0]:
                        report(lanes, lane, OUT_OF_BOUNDS, number, address, memory.shape[0])
                        continue
                    entry = values[matrix, lane] >> np.uint32(16 * half)
                    low, high = np.uint8(entry & np.uint32(255)), np.uint8((entry >> np.uint32(8)) & np.uint32(255))
                    if shared.checked:
                        same = memory[address] == low and memory[address + 1] == high
                        for granule in range(address // shared.granule, (address + 1) // shared.granule + 1):
                            touch(shared, lanes, lane, number, granule, address, True, same)
                    memory[address], memory[address + 1] = low, high
            check_rows(shared, lanes, number, base + 8 * matrix, row, offset, counts)
        for l in range(32 * values.shape[0]):
            lane, matrix = base + l % 32, l // 32
            for half in range(2):
                i, j = place(l % 32, half, transposed)
                address = np.int64(row[base + 8 * matrix + i]) + offset + 2 * j
                if 0 <= address <= memory.shape[0] - 2:
                    entry = np.uint32(memory[address]) | (np.uint32(memory[address + 1]) << np.uint32(8))
                    if entry != (values[matrix, lane] >> np.uint32(16 * half)) & np.uint32(0xFFFF):
                        report(lanes, lane, SAME_WRITE, number, address, 0)
        if shared.counted:
            counts[0] += 1
