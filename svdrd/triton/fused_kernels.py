"""The polar factor by matrix products alone, one matrix a program: the whole iteration stays on the chip.

The derivative is cut into three kernels, because the registers of a multiprocessor hold so much and no more.

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
    return bad, exponent, 1 / (bound.to(tl.float64) * (1 + MARGIN))


@triton.jit
def _scaled(a: tl.tensor, shape: tl.tuple, scale: tl.tuple, M: tl.constexpr, N: tl.constexpr) -> tl.tensor:
    """The matrix, read and scaled, in float64."""
    bad, exponent, factor, smooth = scale
    return _stacked(tl.where(bad, 0.0, _read(a, shape, M, N)), shape, exponent, smooth) * factor


@triton.jit
def _opening_step(x: tl.tensor, k: tl.tensor, schedule: tl.tuple) -> tl.tensor:
    """Step ``k`` of float64 ``x``."""
    a_k, b_k, c_k = _coefficients(k, schedule)
    narrow = x.to(tl.float32)
    gram = _product(tl.trans(narrow), narrow)
    q = b_k.to(tl.float32) * gram + c_k.to(tl.float32) * _product(gram, gram)
    return tl.dot(x, q.to(tl.float64), acc=a_k * x, input_precision="ieee", out_dtype=tl.float64)


@triton.jit
def _polar_factor(
    a: tl.tensor, shape: tl.tuple, scale: tl.tuple, schedule: tl.tuple, M: tl.constexpr, N: tl.constexpr
) -> tl.tensor:  # fmt: skip
    """P of the scaled matrix."""
    x = _scaled(a, shape, scale, M, N)
    for k in range(OPENING):
        x = _opening_step(x, k, schedule)
    x = x.to(tl.float32)
    for k in range(OPENING, schedule[1]):
        a_k, b_k, c_k = _single_coefficients(k, schedule)
        gram = _product(tl.trans(x), x)
        q = b_k * gram + c_k * _product(gram, gram)
        x = a_k * x + _product(x, q)
    return x


@triton.jit
def _read_square(squares: tl.tensor, k: tl.tensor, width: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """Matrix ``k`` of those that :func:`fused_opening_kernel` wrote."""
    width += tl.where(width + OPENING + 1 > k, 0, 1)  # as in _anew
    return _read(squares + k * width * width, (width, width, 1, width), N, N)


@triton.jit
def _write_square(squares: tl.tensor, x: tl.tensor, k: tl.tensor, width: tl.tensor) -> tl.tensor:
    """Writes ``x`` as matrix ``k``: elsewhere than it is read, for all that the compiler knows."""
    width += tl.where(2 * width + OPENING + 1 > k, 0, 1)
    _write(squares + k * width * width, x, (width, width, 1, width))


@triton.jit
def _upstream_exponent(upstream: tl.tensor) -> tl.tensor:
    """The power of two that an upstream gradient is scaled by."""
    upstream, _ = _finite(upstream)
    return _exponent(tl.max(tl.abs(upstream)).to(tl.float64))


@triton.jit
def _scaled_upstream(
    g: tl.tensor, exponent_g: tl.tensor, shape: tl.tuple, M: tl.constexpr, N: tl.constexpr
) -> tl.tensor:  # fmt: skip
    """``2^-exponent_g g``, padded with zeros; NaN if it has a NaN or Inf."""
    upstream, bad = _finite(_read(g, shape, M, N))
    upstream = _times_power_of_two(upstream.to(tl.float64), -exponent_g).to(tl.float32)
    return tl.where(bad, float("nan"), upstream)


@triton.jit
def _omega_step(h: tl.tensor, omega: tl.tensor, k: tl.tensor, schedule: tl.tuple) -> tl.tensor:
    """Omega after step ``k``, and ``h Q``."""
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
    return 0.5 * (omega - tl.trans(omega)), h_q


@triton.jit
def _next_symmetric(h: tl.tensor, h_q: tl.tensor, k: tl.tensor, schedule: tl.tuple) -> tl.tensor:
    a_k, _, _ = _single_coefficients(k, schedule)
    h = a_k * h + h_q
    return 0.5 * (h + tl.trans(h))


@triton.jit
def _first_omega(
    g: tl.tensor, upstream: tl.tuple, exponent_g: tl.tensor, p: tl.tensor, stacked: tl.tuple, schedule: tl.tuple,
    M: tl.constexpr, N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Omega before the first step, for ``2^-exponent_g g``."""
    w = _product(tl.trans(_read(p, stacked, M, N)), _scaled_upstream(g, exponent_g, upstream, M, N))
    skew = w - tl.trans(w)
    factor = _read(p, _anew(stacked, 1, schedule), M, N)
    projection = _product(tl.trans(factor), factor)
    omega = skew - 0.5 * _product(projection, _product(skew, projection))
    return 0.5 * (omega - tl.trans(omega))


