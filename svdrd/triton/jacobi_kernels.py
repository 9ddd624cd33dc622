"""One-sided Jacobi on a tile of small matrices, and what follows: SVD, polar factor with derivative, basis loss.

A tile ``(R, M)`` holds ``R / N`` matrices of up to N columns; row r is column ``r % N`` of matrix ``r // N`` (of
its transpose, if the matrix is wide), padded with zeros. Round k of a sweep rotates row r with row ``r ^ k``: every
row at once, every pair once in ``N - 1`` rounds, and as N is a power of two nothing leaves its matrix. With ``R = 32``
and one warp a row is a thread's registers, the partner's row comes by shuffles, and a dot product needs no
communication. Tiles are loaded and stored as ``(M, R)``, so that the lanes of a warp lie along R from the start.

``_across`` is the only exchange between rows; sums over a matrix are butterflies of it and give every row the same
bits.

Source: J. Demmel and K. Veselic, "Jacobi's method is more accurate than QR", SIAM J. Matrix Anal. Appl. 13, 1992.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Sixty-four columns that converge take 21 sweeps at most, the hardest being half noise.
SWEEPS = tl.constexpr(40)


@triton.jit
def _across(x: tl.tensor, rows: tl.tensor, k: tl.tensor) -> tl.tensor:
    """Row r receives row ``r ^ k`` of ``(R,)`` or ``(R, C)``."""
    partner = rows ^ k
    if len(x.shape) == 2:
        partner = tl.broadcast_to(partner[:, None], x.shape)
    return tl.gather(x, partner, 0)


@triton.jit
def _matrix_sum(x: tl.tensor, rows: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """The sum over the N rows of a matrix, in each of them."""
    for bit in tl.static_range(6):
        if (1 << bit) < N:
            x += _across(x, rows, 1 << bit)
    return x


@triton.jit
def _matrix_max(x: tl.tensor, rows: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """The maximum over the N rows of a matrix, in each of them."""
    for bit in tl.static_range(6):
        if (1 << bit) < N:
            x = tl.maximum(x, _across(x, rows, 1 << bit))
    return x


@triton.jit
def _power_of_two(exponent: tl.tensor, like: tl.tensor) -> tl.tensor:
    if like.dtype == tl.float64:
        bits = (exponent.to(tl.int64) + 1023) << 52
    else:
        bits = (exponent + 127) << 23
    return bits.to(like.dtype, bitcast=True)


@triton.jit
def _exponent(x: tl.tensor) -> tl.tensor:
    """The e with ``x 2^-e`` in [1/2, 1), 0 for 0; x is finite and not negative."""
    if x.dtype == tl.float64:
        denormal = x < 2.0**-1000
        bits = tl.where(denormal, x * 2.0**128, x).to(tl.int64, bitcast=True)
        exponent = ((bits >> 52) & 2047).to(tl.int32) - 1022 - tl.where(denormal, 128, 0)
    else:
        denormal = x < 2.0**-100
        bits = tl.where(denormal, x * 2.0**64, x).to(tl.int32, bitcast=True)
        exponent = ((bits >> 23) & 255) - 126 - tl.where(denormal, 64, 0)
    return tl.where(x == 0, 0, exponent)


@triton.jit
def _scaled(x: tl.tensor, exponent: tl.tensor) -> tl.tensor:
    """``x 2^exponent`` with one rounding at most: in two steps, since 2^149 itself is no float32."""
    half = exponent >> 1
    first, second = _power_of_two(half, x), _power_of_two(exponent - half, x)
    if len(x.shape) == 2:
        first, second = first[:, None], second[:, None]
    return x * first * second


@triton.jit
def _largest(like: tl.constexpr) -> tl.tensor:
    return 1.7976931348623157e308 if like == tl.float64 else 3.4028234663852886e38


@triton.jit
def _normalised(a: tl.tensor, floor: tl.tensor, rows: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """Each matrix times ``2^-exponent``, so that its largest entry, or ``floor`` if larger, is in [1/2, 1).

    Also the exponents ``(R,)`` and whether the matrix is finite; one that is not is replaced by zeros.
    """
    finite = tl.abs(a) <= _largest(a.dtype)
    bad = _matrix_max(tl.max(tl.where(finite, 0, 1), 1), rows, N) > 0
    a = tl.where(bad[:, None], 0.0, a)
    size = _matrix_max(tl.max(tl.abs(a), 1), rows, N)
    exponent = _exponent(tl.maximum(size, floor))
    return _scaled(a, -exponent), exponent, bad


@triton.jit
def _inverse_root(x: tl.tensor) -> tl.tensor:
    """``1 / sqrt(x)`` to the last bit but one; the hardware's estimate errs by more, and to one side."""
    y = tl.rsqrt(x)
    return y + 0.5 * y * (1 - x * y * y)


