"""The polar factor and the basis loss by matrix products alone: no SVD, no host synchronisation, no branch on data.

``P(A) = U f(S) V^T`` with a step ``f``, which a composition of odd polynomials realises: minimax quintics bring every
singular value above ``rcond s_1`` near 1, then ``x -> (5 x^3 - 3 x^5) / 2``, for which 0 and 1 are both
super-attracting, brings those to 1 and the others to 0. Which kernels PyTorch uses is the only thing that depends on
the batch. ``docs/performance.md`` has the error analysis and the measurements, ``docs/gradients.md`` the derivative.

Functions take ``(b, m, n)`` in float32 or float64, on any device, as those of ``svdrd.reference`` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from svdrd import reference

LARGEST_RCOND = 0.25
# Each minimax quintic is made for [l, 1] with l no smaller than this: then no singular value, once above it, is sent
# back to near 0, where rounding would swallow it.
_CUSHION = 0.04
# Room above 1 for rounding: every quintic leaves the largest singular value below 1 / (1 + _MARGIN).
_MARGIN = 2e-3
# Where the minimax quintics end: every value above rcond s_1 is then in [_NEAR, 2 - _NEAR].
_NEAR = 0.95
_TRUNCATIONS = 6
# (5 x^3 - 3 x^5) / 2 = x: below, values go to 0, above to 1.
_WATERSHED = (2 / 3) ** 0.5
# G^(2^_SQUARINGS) bounds s_1 to within a factor n^(1 / 2^(_SQUARINGS + 2)).
_SQUARINGS = 6
# The steps whose last product is formed in float64 when the input is float32.
_OPENING = 3
# Entries of the matrices that are worked on at once; bounds the memory.
_CHUNK = 1 << 21


class Quintic(NamedTuple):
    """``a x + b x^3 + c x^5``."""

    a: float
    b: float
    c: float

    def __call__(self, x: float) -> float:
        y = x * x
        return x * (self.a + y * (self.b + y * self.c))


_TRUNCATE = Quintic(0.0, 2.5, -1.5)


def _solve(matrix: list[list[float]]) -> list[float]:
    """Gaussian elimination with pivoting of a square system, its right-hand side in the last column."""
    size = len(matrix)
    for k in range(size):
        pivot = max(range(k, size), key=lambda i: abs(matrix[i][k]))
        matrix[k], matrix[pivot] = matrix[pivot], matrix[k]
        for i in range(size):
            if i != k:
                factor = matrix[i][k] / matrix[k][k]
                matrix[i] = [x - factor * y for x, y in zip(matrix[i], matrix[k], strict=True)]
    return [row[-1] / row[k] for k, row in enumerate(matrix)]


@lru_cache(maxsize=4096)
def minimax_quintic(lower: float) -> tuple[Quintic, float]:
    """The odd quintic nearest to 1 on ``[lower, 1]``, and its largest distance from 1, by Remez's exchange.

    Source: N. Amsel, D. Persson, C. Musco, R. Gower, "The Polar Express", arXiv 2505.16932, 2025.
    """
    q, r = (3 * lower + 1) / 4, (lower + 3) / 4
    for _ in range(50):
        rows = [[x, x**3, x**5, sign, 1.0] for x, sign in ((lower, 1.0), (q, -1.0), (r, 1.0), (1.0, -1.0))]
        a, b, c, error = _solve(rows)
        root = (9 * b * b - 20 * a * c) ** 0.5  # of the derivative a + 3 b y + 5 c y^2, y = x^2
        exchanged = ((-3 * b - root) / (10 * c)) ** 0.5, ((-3 * b + root) / (10 * c)) ** 0.5
        settled = abs(exchanged[0] - q) + abs(exchanged[1] - r) < 1e-14
        q, r = exchanged
        if settled:
            break
    return Quintic(a, b, c), error


def _quintics(lower: float, count: int) -> tuple[list[Quintic], float]:
    """``count`` minimax quintics for ``[lower, 1]``, one after another, and the least value they leave there."""
    steps: list[Quintic] = []
    for k in range(count):
        quintic, error = minimax_quintic(max(lower, _CUSHION))
        top = (1 + error) * (1 + _MARGIN) if k < count - 1 else 1.0  # the last one is left centred on 1
        steps.append(Quintic(*(x / top for x in quintic)))
        lower = steps[-1](lower)
    return steps, lower


def watershed(steps: Sequence[Quintic]) -> float:
    """The value that ``steps`` map to ``sqrt(2/3)``: in the end what is larger goes to 1, what is smaller to 0."""

    def beyond(x: float) -> bool:
        for step in steps:
            x = step(x)
        return x > _WATERSHED

    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return high


@lru_cache(maxsize=64)
def schedule(rcond: float) -> tuple[Quintic, ...]:
    """The quintics with their watershed at ``rcond / (1 + _MARGIN)``, for matrices of norm ``1 / (1 + _MARGIN)``."""
    target = rcond / (1 + _MARGIN)
    count = 1
    while _quintics(1.2 * target, count)[1] < _NEAR:
        count += 1
    low, high = target, min(1.0, 4 * target)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if watershed(_quintics(middle, count)[0]) > target else (middle, high)
    return (*_quintics(high, count)[0], *[_TRUNCATE] * _TRUNCATIONS)


def _reduced_precision(device: torch.device) -> bool:
    """Whether PyTorch may round float32 operands of products to fewer digits now; a host-side setting."""
    backend: Any = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    # Not torch.get_float32_matmul_precision(), which raises where the newer settings are in use.
    return backend.matmul.fp32_precision in ("tf32", "bf16")


def _product(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y`` in at least the precision of its dtype. TF32 would destroy the small singular values, and the setting
    is the process's own, so it is not touched: where it permits TF32, the product is formed in float64.
    """
    if x.dtype == torch.float32 and _reduced_precision(x.device):
        return (x.double() @ y.double()).float()
    return x @ y


