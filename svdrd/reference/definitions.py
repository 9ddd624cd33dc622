"""The specification: every operation in plain PyTorch, for any device. The tests compare all backends with it.

It is also the backend ``torch``. All functions take one batch dimension, ``(b, m, n)``, in float32 or float64.
float32 is computed in float64 and rounded once at the end. LAPACK's float32 SVD leaves noise of up to 25 eps s_1 in a
singular value that is exactly zero, and ranks that are decided from it are wrong.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from svdrd.reference import derivatives

# Entries of two polar factors that differ by no more than this many eps of their dtype count as equal, in every
# backend: where they are equal in exact arithmetic (flat blocks, stripes, blocks that are black in part), all backends
# were found within 7 eps of each other, over 4 to 128 rows and columns; tests/ops/test_equal_entries.py keeps that.
# What is left out is the noise of ill-conditioned float64 matrices, which grows with s_1 / s_k.
EQUAL_WITHIN = 16


def _finite_items(a: Tensor) -> Tensor:
    return torch.isfinite(a).all(-1).all(-1)


def scaled(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which items are finite, and in float64 the matrices, others replaced by zero, or LAPACK would refuse the whole
    batch, divided by a power of two; its exponent in two halves, as :func:`unscaled` takes them.
    """
    finite = _finite_items(a)
    safe = torch.where(finite[:, None, None], a, 0.0).to(torch.float64)
    # An exact power of two brings the largest entry to [1/2, 1), where LAPACK neither overflows nor loses denormals. It
    # is applied in two halves because 2^-exponent alone overflows for a denormal.
    largest = safe.abs().amax((-2, -1)) if safe.numel() else safe.new_ones(safe.shape[0])
    exponent = torch.frexp(largest).exponent.to(torch.float64)
    half = torch.trunc(exponent / 2)
    rest = exponent - half
    return finite, safe * torch.exp2(-half)[:, None, None] * torch.exp2(-rest)[:, None, None], half, rest


def unscaled(s: Tensor, half: Tensor, rest: Tensor) -> Tensor:
    """Singular values ``(b, k)`` of what :func:`scaled` made, in the matrices' own scale."""
    return s * torch.exp2(half)[:, None] * torch.exp2(rest)[:, None]