@triton.jit
def _diagonalise(a: tl.tensor, rows: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """Rotates rows until those of each matrix are orthogonal.

    Returns U^T ``(R, M)`` and V^T ``(R, N)``, and s, unsorted. A row whose value is below eps^2 s_1 has no direction:
    its s is 0 and its row of U^T too.
    """
    R: tl.constexpr = a.shape[0]
    double: tl.constexpr = a.dtype == tl.float64
    # A pair whose cosine is below this counts as orthogonal: the rounding of a dot product of 64 terms.
    negligible: tl.constexpr = 2.0**-50 if double else 2.0**-21
    # eps^4. Smaller squares belong to the rounding of rounding, which would be rotated in vain; and in float32 the
    # products of such rows lose their digits to underflow.
    nothing: tl.constexpr = 2.0**-208 if double else 2.0**-92

    v = tl.where(tl.arange(0, N)[None, :] == (rows % N)[:, None], 1.0, 0.0).to(a.dtype)
    square = tl.sum(a * a, 1)
    active = rows >= 0
    sweep = 0
    while (sweep < SWEEPS) & (tl.max(active.to(tl.int32), 0) > 0):
        worst_cosine = tl.zeros([R], a.dtype)
        worst_turn = tl.zeros([R], a.dtype)
        for k in range(1, N):
            b = _across(a, rows, k)
            square_b = _across(square, rows, k)
            product = tl.sum(a * b, 1)
            usable = active & (square > nothing) & (square_b > nothing)
            inverse_norms = tl.rsqrt(tl.where(usable, square, 1.0)) * tl.rsqrt(tl.where(usable, square_b, 1.0))
            cosine = tl.abs(product) * inverse_norms
            rotate = usable & (cosine > negligible)
            cosine = tl.where(rotate, cosine, 0.0)

            # The tangent of the smaller angle, in units in which no square leaves the range; a root and a quotient by
            # their reciprocals, because an error in t is one in the angle alone. The partner computes -t exactly.
            twice = 2 * cosine
            difference = tl.abs(square_b - square) * inverse_norms
            y = tl.where(rotate, difference * difference + twice * twice, 1.0)
            root = tl.rsqrt(difference + y * tl.rsqrt(y))
            larger = (square > square_b) | ((square == square_b) & (rows < (rows ^ k)))
            t = twice * root * root
            t = tl.where(larger == (product > 0), t, -t)
            c = _inverse_root(1 + t * t)
            # In this order equal rows cancel exactly, and duplicated columns leave zeros instead of noise.
            a = c[:, None] * (a + t[:, None] * b)
            v = c[:, None] * (v + t[:, None] * _across(v, rows, k))

            worst_cosine = tl.maximum(worst_cosine, cosine)
            worst_turn = tl.maximum(worst_turn, tl.abs(t) * tl.maximum(square, square_b) * inverse_norms)
            square = tl.sum(a * a, 1)
        # What a later rotation of the sweep gives back to a pair that was orthogonal is of this order, so the sweep
        # that would find nothing more to rotate is saved.
        left = _matrix_max(worst_cosine, rows, N) * _matrix_max(worst_turn, rows, N)
        active = active & (left > negligible / 4)
        sweep += 1

    # Rounding moves the norms of a row of V^T and of its row of a alike.
    inverse = _inverse_root(tl.sum(v * v, 1))
    real = square > nothing
    inverse_norm = tl.where(real, _inverse_root(tl.where(real, square, 1.0)), 0.0)
    s = tl.where(real, square * inverse_norm * inverse, 0.0)
    return inverse_norm[:, None] * a, inverse[:, None] * v, s


@triton.jit
def _completed(u: tl.tensor, missing: tl.tensor, length: tl.tensor, rows: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """Fills the missing rows of each matrix so that all are orthonormal.

    One row of every matrix a step: the unit vector that the rows leave most of, less its projection onto them, twice.
    """
    M: tl.constexpr = u.shape[1]
    columns = tl.arange(0, M)[None, :]
    while tl.max(missing.to(tl.int32), 0) > 0:
        first = missing & (_matrix_max(tl.where(missing, N - rows % N, 0), rows, N) == N - rows % N)
        left = tl.where(columns < length, 1 - _matrix_sum(u * u, rows, N), -1.0)
        best = tl.argmax(left, 1)
        w = tl.where(columns == best[:, None], 1.0, 0.0).to(u.dtype)
        for _ in range(2):
            w -= _matrix_sum(u * tl.sum(u * w, 1)[:, None], rows, N)
        w *= _inverse_root(tl.sum(w * w, 1))[:, None]
        u = tl.where(first[:, None], w, u)
        missing = missing & ~first
    return u


@triton.jit
def _rank(s: tl.tensor, rows: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """The position of each value in the descending order of its matrix; of equal ones the first row comes first."""
    rank = tl.zeros_like(rows)
    for k in range(1, N):
        other = _across(s, rows, k)
        rank += ((other > s) | ((other == s) & ((rows ^ k) < rows))).to(tl.int32)
    return rank


@triton.jit
def _product(v: tl.tensor, x: tl.tensor, rows: tl.tensor, N: tl.constexpr, TRANSPOSED: tl.constexpr) -> tl.tensor:
    """``v x``, or ``v^T x``, of each matrix: v ``(R, N)``, x ``(R, C)``."""
    result = tl.zeros_like(x)
    columns = tl.arange(0, N)[None, :]
    for k in range(N):
        coefficient = tl.sum(tl.where(columns == ((rows ^ k) % N)[:, None], v, 0.0), 1)
        if TRANSPOSED:
            coefficient = _across(coefficient, rows, k)
        result += coefficient[:, None] * _across(x, rows, k)
    return result


@triton.jit
def _polar_parts(
    a: tl.tensor, exponent: tl.tensor, rcond: tl.tensor, smooth: tl.tensor, rows: tl.tensor, N: tl.constexpr
) -> tl.tensor:
    """P^T ``(R, M)`` of normalised matrices, with what its derivative needs: u, v, s and the smoothing in their scale.

    With ``smooth == 0`` the values that were dropped are zero, and their rows of u too.
    """
    u, v, s = _diagonalise(a, rows, N)
    e = _smoothing(smooth, exponent)
    s = tl.where((smooth > 0) | (s > rcond * _matrix_max(s, rows, N)), s, 0.0)
    u = tl.where((s > 0)[:, None], u, 0.0)
    weight = tl.where(smooth > 0, s / _hypotenuse(s, e), 1.0)
    return _product(v, weight[:, None] * u, rows, N, True), u, v, s, e


@triton.jit
def _smoothing(smooth: tl.tensor, exponent: tl.tensor) -> tl.tensor:
    """``smooth`` in the scale of the normalised matrix; not so small that what is divided by it leaves the range."""
    least: tl.constexpr = 2.0**-960 if smooth.dtype == tl.float64 else 2.0**-96
    return tl.maximum(_scaled(smooth, -exponent), least)


@triton.jit
def _hypotenuse(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """``sqrt(x^2 + y^2)`` without under- or overflow, for y > 0."""
    larger = tl.maximum(x, y)
    quotient = tl.minimum(x, y) / larger
    return larger * tl.sqrt(1 + quotient * quotient)


@triton.jit
def _polar_derivative(
    g: tl.tensor, u: tl.tensor, v: tl.tensor, s: tl.tensor, smooth: tl.tensor, e: tl.tensor, exponent: tl.tensor,
    width: tl.tensor, length: tl.tensor, rows: tl.tensor, N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The vector-Jacobian product of ``svdrd.gradients.polar_factor_vjp`` for g ``(R, M)``, transposed as a is.

    Row j of ``q`` is column j of ``U Z`` and of what lies outside the span of u. The rows of u that are zero make the
    matrix one with an outside: there the two agree, W_ij / s_j (W_ij / r_j if smoothed).
    """
    h = _product(v, g, rows, N, False)  # rows G v_j
    smoothed = smooth > 0
    lost = (s == 0) & (rows % N < width)
    outside = (_matrix_max(lost.to(tl.int32), rows, N) > 0) | (length > width)
    r = tl.where(smoothed, _hypotenuse(s, e), s)
    weight = s / tl.where(r > 0, r, 1.0)
    inverse = tl.where(outside & (r > 0), 1 / tl.where(r > 0, r, 1.0), 0.0)
    q = inverse[:, None] * h
    for k in range(N):
        u_i = _across(u, rows, k)
        s_i = _across(s, rows, k)
        w_ij = tl.sum(h * u_i, 1)
        w_ji = _across(w_ij, rows, k)
        total = s_i + s
        unit = tl.where(total > 0, total, 1.0)
        z = (w_ij - w_ji) / unit
        r_i = tl.where(smoothed, _across(r, rows, k), 1.0)
        r_j = tl.where(smoothed, r, 1.0)
        # Both terms of the mean are positive: with r_j - r_i in it, it would cancel where s_1 is far above e.
        t = tl.where(total > 0, r_i * (s / unit) + r_j * (s_i / unit), e)
        odd = tl.where(total > 0, (_across(weight, rows, k) + weight) / unit, 1 / e)
        smooth_z = 0.5 * ((w_ij - w_ji) * odd + (w_ij + w_ji) * ((e / r_i) * (e / r_j) / t))
        z = tl.where(smoothed, smooth_z, z)
        q += (z - w_ij * inverse)[:, None] * u_i
    derivative = _scaled(_product(v, q, rows, N, True), -exponent)
    bound = _largest(g.dtype)
    return tl.where(tl.abs(derivative) > bound, tl.where(derivative > 0, bound, -bound), derivative)


@triton.jit
def _place(rows: tl.tensor, batch: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """The matrix that each row belongs to, clamped into the batch, and whether it is in it."""
    R: tl.constexpr = rows.shape[0]
    item = tl.program_id(0).to(tl.int64) * (R // N) + rows // N
    return tl.minimum(item, batch - 1), item < batch


@triton.jit(
    do_not_specialize=["batch", "width", "length", "row_stride", "column_stride", "left_vector", "left_entry",
                       "right_vector", "right_entry"]
)  # fmt: skip
def svd_kernel(
    a: tl.tensor, left: tl.tensor, s: tl.tensor, right: tl.tensor, batch: tl.int64, width: tl.int32, length: tl.int32,
    row_stride: tl.int32, column_stride: tl.int32, left_vector: tl.int32, left_entry: tl.int32, right_vector: tl.int32,
    right_entry: tl.int32, R: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """``a = U diag(s) V^T``: ``width`` singular triplets of ``length x width`` matrices (of their transposes, if wide).

    Entry i of left vector j of a matrix is at ``j left_vector + i left_entry``, and so on.
    """
    rows = tl.arange(0, R)
    item, live = _place(rows, batch, N)
    j, i, c = rows % N, tl.arange(0, M)[:, None], tl.arange(0, N)[:, None]
    real = live & (j < width)
    size = width.to(tl.int64) * length
    mask = real[None, :] & (i < length)
    a_at = (a + item * size)[None, :] + (j[None, :] * row_stride + i * column_stride)
    tile = tl.trans(tl.load(a_at, mask=mask, other=0.0))
    tile, exponent, bad = _normalised(tile, 0.0, rows, N)
    u, v, values = _diagonalise(tile, rows, N)
    u = _completed(u, real & (values == 0), length, rows, N)
    rank = _rank(values, rows, N)

    # + 0 turns -0 into +0: which zero it is depends on how often the neighbours in the tile made it rotate by nothing.
    nan = float("nan")
    tl.store(s + item * width + rank, tl.where(bad, nan, _scaled(values, exponent)), mask=real)
    u_at = (left + item * size)[None, :] + (rank[None, :] * left_vector + i * left_entry)
    tl.store(u_at, tl.trans(tl.where(bad[:, None], nan, u + 0.0)), mask=mask)
    v_at = (right + item * width * width)[None, :] + (rank[None, :] * right_vector + c * right_entry)
    tl.store(v_at, tl.trans(tl.where(bad[:, None], nan, v + 0.0)), mask=real[None, :] & (c < width))


@triton.jit(
    do_not_specialize=["rcond", "smooth", "batch", "width", "length", "row_stride", "column_stride", "left_vector",
                       "left_entry", "right_vector", "right_entry", "save_factors"]
)  # fmt: skip
def polar_kernel(
    a: tl.tensor, p: tl.tensor, left: tl.tensor, s: tl.tensor, right: tl.tensor, rcond: tl.float64, smooth: tl.float64,
    batch: tl.int64, width: tl.int32, length: tl.int32, row_stride: tl.int32, column_stride: tl.int32,
    left_vector: tl.int32, left_entry: tl.int32, right_vector: tl.int32, right_entry: tl.int32,
    save_factors: tl.int32, R: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """``P(a)``, and with ``save_factors`` what :func:`polar_backward_kernel` reads, as :func:`svd_kernel` writes it.

    Left vectors whose singular value was dropped, or that have no direction, are written as zeros.
    """
    rows = tl.arange(0, R)
    item, live = _place(rows, batch, N)
    j, i, c = rows % N, tl.arange(0, M)[:, None], tl.arange(0, N)[:, None]
    real = live & (j < width)
    mask = real[None, :] & (i < length)
    size = width.to(tl.int64) * length
    at = j[None, :] * row_stride + i * column_stride
    tile = tl.trans(tl.load((a + item * size)[None, :] + at, mask=mask, other=0.0))
    smooth_row = tl.full([R], smooth, tile.dtype)
    tile, exponent, bad = _normalised(tile, smooth_row, rows, N)
    result, u, v, values, _ = _polar_parts(tile, exponent, tl.full([R], rcond, tile.dtype), smooth_row, rows, N)
    nan = float("nan")
    tl.store((p + item * size)[None, :] + at, tl.trans(tl.where(bad[:, None], nan, result + 0.0)), mask=mask)
    if save_factors > 0:
        rank = _rank(values, rows, N)
        tl.store(s + item * width + rank, tl.where(bad, nan, _scaled(values, exponent)), mask=real)
        u_at = (left + item * size)[None, :] + (rank[None, :] * left_vector + i * left_entry)
        tl.store(u_at, tl.trans(tl.where(bad[:, None], nan, u + 0.0)), mask=mask)
        v_at = (right + item * width * width)[None, :] + (rank[None, :] * right_vector + c * right_entry)
        tl.store(v_at, tl.trans(tl.where(bad[:, None], nan, v + 0.0)), mask=real[None, :] & (c < width))


@triton.jit(
    do_not_specialize=["smooth", "batch", "width", "length", "row_stride", "column_stride", "left_vector", "left_entry",
                       "right_vector", "right_entry"]
)  # fmt: skip
def polar_backward_kernel(
    g: tl.tensor, left: tl.tensor, s: tl.tensor, right: tl.tensor, derivative: tl.tensor, smooth: tl.float64,
    batch: tl.int64, width: tl.int32, length: tl.int32, row_stride: tl.int32, column_stride: tl.int32,
    left_vector: tl.int32, left_entry: tl.int32, right_vector: tl.int32, right_entry: tl.int32,
    R: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """The vector-Jacobian product of P for g, from the factors that :func:`polar_kernel` wrote."""
    rows = tl.arange(0, R)
    item, live = _place(rows, batch, N)
    j, i, c = rows % N, tl.arange(0, M)[:, None], tl.arange(0, N)[:, None]
    real = live & (j < width)
    mask = real[None, :] & (i < length)
    size = width.to(tl.int64) * length
    at = j[None, :] * row_stride + i * column_stride
    upstream = tl.trans(tl.load((g + item * size)[None, :] + at, mask=mask, other=0.0))
    u_at = (left + item * size)[None, :] + (j[None, :] * left_vector + i * left_entry)
    u = tl.trans(tl.load(u_at, mask=mask, other=0.0))
    v_at = (right + item * width * width)[None, :] + (j[None, :] * right_vector + c * right_entry)
    v = tl.trans(tl.load(v_at, mask=real[None, :] & (c < width), other=0.0))
    values = tl.load(s + item * width + j, mask=real, other=0.0)
    bad = _matrix_max((values != values).to(tl.int32), rows, N) > 0
    smooth_row = tl.full([R], smooth, values.dtype)
    exponent = _exponent(tl.maximum(_matrix_max(tl.where(bad, 0.0, values), rows, N), smooth_row))
    values = _scaled(values, -exponent)
    e = _smoothing(smooth_row, exponent)
    result = _polar_derivative(upstream, u, v, values, smooth_row, e, exponent, width, length, rows, N)
    result = tl.where(bad[:, None], float("nan"), result)
    tl.store((derivative + item * size)[None, :] + at, tl.trans(result), mask=mask)


@triton.jit(
    do_not_specialize=["rcond", "smooth", "batch", "image_height", "image_width", "block_height", "block_width",
                       "sides", "need_grad"]
)  # fmt: skip
def loss_kernel(
    x_hat: tl.tensor, x: tl.tensor, loss: tl.tensor, derivative: tl.tensor, rcond: tl.float64, smooth: tl.float64,
    batch: tl.int64, image_height: tl.int32, image_width: tl.int32, block_height: tl.int32, block_width: tl.int32,
    sides: tl.int32, need_grad: tl.int32, R: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """``mean |P(x_hat) - P(x)|`` of each block of ``(b, h, w)`` images, and with ``need_grad`` its derivative by x_hat.

    Args:
        batch: the number of blocks.
        sides: 2. As a constant it would let the compiler write the two factorisations out, and round each its own way:
            equal blocks have to give equal bits.
    """
    rows = tl.arange(0, R)
    item, live = _place(rows, batch, N)
    wide = block_height < block_width
    width, length = tl.minimum(block_height, block_width), tl.maximum(block_height, block_width)
    j, i = rows % N, tl.arange(0, M)[:, None]
    mask = (live & (j < width))[None, :] & (i < length)
    across = image_width // block_width
    blocks = (image_height // block_height) * across
    image, block = item // blocks, (item % blocks).to(tl.int32)
    corner = image * image_height * image_width
    corner += (block // across).to(tl.int64) * block_height * image_width + (block % across) * block_width
    row_stride = tl.where(wide, image_width, 1)
    column_stride = tl.where(wide, 1, image_width)
    at = j[None, :] * row_stride + i * column_stride

    dtype: tl.constexpr = x.dtype.element_ty
    smooth_row = tl.full([R], smooth, dtype)
    p = tl.zeros([R, M], dtype)
    difference = tl.zeros([R, M], dtype)
    u = tl.zeros([R, M], dtype)
    v = tl.zeros([R, N], dtype)
    s = tl.zeros([R], dtype)
    e = tl.zeros([R], dtype)
    exponent = tl.zeros([R], tl.int32)
    broken = rows < 0
    for side in range(sides):
        if side == 0:
            tile = tl.trans(tl.load((x + corner)[None, :] + at, mask=mask, other=0.0))
        else:
            tile = tl.trans(tl.load((x_hat + corner)[None, :] + at, mask=mask, other=0.0))
        tile, exponent, bad = _normalised(tile, smooth_row, rows, N)
        result, u, v, s, e = _polar_parts(tile, exponent, tl.full([R], rcond, dtype), smooth_row, rows, N)
        difference = result - p
        p = result
        broken = broken | bad

    nan = float("nan")
    entries = (width * length).to(dtype)
    total = _matrix_sum(tl.sum(tl.abs(difference), 1), rows, N) / entries
    tl.store(loss + item, tl.where(broken, nan, total), mask=live & (j == 0))
    if need_grad > 0:
        sign = tl.where(difference > 0, 1.0, 0.0) - tl.where(difference < 0, 1.0, 0.0)
        g = sign.to(dtype) / entries
        result = _polar_derivative(g, u, v, s, smooth_row, e, exponent, width, length, rows, N)
        tl.store((derivative + corner)[None, :] + at, tl.trans(tl.where(broken[:, None], nan, result)), mask=mask)


@triton.jit(
    do_not_specialize=["batch", "image_height", "image_width", "block_height", "block_width", "sides"]
)  # fmt: skip
def recompose_kernel(
    x_hat: tl.tensor, x: tl.tensor, result: tl.tensor, batch: tl.int64, image_height: tl.int32, image_width: tl.int32,
    block_height: tl.int32, block_width: tl.int32, sides: tl.int32, R: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """``U_x diag(S_xhat) V_x^T`` of each block of ``(b, h, w)`` images; the arguments are those of :func:`loss_kernel`.

    x_hat comes first: of its decomposition the singular values alone are kept.
    """
    rows = tl.arange(0, R)
    item, live = _place(rows, batch, N)
    wide = block_height < block_width
    width, length = tl.minimum(block_height, block_width), tl.maximum(block_height, block_width)
    j, i = rows % N, tl.arange(0, M)[:, None]
    real = live & (j < width)
    mask = real[None, :] & (i < length)
    across = image_width // block_width
    blocks = (image_height // block_height) * across
    image, block = item // blocks, (item % blocks).to(tl.int32)
    corner = image * image_height * image_width
    corner += (block // across).to(tl.int64) * block_height * image_width + (block % across) * block_width
    at = j[None, :] * tl.where(wide, image_width, 1) + i * tl.where(wide, 1, image_width)

    dtype: tl.constexpr = x.dtype.element_ty
    nothing = tl.zeros([R], dtype)
    u = tl.zeros([R, M], dtype)
    v = tl.zeros([R, N], dtype)
    s, exponent = tl.zeros([R], dtype), tl.zeros([R], tl.int32)
    s_hat, exponent_hat = tl.zeros([R], dtype), tl.zeros([R], tl.int32)
    broken = rows < 0
    for side in range(sides):
        s_hat, exponent_hat = s, exponent
        if side == 0:
            tile = tl.trans(tl.load((x_hat + corner)[None, :] + at, mask=mask, other=0.0))
        else:
            tile = tl.trans(tl.load((x + corner)[None, :] + at, mask=mask, other=0.0))
        tile, exponent, bad = _normalised(tile, nothing, rows, N)
        u, v, s = _diagonalise(tile, rows, N)
        broken = broken | bad

    # The value of x_hat whose place in the order is that of the row's own value. Rows that are no columns have the last
    # places: of equal values the first row comes first.
    rank, rank_hat = _rank(s, rows, N), _rank(s_hat, rows, N)
    weight = tl.where(rank_hat == rank, s_hat, 0.0)
    for k in range(1, N):
        weight += tl.where(_across(rank_hat, rows, k) == rank, _across(s_hat, rows, k), 0.0)
    u = _completed(u, real & (s == 0), length, rows, N)
    product = _scaled(_product(v, weight[:, None] * u, rows, N, True), exponent_hat)
    tl.store((result + corner)[None, :] + at, tl.trans(tl.where(broken[:, None], float("nan"), product)), mask=mask)
