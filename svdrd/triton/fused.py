"""Launchers of the fused products: float32 polar factors and losses of matrices with a side of up to 32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from svdrd import matmul
from svdrd.triton import fused_kernels as kernels
from svdrd.triton.configuration import Configuration

# The least that tensor cores multiply.
SMALLEST = 16
# Rows of the largest tile by its columns. What is not here spills: docs/performance.md has what was tried.
LARGEST = {16: 64, 32: 64}
# Spills with fewer than 8 warps for sm_100 with Triton 3.6, which has no tensor cores for float64 there.
TIGHT = {(kernels.fused_opening_kernel, 64, 32)}
# The derivative works on so many blocks at a time that each of the squares which it keeps of them, four H and Omega,
# has at most this many entries, and of no more than so many blocks.
PART, PART_BLOCKS = 1 << 24, 1 << 20
# Steps with coefficients of their own between those that repeat the first and those that truncate.
_LATER = 4
KERNELS = (
    kernels.fused_polar_kernel,
    kernels.fused_difference_kernel,
    kernels.fused_opening_kernel,
    kernels.fused_omega_kernel,
    kernels.fused_closing_kernel,
)


def tile(m: int, n: int, smooth: float) -> tuple[int, int]:
    """Rows and columns of the tile of an ``m x n`` matrix, with ``e I`` below it where that is smoothed."""
    width, length = min(m, n), max(m, n) + (min(m, n) if smooth > 0 else 0)
    narrow = max(SMALLEST, triton.next_power_of_2(width))
    return max(narrow, triton.next_power_of_2(length)), narrow


def takes(m: int, n: int, dtype: torch.dtype, rcond: float, smooth: float) -> bool:
    """Whether the operators below are for ``m x n`` matrices."""
    long, narrow = tile(m, n, smooth)
    return (
        min(m, n) > 0
        and dtype == torch.float32
        and 0 <= rcond <= matmul.LARGEST_RCOND
        and long <= LARGEST.get(narrow, 0)
    )


@cache
def schedule(position: float) -> tuple[float, ...]:
    """``matmul.schedule`` as the kernels take it: how often the first quintic comes, all steps, then 15 coefficients:
    the first quintic's, and those of the four steps that follow its last repetition.
    """
    steps = matmul.schedule(position)
    repeats = next(k for k, step in enumerate(steps) if step != steps[0])
    later = steps[repeats : repeats + _LATER]
    if any(step != matmul.TRUNCATE for step in steps[repeats + _LATER :]):
        raise AssertionError(f"svdrd.matmul.schedule({position}) has more than {_LATER} steps of their own")
    return repeats, len(steps), *steps[0], *(coefficient for step in later for coefficient in step)


@cache
def configuration(kernel: Any, long: int, narrow: int) -> Configuration:
    """The form of ``kernel`` for tiles of ``long x narrow``."""
    names = kernel.arg_names
    constants = {name: size for name, size in (("M", long), ("N", narrow)) if name in names}
    others = {"scales": "fp64"} if "scales" in names else None
    num_warps = 8 if (kernel, long, narrow) in TIGHT else min(4, max(constants.values()) // 16)
    return Configuration.of(kernel, constants, num_warps, maxnreg=255, others=others)


def configurations() -> Iterator[Configuration]:
    """Every form that the launchers below can choose."""
    forms: dict[Configuration, None] = {}
    for narrow, largest in LARGEST.items():
        long = narrow
        while long <= largest:
            forms.update((configuration(kernel, long, narrow), None) for kernel in KERNELS)
            long *= 2
    yield from forms


@dataclass(frozen=True)
class _Blocks:
    """Blocks of ``m x n`` that the images ``(b, h, w)`` consist of: a batch of matrices is one of images of one block.

    Each has ``rows`` on the longer side of its polar factor: with smoothing, that of ``[A; e I]``.
    """

    images: Tensor
    m: int
    n: int
    rcond: float
    smooth: float

    @property
    def count(self) -> int:
        return self.images.numel() // (self.m * self.n)

    @property
    def rows(self) -> int:
        return max(self.m, self.n) + (min(self.m, self.n) if self.smooth > 0 else 0)

    def launch(self, kernel: Any, count: int, *arguments: Any) -> None:
        """Runs a program for each of ``count`` blocks."""
        if count:
            with torch.cuda.device_of(self.images):
                configuration(kernel, *tile(self.m, self.n, self.smooth)).launch((count,), *arguments)

    def polar_factors(self, p: Tensor, rows: int) -> None:
        """Writes them to ``p``, with ``rows`` of them."""
        self.launch(
            kernels.fused_polar_kernel, self.count, self.images, p, self.smooth, *self.images.shape[1:], self.m, self.n,
            rows, *self._steps(),
        )  # fmt: skip

    def stacked_polar_factors(self) -> Tensor:
        """All rows of them."""
        p = self.images.new_empty(self.count * min(self.m, self.n) * self.rows)
        self.polar_factors(p, self.rows)
        return p

    def derivative(self, grad: Tensor, rows_grad: int, p: Tensor) -> Tensor:
        """The vector-Jacobian product for ``grad``, which has ``rows_grad``, in images. ``p`` has all rows."""
        derivative, entries = torch.empty_like(self.images), min(self.m, self.n) ** 2
        part = max(1, min(self.count, PART // entries, PART_BLOCKS))
        squares = self.images.new_empty(part * (kernels.OPENING.value + 2) * entries)
        scales = self.images.new_empty(part * 2, dtype=torch.float64)
        geometry = (*self.images.shape[1:], self.m, self.n)
        for start in range(0, self.count, part):
            count = min(part, self.count - start)
            self.launch(
                kernels.fused_opening_kernel, count, grad, self.images, p, squares, scales, self.smooth, *geometry,
                rows_grad, self.rows, start, *self._steps(),
            )  # fmt: skip
            self.launch(kernels.fused_omega_kernel, count, squares, min(self.m, self.n), *self._steps())
            self.launch(
                kernels.fused_closing_kernel, count, grad, p, squares, scales, derivative, *geometry, rows_grad,
                self.rows, start, int(self.smooth > 0), *self._steps(),
            )  # fmt: skip
        return derivative

    def _steps(self) -> tuple[float, ...]:
        return schedule(matmul.step_position(self.images.dtype, self.rcond, self.smooth))


def polar_factor(a: Tensor, rcond: float, smooth: float, save_factors: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`svdrd.matmul.polar_factor`, which takes longer; takes what :func:`takes` says, and saves no factors."""
    m, n = a.shape[1:]
    if save_factors or not takes(m, n, a.dtype, rcond, smooth):
        return NotImplemented
    a = a.contiguous()
    p = torch.empty_like(a)
    _Blocks(a, m, n, rcond, smooth).polar_factors(p, max(m, n))
    return p, a.new_empty(0), a.new_empty(0), a.new_empty(0)