def _per_item(x: Tensor) -> Tensor:
    return x[:, None, None]


def _times_power_of_two(x: Tensor, exponent: Tensor) -> Tensor:
    """``2^exponent x``, in two halves because ``2^exponent`` alone may overflow."""
    exponent = exponent.to(x.dtype).clamp(-2000, 2000)
    half = torch.trunc(exponent / 2)
    return x * _per_item(torch.exp2(half)) * _per_item(torch.exp2(exponent - half))


def _exponent(x: Tensor, at_least: float = 0.0) -> Tensor:
    """``e`` with the largest entry of each item, or ``at_least`` if that is larger, in ``[2^(e-1), 2^e)``."""
    return torch.frexp(x.abs().amax((-2, -1)).clamp(min=at_least)).exponent


def _norm_bound(x: Tensor) -> Tensor:
    """Upper bounds of the spectral norms, at most ``n^(1 / 2^(_SQUARINGS + 2))`` times too large.

    ``s_1^2 <= ||G^p||_F^(1/p)`` with ``G = x^T x`` and ``p = 2^_SQUARINGS``.
    """
    g = _product(x.mT, x)
    logarithm = x.new_zeros(x.shape[0])
    for k in range(_SQUARINGS + 1):
        if k:
            g = _product(g, g)
        norm = g.square().sum((-2, -1)).sqrt()
        norm = torch.where(norm > 0, norm, 1.0)
        logarithm = logarithm + norm.log() / 2**k
        g = g / _per_item(norm)
    return torch.exp(logarithm / 2)


class _Scaled(NamedTuple):
    """``matrix`` in float64, tall, of norm at most ``1 / (1 + _MARGIN)``: ``2^-exponent factor`` times the original."""

    matrix: Tensor
    exponent: Tensor
    factor: Tensor


def _scaled(a: Tensor, smooth: float) -> _Scaled:
    """Items scaled by powers of two, hence exactly, before anything that could overflow; with ``smooth = e > 0``
    ``[A; e I]``, whose polar factor has ``A (A^T A + e^2 I)^(-1/2)`` on top.
    """
    n = a.shape[-1]
    x = a.double()
    exponent = _exponent(x, smooth)
    x = _times_power_of_two(x, -exponent)
    if smooth > 0:
        e = _times_power_of_two(torch.full_like(x[:, :1, :1], smooth), -exponent)
        x = torch.cat([x, e * torch.eye(n, dtype=x.dtype, device=x.device)], -2)
    factor = 1 / ((1 + _MARGIN) * _norm_bound(x.to(a.dtype)).double())
    return _Scaled(x * _per_item(factor), exponent, factor)


def _iterated(x: Tensor, steps: Sequence[Quintic], dtype: torch.dtype) -> Tensor:
    """The composition of ``steps`` at ``x`` (float64), in ``dtype``.

    Of all rounding errors only those of the product ``x Q`` reach the block of the small singular values undamped (one
    in ``Q`` is multiplied by the small value on its left), and only while those are small. So the first few of these
    products are formed in float64, and nothing else needs to be.
    """
    for k, (a, b, c) in enumerate(steps):
        if k == _OPENING:
            x = x.to(dtype)
        narrow = x.to(dtype)
        gram = _product(narrow.mT, narrow)
        q = b * gram + c * _product(gram, gram)
        x = a * x + _product(x, q.to(x.dtype))
    return x.to(dtype)


