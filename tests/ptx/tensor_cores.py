"""``mma``: products of small matrices whose entries lie in the registers of a warp.

Lane ``4 g + t`` holds of ``A`` the rows ``g`` and ``g + 8`` in the columns ``t, t + 4, ...``; of ``B`` column ``g`` in
the rows ``t, t + 4, ...``; of ``C`` and ``D`` the columns ``2 t`` and ``2 t + 1`` of the rows ``g`` and ``g + 8`` (PTX
ISA, "Matrix Fragments").
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tests.ptx.arithmetic import fused
from tests.ptx.findings import Lanes, warp_is_active

# A float32 without these bits is what a tensor core takes of a tf32 operand.
TF32_BITS = np.uint32(0xFFFFE000)


@njit(cache=True)
def single(x: float, truncated: bool) -> np.float32:
    """float64 to float32: to the nearest, or towards zero."""
    y = np.float32(x)
    if truncated and np.isfinite(y) and abs(np.float64(y)) > abs(x):
        y = np.float32(np.nextafter(y, np.float32(0)))
    return y


@njit(cache=True)
def gather(part: NDArray[np.float64], registers: NDArray[np.float64], base: int, is_left: bool, tall: bool) -> None:
    """Puts the fragments of a warp together: of ``A`` (``is_left``, of 16 rows if ``tall``) or of ``B``."""
    for l in range(32):
        g, t = l >> 2, l & 3
        for i in range(registers.shape[0]):
            if not is_left:
                part[t + 4 * i, g] = registers[i, base + l]
            elif tall:
                part[g + 8 * (i & 1), t + 4 * (i >> 1)] = registers[i, base + l]
            else:
                part[g, t + 4 * i] = registers[i, base + l]


@njit(cache=True)
def mma_tf32(
    lanes: Lanes,
    number: int,
    mask: NDArray[np.bool_],
    k_size: int,
    group: int,
    truncated: bool,
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    c: NDArray[np.float32],
    d: NDArray[np.float32],
) -> None:
    """m16n8k4 and m16n8k8: ``group`` products at a time are summed exactly and rounded with the accumulator."""
    left, right = np.empty((16, 8)), np.empty((8, 8))
    for base in range(0, mask.shape[0], 32):
        if not warp_is_active(lanes, base, mask, number):
            continue
        gather(left, a, base, True, True)
        gather(right, b, base, False, True)
        for l in range(32):
            for i in range(4):
                row, column = (l >> 2) + 8 * (i >> 1), 2 * (l & 3) + (i & 1)
                total = np.float64(c[i, base + l])
                for first in range(0, k_size, group):
                    for k in range(first, first + group):
                        total += left[row, k] * right[k, column]
                    total = np.float64(single(total, truncated))
                d[i, base + l] = np.float32(total)


@njit(cache=True)
def mma_f64(
    lanes: Lanes,
    number: int,
    mask: NDArray[np.bool_],
    m_size: int,
    k_size: int,
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    c: NDArray[np.float64],
    d: NDArray[np.float64],
) -> None:
    """m8n8k4, m16n8k4, m16n8k8, m16n8k16: a chain of fused multiply-adds."""
    left, right = np.empty((16, 16)), np.empty((16, 8))
    for base in range(0, mask.shape[0], 32):
        if not warp_is_active(lanes, base, mask, number):
            continue
        gather(left, a, base, True, m_size == 16)
        gather(right, b, base, False, True)
        for l in range(32):
            for i in range(m_size // 4):
                row, column = (l >> 2) + 8 * (i >> 1), 2 * (l & 3) + (i & 1)
                total = c[i, base + l]
                for k in range(k_size):
                    total = fused(left[row, k], right[k, column], total)
                d[i, base + l] = total
