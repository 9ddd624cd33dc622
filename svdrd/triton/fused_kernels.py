"""The polar factor by matrix products alone, one matrix a program: the whole iteration stays on the chip.

The algorithm is that of ``svdrd.matmul``, which explains it. A tile ``(M, N)`` holds one matrix (its transpose, if it
is wide), padded with zeros: these are singular values of 0, which nothing here distinguishes from others that are
dropped. For the smoothed polar factor ``e I`` lies below the matrix, in rows of the same tile.

Products are formed in three-term TF32 on tensor cores, those to which small singular values are sensitive in float64.
The steps of the iteration come as scalars, ``schedule``: repeats, steps, and the coefficients of the first step, which
comes ``repeats`` times, and of the four that follow; the others truncate. A loop over them keeps the code small, and
nothing has to be copied to the device. Matrices lie as ``shape`` tells: width (the shorter side), length, and the
distance in memory from entry to entry along each. ``scale`` is whether the matrix has a NaN or Inf, the exponent and
factor it is scaled by, and the smoothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from svdrd import matmul
from svdrd.triton.jacobi_kernels import _exponent, _largest, _power_of_two

OPENING = tl.constexpr(matmul.OPENING)
# Tiles of more columns leave no room for iterating H in float64.
DOUBLE_H = tl.constexpr(16)
SQUARINGS = tl.constexpr(matmul.SQUARINGS)
MARGIN = tl.constexpr(matmul.MARGIN)
TRUNCATE_B = tl.constexpr(matmul.TRUNCATE.b)
TRUNCATE_C = tl.constexpr(matmul.TRUNCATE.c)


@triton.jit
def _product(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """``x y`` of float32 matrices, correct to some units in the last place of float32."""
    return tl.dot(x, y, input_precision="tf32x3")


@triton.jit
def _coefficients(k: tl.tensor, schedule: tl.tuple) -> tl.tensor:
    """a, b and c of step ``k``."""
    later = k - schedule[0]
    a = tl.full([], 0.0, tl.float64)
    b = tl.full([], TRUNCATE_B, tl.float64)
    c = tl.full([], TRUNCATE_C, tl.float64)
    for i in tl.static_range(4):
        a = tl.where(later == i, schedule[3 * i + 5], a)
        b = tl.where(later == i, schedule[3 * i + 6], b)
        c = tl.where(later == i, schedule[3 * i + 7], c)
    first = later < 0
    return tl.where(first, schedule[2], a), tl.where(first, schedule[3], b), tl.where(first, schedule[4], c)


@triton.jit
def _single_coefficients(k: tl.tensor, schedule: tl.tuple) -> tl.tensor:
    a, b, c = _coefficients(k, schedule)
    return a.to(tl.float32), b.to(tl.float32), c.to(tl.float32)


@triton.jit
def _times_power_of_two(x: tl.tensor, exponent: tl.tensor) -> tl.tensor:
    """``2^exponent x`` of float64, in two halves because ``2^exponent`` alone may overflow."""
    exponent = tl.minimum(tl.maximum(exponent, -2000), 2000)
    half = exponent >> 1
    return x * _power_of_two(half, x) * _power_of_two(exponent - half, x)


@triton.jit
def _norm_bound(x: tl.tensor) -> tl.tensor:
    """``||G^p||_F^(1/(2p)) >= s_1`` with ``G = x^T x`` and ``p = 2^SQUARINGS``."""
    g = _product(tl.trans(x), x)
    logarithm = 0.0
    weight = 0.5
    for k in range(SQUARINGS + 1):
        if k > 0:
            g = _product(g, g)
        norm = tl.sqrt(tl.sum(g * g))
        norm = tl.where(norm > 0, norm, 1.0)
        logarithm += tl.log(norm) * weight
        weight *= 0.5
        g = g / norm
    return tl.exp(logarithm)


@triton.jit
def _read(a: tl.tensor, shape: tl.tuple, M: tl.constexpr, N: tl.constexpr) -> tl.tensor:
    """The matrix at ``a``, padded with zeros."""
    width, length, short_stride, long_stride = shape
    i, j = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    return tl.load(a + (i * long_stride + j * short_stride), mask=(i < length) & (j < width), other=0.0)


@triton.jit
def _write(a: tl.tensor, x: tl.tensor, shape: tl.tuple) -> tl.tensor:
    width, length, short_stride, long_stride = shape
    i, j = tl.arange(0, x.shape[0])[:, None], tl.arange(0, x.shape[1])[None, :]
    tl.store(a + (i * long_stride + j * short_stride), x, mask=(i < length) & (j < width))


@triton.jit
def _anew(shape: tl.tuple, k: tl.tensor, schedule: tl.tuple) -> tl.tensor:
    """The same shape, for all that the compiler knows another one for each ``k``: it would otherwise compute the
    address of every entry once and keep them all.
    """
    nothing = tl.where(k < schedule[0] + schedule[1], 0, 1)
    return shape[0] + nothing, shape[1] + nothing, shape[2] + nothing, shape[3] + nothing


@triton.jit
def _stacked(a: tl.tensor, shape: tl.tuple, exponent: tl.tensor, smooth: tl.tensor) -> tl.tensor:
    """``2^-exponent [A; e I]`` in float64."""
    i, j = tl.arange(0, a.shape[0])[:, None], tl.arange(0, a.shape[1])[None, :]
    a = _times_power_of_two(a.to(tl.float64), -exponent)
    return tl.where((i - shape[1] == j) & (j < shape[0]), _times_power_of_two(smooth, -exponent), a)


@triton.jit
def _finite(a: tl.tensor) -> tl.tensor:
    """``a``, or zeros if it has a NaN or Inf, and whether it has."""
    bad = tl.max(tl.where(tl.abs(a) <= _largest(a.dtype), 0, 1)) > 0
    return tl.where(bad, 0.0, a), bad


@triton.jit
def _measured(a: tl.tensor, shape: tl.tuple, smooth: tl.tensor, M: tl.constexpr, N: tl.constexpr) -> tl.tensor:
    """Whether the matrix has a NaN or Inf; exponent and factor with which ``2^-exponent factor [A; e I]`` has a norm of
    at most ``1 / (1 + MARGIN)``.
    """
    tile, bad = _finite(_read(a, shape, M, N))
    exponent = _exponent(tl.maximum(tl.max(tl.abs(tile)).to(tl.float64), smooth))
    bound = _norm_bound(_stacked(tile, shape, exponent, smooth).to(tl.float32))
    return bad, exponent, 1 / ((1 + MARGIN) * bound.to(tl.float64))


@triton.jit
def _opened(
    a: tl.tensor, shape: tl.tuple, scale: tl.tuple, count: tl.tensor, schedule: tl.tuple, M: tl.constexpr,
    N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The matrix, read and scaled, after ``count`` steps in float64."""
    bad, exponent, factor, smooth = scale
    x = _stacked(tl.where(bad, 0.0, _read(a, shape, M, N)), shape, exponent, smooth) * factor
    for k in range(count):
        a_k, b_k, c_k = _coefficients(k, schedule)
        narrow = x.to(tl.float32)
        gram = _product(tl.trans(narrow), narrow)
        q = b_k.to(tl.float32) * gram + c_k.to(tl.float32) * _product(gram, gram)
        x = tl.dot(x, q.to(tl.float64), acc=a_k * x, input_precision="ieee", out_dtype=tl.float64)
    return x