def _factors(a: Tensor, full_matrices: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Float64 factors and which items are finite."""
    finite, matrices, *halves = scaled(a)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=full_matrices)
    # LAPACK leaves up to 27 eps s_1 in a value that is exactly zero. The error of the vectors enters |u_i^T A v_i|
    # squared, so that is below eps s_1 there; elsewhere the two agree to rounding.
    k = s.shape[-1]
    quotient = (u[..., :k].mT @ matrices * vh[..., :k, :]).sum(-1).abs()
    s = torch.minimum(s, quotient).cummin(-1).values if k else s
    return u, unscaled(s, *halves), vh, finite


def nan_where_not_finite(finite: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in ``dtype``, and NaN for the items that are not finite."""
    shape = (-1, *([1] * (x.ndim - 1)))
    return torch.where(finite.reshape(shape), x, torch.nan).to(dtype).contiguous()


def svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD, ``a = u diag(s) vh``: ``(b, m, k)``, ``(b, k)`` descending and nonnegative, ``(b, k, n)``."""
    u, s, vh, finite = _factors(a)
    return (
        nan_where_not_finite(finite, u, a.dtype),
        nan_where_not_finite(finite, s, a.dtype),
        nan_where_not_finite(finite, vh, a.dtype),
    )


def _isometric(p: Tensor, rank: Tensor) -> Tensor:
    """The partial isometry of that rank nearest to each ``p``."""
    u, s, vh = torch.linalg.svd(p, full_matrices=False)
    kept = torch.arange(s.shape[-1], device=p.device) < rank[:, None]
    return (u * kept[:, None, :]) @ vh


def polar_factor(a: Tensor, rcond: float, smooth: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""``sum over s_i > rcond s_1 of u_i v_i^T``, or with ``smooth > 0`` ``U diag(s / sqrt(s^2 + smooth^2)) V^T``.

    Returns the polar factor and the factors its derivative needs, singular values that were dropped written as 0.
    """
    u, s, vh, finite = _factors(a)
    if smooth > 0:
        larger = s.clamp(min=smooth)  # hypot is not reliable for denormals, and smooth / s_1 may be none
        weight = s / larger / torch.hypot(s / larger, torch.full_like(s, smooth) / larger)
    else:
        kept = s > rcond * s[:, :1]
        s = torch.where(kept, s, 0.0)
        weight = kept.to(s.dtype)
    p = (u * weight[:, None, :]) @ vh
    # Rows and columns of zeros stay zeros: the singular vectors of an ill-conditioned matrix have noise there.
    filled = (a != 0).any(-1, keepdim=True) & (a != 0).any(-2, keepdim=True)
    noisy = torch.where(filled, 0.0, p).square().sum((-2, -1)) > torch.finfo(p.dtype).eps
    p = torch.where(filled, p, 0.0)
    if smooth == 0 and noisy.any():
        p = torch.where(noisy[:, None, None] & filled, _isometric(p, weight.sum(-1)), p)
    return (
        nan_where_not_finite(finite, p, a.dtype),
        nan_where_not_finite(finite, u, a.dtype),
        nan_where_not_finite(finite, s, a.dtype),
        nan_where_not_finite(finite, vh, a.dtype),
    )


def polar_factor_second_derivative(a: Tensor, g: Tensor, h: Tensor, rcond: float, smooth: float) -> Tensor:
    """``D^2 P(a)[g, h]``, the double backward of the polar factor."""
    u, s, vh, finite = _factors(a, full_matrices=True)
    second = derivatives.polar_factor_second_derivative(u, s, vh, s > rcond * s[:, :1], g, h, smooth)
    return nan_where_not_finite(finite, second, a.dtype)


def to_blocks(x: Tensor, block_height: int, block_width: int) -> Tensor:
    """``(b, h, w)`` images to ``(b * h / block_height * w / block_width, block_height, block_width)``, row by row."""
    b, h, w = x.shape
    rows, columns = h // block_height, w // block_width
    split = x.reshape(b, rows, block_height, columns, block_width)
    return split.transpose(2, 3).reshape(b * rows * columns, block_height, block_width)


def from_blocks(blocks: Tensor, batch: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`to_blocks`."""
    _, block_height, block_width = blocks.shape
    rows, columns = height // block_height, width // block_width
    split = blocks.reshape(batch, rows, columns, block_height, block_width)
    return split.transpose(2, 3).reshape(batch, height, width)


def signs(p_hat: Tensor, p: Tensor, computed: torch.dtype | None = None) -> Tensor:
    r"""``sign(p_hat - p)`` of polar factors ``(b, m, n)``, 0 where they are equal but for rounding; NaN where one is.

    Equal: apart by no more than ``EQUAL_WITHIN eps``, times the larger one's largest singular value where that is below
    1, which only a smoothed factor's can be. It is at most ``sqrt(m n)`` times the largest entry.

    Args:
        computed: the dtype whose eps that is; None: that of ``p``.
    """
    difference = p_hat - p
    if not difference.numel():
        return difference
    largest = torch.maximum(p_hat.abs(), p.abs()).amax((-2, -1), keepdim=True)
    size = (largest * math.sqrt(p.shape[-2] * p.shape[-1])).clamp(max=1)
    bound = EQUAL_WITHIN * torch.finfo(computed or p.dtype).eps * size
    # torch.sign(NaN) is 0, which would make a NaN target look like a perfect one.
    sign = torch.where(difference.isnan(), torch.nan, torch.sign(difference))
    return torch.where(difference.abs() <= bound, 0.0, sign)


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
    r"""``mean |P(x_hat) - P(x)|`` of each block, and the derivative of each block's loss by its own entries.

    The sign in the derivative is that of :func:`signs`.

    Args:
        x_hat, x: ``(b, h, w)``.

    Returns:
        loss ``(b, h / block_height, w / block_width)`` and the two derivatives, ``(b, h, w)``, empty where not needed.
    """
    b, h, w = x_hat.shape
    p_hat, *factors_hat = polar_factor(to_blocks(x_hat, block_height, block_width), rcond, smooth)
    p, *factors = polar_factor(to_blocks(x, block_height, block_width), rcond, smooth)
    loss = (p_hat - p).abs().mean((-2, -1)).reshape(b, h // block_height, w // block_width)
    sign = signs(p_hat, p) / (block_height * block_width)

    def derivative(needed: bool, sign: Tensor, factors: list[Tensor]) -> Tensor:
        if not needed:
            return sign.new_empty(0)
        u, s, vh = factors
        return from_blocks(derivatives.polar_factor_vjp(sign, u, s, vh, smooth), b, h, w).contiguous()

    return loss, derivative(need_grad_x_hat, sign, factors_hat), derivative(need_grad_x, -sign, factors)


def basis_loss_second_derivative(
    x_hat: Tensor,
    x: Tensor,
    grad_loss: Tensor,
    direction: Tensor,
    block_height: int,
    block_width: int,
    rcond: float,
    smooth: float,
) -> Tensor:
    r"""Gradient of ``<direction, grad_loss * d loss / d x_hat>`` by ``x_hat``; the sign pattern is constant there."""
    b, h, w = x_hat.shape
    hat, target = to_blocks(x_hat, block_height, block_width), to_blocks(x, block_height, block_width)
    sign = signs(polar_factor(hat, rcond, smooth)[0], polar_factor(target, rcond, smooth)[0])
    upstream = grad_loss.reshape(-1, 1, 1) * sign / (block_height * block_width)
    second = polar_factor_second_derivative(
        hat, upstream, to_blocks(direction, block_height, block_width), rcond, smooth
    )
    return from_blocks(second, b, h, w).contiguous()
