"""Global memory: copies of the host's buffers, with space between them that nobody may touch."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.ptx.parser import Variable

# Where the kinds of memory lie in the generic addresses; global memory itself begins at ORIGIN.
ORIGIN = 1 << 32
SHARED_WINDOW, LOCAL_WINDOW, PARAMETER_WINDOW = 1 << 45, 1 << 46, 1 << 47
# What memory holds that nobody has written; as float32 and as float64 a NaN.
POISON = np.frombuffer(bytes((0xAD, 0xDE, 0xC5, 0x7F)), np.uint8)
# How many numbers shared_memory.compare keeps of a granule.
KEPT = 7
POISON_WORD = int(POISON.view("u4")[0])


class GlobalMemory(NamedTuple):
    """What the accesses of :mod:`tests.ptx.accesses` see.

    Args:
        bytes: all of it.
        starts, ends: addresses of the buffers.
        touched: of each granule the program that wrote and the one that read: 0 none, -1 several.
        kept: of each granule which thread wrote and read it, as of shared memory.
        granule: bytes of a granule.
        barriers, warp_barriers, accesses: those of the programs' shared memory.
        checked, counted: what the accesses are to do.
    """

    bytes: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    touched: NDArray[np.int32]
    kept: NDArray[np.int32]
    granule: int
    barriers: NDArray[np.int32]
    warp_barriers: NDArray[np.int32]
    accesses: NDArray[np.int32]
    checked: bool
    counted: bool


class Memory:
    """Global memory of a launch.

    Args:
        buffers: address and size in bytes of each of the host's.
        variables: the module's, in memory ``global`` or ``const``.
    """

    GAP = 1024

    def __init__(self, buffers: Iterable[tuple[int, int]], variables: Sequence[Variable] = ()) -> None:
        end = self.GAP
        self.buffers: list[tuple[int, int, int]] = []  # of each its address, size, and place here
        self.globals: dict[str, int] = {}  # the addresses of the variables

        def place(size: int) -> int:
            nonlocal end
            start, end = end, end + -(-size // 256) * 256 + self.GAP
            return start

        for pointer, size in dict(sorted(buffers)).items():
            if size:
                self.buffers.append((pointer, size, place(size)))
        places = [(place(v.size), v) for v in variables]
        self.bytes = np.empty(end, np.uint8)
        for pointer, size, start in self.buffers:
            ctypes.memmove(self.bytes.ctypes.data + start, pointer, size)
        for start, v in places:
            self.globals[v.name] = ORIGIN + start
            self.bytes[start : start + v.size] = np.frombuffer(v.data or bytes(v.size), np.uint8)
        spans = [(start, size) for _, size, start in self.buffers] + [(start, v.size) for start, v in places]
        self.starts = np.array([ORIGIN + start for start, _ in spans], np.int64)
        self.ends = np.array([ORIGIN + start + size for start, size in spans], np.int64)
        self.touched, self.kept = np.zeros((0, 2), np.int32), np.zeros((0, KEPT), np.int32)

    def view(self, progress: tuple[NDArray[np.int32], ...], granule: int, checked: bool, counted: bool) -> GlobalMemory:
        """For the accesses of programs whose ``progress`` is counted in barriers, barriers of warps, and accesses."""
        granules = len(self.bytes) // granule + 1
        if checked and len(self.touched) != granules:
            self.touched, self.kept = np.zeros((granules, 2), np.int32), np.full((granules, KEPT), -1, np.int32)
        barriers, warp_barriers, accesses = progress
        return GlobalMemory(
            self.bytes, self.starts, self.ends, self.touched, self.kept, granule, barriers, warp_barriers, accesses,
            checked, counted,
        )  # fmt: skip

    def address(self, pointer: int) -> int:
        """Where the kernel finds what ``pointer`` points to; 0 if it points into no buffer."""
        for base, size, start in self.buffers:
            if base <= pointer < base + size:
                return ORIGIN + start + pointer - base
        return 0

    def copy_back(self) -> None:
        """Gives the host what the kernel wrote."""
        for pointer, size, start in self.buffers:
            ctypes.memmove(pointer, self.bytes.ctypes.data + start, size)
