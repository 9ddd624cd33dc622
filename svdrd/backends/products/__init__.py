"""The operators by matrix products alone, in plain PyTorch: for larger matrices on GPUs, where an SVD is slow.

:mod:`iteration` is the algorithm. It asks for its products through an interface in :mod:`arithmetic`. PyTorch's
products implement it there, Triton's in ``svdrd.backends.triton.products``.
"""

from __future__ import annotations

from torch import Tensor

from svdrd.backends.products import gram, iteration

svd = gram.svd
basis_loss = iteration.basis_loss


def polar_factor(a: Tensor, rcond: float, smooth: float, save_factors: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`iteration.polar_factor`, with empty factors."""
    p = iteration.polar_factor(a, rcond, smooth).contiguous()
    return p, a.new_empty(0), a.new_empty(0), a.new_empty(0)


def polar_factor_backward(
    grad: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float
) -> Tensor:
    """:func:`iteration.polar_factor_vjp`, which needs no factors."""
    return iteration.polar_factor_vjp(grad, a, p, rcond, smooth).contiguous()
