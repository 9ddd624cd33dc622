"""Launchers of the Jacobi kernels: matrices of up to ``limits.JACOBI`` rows and columns, float32 and float64."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from svdrd.backends import limits, outputs
from svdrd.backends.triton import jacobi_kernels as kernels
from svdrd.backends.triton.configuration import Configuration, interpreted

# What the sides of tiles can be. Smaller matrices share the kernels of the smallest.
SIDES = (4, 8, 16, 32, limits.JACOBI)
# Triton's interpreter pays for each operation of each program, so there a program is given many matrices.
INTERPRETED_PAIRS = 4096
DTYPES = {torch.float32: "fp32", torch.float64: "fp64"}
# How many tiles of M columns a kernel keeps in registers at its fullest.
TILES = {
    kernels.svd_kernel: 2,
    kernels.polar_kernel: 3,
    kernels.polar_backward_kernel: 4,
    kernels.loss_kernel: 5,
    kernels.recompose_kernel: 3,
}
# 32-bit registers of a thread that may go to tiles; beyond, another warp takes half of the rows.
REGISTERS = {torch.float32: 224, torch.float64: 176}
# Forms (M, N) that spill nevertheless with one of the compilers of Triton 3.6 to 3.9 for one of the GPUs of
# svdrd.backends.triton.aot, and get twice the warps.
TIGHT = {
    (kernels.svd_kernel, torch.float32): {(64, 4), (64, 8), (64, 16), (64, 32)},
    (kernels.polar_kernel, torch.float32): {(64, 4), (64, 8), (64, 16)},
    (kernels.loss_kernel, torch.float32): {(16, 4)},
    (kernels.loss_kernel, torch.float64): {(64, 4)},
    (kernels.recompose_kernel, torch.float32): {(64, 4), (64, 8), (64, 16)},
}

# Those that spill with Triton before 3.8 alone. Later ones are faster there with fewer warps.
if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8):
    TIGHT[kernels.loss_kernel, torch.float32] |= {(32, 32), (64, 64)}
    TIGHT[kernels.loss_kernel, torch.float64] |= {(16, 4), (32, 4), (32, 8), (64, 8), (64, 16)}
    TIGHT[kernels.polar_backward_kernel, torch.float32] = {(64, 64)}
    TIGHT[kernels.polar_backward_kernel, torch.float64] = {(16, 8), (32, 4), (32, 8), (32, 16), (64, 4), (64, 32)}


class Shape(NamedTuple):
    """What the kernels know of an ``m x n`` matrix: the transpose of a wide one."""

    width: int
    length: int
    row_stride: int
    column_stride: int

    @classmethod
    def of(cls, m: int, n: int) -> Shape:
        return cls(n, m, 1, n) if m >= n else cls(m, n, n, 1)

    def factor_strides(self) -> tuple[int, int, int, int]:
        """From vector to vector and from entry to entry, of the longer vectors and of the shorter."""
        k = self.width
        return (1, k, k, 1) if self.row_stride == 1 else (self.length, 1, 1, k)

    def padded(self) -> tuple[int, int]:
        """M and N of the tile."""
        narrow = max(SIDES[0], triton.next_power_of_2(self.width))
        return max(narrow, triton.next_power_of_2(self.length)), narrow


def pairs_of_tile(long: int, narrow: int) -> int:
    """The pairs of columns of a program: one for each thread of a warp, or for every two; of 64 columns all."""
    return 32 if long <= 16 else max(16, narrow // 2)


@cache
def configuration(kernel: Any, dtype: torch.dtype, long: int, narrow: int, pairs: int) -> Configuration:
    """The form of ``kernel`` for matrices padded to ``long x narrow``."""
    registers = 2 * pairs * (TILES[kernel] * long + 2 * narrow) * dtype.itemsize // (4 * 32)
    num_warps = triton.next_power_of_2(-(-registers // REGISTERS[dtype]))
    if (long, narrow) in TIGHT.get((kernel, dtype), ()):
        num_warps *= 2
    constants = {"P": pairs, "M": long, "N": narrow}
    maxnreg = min(255, 65536 // (32 * num_warps))
    return Configuration.of(kernel, constants, num_warps, dtype=DTYPES[dtype], maxnreg=maxnreg)


def configurations() -> Iterator[Configuration]:
    """Every form that the launchers below can choose."""
    for dtype, long, narrow in product(DTYPES, SIDES, SIDES):
        if long < narrow:
            continue
        for kernel in TILES:
            if kernel is kernels.svd_kernel or dtype == torch.float32 or narrow <= limits.JACOBI_DOUBLE:
                yield configuration(kernel, dtype, long, narrow, pairs_of_tile(long, narrow))


def _launch(kernel: Any, first: Tensor, shape: Shape, batch: int, *arguments: Any) -> None:
    if batch == 0:
        return
    long, narrow = shape.padded()
    pairs = pairs_of_tile(long, narrow)
    if interpreted(first.device):
        pairs = max(pairs, min(INTERPRETED_PAIRS, triton.next_power_of_2(batch) * narrow // 2))
    with torch.cuda.device_of(first):
        grid = (triton.cdiv(batch, pairs // (narrow // 2)),)
        configuration(kernel, first.dtype, long, narrow, pairs).launch(grid, *arguments)


def svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`svdrd.reference.definitions.svd`."""
    b, m, n = a.shape
    a, shape = a.contiguous(), Shape.of(m, n)
    u, s, vh = outputs.of_svd(a)
    left, right = (u, vh) if m >= n else (vh, u)
    _launch(kernels.svd_kernel, a, shape, b, a, left, s, right, b, *shape, *shape.factor_strides())
    return u, s, vh