@triton.jit
def _outside_step(h: tl.tensor, outside: tl.tensor, k: tl.tensor, schedule: tl.tuple) -> tl.tensor:
    """The outside after step ``k``, and ``h Q``."""
    a_k, b_k, c_k = _single_coefficients(k, schedule)
    gram = _product(h, h)
    q = b_k * gram + c_k * _product(gram, gram)
    return a_k * outside + _product(outside, q), _product(h, q)


@triton.jit
def _iterated(
    x: tl.tensor, squares: tl.tensor, width: tl.tensor, schedule: tl.tuple, step: tl.constexpr, N: tl.constexpr
) -> tl.tensor:  # fmt: skip
    """``x`` after all steps, with H beside it: read for the first ones, then iterated."""
    for k in range(OPENING):
        x, _ = step(_read_square(squares, k, width, N), x, k, schedule)
    h = _read_square(squares, OPENING, width, N)
    for k in range(OPENING, schedule[1]):
        x, h_q = step(h, x, k, schedule)
        h = _next_symmetric(h, h_q, k, schedule)
    return x


@triton.jit
def _unscaled(derivative: tl.tensor, factor: tl.tensor, exponent: tl.tensor) -> tl.tensor:
    """The derivative by A from that by ``2^-exponent factor A``, clamped to float32; NaN where it is."""
    bound = _largest(tl.float32)
    scaled = _times_power_of_two(derivative.to(tl.float64) * factor, -exponent)
    return tl.where(scaled == scaled, tl.minimum(tl.maximum(scaled, -bound), bound), scaled).to(tl.float32)


