"""What is found wrong while a kernel runs, as the compiled parts of the emulator note it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

(
    OUT_OF_BOUNDS, MISALIGNED, UNINITIALISED, RACE, WARP_RACE, SAME_WRITE, SHUFFLE, IN_FLIGHT, GLOBAL_RACE,
    NOT_CONVERGED, OVERWRITTEN, UNFENCED, NOT_UNIFORM, RESERVED, NOT_NAMED,
) = range(1, 16)  # fmt: skip
KINDS = {
    OUT_OF_BOUNDS: "out of bounds",
    MISALIGNED: "misaligned",
    UNINITIALISED: "read of bytes never written",
    RACE: "race between warps",
    WARP_RACE: "race within a warp",
    SAME_WRITE: "lanes write different values to one place in one instruction",
    SHUFFLE: "shuffle from an inactive lane",
    IN_FLIGHT: "access to bytes of a cp.async in flight",
    GLOBAL_RACE: "race between programs in global memory",
    NOT_CONVERGED: "a warp-wide instruction without all lanes",
    NOT_NAMED: "a warp-wide instruction by a lane that it does not name",
    OVERWRITTEN: "write to bytes that a wgmma in flight reads",
    UNFENCED: "wgmma reads bytes that no fence.proxy.async orders",
    NOT_UNIFORM: "operands of a wgmma that differ within a warp",
    RESERVED: "matrix descriptor with bits that have no meaning",
}
# So many are kept; all are counted.
KEPT = 4096


class Lanes(NamedTuple):
    """Which thread of which program each lane is, and where faults are noted.

    Args:
        thread, program: of each lane; programs are counted from the first that runs now.
        first: the first program that runs now.
        findings: row 0 has the number of faults and how many writes would be races if they changed anything; each other
            row kind, instruction, program, thread, address, and the other thread or what else explains it.
    """

    thread: NDArray[np.int32]
    program: NDArray[np.int32]
    first: int
    findings: NDArray[np.int64]


def no_findings() -> NDArray[np.int64]:
    """An empty table."""
    return np.zeros((KEPT + 1, 6), np.int64)


@njit(cache=True)
def report(lanes: Lanes, lane: int, kind: int, number: int, address: int, other: int) -> None:
    """Notes a fault of ``lane`` in instruction ``number``."""
    findings = lanes.findings
    findings[0, 0] += 1
    row = findings[0, 0]
    if row < findings.shape[0]:
        findings[row, 0] = kind
        findings[row, 1] = number
        findings[row, 2] = lanes.program[lane] + lanes.first
        findings[row, 3] = lanes.thread[lane]
        findings[row, 4] = address
        findings[row, 5] = other


@njit(cache=True)
def warp_is_active(lanes: Lanes, base: int, mask: NDArray[np.bool_], number: int) -> bool:
    """Whether the warp of lane ``base`` executes a warp-wide instruction; all of its lanes have to, or none."""
    active = 0
    for l in range(32):
        active += mask[base + l]
    if 0 < active < 32:
        report(lanes, base, NOT_CONVERGED, number, active, 0)
    return active > 0