@triton.jit
def _polar_factor(
    a: tl.tensor, shape: tl.tuple, scale: tl.tuple, schedule: tl.tuple, M: tl.constexpr, N: tl.constexpr
) -> tl.tensor:  # fmt: skip
    """P of the scaled matrix."""
    x = _opened(a, shape, scale, OPENING, schedule, M, N).to(tl.float32)
    for k in range(OPENING, schedule[1]):
        a_k, b_k, c_k = _single_coefficients(k, schedule)
        gram = _product(tl.trans(x), x)
        q = b_k * gram + c_k * _product(gram, gram)
        x = a_k * x + _product(x, q)
    return x


@triton.jit
def _read_factor(p: tl.tensor, stacked: tl.tuple, bad: tl.tensor, M: tl.constexpr, N: tl.constexpr) -> tl.tensor:
    return tl.where(bad, 0.0, _read(p, stacked, M, N))


@triton.jit
def _symmetric_factor(
    p: tl.tensor, stacked: tl.tuple, a: tl.tensor, shape: tl.tuple, scale: tl.tuple, count: tl.tensor,
    schedule: tl.tuple, M: tl.constexpr, N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """``P^T X_k``, which is H after ``count`` steps, in float64 from the iterate of the matrix itself; rounded once."""
    x = _opened(a, shape, scale, count, schedule, M, N)
    factor = _read_factor(p, stacked, scale[0], M, N)
    h = tl.dot(tl.trans(factor).to(tl.float64), x, input_precision="ieee", out_dtype=tl.float64)
    return (0.5 * (h + tl.trans(h))).to(tl.float32)


@triton.jit
def _scaled_upstream(
    g: tl.tensor, exponent_g: tl.tensor, shape: tl.tuple, M: tl.constexpr, N: tl.constexpr
) -> tl.tensor:  # fmt: skip
    """``2^-exponent_g g``, padded with zeros; zeros if it has a NaN or Inf."""
    upstream, _ = _finite(_read(g, shape, M, N))
    return _times_power_of_two(upstream.to(tl.float64), -exponent_g).to(tl.float32)


@triton.jit
def _derivative(
    g: tl.tensor, exponent_g: tl.tensor, p: tl.tensor, stacked: tl.tuple, a: tl.tensor, shape: tl.tuple,
    scale: tl.tuple, schedule: tl.tuple, M: tl.constexpr, N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The vector-Jacobian product of P at the scaled matrix for ``2^-exponent_g g``: ``svdrd.matmul.polar_factor_vjp``.

    What is in the span of P and what is outside are iterated one after the other, each with H beside it, and g and P
    are read from memory where they are needed: the registers of a multiprocessor hold so much and no more.
    """
    factor = _read_factor(p, stacked, scale[0], M, N)
    w = _product(tl.trans(factor), _scaled_upstream(g, exponent_g, shape, M, N))
    skew = w - tl.trans(w)
    projection = _product(tl.trans(factor), factor)
    rank = tl.sum(projection * projection)
    omega = skew - 0.5 * _product(projection, _product(skew, projection))
    omega = 0.5 * (omega - tl.trans(omega))
    h = omega
    if N > DOUBLE_H:
        h = _symmetric_factor(p, stacked, a, shape, scale, 0, schedule, M, N)
    for k in range(schedule[1]):
        if N <= DOUBLE_H:  # noqa: SIM102 - known to the compiler, unlike the next
            if k <= OPENING:
                h = _symmetric_factor(
                    p, _anew(stacked, k, schedule), a, _anew(shape, k, schedule), scale, k, schedule, M, N
                )  # fmt: skip
        a_k, b_k, c_k = _single_coefficients(k, schedule)
        gram = _product(h, h)
        d_gram = _product(h, omega)
        d_gram += tl.trans(d_gram)
        product = _product(gram, d_gram)
        d_q = b_k * d_gram + c_k * (product + tl.trans(product))
        q = b_k * gram + c_k * _product(gram, gram)
        # In this order q and d_q need not both be held in the layout of an operand.
        omega = a_k * omega + _product(omega, q)
        h_q = _product(h, q)
        omega += _product(h, d_q)
        omega = 0.5 * (omega - tl.trans(omega))
        h = a_k * h + h_q
        h = 0.5 * (h + tl.trans(h))
    stacked = _anew(stacked, 0, schedule)
    result = _product(_read_factor(p, stacked, scale[0], M, N), omega)
    if (shape[1] > shape[0]) | (scale[3] > 0) | (rank < shape[0] - 0.5):
        factor = _read_factor(p, stacked, scale[0], M, N)
        again = _anew(shape, 1, schedule)
        upstream = _scaled_upstream(g, exponent_g, again, M, N)
        outside = upstream - _product(factor, _product(tl.trans(factor), upstream))
        outside = _product(outside, _product(tl.trans(factor), factor))
        if N > DOUBLE_H:
            h = _symmetric_factor(p, stacked, a, again, scale, 0, schedule, M, N)
        for k in range(schedule[1]):
            if N <= DOUBLE_H:  # noqa: SIM102 - known to the compiler, unlike the next
                if k <= OPENING:
                    h = _symmetric_factor(
                        p, _anew(stacked, k, schedule), a, _anew(shape, k, schedule), scale, k, schedule, M, N
                    )  # fmt: skip
            a_k, b_k, c_k = _single_coefficients(k, schedule)
            gram = _product(h, h)
            q = b_k * gram + c_k * _product(gram, gram)
            outside = a_k * outside + _product(outside, q)
            h = a_k * h + _product(h, q)
            h = 0.5 * (h + tl.trans(h))
        factor = _read_factor(p, _anew(stacked, 1, schedule), scale[0], M, N)
        result += outside - _product(factor, _product(tl.trans(factor), outside))
    return result


@triton.jit
def _unscaled(derivative: tl.tensor, factor: tl.tensor, exponent: tl.tensor) -> tl.tensor:
    """The derivative by A from that by ``2^-exponent factor A``, clamped to float32."""
    derivative = _times_power_of_two(derivative.to(tl.float64) * factor, -exponent)
    bound = _largest(tl.float32)
    return tl.minimum(tl.maximum(derivative, -bound), bound).to(tl.float32)


@triton.jit(
    do_not_specialize=["smooth", "width", "length", "short_stride", "long_stride", "rows", "short", "long", "repeats",
                       "steps", "a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3", "a4", "b4",
                       "c4"]
)  # fmt: skip
def fused_polar_kernel(
    a: tl.tensor, p: tl.tensor, smooth: tl.float64, width: tl.int32, length: tl.int32, short_stride: tl.int32,
    long_stride: tl.int32, rows: tl.int32, short: tl.int32, long: tl.int32, repeats: tl.int32, steps: tl.int32,
    a0: tl.float64, b0: tl.float64, c0: tl.float64, a1: tl.float64, b1: tl.float64, c1: tl.float64, a2: tl.float64,
    b2: tl.float64, c2: tl.float64, a3: tl.float64, b3: tl.float64, c3: tl.float64, a4: tl.float64, b4: tl.float64,
    c4: tl.float64, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """``P(a)`` of matrix ``program_id(0)``, or if ``rows`` is ``length + width`` with what lies below it."""
    schedule = (repeats, steps, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4)
    smooth = tl.full([], smooth, tl.float64)
    shape = (width, length, short_stride, long_stride)
    first = tl.program_id(0).to(tl.int64) * width * length
    a += first
    bad, exponent, factor = _measured(a, shape, smooth, M, N)
    result = _polar_factor(a, shape, (bad, exponent, factor, smooth), schedule, M, N)
    at = p + tl.program_id(0).to(tl.int64) * width * rows
    _write(at, tl.where(bad, float("nan"), result), (width, rows, short, long))


@triton.jit(
    do_not_specialize=["smooth", "width", "length", "short_stride", "long_stride", "rows", "short", "long", "repeats",
                       "steps", "a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3", "a4", "b4",
                       "c4"]
)  # fmt: skip
def fused_polar_backward_kernel(
    g: tl.tensor, a: tl.tensor, p: tl.tensor, derivative: tl.tensor, smooth: tl.float64, width: tl.int32,
    length: tl.int32, short_stride: tl.int32, long_stride: tl.int32, rows: tl.int32, short: tl.int32, long: tl.int32,
    repeats: tl.int32, steps: tl.int32,
    a0: tl.float64, b0: tl.float64, c0: tl.float64, a1: tl.float64, b1: tl.float64, c1: tl.float64, a2: tl.float64,
    b2: tl.float64, c2: tl.float64, a3: tl.float64, b3: tl.float64, c3: tl.float64, a4: tl.float64, b4: tl.float64,
    c4: tl.float64, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """The vector-Jacobian product for g of P at a; p is what :func:`fused_polar_kernel` wrote with these rows."""
    schedule = (repeats, steps, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4)
    smooth = tl.full([], smooth, tl.float64)
    shape = (width, length, short_stride, long_stride)
    first = tl.program_id(0).to(tl.int64) * width * length
    a += first
    g += first
    bad, exponent, factor = _measured(a, shape, smooth, M, N)
    scale = (bad, exponent, factor, smooth)
    p += tl.program_id(0).to(tl.int64) * width * rows
    upstream, bad_upstream = _finite(_read(g, shape, M, N))
    exponent_g = _exponent(tl.max(tl.abs(upstream)).to(tl.float64))
    result = _derivative(
        g, exponent_g, p, (width, rows, short, long), a, shape, scale, schedule, M, N
    )  # fmt: skip
    result = _unscaled(result, factor, exponent - exponent_g)
    result = tl.where(bad | bad_upstream, float("nan"), result)
    _write(derivative + first, result, _anew(shape, 2, schedule))


@triton.jit(
    do_not_specialize=["smooth", "image_height", "image_width", "block_height", "block_width", "sides", "need_grad",
                       "repeats", "steps", "a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3",
                       "a4", "b4", "c4"]
)  # fmt: skip
def fused_loss_kernel(
    x_hat: tl.tensor, x: tl.tensor, loss: tl.tensor, derivative: tl.tensor, factors: tl.tensor, smooth: tl.float64,
    image_height: tl.int32, image_width: tl.int32, block_height: tl.int32, block_width: tl.int32, sides: tl.int32,
    need_grad: tl.int32, repeats: tl.int32, steps: tl.int32,
    a0: tl.float64, b0: tl.float64, c0: tl.float64, a1: tl.float64, b1: tl.float64, c1: tl.float64, a2: tl.float64,
    b2: tl.float64, c2: tl.float64, a3: tl.float64, b3: tl.float64, c3: tl.float64, a4: tl.float64, b4: tl.float64,
    c4: tl.float64, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """``mean |P(x_hat) - P(x)|`` of block ``program_id(0)`` of ``(b, h, w)`` images, and with ``need_grad`` its
    derivative by x_hat.

    Args:
        factors: room for one polar factor a block, and what lies below it: P(x), then P(x_hat).
        sides: 2. As a constant it would let the compiler write the two iterations out, and round each its own way:
            equal blocks have to give equal bits.
    """
    schedule = (repeats, steps, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4)
    smooth = tl.full([], smooth, tl.float64)
    wide = block_height < block_width
    width, length = tl.minimum(block_height, block_width), tl.maximum(block_height, block_width)
    shape = (width, length, tl.where(wide, image_width, 1), tl.where(wide, 1, image_width))
    across = image_width // block_width
    blocks = (image_height // block_height) * across
    item = tl.program_id(0)
    block = item % blocks
    corner = (item // blocks).to(tl.int64) * image_height * image_width
    corner += (block // across).to(tl.int64) * block_height * image_width + (block % across) * block_width
    x_hat += corner
    x += corner
    derivative += corner

    stacked = (width, length + tl.where(smooth > 0, width, 0), 1, width)
    factors += item.to(tl.int64) * width * stacked[1]

    p = tl.zeros([M, N], tl.float32)
    exponent = tl.full([], 0, tl.int32)
    factor = tl.full([], 1.0, tl.float64)
    bad = width < 0
    broken = bad
    for side in range(sides):
        image = x
        if side > 0:
            image = x_hat
        around = _anew(shape, side, schedule)
        bad, exponent, factor = _measured(image, around, smooth, M, N)
        p = _polar_factor(image, around, (bad, exponent, factor, smooth), schedule, M, N)
        if side == 0:
            _write(factors, p, stacked)
        broken = broken | bad
    tl.debug_barrier()  # other threads wrote it

    nan = float("nan")
    i = tl.arange(0, M)[:, None]
    difference = tl.where(i < length, p - _read(factors, stacked, M, N), 0.0)  # without what lies below P
    entries = (width * length).to(tl.float32)
    tl.store(loss + item, tl.where(broken, nan, tl.sum(tl.abs(difference)) / entries))
    if need_grad > 0:
        g = (tl.where(difference > 0, 1.0, 0.0) - tl.where(difference < 0, 1.0, 0.0)) / entries
        _write(derivative, g, shape)
        tl.debug_barrier()
        _write(factors, p, stacked)
        tl.debug_barrier()  # other threads read it
        scale = (bad, exponent, factor, smooth)
        result = _derivative(derivative, 0, factors, stacked, x_hat, shape, scale, schedule, M, N)
        tl.debug_barrier()
        result = tl.where(broken, nan, _unscaled(result, factor, exponent))
        _write(derivative, result, _anew(shape, 2, schedule))
