"""The tensors that a launcher fills, one function for each operator: contiguous, and empty where not asked for."""

from __future__ import annotations

import torch
from torch import Tensor


def of_svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u, s, vh of ``(b, m, n)``."""
    b, m, n = a.shape
    k = min(m, n)
    return a.new_empty(b, m, k), a.new_empty(b, k), a.new_empty(b, k, n)


def of_polar_factor(a: Tensor, save_factors: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p, u, s, vh of ``(b, m, n)``, contiguous."""
    u, s, vh = of_svd(a) if save_factors else (a.new_empty(0), a.new_empty(0), a.new_empty(0))
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