@triton.jit
def _place(
    item: tl.tensor, image_height: tl.tensor, image_width: tl.tensor, block_height: tl.tensor, block_width: tl.tensor
) -> tl.tensor:  # fmt: skip
    """Where block ``item`` of ``(b, h, w)`` images begins, and its shape."""
    across = image_width // block_width
    blocks = (image_height // block_height) * across
    block = item % blocks
    first = (item // blocks).to(tl.int64) * image_height * image_width
    first += (block // across).to(tl.int64) * block_height * image_width + (block % across) * block_width
    wide = block_height < block_width
    width, length = tl.minimum(block_height, block_width), tl.maximum(block_height, block_width)
    return first, (width, length, tl.where(wide, image_width, 1), tl.where(wide, 1, image_width))


@triton.jit
def _packed(item: tl.tensor, rows: tl.tensor, block_height: tl.tensor, block_width: tl.tensor) -> tl.tensor:
    """Where matrix ``item`` of a batch begins, and its shape, if each has ``rows`` on its longer side: more than the
    block has, where something lies below it.
    """
    wide = block_height < block_width
    width = tl.minimum(block_height, block_width)
    return item.to(tl.int64) * width * rows, (width, rows, tl.where(wide, rows, 1), tl.where(wide, 1, width))


@triton.jit
def _unstacked(item: tl.tensor, rows: tl.tensor, block_height: tl.tensor, block_width: tl.tensor) -> tl.tensor:
    """As :func:`_packed`, without what lies below P: of what has no more, or none that counts."""
    first, shape = _packed(item, rows, block_height, block_width)
    return first, (shape[0], tl.maximum(block_height, block_width), shape[2], shape[3])


@triton.jit(
    do_not_specialize=["smooth", "image_height", "image_width", "block_height", "block_width", "rows", "repeats",
                       "steps", "a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3", "a4", "b4",
                       "c4"]
)  # fmt: skip
def fused_polar_kernel(
    a: tl.tensor, p: tl.tensor, smooth: tl.float64, image_height: tl.int32, image_width: tl.int32,
    block_height: tl.int32, block_width: tl.int32, rows: tl.int32,
    repeats: tl.int32, steps: tl.int32, a0: tl.float64, b0: tl.float64, c0: tl.float64, a1: tl.float64,
    b1: tl.float64, c1: tl.float64, a2: tl.float64, b2: tl.float64, c2: tl.float64, a3: tl.float64, b3: tl.float64,
    c3: tl.float64, a4: tl.float64, b4: tl.float64, c4: tl.float64, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """P of block ``program_id(0)`` of the ``(b, h, w)`` images ``a``; with what lies below it, if p has the rows."""
    schedule = (repeats, steps, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4)
    smooth = tl.full([], smooth, tl.float64)
    first, shape = _place(tl.program_id(0), image_height, image_width, block_height, block_width)
    bad, exponent, factor = _measured(a + first, shape, smooth, M, N)
    result = _polar_factor(a + first, shape, (bad, exponent, factor, smooth), schedule, M, N)
    first, stacked = _packed(tl.program_id(0), rows, block_height, block_width)
    _write(p + first, tl.where(bad, float("nan"), result), stacked)


@triton.jit(do_not_specialize=["block_height", "block_width", "rows", "need_grad"])
def fused_difference_kernel(
    p: tl.tensor, other: tl.tensor, loss: tl.tensor, block_height: tl.int32, block_width: tl.int32, rows: tl.int32,
    need_grad: tl.int32, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """``mean |p - other|`` of the polar factors of block ``program_id(0)``. With ``need_grad`` its derivative by p
    takes the place of ``other``.
    """
    first, shape = _unstacked(tl.program_id(0), rows, block_height, block_width)
    difference = _read(p + first, shape, M, N) - _read(other + first, shape, M, N)
    entries = (block_height * block_width).to(tl.float32)
    mean = tl.sum(tl.abs(difference)) / entries
    tl.store(loss + tl.program_id(0), mean)
    if need_grad > 0:
        g = (tl.where(difference > 0, 1.0, 0.0) - tl.where(difference < 0, 1.0, 0.0)) / entries
        _write(other + first, tl.where(mean == mean, g, float("nan")), shape)


@triton.jit(
    do_not_specialize=["smooth", "image_height", "image_width", "block_height", "block_width", "rows_g", "rows",
                       "start", "repeats", "steps", "a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3",
                       "c3", "a4", "b4", "c4"]
)  # fmt: skip
def fused_opening_kernel(
    g: tl.tensor, a: tl.tensor, p: tl.tensor, squares: tl.tensor, scales: tl.tensor, smooth: tl.float64,
    image_height: tl.int32, image_width: tl.int32, block_height: tl.int32, block_width: tl.int32, rows_g: tl.int32,
    rows: tl.int32, start: tl.int32,
    repeats: tl.int32, steps: tl.int32, a0: tl.float64, b0: tl.float64, c0: tl.float64, a1: tl.float64,
    b1: tl.float64, c1: tl.float64, a2: tl.float64, b2: tl.float64, c2: tl.float64, a3: tl.float64, b3: tl.float64,
    c3: tl.float64, a4: tl.float64, b4: tl.float64, c4: tl.float64, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """What the derivative at block ``start + program_id(0)`` of the images ``a`` starts from: H before the first step
    and after each of the first ``OPENING``, which are done in float64 and rounded here, then Omega before the first,
    and exponent and factor that the result is to be scaled by. p is what :func:`fused_polar_kernel` wrote with these
    rows, NaN included.
    """
    schedule = (repeats, steps, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4)
    smooth = tl.full([], smooth, tl.float64)
    item = start + tl.program_id(0)
    first_p, stacked = _packed(item, rows, block_height, block_width)
    squares += tl.program_id(0).to(tl.int64) * (OPENING + 2) * stacked[0] * stacked[0]
    first, shape = _place(item, image_height, image_width, block_height, block_width)
    bad, exponent, factor = _measured(a + first, shape, smooth, M, N)
    polar = _read(p + first_p, _anew(stacked, 2, schedule), M, N).to(tl.float64)
    x = _scaled(a + first, _anew(shape, 1, schedule), (bad, exponent, factor, smooth), M, N)
    h = tl.dot(tl.trans(polar), x, input_precision="ieee", out_dtype=tl.float64)
    for k in range(OPENING + 1):
        if k > 0:
            h = _opening_step(h, k - 1, schedule)
        h = 0.5 * (h + tl.trans(h))
        _write_square(squares, h.to(tl.float32), k, stacked[0])
    first_g, upstream = _unstacked(item, rows_g, block_height, block_width)
    exponent_g = _upstream_exponent(_read(g + first_g, upstream, M, N))
    upstream = _anew(upstream, 0, schedule)
    omega = _first_omega(g + first_g, upstream, exponent_g, p + first_p, _anew(stacked, 3, schedule), schedule, M, N)
    _write_square(squares, omega, OPENING + 1, stacked[0])
    scales += tl.program_id(0).to(tl.int64) * 2
    tl.store(scales, (exponent - exponent_g).to(tl.float64))
    tl.store(scales + 1, factor)


@triton.jit(
    do_not_specialize=["width", "repeats", "steps", "a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3",
                       "c3", "a4", "b4", "c4"]
)  # fmt: skip
def fused_omega_kernel(
    squares: tl.tensor, width: tl.int32,
    repeats: tl.int32, steps: tl.int32, a0: tl.float64, b0: tl.float64, c0: tl.float64, a1: tl.float64,
    b1: tl.float64, c1: tl.float64, a2: tl.float64, b2: tl.float64, c2: tl.float64, a3: tl.float64, b3: tl.float64,
    c3: tl.float64, a4: tl.float64, b4: tl.float64, c4: tl.float64, N: tl.constexpr,
) -> None:  # fmt: skip
    """Omega after the last step in place of that before the first, both as in :func:`fused_opening_kernel`."""
    schedule = (repeats, steps, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4)
    squares += tl.program_id(0).to(tl.int64) * (OPENING + 2) * width * width
    omega = _read_square(squares, OPENING + 1, width, N)
    omega = _iterated(omega, squares, width, schedule, _omega_step, N)
    _write_square(squares, omega, OPENING + 1, width)


@triton.jit(
    do_not_specialize=["image_height", "image_width", "block_height", "block_width", "rows_g", "rows", "start",
                       "smoothed", "repeats", "steps", "a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3",
                       "c3", "a4", "b4", "c4"]
)  # fmt: skip
def fused_closing_kernel(
    g: tl.tensor, p: tl.tensor, squares: tl.tensor, scales: tl.tensor, derivative: tl.tensor, image_height: tl.int32,
    image_width: tl.int32, block_height: tl.int32, block_width: tl.int32, rows_g: tl.int32, rows: tl.int32,
    start: tl.int32, smoothed: tl.int32,
    repeats: tl.int32, steps: tl.int32, a0: tl.float64, b0: tl.float64, c0: tl.float64, a1: tl.float64,
    b1: tl.float64, c1: tl.float64, a2: tl.float64, b2: tl.float64, c2: tl.float64, a3: tl.float64, b3: tl.float64,
    c3: tl.float64, a4: tl.float64, b4: tl.float64, c4: tl.float64, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """The vector-Jacobian product of P at block ``start + program_id(0)``, written where the block is in the images
    ``derivative``: P times what :func:`fused_omega_kernel` wrote, and where the matrix is not square, smoothed, or of a
    rank below its width, the part outside the span of P.
    """
    schedule = (repeats, steps, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4)
    item = start + tl.program_id(0)
    first_p, stacked = _packed(item, rows, block_height, block_width)
    p += first_p
    width = stacked[0]
    squares += tl.program_id(0).to(tl.int64) * (OPENING + 2) * width * width
    factor = _read(p, stacked, M, N)
    projection = _product(tl.trans(factor), factor)
    rank = tl.sum(projection * projection)
    omega = _read_square(squares, OPENING + 1, width, N)
    outside = tl.zeros([M, N], tl.float32)
    if (tl.maximum(block_height, block_width) > width) | (smoothed > 0) | (rank < width - 0.5):
        first_g, upstream = _unstacked(item, rows_g, block_height, block_width)
        exponent_g = _upstream_exponent(_read(g + first_g, upstream, M, N))
        outside = _product(_scaled_upstream(g + first_g, exponent_g, _anew(upstream, 0, schedule), M, N), projection)
        outside = _iterated(outside, squares, width, schedule, _outside_step, N)
        # The steps multiply from the right, so it is the same to take out the span of P, on the left, after them.
        omega -= _product(tl.trans(_read(p, _anew(stacked, 0, schedule), M, N)), outside)
    result = outside + _product(_read(p, _anew(stacked, 1, schedule), M, N), omega)
    scales += tl.program_id(0).to(tl.int64) * 2
    result = _unscaled(result, tl.load(scales + 1), tl.load(scales).to(tl.int32))
    first, shape = _place(item, image_height, image_width, block_height, block_width)
    _write(derivative + first, result, _anew(shape, 0, schedule))
