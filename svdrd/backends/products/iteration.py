"""The polar factor and the basis loss by matrix products alone: no SVD, no host synchronisation, no branch on data.

``P(A) = U f(S) V^T`` with a step ``f``, made of odd polynomials. Minimax quintics bring every singular value above
``rcond s_1`` near 1. Then ``x -> (5 x^3 - 3 x^5) / 2`` brings those to 1 and the others to 0; both are
super-attracting. Only one thing depends on the batch: which kernels PyTorch uses for its products.
``docs/design/gpu_products.md`` has the error analysis, ``docs/design/gradients.md`` the derivative.

Functions take ``(b, m, n)`` in float32 or float64, on any device, as those of ``svdrd.reference.definitions`` do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from svdrd.backends.products.arithmetic import TORCH, Products, per_item, product
from svdrd.reference import definitions

LARGEST_RCOND = 0.25
# Each minimax quintic is made for [l, 1] with l no smaller than this: then no singular value, once above it, is sent
# back to near 0, where rounding would swallow it.
_CUSHION = 0.04
# Room above 1 for rounding: every quintic leaves the largest singular value below 1 / (1 + MARGIN).
MARGIN = 2e-3
# Where the minimax quintics end: every value above rcond s_1 is then in [_NEAR, 2 - _NEAR].
_NEAR = 0.95
TRUNCATIONS = 6
# (5 x^3 - 3 x^5) / 2 = x: below, values go to 0, above to 1.
_WATERSHED = (2 / 3) ** 0.5
# G^(2^SQUARINGS) bounds s_1 to within a factor n^(1 / 2^(SQUARINGS + 2)).
SQUARINGS = 6
# The steps whose last product is formed in float64 when the input is float32.
OPENING = 3
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


TRUNCATE = Quintic(0.0, 2.5, -1.5)


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
        top = (1 + error) * (1 + MARGIN) if k < count - 1 else 1.0  # the last one is left centred on 1
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
    """The quintics with their watershed at ``rcond / (1 + MARGIN)``, for matrices of norm ``1 / (1 + MARGIN)``."""
    target = rcond / (1 + MARGIN)
    count = 1
    while _quintics(1.2 * target, count)[1] < _NEAR:
        count += 1
    low, high = target, min(1.0, 4 * target)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if watershed(_quintics(middle, count)[0]) > target else (middle, high)
    return (*_quintics(high, count)[0], *[TRUNCATE] * TRUNCATIONS)


def _norm_bound(products: Products, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Upper bounds of the spectral norms, at most ``n^(1 / 2^(SQUARINGS + 2))`` times too large.

    ``s_1^2 <= ||G^p||_F^(1/p)`` with ``G = x^T x`` and ``p = 2^SQUARINGS``.
    """
    norms: list[Tensor] = []
    for _ in range(SQUARINGS + 1):
        x, norm = products.unit_gram(x, norms[-1] if norms else None, dtype)
        norms.append(norm)
    bound = torch.ones_like(norms[0])
    for norm in reversed(norms):
        bound = (norm * bound).sqrt()
    return bound


class _Scaled(NamedTuple):
    """``matrix`` in float64, tall, of norm at most ``1 / (1 + MARGIN)``: ``2^-exponent factor`` times the original.

    ``health`` is 1, or NaN for an item with NaN or Inf, whose matrix is zero.
    """

    matrix: Tensor
    exponent: Tensor
    factor: Tensor
    health: Tensor


def _scaled(
    products: Products, matrices: Any, dtype: torch.dtype, smooth: float, factor: Tensor | None = None
) -> _Scaled:
    """Items scaled by powers of two, hence exactly, before anything that could overflow; with ``smooth = e > 0``
    ``[A; e I]``, whose polar factor has ``A (A^T A + e^2 I)^(-1/2)`` on top. ``factor`` spares the search for it.
    """
    x, exponent, health = products.read(matrices, torch.float64, True, smooth if smooth > 0 else None)
    if factor is None:
        factor = 1 / ((1 + MARGIN) * _norm_bound(products, x, dtype).double())
    return _Scaled(x * per_item(factor), exponent, factor, health)


def _iterated(products: Products, x: Tensor, steps: Sequence[Quintic], dtype: torch.dtype) -> Tensor:
    """The composition of ``steps`` at ``x`` (float64), in ``dtype``.

    Of all rounding errors only those of the product ``x Q`` reach the block of the small singular values undamped (one
    in ``Q`` is multiplied by the small value on its left), and only while those are small. So the first few of these
    products are formed in float64, and nothing else needs to be.
    """
    for k, (a, b, c) in enumerate(steps):
        if k == OPENING:
            x = x.to(dtype)
        gram = products.gram(x, dtype)
        q = products.gram(gram, dtype, c, gram, b, symmetric=True)  # b gram + c gram^2
        x = products.times(x, q, 1.0, x, a)
    return x.to(dtype)