def _iterated_derivative(h: Tensor, omega: Tensor, outside: Tensor, steps: Sequence[Quintic]) -> tuple[Tensor, Tensor]:
    """The derivative of the composition at ``x = P h`` along ``P omega + outside``, in the same two parts.

    ``h`` is symmetric positive semidefinite (float64), ``omega`` skew, and ``P^T outside = 0``. Both parts then carry
    the factors ``(f_i + f_j) / (s_i + s_j)`` and ``f_j / s_j`` alone. The symmetric part of ``P^T dX``, whose factors
    ``(f_i - f_j) / (s_i - s_j)`` end at 0 but grow without bound on the way, is excluded exactly by keeping ``omega``
    skew.
    """
    dtype = omega.dtype
    for k, (a, b, c) in enumerate(steps):
        if k == _OPENING:
            h = h.to(dtype)
        narrow = h.to(dtype)
        gram = _product(narrow, narrow)
        q = b * gram + c * _product(gram, gram)
        d_gram = _product(narrow, omega)
        d_gram = d_gram + d_gram.mT
        product = _product(gram, d_gram)
        d_q = b * d_gram + c * (product + product.mT)
        omega = a * omega + _product(omega, q) + _product(narrow, d_q)
        omega = (omega - omega.mT) / 2
        outside = a * outside + _product(outside, q)
        h = a * h + _product(h, q.to(h.dtype))
        h = (h + h.mT) / 2
    return omega, outside


def _cleaned(a: Tensor) -> tuple[Tensor, Tensor]:
    """``a`` with non-finite items replaced by zero, and which are finite."""
    finite = torch.isfinite(a).all(-1).all(-1)
    return torch.where(_per_item(finite), a, 0.0), finite


def _step_position(a: Tensor, rcond: float, smooth: float) -> float:
    """Where the step lies, relative to s_1. Smoothed, all of ``[A; e I]`` is kept as far as the dtype can tell."""
    eps = torch.finfo(a.dtype).eps
    return 4 * eps if smooth > 0 else max(rcond, eps)


def _checked(rcond: float) -> None:
    if not 0 <= rcond <= LARGEST_RCOND:
        raise ValueError(
            f"svdrd.matmul: rcond is {rcond}; its polynomials are made for 0 <= rcond <= {LARGEST_RCOND}. "
            "svdrd.reference takes any rcond below 1."
        )


