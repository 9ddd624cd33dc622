"""The derivatives of all operations as plain functions. ``docs/design/gradients.md`` derives each of them.

All of it is plain PyTorch over ``(..., m, n)`` batches, without autograd; ``svdrd.dispatch`` registers it with
autograd. Factors are thin: ``a = u diag(s) vh`` with ``k = min(m, n)``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which derivatives are formed: 1/s amplifies rounding by the condition number, so never float32."""
    return torch.float64 if dtype == torch.float32 else dtype


def _rescaled(derivative: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``derivative / scale`` in ``dtype``, clamped to its finite range (NaN stays NaN)."""
    largest = torch.finfo(dtype).max
    return (derivative / scale).clamp(-largest, largest).to(dtype)


def _unit_where_zero(x: Tensor) -> Tensor:
    return torch.where(x == 0, 1.0, x)


def _largest(s: Tensor) -> Tensor:
    """``s_1`` of each matrix, ``(..., 1)``; 0 where it has no singular values, because it has no rows or no columns."""
    return s[..., :1] if s.shape[-1] else s.new_zeros(*s.shape[:-1], 1)


def _units(s: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    """A unit ``(..., 1, 1)`` for each matrix, and ``smooth`` in it: s_1, or what is larger than it by no more than the
    range allows, so that neither ``s_1`` nor ``1 / e^2`` overflows. ``smooth`` counts as ``1e-400 s_1`` at least.
    """
    s_1 = _largest(s)[..., None]
    e = torch.full_like(s_1, smooth).maximum(1e-200 * (1e-200 * s_1))
    scale = _unit_where_zero(s_1.maximum(e).minimum(1e140 * e) if smooth > 0 else s_1)
    return scale, e / scale


def polar_factor_vjp(grad: Tensor, u: Tensor, s: Tensor, vh: Tensor, smooth: float = 0.0) -> Tensor:
    r"""Vector-Jacobian product of the polar factor, which is also its Jacobian-vector product.

    With ``W = U^T G V`` (full U and V), ``dL/dA = U Z V^T`` and, for ``smooth == 0``,

    ``Z_ij = (W_ij - W_ji) / (s_i + s_j)`` both kept; ``W_ij / s_kept`` one kept; ``0`` both dropped,

    or, for ``smooth = e > 0``, with ``r = sqrt(s^2 + e^2)``, ``T_ij = (s_i r_j + s_j r_i) / (s_i + s_j)``,

    ``Z_ij = (W_ij - W_ji)/2 T_ij/(r_i r_j) + (W_ij + W_ji)/2 e^2/(r_i r_j T_ij)``, and ``W_ij / r_j`` outside.

    Args:
        grad: ``(..., m, n)``, the derivative with respect to the polar factor.
        u, s, vh: thin factors ``(..., m, k)``, ``(..., k)``, ``(..., k, n)``; with ``smooth == 0`` a singular value
            that was dropped is given as 0.
        smooth: ``e >= 0``, in the units of the matrix.

    Returns:
        ``(..., m, n)`` in the dtype of ``grad``; what overflows it is clamped to its largest finite value.
    """
    if grad.shape[-2] < grad.shape[-1]:  # P(A^T) = P(A)^T: only the tall case is written out
        return polar_factor_vjp(grad.mT, vh.mT, s, u.mT, smooth).mT
    dtype, wide = grad.dtype, _wide(grad.dtype)
    g, u, s, v = grad.to(wide), u.to(wide), s.to(wide), vh.to(wide).mT  # (m, n), (m, n), (n), (n, n)

    # P(cA) = P(A), so the derivative is that at A / scale over scale: nothing overflows before the last division.
    scale, e = _units(s, smooth)
    s = s / scale[..., 0]
    s_i, s_j = s[..., :, None], s[..., None, :]

    gv = g @ v
    w = u.mT @ gv
    if smooth > 0:
        r = torch.hypot(s, e[..., 0])
        odd, even = _smoothed_weights(s, r, e)
        z = 0.5 * ((w - w.mT) * odd + (w + w.mT) * even)
        outside = 1.0 / r
    else:
        kept = s > 0
        both = kept[..., :, None] & kept[..., None, :]
        z = torch.where(s_i + s_j > 0, (w - torch.where(both, w.mT, 0.0)) / _unit_where_zero(s_i + s_j), 0.0)
        outside = torch.where(kept, 1.0 / _unit_where_zero(s), 0.0)

    derivative = u @ z
    if grad.shape[-2] > grad.shape[-1]:  # a square matrix has no outside: there the term is rounding noise over s
        derivative = derivative + (gv - u @ w) * outside[..., None, :]
    return _rescaled(derivative @ v.mT, scale, dtype)


def _smoothed_weights(s: Tensor, r: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """``T_ij / (r_i r_j)`` and ``e^2 / (r_i r_j T_ij)``. ``T_ij = r_i s_j/(s_i + s_j) + r_j s_i/(s_i + s_j)`` has no
    difference in it: ``r_i + (r_j - r_i) s_i/(s_i + s_j)`` loses all digits where ``r_i / r_j > 1 / eps``.
    """
    s_i, s_j = s[..., :, None], s[..., None, :]
    r_i, r_j = r[..., :, None], r[..., None, :]
    zero = s_i + s_j == 0
    total = torch.where(zero, 1.0, s_i + s_j)
    t = torch.where(zero, e, r_i * (s_j / total) + r_j * (s_i / total))
    odd = torch.where(zero, 1.0 / e, (s_i / r_i + s_j / r_j) / total)
    return odd, (e / r_i) * (e / r_j) / t


def polar_factor_second_derivative(
    u: Tensor, s: Tensor, vh: Tensor, kept: Tensor, g: Tensor, h: Tensor, smooth: float = 0.0
) -> Tensor:
    r"""``D^2 P(A)[G, H]``, the second directional derivative of the polar factor, symmetric in G and H.

    P is the gradient of a scalar function (of the nuclear norm), so ``<X, D^2 P[G, H]>`` is symmetric in all three
    directions and this is also the gradient of ``<H, DP[G]>`` with respect to A: the double backward.

    Args:
        u, s, vh: **full** factors ``(..., m, m)``, ``(..., k)``, ``(..., n, n)``.
        kept: ``(..., k)``, which singular values the polar factor keeps; not read where ``smooth > 0``.
        g, h: directions, ``(..., m, n)``.
        smooth: ``e >= 0``, in the units of the matrix.
    """
    m, n = g.shape[-2:]
    if m < n:
        return polar_factor_second_derivative(vh.mT, s, u.mT, kept, g.mT, h.mT, smooth).mT
    dtype, wide = g.dtype, _wide(g.dtype)
    u, s, vh = u.to(wide), s.to(wide), vh.to(wide)
    scale, e = _units(s, smooth)
    s = s / scale[..., 0]
    g = u.mT @ g.to(wide) @ vh.mT  # (m, n), in the singular bases from here on
    h = u.mT @ h.to(wide) @ vh.mT
    if smooth > 0:
        second = _smoothed_second_derivative(s, g, h, e)
    else:
        second = _stepped_second_derivative(s, kept, g, h)
    return _rescaled(u @ second @ vh / scale, scale, dtype)


def _smoothed_second_derivative(s: Tensor, g: Tensor, h: Tensor, e: Tensor) -> Tensor:
    """``P_e = A N^-1`` with ``N^2 = A^T A + e^2``, differentiated twice.

    The stacked ``X = [P; e N^-1]`` has orthonormal columns and ``[A; e I] = X N``. With the skew ``Omega = X^T dX``,
    ``d^2 N`` is a sum of products of first derivatives; from ``N^2`` it would come as a difference of far larger ones.
    """
    n = g.shape[-1]
    r = torch.hypot(s, e[..., 0])
    r_i, r_j = r[..., :, None], r[..., None, :]
    p, q = s[..., :, None] / r_i, e / r_i
    odd, even = _smoothed_weights(s, r, e)

    def omega(x: Tensor) -> Tensor:
        p_x = p * x[..., :n, :]
        return (p_x - p_x.mT) / (r_i + r_j)

    def dn(x: Tensor) -> Tensor:
        s_x = s[..., :, None] * x[..., :n, :]
        return (s_x + s_x.mT) / (r_i + r_j)

    def dp(x: Tensor) -> Tensor:
        inside = x[..., :n, :]
        z = 0.5 * ((inside - inside.mT) * odd + (inside + inside.mT) * even)
        return torch.cat([z, x[..., n:, :] / r_j], -2)

    dn_g, dn_h, dp_g, dp_h = dn(g), dn(h), dp(g), dp(h)
    dx_n = (dp_g * r_j).mT @ (dp_h * r_j) + (q * dn_g).mT @ (q * dn_h)  # N dX[G]^T dX[H] N
    turned = r_i * (omega(g) @ dn_h + omega(h) @ dn_g)
    d2n = (dx_n + dx_n.mT - turned - turned.mT) / (r_i + r_j)
    p_d2n = torch.nn.functional.pad(p * d2n, (0, 0, 0, g.shape[-2] - n))
    return -(dp_g @ dn_h + dp_h @ dn_g + p_d2n) / r_j


def _stepped_second_derivative(s: Tensor, kept: Tensor, g: Tensor, h: Tensor) -> Tensor:
    """P is the odd step f of the symmetric ``J = [[0, A], [A^T, 0]]``, and the second divided differences of a step
    need no difference of eigenvalues on the same side of it: repeated singular values are as harmless as in the first
    derivative.
    """
    m, n = g.shape[-2:]
    # Eigenpairs of J in the singular bases: (e_i, +-e_i) / sqrt(2) with +-s_i; (e_i, 0) with 0 for rows outside.
    half = 0.5**0.5 * torch.eye(n, dtype=g.dtype, device=g.device)
    q = g.new_zeros(m + n, m + n)
    q[:n, :n], q[m:, :n] = half, half
    q[:n, n : 2 * n], q[m:, n : 2 * n] = half, -half
    q[n:m, 2 * n :] = torch.eye(m - n, dtype=g.dtype, device=g.device)
    s = torch.where(kept, s, 0.0)
    rest = s.new_zeros(*s.shape[:-1], m - n)
    eigenvalue = torch.cat([s, -s, rest], -1)
    f = torch.sign(eigenvalue)

    difference = eigenvalue[..., :, None] - eigenvalue[..., None, :]
    apart = f[..., :, None] != f[..., None, :]
    inverse = torch.where(apart, 1.0 / _unit_where_zero(difference), 0.0)
    first = (f[..., :, None] - f[..., None, :]) * inverse  # first divided differences f[i, j]

    def lifted(x: Tensor) -> Tensor:
        j = x.new_zeros(*x.shape[:-2], m + n, m + n)
        j[..., :m, m:], j[..., m:, :m] = x, x.mT
        return q.mT @ j @ q

    def half_second(x: Tensor, y: Tensor) -> Tensor:  # sum over k of f[i, k, j] x_ik y_kj
        across = inverse * ((x * first) @ y - x @ (y * first))
        within = (x * first) @ (y * inverse)
        return torch.where(apart, across, within)

    g, h = lifted(g), lifted(h)
    return (q @ (half_second(g, h) + half_second(h, g)) @ q.mT)[..., :m, m:]


def svd_vjp(
    grad_u: Tensor | None, grad_s: Tensor | None, grad_vh: Tensor | None, u: Tensor, s: Tensor, vh: Tensor
) -> Tensor:
    r"""Vector-Jacobian product of the thin SVD.

    With ``Ju = skew(U^T gU)``, ``Jv = skew(V^T gV)``, ``skew(X) = X - X^T``, the off-diagonal part of ``U^T gA V`` is

    ``(Ju + Jv) / (2 (s_j - s_i)) + (Ju - Jv) / (2 (s_j + s_i))``,

    its diagonal is ``gS``, and ``(I - U U^T) gU S^-1 V^T`` (tall) or ``U S^-1 gV^T (I - V V^T)`` (wide) is added.

    Exact at distinct singular values. Where ``|s_i - s_j| <= max(m, n) eps (s_i + s_j)`` the first quotient is taken as
    0, where ``s_i + s_j <= 4 eps s_1`` both, and ``1/s`` where ``s <= 4 eps s_1``: always finite.
    ``docs/design/gradients.md`` says for which functions this is the exact derivative at a repeated value, and why no
    rule could serve them all.

    Args:
        grad_u, grad_s, grad_vh: ``(..., m, k)``, ``(..., k)``, ``(..., k, n)``; None stands for zero.
        u, s, vh: the factors.

    Returns:
        ``(..., m, n)``, built of differentiable operations.
    """
    m, n = u.shape[-2], vh.shape[-1]
    dtype, wide = u.dtype, _wide(u.dtype)
    u, s, v = u.to(wide), s.to(wide), vh.to(wide).mT
    scale, by_u, by_v, inverse_s = _svd_weights(s, max(m, n), torch.finfo(dtype).eps)

    core, outside = torch.zeros_like(by_u), u.new_zeros(())  # both are in units of 1 / s_1
    if grad_u is not None:
        g = grad_u.to(wide)
        projected = u.mT @ g
        skew = projected - projected.mT
        core = core + skew * by_u
        if m > n:
            outside = outside + ((g - u @ projected) * inverse_s[..., None, :]) @ v.mT
    if grad_vh is not None:
        g = grad_vh.to(wide).mT
        projected = v.mT @ g
        skew = projected - projected.mT
        core = core + skew * by_v
        if n > m:
            outside = outside + (u * inverse_s[..., None, :]) @ (g - v @ projected).mT
    derivative = (u @ core) @ v.mT + outside
    result = _rescaled(derivative, scale, wide)
    if grad_s is not None:
        result = result + (u * grad_s.to(wide)[..., None, :]) @ v.mT
    return _rescaled(result, scale.new_ones(()), dtype)


def _svd_weights(s: Tensor, larger_side: int, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the derivative of the SVD divides by, in units of a scale ``(..., 1, 1)``, which comes first: s_1, or 1.

    Then ``1/(2 (s_j - s_i)) + 1/(2 (s_j + s_i))``, the difference of the two, and ``1/s``; each quotient 0 where
    :func:`svd_vjp` says so.
    """
    scale = _unit_where_zero(_largest(s))[..., None]
    s = s / scale[..., 0]
    s_i, s_j = s[..., :, None], s[..., None, :]
    gap, total = s_j - s_i, s_j + s_i
    nonzero = total > 4 * eps
    # Relative to the pair, not to s_1: small values of an image are genuine, and so are the gaps between them.
    distinct = nonzero & (gap.abs() > larger_side * eps * total)
    inverse_gap = torch.where(distinct, 0.5 / torch.where(distinct, gap, 1.0), 0.0)
    inverse_total = torch.where(nonzero, 0.5 / torch.where(nonzero, total, 1.0), 0.0)
    positive = s > 4 * eps
    inverse_s = torch.where(positive, 1.0 / torch.where(positive, s, 1.0), 0.0)
    return scale, inverse_gap + inverse_total, inverse_gap - inverse_total, inverse_s


def svd_jvp(tangent: Tensor, u: Tensor, s: Tensor, vh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Jacobian-vector product of the thin SVD: the adjoint of :func:`svd_vjp`, with the same quotients taken as 0.

    With ``M = U^T T V``, ``F = 1/(2 (s_j - s_i))``, ``E = 1/(2 (s_j + s_i))``, ``skew(X) = X - X^T``:

    ``dS = diag M``, ``dU = U skew((F + E) M) + (I - U U^T) T V S^-1``,
    ``dV = V skew((F - E) M) + (I - V V^T) T^T U S^-1``.

    Args:
        tangent: ``(..., m, n)``, the direction T.
        u, s, vh: the factors.

    Returns:
        ``(..., m, k)``, ``(..., k)``, ``(..., k, n)``, built of differentiable operations.
    """
    m, n = u.shape[-2], vh.shape[-1]
    dtype, wide = u.dtype, _wide(u.dtype)
    t, u, s, v = tangent.to(wide), u.to(wide), s.to(wide), vh.to(wide).mT
    scale, by_u, by_v, inverse_s = _svd_weights(s, max(m, n), torch.finfo(dtype).eps)
    tv, tu = t @ v, t.mT @ u  # (m, k), (n, k)
    middle = u.mT @ tv

    def turned(basis: Tensor, weights: Tensor, image: Tensor) -> Tensor:
        weighted = middle * weights
        turn = basis @ (weighted - weighted.mT)
        if basis.shape[-2] > basis.shape[-1]:
            turn = turn + (image - basis @ (basis.mT @ image)) * inverse_s[..., None, :]
        return _rescaled(turn, scale, dtype)

    by_values = middle.diagonal(dim1=-2, dim2=-1)
    return turned(u, by_u, tv), _rescaled(by_values, scale.new_ones(()), dtype), turned(v, by_v, tu).mT