def _parts(
    products: Products, matrices: Any, factor: Tensor | None, p: Tensor, g: Tensor, dtype: torch.dtype, smooth: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``A = P H``, and the derivative is ``P Omega + (I - P P^T) G H^+`` with ``H Omega + Omega H = P^T G - G^T P``.

    Returns H (float64), and that right-hand side and ``(I - P P^T) G`` without what has no derivative.
    """
    h = products.cross(_scaled(products, matrices, dtype, smooth, factor).matrix, p, 1.0, torch.float64, 0.5)
    projection = products.gram(p, dtype)
    # The factor is 2 / (s_i + s_j) where both are kept, 1 / s_i where the other is dropped.
    skew = products.cross(p, g, -1.0, dtype)
    twice = products.times(skew, projection)
    omega = products.cross(projection, twice, -1.0, dtype, -0.25, skew, 1.0, symmetric=True)
    # What leads from the null space of P to that of P^T has no derivative, and would grow to 1 / rcond on the way.
    residual = products.times(p, products.inner(p, g), -1.0, g, 1.0)
    return h, omega, products.times(residual, projection)


def _derivative(
    products: Products,
    matrices: Any,
    factor: Tensor | None,
    p: Tensor,
    g: Tensor,
    dtype: torch.dtype,
    steps: Sequence[Quintic],
    smooth: float,
) -> Tensor:
    """The derivative of the composition at ``x = P h`` along g, as ``P omega + outside``.

    ``h`` is symmetric positive semidefinite (float64), ``omega`` skew, and ``P^T outside = 0``. Both parts carry
    the factors ``(f_i + f_j) / (s_i + s_j)`` and ``f_j / s_j`` alone. The symmetric part of ``P^T dX``, whose factors
    ``(f_i - f_j) / (s_i - s_j)`` end at 0 but grow without bound on the way, is excluded exactly by keeping ``omega``
    skew.
    """
    h, omega, outside = _parts(products, matrices, factor, p, g, dtype, smooth)
    for k, (a, b, c) in enumerate(steps):
        if k == OPENING:
            h = h.to(dtype)
        gram = products.gram(h, dtype, symmetric=True)
        q = products.gram(gram, dtype, c, gram, b, symmetric=True)
        d_gram = products.cross(h, omega, 1.0, dtype, symmetric=True)  # h omega - omega h
        d_q = products.cross(gram, d_gram, 1.0, dtype, c, d_gram, b, symmetric=True)
        omega = products.cross(q, omega, -1.0, dtype, 0.5, omega, a, symmetric=True)
        omega = products.cross(h, d_q, -1.0, dtype, 0.5, omega, 1.0, symmetric=True)
        outside = products.times(outside, q, 1.0, outside, a)
        h = products.cross(h, q, 1.0, h.dtype, 0.5, h, a, symmetric=True)
    return products.times(p, products.inner(p, outside, -1.0, omega, 1.0), 1.0, outside, 1.0)


def step_position(dtype: torch.dtype, rcond: float, smooth: float) -> float:
    """Where the step lies, relative to s_1. Smoothed, all of ``[A; e I]`` is kept as far as the dtype can tell."""
    eps = torch.finfo(dtype).eps
    return 4 * eps if smooth > 0 else max(rcond, eps)


def _checked(rcond: float) -> None:
    if not 0 <= rcond <= LARGEST_RCOND:
        raise ValueError(
            f"svdrd: rcond is {rcond}; the products' polynomials are made for 0 <= rcond <= {LARGEST_RCOND}. "
            "svdrd.reference.definitions takes any rcond below 1."
        )


def write_polar_factor(
    products: Products, matrices: Any, into: Any, dtype: torch.dtype, rcond: float, smooth: float
) -> None:
    """:func:`polar_factor` of some matrices at once, over any implementation of the products."""
    _checked(rcond)
    scaled = _scaled(products, matrices, dtype, smooth)
    p = _iterated(products, scaled.matrix, schedule(step_position(dtype, rcond, smooth)), dtype)
    products.write(into, p, scaled.health, None)


def write_polar_factor_vjp(
    products: Products,
    grad: Any,
    matrices: Any,
    p: Any,
    into: Any,
    dtype: torch.dtype,
    rcond: float,
    smooth: float,
) -> None:
    """:func:`polar_factor_vjp` of some matrices at once, over any implementation of the products."""
    _checked(rcond)
    steps = schedule(step_position(dtype, rcond, smooth))
    _, exponent, factor, health = scaled = _scaled(products, matrices, dtype, smooth)
    p = _iterated(products, scaled.matrix, steps, dtype) if smooth > 0 else products.read(p, dtype, False, None)[0]
    del scaled, _
    g, exponent_g, health_g = products.read(grad, dtype, True, 0.0 if smooth > 0 else None)
    derivative = _derivative(products, matrices, factor, p, g, dtype, steps, smooth)
    products.write(into, derivative, factor * health * health_g, exponent_g - exponent)


def _equality_bound(p_hat: Tensor, p: Tensor, size: tuple[int, int], smooth: float) -> Tensor:
    """What :func:`definitions.signs` takes for equal, ``(b,)``; of smoothed factors only the rows that are P count."""
    bound = p.new_full((len(p),), definitions.EQUAL_WITHIN * torch.finfo(p.dtype).eps)
    if smooth == 0:
        return bound
    largest = [torch.linalg.vector_norm(x[:, : max(size)], torch.inf, (1, 2)) for x in (p_hat, p)]
    return bound * (torch.maximum(*largest) * math.sqrt(math.prod(size))).clamp(max=1)


def write_basis_loss(
    products: Products,
    sides: Sequence[tuple[Any, Any]],
    size: tuple[int, int],
    dtype: torch.dtype,
    rcond: float,
    smooth: float,
) -> Tensor:
    """``mean |P(x_hat) - P(x)|`` of some pairs of matrices at once, over any implementation of the products.

    Args:
        sides: the matrices x_hat and where their derivative goes, or None; then the same of x.
        size: ``m, n``.

    Returns:
        ``(b,)``.
    """
    _checked(rcond)
    steps = schedule(step_position(dtype, rcond, smooth))

    def factored(matrices: Any) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        matrix, exponent, factor, health = _scaled(products, matrices, dtype, smooth)
        return _iterated(products, matrix, steps, dtype), (exponent, factor), health

    (p_hat, scale_hat, health_hat), (p, scale, health) = (factored(matrices) for matrices, _ in sides)
    health = health * health_hat
    bound = _equality_bound(p_hat, p, size, smooth)
    loss, sign = products.distance(p_hat, p, bound, size, any(into is not None for _, into in sides))
    for direction, q, (exponent, factor), (matrices, into) in zip(
        (1.0, -1.0), (p_hat, p), (scale_hat, scale), sides, strict=True
    ):
        if sign is not None and into is not None:
            # |P1 - P2| is symmetric: the sign of the direction is that of the derivative.
            derivative = _derivative(products, matrices, factor, q, sign, dtype, steps, smooth)
            products.write(into, derivative, direction * factor * health, -exponent)
    return (loss * health).to(dtype)


def _chunk(m: int, n: int) -> int:
    """How many items are worked on at once: by their shape alone."""
    return max(1, _CHUNK // (m * n))


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
    p, chunk = torch.empty_like(a), _chunk(*a.shape[-2:])
    for part, into in zip(a.split(chunk), p.split(chunk), strict=True):
        write_polar_factor(TORCH, part, into, a.dtype, rcond, smooth)
    return p


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
    derivative = torch.empty_like(a)
    parts = (x.split(_chunk(*a.shape[-2:])) for x in (grad, a, p, derivative))
    for g, matrices, factor, into in zip(*parts, strict=True):
        write_polar_factor_vjp(TORCH, g, matrices, factor, into, a.dtype, rcond, smooth)
    return derivative


def certificate(a: Tensor, p: Tensor) -> Tensor:
    """How far ``p`` is from a polar factor of ``a``: ``||P P^T P - P||_F`` and ``||P^T A - A^T P||_F / ||A||_F``.

    Both are some ``n eps`` where every singular value is clearly kept or clearly dropped. A singular value with a
    weight ``w`` between 0 and 1 shows in the first as ``w - w^3``. For ``smooth == 0``.

    Returns:
        ``(b, 2)``, on the device, without synchronisation; NaN for an item with NaN or Inf.
    """
    if a.shape[-2] < a.shape[-1]:
        return certificate(a.mT, p.mT)
    x, _, health = TORCH.read(a, a.dtype, True, None)
    isometry = product(p, product(p.mT, p)) - p
    symmetric = product(p.mT, x)
    norm = x.square().sum((-2, -1)).sqrt()
    norm = torch.where(norm > 0, norm, 1.0)
    measures = [isometry.square().sum((-2, -1)).sqrt(), (symmetric - symmetric.mT).square().sum((-2, -1)).sqrt() / norm]
    return (torch.stack(measures, -1) * health[:, None]).to(a.dtype)


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
    _checked(rcond)
    b, h, w = x_hat.shape
    blocks_hat, blocks = (definitions.to_blocks(image, block_height, block_width) for image in (x_hat, x))
    loss = x_hat.new_empty(len(blocks))
    derivatives = [
        torch.empty_like(blocks) if needed else blocks.new_empty(0) for needed in (need_grad_x_hat, need_grad_x)
    ]
    chunk = _chunk(block_height, block_width)
    for k in range(0, len(blocks), chunk):
        part = slice(k, k + chunk)
        sides = [
            (matrices[part], derivative[part] if derivative.numel() else None)
            for matrices, derivative in zip((blocks_hat, blocks), derivatives, strict=True)
        ]
        loss[part] = write_basis_loss(TORCH, sides, (block_height, block_width), x.dtype, rcond, smooth)
    by_x_hat, by_x = (
        definitions.from_blocks(derivative, b, h, w).contiguous() if needed else derivative
        for derivative, needed in zip(derivatives, (need_grad_x_hat, need_grad_x), strict=True)
    )
    return loss.reshape(b, h // block_height, w // block_width), by_x_hat, by_x