def _chunk(a: Tensor) -> int:
    """How many items are worked on at once: by their shape alone."""
    return max(1, _CHUNK // (a.shape[-2] * a.shape[-1]))


def _polar_factor(a: Tensor, rcond: float, smooth: float) -> Tensor:
    if a.shape[-2] < a.shape[-1]:
        return _polar_factor(a.mT, rcond, smooth).mT
    safe, finite = _cleaned(a)
    scaled = _scaled(safe, smooth)
    p = _iterated(scaled.matrix, schedule(_step_position(a, rcond, smooth)), a.dtype)
    return torch.where(_per_item(finite), p[:, : a.shape[-2]], torch.nan)


def _polar_factor_vjp(g: Tensor, a: Tensor, p: Tensor, rcond: float, smooth: float) -> Tensor:
    m, n = a.shape[-2:]
    if m < n:
        return _polar_factor_vjp(g.mT, a.mT, p.mT, rcond, smooth).mT
    safe, finite = _cleaned(a)
    g, finite_g = _cleaned(g)
    finite = finite & finite_g
    x, exponent, factor = _scaled(safe, smooth)
    exponent_g = _exponent(g)
    g = _times_power_of_two(g.double(), -exponent_g).to(a.dtype)
    steps = schedule(_step_position(a, rcond, smooth))
    if smooth > 0:
        g = torch.nn.functional.pad(g, (0, 0, 0, n))
        p = _iterated(x, steps, a.dtype)
    else:
        p = torch.where(_per_item(finite), p, 0.0)

    # A = P H, and the derivative is P Omega + (I - P P^T) G H^+ with H Omega + Omega H = P^T G - G^T P.
    h = _product(p.double().mT, x)
    h = (h + h.mT) / 2
    w = _product(p.mT, g)
    skew = w - w.mT
    projection = _product(p.mT, p)
    # The factor is 2 / (s_i + s_j) where both are kept, 1 / s_i where the other is dropped.
    omega = skew - _product(projection, _product(skew, projection)) / 2
    # What leads from the null space of P to that of P^T has no derivative, and would grow to 1 / rcond on the way.
    outside = _product(g - _product(p, w), projection)
    omega, outside = _iterated_derivative(h, (omega - omega.mT) / 2, outside, steps)
    derivative = _product(p, omega - _product(p.mT, outside)) + outside

    derivative = _times_power_of_two(derivative[:, :m].double() * _per_item(factor), exponent_g - exponent)
    largest = torch.finfo(a.dtype).max
    derivative = derivative.clamp(-largest, largest).to(a.dtype)
    return torch.where(_per_item(finite), derivative, torch.nan)


def polar_factor(a: Tensor, rcond: float, smooth: float) -> Tensor:
    r"""``sum over s_i > rcond s_1 of u_i v_i^T``, or with ``smooth = e > 0`` ``A (A^T A + e^2 I)^(-1/2)``.

    Args:
        a: ``(b, m, n)``, float32 or float64. An item with NaN or Inf gives NaN for itself alone, a zero one 0.
        rcond: in [0, 0.25]; below ``eps`` it acts as ``eps``. With ``t = rcond s_1 n^(1/256)`` at most and
            ``t = rcond s_1`` at least (n the smaller side), values above ``1.13 t`` are kept and values below
            ``0.85 t`` dropped; one between them may get any weight from 0 to 1.
        smooth: ``e >= 0``, in the units of ``a``. What has ``s_i^2 + e^2 < (4 eps s_1)^2`` is dropped.

    Raises:
        ValueError: ``rcond`` is out of range.
    """
    _checked(rcond)
    if not a.numel():
        return a.clone()
    return torch.cat([_polar_factor(part, rcond, smooth) for part in a.split(_chunk(a))])


def polar_factor_vjp(grad: Tensor, a: Tensor, p: Tensor, rcond: float, smooth: float) -> Tensor:
    """The vector-Jacobian product of :func:`polar_factor`, which is its Jacobian-vector product too.

    The derivative of the composition, iterated beside it; ``gradients.polar_factor_vjp`` has the formula that it
    realises, for dropped singular values as well.

    Args:
        grad: ``(b, m, n)``, the derivative with respect to the polar factor.
        a, p: ``(b, m, n)``, the matrices and what :func:`polar_factor` gave for them.
        rcond, smooth: as there.

    Returns:
        ``(b, m, n)``; what overflows the dtype is clamped to its largest finite value.
    """
    _checked(rcond)
    if not a.numel():
        return grad.clone()
    parts = zip(*(x.split(_chunk(a)) for x in (grad, a, p)), strict=True)
    return torch.cat([_polar_factor_vjp(g, part, q, rcond, smooth) for g, part, q in parts])


def certificate(a: Tensor, p: Tensor) -> Tensor:
    """How far ``p`` is from a polar factor of ``a``: ``||P P^T P - P||_F`` and ``||P^T A - A^T P||_F / ||A||_F``.

    Both are some ``n eps`` where every singular value is clearly kept or clearly dropped. A singular value with a
    weight ``w`` between 0 and 1 shows in the first as ``w - w^3``. For ``smooth == 0``.

    Returns:
        ``(b, 2)``, on the device, without synchronisation; NaN for an item with NaN or Inf.
    """
    if a.shape[-2] < a.shape[-1]:
        return certificate(a.mT, p.mT)
    safe, finite = _cleaned(a)
    x = _times_power_of_two(safe.double(), -_exponent(safe.double())).to(a.dtype)
    isometry = _product(p, _product(p.mT, p)) - p
    symmetric = _product(p.mT, x)
    norm = x.square().sum((-2, -1)).sqrt()
    norm = torch.where(norm > 0, norm, 1.0)
    measures = [isometry.square().sum((-2, -1)).sqrt(), (symmetric - symmetric.mT).square().sum((-2, -1)).sqrt() / norm]
    return torch.where(finite[:, None], torch.stack(measures, -1), torch.nan)


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
    """As :func:`svdrd.reference.basis_loss`."""
    b, h, w = x_hat.shape
    blocks_hat, blocks = (reference.to_blocks(image, block_height, block_width) for image in (x_hat, x))
    p_hat, p = polar_factor(blocks_hat, rcond, smooth), polar_factor(blocks, rcond, smooth)
    difference = p_hat - p
    loss = difference.abs().mean((-2, -1)).reshape(b, h // block_height, w // block_width)
    # torch.sign(NaN) is 0, which would make a NaN target look like a perfect one.
    sign = torch.where(difference.isnan(), torch.nan, torch.sign(difference)) / (block_height * block_width)

    def derivative(needed: bool, sign: Tensor, blocks: Tensor, p: Tensor) -> Tensor:
        if not needed:
            return sign.new_empty(0)
        return reference.from_blocks(polar_factor_vjp(sign, blocks, p, rcond, smooth), b, h, w).contiguous()

    return loss, derivative(need_grad_x_hat, sign, blocks_hat, p_hat), derivative(need_grad_x, -sign, blocks, p)
