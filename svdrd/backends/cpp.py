"""Launchers of the compiled CPU kernels: contiguous tensors in, raw pointers to ``svdrd._native``, new tensors out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from svdrd.backends import availability, outputs
from svdrd.reference import definitions

_NAMES = {torch.float32: "float32", torch.float64: "float64"}


def svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`svdrd.reference.definitions.svd`."""
    assert availability.native is not None
    a = a.contiguous()
    b, m, n = a.shape
    u, s, vh = outputs.of_svd(a)
    availability.native.svd(
        _NAMES[a.dtype], a.data_ptr(), b, m, n, u.data_ptr(), s.data_ptr(), vh.data_ptr(), torch.get_num_threads()
    )
    return u, s, vh


def singular_values(a: Tensor) -> Tensor:
    """The second result of :func:`svd`, to rounding; but for large float64 matrices, no vectors are formed."""
    assert availability.native is not None
    a = a.contiguous()
    b, m, n = a.shape
    s = a.new_empty(b, min(m, n))
    availability.native.svd(_NAMES[a.dtype], a.data_ptr(), b, m, n, 0, s.data_ptr(), 0, torch.get_num_threads())
    return s


def _blocks(x: Tensor, block_height: int, block_width: int) -> Tensor:
    return x if x.shape[1:] == (block_height, block_width) else definitions.to_blocks(x, block_height, block_width)


def _image(blocks: Tensor, shape: torch.Size) -> Tensor:
    return blocks if blocks.shape == shape else definitions.from_blocks(blocks, *shape).contiguous()


def recompose(x_hat: Tensor, x: Tensor, block_height: int, block_width: int) -> Tensor:
    """As the operator's default in :mod:`svdrd.dispatch.recompose`."""
    return recompose_saving(x_hat, x, block_height, block_width, False)[0]


def recompose_saving(
    x_hat: Tensor, x: Tensor, block_height: int, block_width: int, need_grad_x_hat: bool
) -> tuple[Tensor, ...]:
    """The result of :func:`recompose`, to rounding, and what :func:`recompose_saved_backward` reads."""
    factors = _factors_of_both(x_hat, x, block_height, block_width, need_grad_x_hat)
    _, s_hat, _, u, _, vh = factors
    return _image(torch.bmm(u * s_hat.unsqueeze(1), vh), x.shape), *factors


def _factors_of_both(
    x_hat: Tensor, x: Tensor, block_height: int, block_width: int, need_grad_x_hat: bool
) -> tuple[Tensor, ...]:
    """u, s, vh of ``x_hat``, and of ``x``; the vectors of ``x_hat`` are empty if its gradient is not needed."""
    blocks = _blocks(x_hat, block_height, block_width)
    none = blocks.new_empty(0)
    of_x_hat = svd(blocks) if need_grad_x_hat else (none, singular_values(blocks), none)
    return *of_x_hat, *svd(_blocks(x, block_height, block_width))


def recompose_backward(
    grad: Tensor,
    x_hat: Tensor,
    x: Tensor,
    block_height: int,
    block_width: int,
    need_grad_x_hat: bool,
    need_grad_x: bool,
) -> tuple[Tensor, Tensor]:
    """As the operator's default in :mod:`svdrd.dispatch.recompose`."""
    factors = _factors_of_both(x_hat, x, block_height, block_width, need_grad_x_hat)
    return recompose_saved_backward(grad, factors, block_height, block_width, need_grad_x_hat, need_grad_x)


def recompose_saved_backward(
    grad: Tensor,
    factors: Sequence[Tensor],
    block_height: int,
    block_width: int,
    need_grad_x_hat: bool,
    need_grad_x: bool,
) -> tuple[Tensor, Tensor]:
    """:func:`recompose_backward` from the factors that :func:`recompose_saving` gave; empty where not asked for."""
    u_hat, s_hat, vh_hat, u, s, vh = factors
    g = _blocks(grad, block_height, block_width)
    by_x_hat, by_x = grad.new_empty(0), grad.new_empty(0)
    projected = torch.bmm(u.mT, g)
    if need_grad_x_hat:
        by_values = (projected * vh).sum(-1)
        by_x_hat = _image(torch.bmm(u_hat * by_values.unsqueeze(1), vh_hat), grad.shape)
    if need_grad_x:
        by_u, by_vh = torch.bmm(g, vh.mT) * s_hat.unsqueeze(1), s_hat.unsqueeze(2) * projected
        by_x = _image(svd_backward(u, s, vh, by_u, None, by_vh), grad.shape)
    return by_x_hat, by_x


