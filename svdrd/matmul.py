r"""The polar factor and its derivative by matrix products alone: no SVD, no host synchronisation; float32.

An odd polynomial applied to the singular values is three products, ``p(X) = X (a + b G + c G^2)`` with ``G = X^T X``.
A composition of minimax quintics (Amsel, Persson, Musco, Gower, "The Polar Express", arXiv 2505.16932) lifts every
singular value above the threshold to within 10 % of 1; then ``x -> (5 x^3 - 3 x^5) / 2``, of which 0 and 1 are both
super-attracting fixed points, takes those to 1 and everything below the threshold to 0: the rank is decided by it.

The threshold is ``rcond`` times a bound of s_1 that is at most ``n^(1/16)`` above it (1.41 at n = 256, when all values
are equal). The bits of an item are as independent of its batch as those of PyTorch's batched products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy
import torch
from torch import Tensor

from svdrd import reference

Quintic = tuple[float, float, float]

SHARPEN: Quintic = (0.0, 2.5, -1.5)
# The fixed point of SHARPEN between 0 and 1, from which values move to either side.
THRESHOLD = math.sqrt(2 / 3)
# How often: enough to take what is 10 % from 1 there, and noise at three quarters of the threshold to 0.
SHARPENINGS = 6
# The lifting polynomials are tuned from here on at least. From lower they would sink values near 1 to the lower end of
# their interval on the way, and rounding, relative to the largest value, would ruin them.
CUSHION = 0.1
# Each polynomial serves values up to 1 % above its interval, as the next ones diverge there and rounding goes there.
MARGIN = 0.01
# Below this the rounding of float32 products would be taken for singular values.
SMALLEST_RCOND = 2 * torch.finfo(torch.float32).eps


def evaluate(p: Quintic, x: float) -> float:
    """``a x + b x^3 + c x^5``."""
    a, b, c = p
    return x * (a + x * x * (b + x * x * c))


def _extrema(p: Quintic) -> tuple[float, float]:
    a, b, c = p
    root = math.sqrt(9 * b * b - 20 * a * c)
    first, second = sorted(((-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)))
    return math.sqrt(first), math.sqrt(second)


def minimax_quintic(lower: float, upper: float) -> Quintic:
    """The odd quintic that is closest to 1 on ``[lower, upper]``, by Remez' exchange of its four extremal points."""
    q, r = (3 * lower + upper) / 4, (lower + 3 * upper) / 4
    for _ in range(200):
        x = numpy.array([lower, q, r, upper])
        system = numpy.stack([x, x**3, x**5, numpy.array([1.0, -1.0, 1.0, -1.0])], 1)
        a, b, c, _ = (float(value) for value in numpy.linalg.solve(system, numpy.ones(4)))
        before, (q, r) = (q, r), _extrema((a, b, c))
        if abs(before[0] - q) + abs(before[1] - r) < 1e-13 * upper:
            return a, b, c
    raise ArithmeticError(f"minimax_quintic({lower}, {upper}) does not converge")


def _image(p: Quintic, lower: float, upper: float) -> tuple[float, float]:
    values = [evaluate(p, x) for x in (lower, upper, *_extrema(p)) if lower <= x <= upper]
    return min(values), max(values)


@cache
def step(rcond: float) -> tuple[Quintic, ...]:
    """Quintics whose composition takes ``[0, rcond)`` to 0 and ``(rcond, 1]`` to 1, apart from a transition at rcond.

    The width of the transition is tested: at ``rcond = 4 eps`` values below 0.8 or above 1.2 times the threshold have
    arrived to float32's rounding.
    """
    lower, upper = rcond, 1.0
    quintics: list[Quintic] = []
    while not quintics or lower < 0.9:
        quintics.append(minimax_quintic(max(lower, CUSHION), upper * (1 + MARGIN)))
        lower, upper = _image(quintics[-1], lower, upper)
    for _ in range(SHARPENINGS):
        values = (evaluate(SHARPEN, lower), evaluate(SHARPEN, upper), 1.0)
        lower, upper = min(values), max(values)
        quintics.append(SHARPEN)

    def lifted(x: float) -> float:
        for p in quintics:
            if p is not SHARPEN:
                x = evaluate(p, x)
        return x

    low, high = 0.0, rcond
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if lifted(middle) < THRESHOLD else (low, middle)
    # With the input scaled by this, rcond itself is what arrives at the threshold.
    a, b, c = quintics[0]
    scale = high / rcond
    return ((a * scale, b * scale**3, c * scale**5), *quintics[1:])


def takes(dtype: torch.dtype, m: int, n: int, rcond: float, smooth: float) -> bool:
    """Whether this path computes: float32, the exact polar factor, a threshold above the noise of float32 products, and
    matrices above 32, where PyTorch's SVD on a GPU is a loop over the batch.
    """
    return dtype == torch.float32 and min(m, n) > 32 and smooth == 0 and rcond >= SMALLEST_RCOND


@contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    """TF32 products, which a user may have switched on for their network, would leave three digits."""
    if device.type != "cuda" or not torch.backends.cuda.matmul.allow_tf32:
        yield
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = True