def polar_factor_backward(
    grad: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float
) -> Tensor:
    """As :func:`svdrd.matmul.polar_factor_vjp`; takes what :func:`takes` says, without the factors."""
    m, n = grad.shape[1:]
    if u.numel() or not takes(m, n, grad.dtype, rcond, smooth):
        return NotImplemented
    blocks = _Blocks(a.contiguous(), m, n, rcond, smooth)
    # What lies below P belongs to it, and was not kept.
    p = blocks.stacked_polar_factors() if smooth > 0 else p.contiguous()
    return blocks.derivative(grad.contiguous(), max(m, n), p)


def basis_loss(
    x_hat: Tensor,
    x: Tensor,
    block_height: int,
    block_width: int,
    rcond: float,
    smooth: float,
    need_grad_x_hat: bool,
    need_grad_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`svdrd.matmul.basis_loss`; takes what :func:`takes` says."""
    if not takes(block_height, block_width, x_hat.dtype, rcond, smooth):
        return NotImplemented
    x_hat, x = x_hat.contiguous(), x.contiguous()
    b, h, w = x_hat.shape
    loss = x_hat.new_empty(b, h // block_height, w // block_width)

    def one_side(first: Tensor, second: Tensor, need_grad: bool) -> Tensor:
        """Computes the loss and, if needed, its derivative by the first image."""
        blocks = _Blocks(first, block_height, block_width, rcond, smooth)
        p = blocks.stacked_polar_factors()
        other = replace(blocks, images=second).stacked_polar_factors()
        blocks.launch(
            kernels.fused_difference_kernel, blocks.count, p, other, loss, block_height, block_width, blocks.rows,
            int(need_grad),
        )  # fmt: skip
        return blocks.derivative(other, blocks.rows, p) if need_grad else first.new_empty(0)

    # |P1 - P2| is symmetric: the derivative by x is that by x_hat with the sides exchanged, computed afresh, because
    # training does not ask for it.
    nothing = x.new_empty(0)
    derivative_x_hat = one_side(x_hat, x, need_grad_x_hat) if need_grad_x_hat or not need_grad_x else nothing
    derivative_x = one_side(x, x_hat, True) if need_grad_x else nothing
    return loss, derivative_x_hat, derivative_x
