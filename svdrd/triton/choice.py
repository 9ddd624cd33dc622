"""Which kernels compute polar factors and losses of which size: the one place where that is decided.

``docs/performance.md`` has the reasons. Every launcher can be called by itself, too, for tests and measurements.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

# Shorter sides up to the key go to the first of these modules that takes the case; larger ones to BEYOND.
ORDER: dict[int, tuple[str, ...]] = {
    8: ("jacobi", "fused", "products"),
    16: ("jacobi", "fused", "products"),
    32: ("jacobi", "fused", "products"),
    64: ("jacobi", "products"),
}
BEYOND = ("products",)


def order(m: int, n: int) -> tuple[str, ...]:
    """The modules to be asked for ``m x n`` matrices, one after another."""
    for largest, modules in ORDER.items():
        if min(m, n) <= largest:
            return modules
    return BEYOND


def _first(name: str, m: int, n: int, *arguments: Any) -> Any:
    for module in order(m, n):
        result = getattr(importlib.import_module(f"svdrd.triton.{module}"), name)(*arguments)
        if result is not NotImplemented:
            return result
    return NotImplemented


def polar_factor(a: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`svdrd.triton.jacobi.polar_factor`, by whoever is the first to take it."""
    return _first("polar_factor", *a.shape[-2:], a, *arguments)


def polar_factor_backward(grad: Tensor, *arguments: Any) -> Tensor:
    """As :func:`svdrd.triton.jacobi.polar_factor_backward`, by whoever is the first to take it."""
    return _first("polar_factor_backward", *grad.shape[-2:], grad, *arguments)


def basis_loss(
    x_hat: Tensor, x: Tensor, block_height: int, block_width: int, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`svdrd.triton.jacobi.basis_loss`, by whoever is the first to take it."""
    return _first("basis_loss", block_height, block_width, x_hat, x, block_height, block_width, *arguments)
