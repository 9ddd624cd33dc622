"""The tensors that a launcher fills, one function for each operator: contiguous, and empty where not asked for."""

from __future__ import annotations

import torch
from torch import Tensor


def _factors(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, m, n = a.shape
    k = min(m, n)
    return a.new_empty(b, m, k), a.new_empty(b, k), a.new_empty(b, k, n)


def of_svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u, s, vh of ``(b, m, n)``."""
    return _factors(a)


def of_polar_factor(a: Tensor, save_factors: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p, u, s, vh of ``(b, m, n)``, contiguous."""
    u, s, vh = _factors(a) if save_factors else (a.new_empty(0), a.new_empty(0), a.new_empty(0))
    return torch.empty_like(a), u, s, vh


def of_basis_loss(
    x_hat: Tensor, block_height: int, block_width: int, need_grad_x_hat: bool, need_grad_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each block of ``(b, h, w)``, contiguous, and the derivatives by both sides."""
    b, h, w = x_hat.shape
    by_x_hat, by_x = (
        torch.empty_like(x_hat) if needed else x_hat.new_empty(0) for needed in (need_grad_x_hat, need_grad_x)
    )
    return x_hat.new_empty(b, h // block_height, w // block_width), by_x_hat, by_x