def polar_factor(a: Tensor, rcond: float, smooth: float, save_factors: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`svdrd.reference.definitions.polar_factor`.

    Rows of the longer factor that have no singular value, or one that was dropped, are zero.
    """
    b, m, n = a.shape
    a, shape = a.contiguous(), Shape.of(m, n)
    p, u, s, vh = outputs.of_polar_factor(a, save_factors)
    left, right = (u, vh) if m >= n else (vh, u)
    _launch(
        kernels.polar_kernel, a, shape, b, a, p, left, s, right, rcond, smooth, b, *shape, *shape.factor_strides(),
        int(save_factors),
    )  # fmt: skip
    return p, u, s, vh


def polar_factor_backward(
    grad: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float
) -> Tensor:
    """As :func:`svdrd.reference.derivatives.polar_factor_vjp`; empty factors are formed again from ``a``."""
    b, m, n = grad.shape
    if b and not u.numel():
        _, u, s, vh = polar_factor(a, rcond, smooth, outputs.FACTORS)
    grad, u, s, vh = (x.contiguous() for x in (grad, u, s, vh))
    derivative, shape = torch.empty_like(grad), Shape.of(m, n)
    left, right = (u, vh) if m >= n else (vh, u)
    _launch(
        kernels.polar_backward_kernel, grad, shape, b, grad, left, s, right, derivative, smooth, b, *shape,
        *shape.factor_strides(),
    )  # fmt: skip
    return derivative


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
    """As :func:`svdrd.reference.definitions.basis_loss`."""
    x_hat, x = x_hat.contiguous(), x.contiguous()
    _, h, w = x_hat.shape
    loss, by_x_hat, by_x = outputs.of_basis_loss(x_hat, block_height, block_width, need_grad_x_hat, need_grad_x)
    shape = Shape.of(block_height, block_width)

    def launch(first: Tensor, second: Tensor, value: Tensor, derivative: Tensor, gradient: bool) -> None:
        _launch(
            kernels.loss_kernel, first, shape, loss.numel(), first, second, value, derivative, rcond, smooth,
            loss.numel(), h, w, block_height, block_width, 2, int(gradient),
        )  # fmt: skip

    # |P1 - P2| is symmetric: the derivative by x is that by x_hat with the sides exchanged. To keep the factors of both
    # sides for it would take the registers that make the usual case fast.
    if need_grad_x_hat or not need_grad_x:
        launch(x_hat, x, loss, by_x_hat, need_grad_x_hat)
    if need_grad_x:
        launch(x, x_hat, loss, by_x, True)
    return loss, by_x_hat, by_x


def recompose(x_hat: Tensor, x: Tensor, block_height: int, block_width: int) -> Tensor:
    """As the operator's default in :mod:`svdrd.dispatch.recompose`, in one launch."""
    x_hat, x = x_hat.contiguous(), x.contiguous()
    b, h, w = x.shape
    result = torch.empty_like(x)
    count = b * (h // block_height) * (w // block_width)
    _launch(
        kernels.recompose_kernel, x_hat, Shape.of(block_height, block_width), count, x_hat, x, result, count, h, w,
        block_height, block_width, 2,
    )  # fmt: skip
    return result
