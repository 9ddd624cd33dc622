"""Launchers of the fused products: float32 polar factors and losses of matrices of up to 16 rows or columns."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from svdrd import matmul
from svdrd.triton import fused_kernels as kernels
from svdrd.triton.configuration import Configuration
from svdrd.triton.jacobi import Shape

# The least that tensor cores multiply.
SMALLEST = 16
# Rows of the largest tile by its columns. What is not here spills: docs/performance.md has what was tried.
LARGEST = {16: 64}
# Steps with coefficients of their own between those that repeat the first and those that truncate.
_LATER = 4
KERNELS = (kernels.fused_polar_kernel, kernels.fused_polar_backward_kernel, kernels.fused_loss_kernel)


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
    num_warps = min(4, long // 16)
    return Configuration.of(kernel, {"M": long, "N": narrow}, num_warps, maxnreg=255)


def configurations() -> Iterator[Configuration]:
    """Every form that the launchers below can choose."""
    for narrow, largest in LARGEST.items():
        long = narrow
        while long <= largest:
            for kernel in KERNELS:
                yield configuration(kernel, long, narrow)
            long *= 2


def _launch(kernel: Any, first: Tensor, m: int, n: int, smooth: float, batch: int, *arguments: Any) -> None:
    if batch == 0:
        return
    with torch.cuda.device_of(first):
        configuration(kernel, *tile(m, n, smooth)).launch((batch,), *arguments)


def polar_factor(a: Tensor, rcond: float, smooth: float, save_factors: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`svdrd.matmul.polar_factor`, which takes longer; takes what :func:`takes` says, and saves no factors."""
    b, m, n = a.shape
    if save_factors or not takes(m, n, a.dtype, rcond, smooth):
        return NotImplemented
    a = a.contiguous()
    p = torch.empty_like(a)
    _launch(
        kernels.fused_polar_kernel, a, m, n, smooth, b, a, p, smooth, *Shape.of(m, n), *Shape.of(m, n)[1:],
        *schedule(matmul.step_position(a.dtype, rcond, smooth)),
    )  # fmt: skip
    return p, a.new_empty(0), a.new_empty(0), a.new_empty(0)


def polar_factor_backward(
    grad: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float
) -> Tensor:
    """As :func:`svdrd.matmul.polar_factor_vjp`; takes what :func:`takes` says, without the factors."""
    b, m, n = grad.shape
    if not takes(m, n, grad.dtype, rcond, smooth):
        return NotImplemented
    grad, a, p = (x.contiguous() for x in (grad, a, p))
    derivative, shape = torch.empty_like(grad), Shape.of(m, n)
    steps = schedule(matmul.step_position(a.dtype, rcond, smooth))
    stacked = shape[1:]
    if smooth > 0:  # what lies below P belongs to it, and was not kept
        stacked = (shape.length + shape.width, 1, shape.width)
        p = a.new_empty(b, stacked[0], shape.width)
        _launch(kernels.fused_polar_kernel, a, m, n, smooth, b, a, p, smooth, *shape, *stacked, *steps)
    _launch(
        kernels.fused_polar_backward_kernel, grad, m, n, smooth, b, grad, a, p, derivative, smooth, *shape, *stacked,
        *steps,
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
    """As :func:`svdrd.matmul.basis_loss`; takes what :func:`takes` says."""
    if not takes(block_height, block_width, x_hat.dtype, rcond, smooth):
        return NotImplemented
    x_hat, x = x_hat.contiguous(), x.contiguous()
    b, h, w = x_hat.shape
    loss = x_hat.new_empty(b, h // block_height, w // block_width)
    steps = schedule(matmul.step_position(x.dtype, rcond, smooth))
    length = max(block_height, block_width) + (min(block_height, block_width) if smooth > 0 else 0)
    # A polar factor of each block, for which there are no registers while another one is iterated.
    factors = x_hat.new_empty(loss.numel() * min(block_height, block_width) * length)
    derivative_x_hat, derivative_x = (
        torch.empty_like(x_hat) if needed else x_hat.new_empty(0) for needed in (need_grad_x_hat, need_grad_x)
    )

    def launch(first: Tensor, second: Tensor, derivative: Tensor, gradient: bool) -> None:
        _launch(
            kernels.fused_loss_kernel, first, block_height, block_width, smooth, loss.numel(), first, second, loss,
            derivative, factors, smooth, h, w, block_height, block_width, 2, int(gradient), *steps,
        )  # fmt: skip

    # |P1 - P2| is symmetric: the derivative by x is that by x_hat with the sides exchanged, in a second launch, because
    # training does not ask for it.
    if need_grad_x_hat or not need_grad_x:
        launch(x_hat, x, derivative_x_hat, need_grad_x_hat)
    if need_grad_x:
        launch(x, x_hat, derivative_x, True)
    return loss, derivative_x_hat, derivative_x
