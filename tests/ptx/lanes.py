"""What the lanes of a warp do together: shuffles, reductions, votes, barriers of a warp.

A row is a register of all lanes of a group; 32 consecutive lanes are a warp.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tests.ptx.findings import NOT_CONVERGED, NOT_NAMED, SHUFFLE, Lanes, report


@njit(cache=True)
def check_members(lanes: Lanes, number: int, lane: int, mask: NDArray[np.bool_], members: NDArray[np.uint32]) -> None:
    """The lanes that an instruction names have to execute it, too, and it has to name the lane itself."""
    base = lane & ~31
    if not (members[lane] >> np.uint32(lane & 31)) & np.uint32(1):
        report(lanes, lane, NOT_NAMED, number, lane & 31, members[lane])
    for other in range(32):
        if (members[lane] >> np.uint32(other)) & np.uint32(1) and not mask[base + other]:
            report(lanes, lane, NOT_CONVERGED, number, other, members[lane])
            break


@njit(cache=True)
def warp_barrier(lanes: Lanes, number: int, mask: NDArray[np.bool_], members: NDArray[np.uint32]) -> None:
    """``bar.warp.sync``, as far as it can go wrong."""
    for lane in range(mask.shape[0]):
        if mask[lane]:
            check_members(lanes, number, lane, mask, members)


@njit(cache=True)
def shuffle(
    lanes: Lanes,
    number: int,
    mask: NDArray[np.bool_],
    mode: int,
    x: NDArray[np.uint32],
    b: NDArray[np.uint32],
    c: NDArray[np.uint32],
    members: NDArray[np.uint32],
    out: NDArray[np.uint32],
    inside: NDArray[np.bool_],
) -> None:
    """``shfl.sync``: mode 0 idx, 1 bfly, 2 up, 3 down. ``inside``: whether the lane it is from is in the segment."""
    for lane in range(x.shape[0]):
        if not mask[lane]:
            continue
        check_members(lanes, number, lane, mask, members)
        base, l = lane & ~31, lane & 31
        step = np.int64(b[lane] & np.uint32(31))
        clamp = np.int64(c[lane] & np.uint32(31))
        segment = np.int64((c[lane] >> np.uint32(8)) & np.uint32(31))
        first = l & segment
        last = first | (clamp & (31 - segment))
        if mode == 0:
            source = first | (step & (31 - segment))
        elif mode == 1:
            source = l ^ step
        elif mode == 2:
            source = l - step
        else:
            source = l + step
        # Upwards the clamp is the first lane of the segment.
        inside[lane] = source >= last if mode == 2 else source <= last
        if not inside[lane]:
            source = np.int64(l)
        if not mask[base + source] or not (members[lane] >> np.uint32(source)) & np.uint32(1):
            report(lanes, lane, SHUFFLE, number, source, 0)
        out[lane] = x[base + source]


@njit(cache=True)
def warp_reduce(
    lanes: Lanes,
    number: int,
    mask: NDArray[np.bool_],
    operation: int,
    x: NDArray[np.uint32],
    members: NDArray[np.uint32],
    out: NDArray[np.uint32],
) -> None:
    """``redux.sync``: 0, 1 max and min with sign, 2 add, 3, 4 max and min without, 5 and, 6 or, 7 xor; 8: ballot.

    Each lane gets the result of those that it names; parts of a warp can reduce in one instruction.
    """
    for receiver in range(x.shape[0]):
        if not mask[receiver]:
            continue
        check_members(lanes, number, receiver, mask, members)
        base = receiver & ~31
        if receiver > base and mask[receiver - 1] and members[receiver] == members[receiver - 1]:
            out[receiver] = out[receiver - 1]
            continue
        result = np.int64(0)
        first = True
        for lane in range(base, base + 32):
            if not mask[lane] or not (members[receiver] >> np.uint32(lane - base)) & np.uint32(1):
                continue
            plain = np.int64(x[lane])
            signed = plain - (np.int64(1) << 32) if plain >= np.int64(1) << 31 else plain
            if operation == 8:
                result |= (np.int64(1) if plain else np.int64(0)) << (lane - base)
            elif first:
                result = signed if operation < 2 else plain
            elif operation == 0:
                result = max(result, signed)
            elif operation == 1:
                result = min(result, signed)
            elif operation == 2:
                result += plain
            elif operation == 3:
                result = max(result, plain)
            elif operation == 4:
                result = min(result, plain)
            elif operation == 5:
                result &= plain
            elif operation == 6:
                result |= plain
            else:
                result ^= plain
            first = False
        out[receiver] = np.uint32(result & 0xFFFFFFFF)