def _scaled(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``a`` with all singular values in [0, 1] and the largest near 1, its two scales (a power of two's exponent, and a
    bound of the rest), and which items are finite.

    ``sqrt(|A|_1 |A|_inf)`` and then ``|(A^T A)^4|_F^(1/8)`` bound s_1; the second is at most ``n^(1/16)`` above it.
    """
    finite = torch.isfinite(a).all(-1).all(-1)
    a = torch.where(finite[:, None, None], a, 0.0)
    exponent = torch.frexp(a.abs().amax((-2, -1), keepdim=True)).exponent.to(a.dtype)
    half = torch.trunc(exponent / 2)
    x = a * torch.exp2(-half) * torch.exp2(half - exponent)
    magnitude = x.abs()
    bound = (magnitude.sum(-1).amax(-1) * magnitude.sum(-2).amax(-1)).sqrt()[:, None, None]
    bound = torch.where(bound > 0, bound, 1.0)
    x = x / bound
    gram = x.mT @ x
    gram = gram @ gram
    gram = gram @ gram
    tighter = torch.linalg.matrix_norm(gram)[:, None, None] ** 0.125 * (1 + 1e-4)
    tighter = torch.where(tighter > 0, tighter, 1.0)
    return x / tighter, exponent, bound * tighter, finite


def _polynomial(p: Quintic, gram: Tensor) -> Tensor:
    a, b, c = p
    result = b * gram + c * (gram @ gram)
    result.diagonal(dim1=-2, dim2=-1).add_(a)
    return result


def polar_factor(a: Tensor, rcond: float) -> Tensor:
    """``P(a)`` as :func:`svdrd.reference.polar_factor` defines it, ``(b, m, n)`` float32."""
    if a.shape[-2] < a.shape[-1]:
        return polar_factor(a.mT, rcond).mT.contiguous()
    if not a.numel():
        return torch.empty_like(a)
    with _full_float32(a.device):
        x, _, _, finite = _scaled(a)
        for p in step(rcond):
            x = x @ _polynomial(p, x.mT @ x)
    return torch.where(finite[:, None, None], x, torch.nan)


def polar_factor_vjp(grad: Tensor, a: Tensor, p: Tensor, rcond: float) -> Tensor:
    r"""The vector-Jacobian product of ``P`` at ``a`` as :func:`svdrd.gradients.polar_factor_vjp` defines it.

    ``H = P^T A`` is symmetric, and ``C = P^T G - G^T P`` is skew and has no null-null part. An odd polynomial f takes
    ``K`` to ``K_ij (f(h_i) + f(h_j)) / (h_i + h_j)`` in H's eigenbasis, without any division; from ``K = C`` the
    factors of a composition multiply to ``(1 + 1) / (h_i + h_j)`` where both values are kept and to ``1 / h`` where one
    is. With ``Q = P^T P``, ``P K (I - Q / 2)`` is the derivative but for the part outside of P's columns,
    ``(I - P P^T) G H^+``, which the same polynomials accumulate.
    """
    if a.shape[-2] < a.shape[-1]:
        return polar_factor_vjp(grad.mT, a.mT, p.mT, rcond).mT.contiguous()
    if not a.numel():
        return torch.empty_like(a)
    with _full_float32(a.device):
        x, exponent, bound, finite = _scaled(a)
        p = torch.where(finite[:, None, None], p, 0.0)
        size = grad.abs().amax((-2, -1), keepdim=True)
        size = torch.where((size > 0) & torch.isfinite(size), size, 1.0)
        g = grad / size
        h = p.mT @ x
        h = (h + h.mT) / 2
        q = p.mT @ p
        pg = p.mT @ g
        k = pg - pg.mT
        outside = (g - p @ pg) @ q
        for quintic in step(rcond):
            _, b, c = quintic
            gram = h @ h
            factor = _polynomial(quintic, gram)
            m = h @ k
            change = m + m.mT  # H K - K H, the derivative of H^2 along K
            n = gram @ change
            k = k @ factor + h @ (b * change + c * (n + n.mT))
            k = (k - k.mT) / 2
            h = h @ factor
            h = (h + h.mT) / 2
            outside = outside @ factor
        derivative = p @ (k - 0.5 * (k @ q)) + outside @ q
    # The scales in float64: their product may overflow float32 where the derivative does not.
    scale = size.double() / (bound.double() * torch.exp2(exponent.double()))
    largest = torch.finfo(a.dtype).max
    derivative = (derivative * scale).clamp(-largest, largest).to(a.dtype)
    return torch.where(finite[:, None, None], derivative, torch.nan)


def asymmetry(a: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """A certificate without an SVD: ``|P P^T P - P|_F`` and ``|P^T A - A^T P|_F / |A|_F`` of each item."""
    h = p.mT @ a
    size = torch.linalg.matrix_norm(a)
    return (
        torch.linalg.matrix_norm(p @ (p.mT @ p) - p),
        torch.linalg.matrix_norm(h - h.mT) / torch.where(size > 0, size, 1.0),
    )


def basis_loss(
    x_hat: Tensor,
    x: Tensor,
    block_height: int,
    block_width: int,
    rcond: float,
    need_grad_x_hat: bool,
    need_grad_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`svdrd.reference.basis_loss`."""
    b, h, w = x_hat.shape
    blocks = [reference.to_blocks(image, block_height, block_width) for image in (x_hat, x)]
    factors = [polar_factor(block, rcond) for block in blocks]
    difference = factors[0] - factors[1]
    loss = difference.abs().mean((-2, -1)).reshape(b, h // block_height, w // block_width)
    sign = torch.where(difference.isnan(), torch.nan, torch.sign(difference)) / (block_height * block_width)

    def derivative(needed: bool, sign: Tensor, block: Tensor, p: Tensor) -> Tensor:
        if not needed:
            return sign.new_empty(0)
        return reference.from_blocks(polar_factor_vjp(sign, block, p, rcond), b, h, w).contiguous()

    return (
        loss,
        derivative(need_grad_x_hat, sign, blocks[0], factors[0]),
        derivative(need_grad_x, -sign, blocks[1], factors[1]),
    )