def svd_backward(
    u: Tensor, s: Tensor, vh: Tensor, grad_u: Tensor | None, grad_s: Tensor | None, grad_vh: Tensor | None
) -> Tensor:
    """As :func:`svdrd.reference.derivatives.svd_vjp`."""
    assert availability.native is not None
    tensors = [None if x is None else x.contiguous() for x in (grad_u, grad_s, grad_vh, u, s, vh)]
    b, m, n = u.shape[0], u.shape[1], vh.shape[2]
    derivative = u.new_empty(b, m, n)
    pointers = [0 if x is None else x.data_ptr() for x in tensors]
    availability.native.svd_backward(
        _NAMES[u.dtype], *pointers, b, m, n, derivative.data_ptr(), torch.get_num_threads()
    )
    return derivative


def saves_iterates(dtype: torch.dtype, m: int, n: int, smooth: float) -> bool:
    """Whether Newton's iteration takes the well-conditioned ones: ``by_newton`` of ``csrc/cpu/svdrd.cpp``."""
    columns = min(m, n)
    fits = 4 <= columns <= 12 and m * n <= 1024 and (columns + 1) % 4 <= 1
    return dtype == torch.float32 and smooth == 0 and fits


def polar_factor(a: Tensor, rcond: float, smooth: float, save_factors: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`svdrd.reference.definitions.polar_factor`; ``save_factors`` as in :mod:`svdrd.backends.outputs`."""
    assert availability.native is not None
    a = a.contiguous()
    b, m, n = a.shape
    p, u, s, vh = outputs.of_polar_factor(a, save_factors)
    if save_factors == outputs.ITERATES:
        availability.native.saving_polar_factor(
            _NAMES[a.dtype], a.data_ptr(), b, m, n, rcond, smooth, p.data_ptr(), u.data_ptr(), torch.get_num_threads()
        )
        return p, u, s, vh
    factors = (u.data_ptr(), s.data_ptr(), vh.data_ptr()) if save_factors else (0, 0, 0)
    availability.native.polar_factor(
        _NAMES[a.dtype], a.data_ptr(), b, m, n, rcond, smooth, p.data_ptr(), *factors, torch.get_num_threads()
    )
    return p, u, s, vh


def polar_factor_backward(
    grad: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float
) -> Tensor:
    """As :func:`svdrd.reference.derivatives.polar_factor_vjp`; what was not saved is formed again from ``a``."""
    assert availability.native is not None
    b, m, n = grad.shape
    if u.ndim == 1 and saves_iterates(a.dtype, m, n, smooth):
        p, u, s, vh = polar_factor(a, rcond, smooth, outputs.ITERATES)
    grad = grad.contiguous()
    derivative = torch.empty_like(grad)
    if u.ndim == 2:
        a, p, u = a.contiguous(), p.contiguous(), u.contiguous()
        availability.native.saved_polar_factor_backward(
            _NAMES[grad.dtype], grad.data_ptr(), a.data_ptr(), p.data_ptr(), u.data_ptr(), b, m, n, rcond, smooth,
            derivative.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return derivative
    if a.numel() and u.ndim == 1:
        _, u, s, vh = polar_factor(a, rcond, smooth, outputs.FACTORS)
    u, s, vh = u.contiguous(), s.contiguous(), vh.contiguous()
    availability.native.polar_factor_backward(
        _NAMES[grad.dtype], grad.data_ptr(), u.data_ptr(), s.data_ptr(), vh.data_ptr(), b, m, n, smooth,
        derivative.data_ptr(), torch.get_num_threads(),
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
    assert availability.native is not None
    x_hat, x = x_hat.contiguous(), x.contiguous()
    b, h, w = x_hat.shape
    loss, by_x_hat, by_x = outputs.of_basis_loss(x_hat, block_height, block_width, need_grad_x_hat, need_grad_x)
    availability.native.basis_loss(
        _NAMES[x_hat.dtype], x_hat.data_ptr(), x.data_ptr(), b, h, w, block_height, block_width, rcond, smooth,
        loss.data_ptr(), by_x_hat.data_ptr() if need_grad_x_hat else 0,
        by_x.data_ptr() if need_grad_x else 0, torch.get_num_threads(),
    )  # fmt: skip
    return loss, by_x_hat, by_x
