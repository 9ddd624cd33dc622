"""The tensors that a launcher fills, one function for each operator: contiguous, and empty where not asked for."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

# What the polar factor keeps for its backward, as ``torch.ops.svdrd.polar_factor`` is told: nothing; the singular
# vectors and values; or what the compiled CPU kernels read, ``(b, saved_size)`` in the place of u, of which zeros mean
# nothing.
NOTHING, FACTORS, ITERATES = 0, 1, 2


def saved_size(m: int, n: int) -> int:
    """How many numbers of each matrix are kept as ``ITERATES``: ``SavedLayout`` of ``csrc/cpu/kernels.h``."""
    k = cast(int, torch.sym_min(m, n))  # in a traced program it stands for one
    return m * k + k + k * n + 3


def of_svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u, s, vh of ``(b, m, n)``."""
    b, m, n = a.shape
    k = min(m, n)
    return a.new_empty(b, m, k), a.new_empty(b, k), a.new_empty(b, k, n)


def of_polar_factor(a: Tensor, save: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p, u, s, vh of ``(b, m, n)``, contiguous."""
    u, s, vh = of_svd(a) if save == FACTORS else (a.new_empty(0), a.new_empty(0), a.new_empty(0))
    if save == ITERATES:
        b, m, n = a.shape
        u = a.new_empty(b, saved_size(m, n))
    return torch.empty_like(a), u, s, vh


def of_basis_loss(
    x_hat: Tensor, block_height: int, block_width: int, need_grad_x_hat: bool, need_grad_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each block of ``(b, h, w)``, contiguous, and the derivatives by both sides."""
    b, h, w = x_hat.shape
    return (
        x_hat.new_empty(b, h // block_height, w // block_width),
        torch.empty_like(x_hat) if need_grad_x_hat else x_hat.new_empty(0),
        torch.empty_like(x_hat) if need_grad_x else x_hat.new_empty(0),
    )
