"""One-sided Jacobi on a tile of small matrices, and what follows: SVD, polar factor with derivative, basis loss.

A tile holds P pairs of columns, of ``P / (N / 2)`` matrices with up to N columns, padded with zeros. (Wide matrices are
transposed.) Pair p is columns ``2 q`` and ``2 q + 1`` of its matrix, with ``q = p % (N / 2)``. A tile is two tensors
``(P, M)``, the top columns and the bottom columns, one column a row.

A pair is rotated where it is, so its product and its angle are computed once. Only one of its columns moves before the
next rotation. N is a power of two, so ``p ^ k`` is a pair of the same matrix. A pair lies in the registers of a thread,
or of two threads beside each other, and columns move by shuffles. Tiles are loaded and stored as ``(M, P)``, so that
the threads of a warp lie along P.

``_moved`` is the only exchange between pairs. Sums over a matrix are butterflies of it: every pair gets the same bits.

Registers are scarce, and the compiler keeps values in them that it could compute again. ``disable_licm`` and ``_anew``
make it compute them again.

Source: J. Demmel and K. Veselic, "Jacobi's method is more accurate than QR", SIAM J. Matrix Anal. Appl. 13, 1992.
"""

from __future__ import annotations

import triton
import triton.language as tl

from svdrd.backends.triton.floats import clamped, exponent_of, largest_of, scaled
from svdrd.backends.triton.images import corner_of
from svdrd.reference import definitions

# 45 were seen: sixty-four columns of doubles, seven of their rows of one length, the others ever shorter, to 1e-37.
SWEEPS = tl.constexpr(160)
EQUAL_WITHIN = tl.constexpr(definitions.EQUAL_WITHIN)


@triton.jit
def _anew(x: tl.tensor, small: tl.tensor) -> tl.tensor:
    """The same x, for all that the compiler knows another one where ``small``, below 2^16, is another."""
    return x + (small >> 16)


@triton.jit
def _moved(x: tl.tensor, source: tl.tensor) -> tl.tensor:
    """Row p receives row ``source[p]`` of ``(P,)`` or ``(P, C)``."""
    if len(x.shape) == 2:
        source = tl.broadcast_to(source[:, None], x.shape)
    return tl.gather(x, source, 0)


@triton.jit
def _across(x: tl.tensor, pairs: tl.tensor, k: tl.tensor) -> tl.tensor:
    """Row p receives row ``p ^ k`` of ``(P,)`` or ``(P, C)``."""
    return _moved(x, pairs ^ k)


@triton.jit
def _any(x: tl.tensor, C: tl.constexpr) -> tl.tensor:
    """Whether x ``(P,)`` is true somewhere.

    Over C columns it is one reduction of the whole warp, and the compiler knows that all threads have its result.
    Otherwise every shuffle in a loop that depends on it would get code for a warp that has parted.
    """
    return tl.max(tl.broadcast_to(x[:, None], [x.shape[0], C]).to(tl.int32)) > 0


@triton.jit
def _matrix_sum(x: tl.tensor, pairs: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """The sum over the N / 2 pairs of a matrix, in each of them."""
    for bit in tl.static_range(5):
        if (2 << bit) < N:
            x += _across(x, pairs, 1 << bit)
    return x


@triton.jit
def _matrix_max(x: tl.tensor, pairs: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """The maximum over the N / 2 pairs of a matrix, in each of them."""
    for bit in tl.static_range(5):
        if (2 << bit) < N:
            x = tl.maximum(x, _across(x, pairs, 1 << bit))
    return x


@triton.jit
def _normalised(
    top: tl.tensor, bottom: tl.tensor, floor: tl.tensor, pairs: tl.tensor, N: tl.constexpr
) -> tl.tensor:  # fmt: skip
    """Each matrix times ``2^-exponent``, so that its largest entry, or ``floor`` if larger, is in [1/2, 1).

    Also the exponents ``(P,)`` and whether the matrix is finite; one that is not is replaced by zeros.
    """
    bound = largest_of(top.dtype)
    finite = (tl.abs(top) <= bound) & (tl.abs(bottom) <= bound)
    bad = _matrix_max(tl.max(tl.where(finite, 0, 1), 1), pairs, N) > 0
    top, bottom = tl.where(bad[:, None], 0.0, top), tl.where(bad[:, None], 0.0, bottom)
    size = _matrix_max(tl.max(tl.maximum(tl.abs(top), tl.abs(bottom)), 1), pairs, N)
    exponent = exponent_of(tl.maximum(size, floor))
    return scaled(top, -exponent), scaled(bottom, -exponent), exponent, bad


@triton.jit
def _inverse_root(x: tl.tensor) -> tl.tensor:
    """``1 / sqrt(x)`` to the last bit but one; the hardware's estimate errs by more, and to one side."""
    y = tl.rsqrt(x)
    return y + 0.5 * y * (1 - x * y * y)


@triton.jit
def _exchanged(top: tl.tensor, bottom: tl.tensor, pairs: tl.tensor, half: tl.tensor) -> tl.tensor:
    """Of the pairs p and ``p ^ half`` the one whose bit is 0 gets both top rows, the other one both bottom rows."""
    upper = (pairs & half) != 0
    if len(top.shape) == 2:
        upper = tl.broadcast_to(upper[:, None], top.shape)
    received = _across(tl.where(upper, top, bottom), pairs, half)
    return tl.where(upper, received, top), tl.where(upper, bottom, received)


@triton.jit
def _turned(x: tl.tensor, y: tl.tensor, c: tl.tensor, t: tl.tensor) -> tl.tensor:
    """Two rows rotated by the angle whose tangent is t and cosine c."""
    # In this order equal rows cancel exactly, and duplicated columns leave zeros instead of noise.
    return c[:, None] * (x + t[:, None] * y), c[:, None] * (y - t[:, None] * x)


@triton.jit
def _diagonalise(top: tl.tensor, bottom: tl.tensor, pairs: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """Rotates pairs until all columns of a matrix are orthogonal.

    A sweep has N - 1 rounds. In the first N / 2 the bottom columns move past the top columns. Then half of the pairs
    exchange with the other half: top columns meet top columns and bottom columns meet bottom columns, in half as many
    rounds; and so on. At the end every column is back in its place: with another order in each sweep it takes one more.

    Returns U^T ``(P, M)`` and V^T ``(P, N)``, and s, each of top and bottom, unsorted. A column whose value is below
    eps^2 s_1 has no direction: its s is 0 and its row of U^T too. Of a matrix that has not converged U^T is NaN.
    """
    P: tl.constexpr = top.shape[0]
    dtype: tl.constexpr = top.dtype
    double: tl.constexpr = dtype == tl.float64
    # A pair whose cosine is below this counts as orthogonal: the rounding of a dot product of 64 terms.
    negligible: tl.constexpr = 2.0**-50 if double else 2.0**-21
    # eps^4. Smaller squares belong to the rounding of rounding, which would be rotated in vain; and in float32 the
    # products of such columns lose their digits to underflow.
    nothing: tl.constexpr = 2.0**-208 if double else 2.0**-92

    place = pairs % (N // 2)
    # Moving nothing puts a column into the registers of one or two threads. As it is loaded, an entry may have a thread
    # of its own. There Triton 3.6 contracts a square with the sum over threads, and each thread gets other bits.
    top, bottom = _moved(top, pairs), _moved(bottom, pairs)
    entry = tl.arange(0, N)[None, :]
    top_v = tl.where(entry == 2 * place[:, None], 1.0, 0.0).to(dtype)
    bottom_v = tl.where(entry == 2 * place[:, None] + 1, 1.0, 0.0).to(dtype)
    top_square, bottom_square = tl.sum(top * top, 1), tl.sum(bottom * bottom, 1)
    active = pairs >= 0
    sweep = 0
    while (sweep < SWEEPS) & (_any(active, N)):
        worst_cosine = tl.zeros([P], dtype)
        worst_turn = tl.zeros([P], dtype)
        half = N // 2
        while half > 0:
            for k in tl.range(half, disable_licm=True):
                product = tl.sum(top * bottom, 1)
                usable = active & (top_square > nothing) & (bottom_square > nothing)
                inverse_norms = tl.rsqrt(tl.where(usable, top_square, 1.0))
                inverse_norms *= tl.rsqrt(tl.where(usable, bottom_square, 1.0))
                cosine = tl.abs(product) * inverse_norms
                rotate = usable & (cosine > negligible)
                cosine = tl.where(rotate, cosine, 0.0)

                # The tangent of the smaller angle, in units in which no square leaves the range; a root and a quotient
                # by their reciprocals, because an error in t is one in the angle alone.
                twice = 2 * cosine
                difference = (top_square - bottom_square) * inverse_norms
                y = tl.where(rotate, difference * difference + twice * twice, 1.0)
                root = tl.rsqrt(tl.abs(difference) + y * tl.rsqrt(y))
                t = twice * root * root
                worst_cosine = tl.maximum(worst_cosine, cosine)
                worst_turn = tl.maximum(worst_turn, t * tl.maximum(top_square, bottom_square) * inverse_norms)
                t = tl.where((difference >= 0) == (product > 0), t, -t)
                c = _inverse_root(1 + t * t)
                top, bottom = _turned(top, bottom, c, t)
                top_v, bottom_v = _turned(top_v, bottom_v, c, t)
                top_square, bottom_square = tl.sum(top * top, 1), tl.sum(bottom * bottom, 1)

                step = k ^ ((k + 1) & (half - 1))
                bottom, bottom_v = _across(bottom, pairs, step), _across(bottom_v, pairs, step)
                bottom_square = _across(bottom_square, pairs, step)
            half = half >> 1
            exchange = tl.where(half > 0, half, N // 4)
            top, bottom = _exchanged(top, bottom, pairs, exchange)
            top_v, bottom_v = _exchanged(top_v, bottom_v, pairs, exchange)
            top_square, bottom_square = _exchanged(top_square, bottom_square, pairs, exchange)
        # Where the exchanges have left what belongs here: they rotate the bits of the place.
        left_at = _anew(pairs - place, sweep) + (place >> 1) + (place & 1) * (N // 4)
        top, bottom = _moved(top, left_at), _moved(bottom, left_at)
        top_v, bottom_v = _moved(top_v, left_at), _moved(bottom_v, left_at)
        top_square, bottom_square = _moved(top_square, left_at), _moved(bottom_square, left_at)
        # What a later rotation of the sweep gives back to a pair that was orthogonal is of this order, so the sweep
        # that would find nothing more to rotate is saved.
        left = _matrix_max(worst_cosine, pairs, N) * _matrix_max(worst_turn, pairs, N)
        active = active & (left > negligible / 4)
        sweep += 1

    top, top_v, top_s = _unit(top, top_v, top_square, nothing)
    bottom, bottom_v, bottom_s = _unit(bottom, bottom_v, bottom_square, nothing)
    top, bottom = tl.where(active[:, None], float("nan"), top), tl.where(active[:, None], float("nan"), bottom)
    return top, bottom, top_v, bottom_v, top_s, bottom_s


@triton.jit
def _rounded_square(x: tl.tensor) -> tl.tensor:
    """x^2, which no compiler contracts with a sum over threads: each of them would get other bits."""
    return tl.fma(x, x, tl.zeros_like(x))


@triton.jit
def _unit(a: tl.tensor, v: tl.tensor, square: tl.tensor, nothing: tl.constexpr) -> tl.tensor:
    """Rows of U^T and V^T, and their values, from rows of ``S U^T`` with their squares and of V^T."""
    # Rounding moves the norms of a row of V^T and of its row of S U^T alike. A row of V^T is so short that each of its
    # entries may have a thread of its own.
    inverse = _inverse_root(tl.sum(_rounded_square(v), 1))
    real = square > nothing
    inverse_norm = tl.where(real, _inverse_root(tl.where(real, square, 1.0)), 0.0)
    s = tl.where(real, square * inverse_norm * inverse, 0.0)
    return inverse_norm[:, None] * a, inverse[:, None] * v, s


@triton.jit
def _completed(
    top: tl.tensor, bottom: tl.tensor, top_missing: tl.tensor, bottom_missing: tl.tensor, length: tl.tensor,
    pairs: tl.tensor, N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Fills the missing rows of U^T of each matrix so that all are orthonormal.

    One row of every matrix a step: the unit vector that the rows leave most of, less its projection onto them, twice.
    """
    M: tl.constexpr = top.shape[1]
    columns = tl.arange(0, M)[None, :]
    # The later, the smaller.
    top_order = N - 2 * (pairs % (N // 2))
    bottom_order = top_order - 1
    while _any(top_missing | bottom_missing, N):
        next_one = tl.maximum(tl.where(top_missing, top_order, 0), tl.where(bottom_missing, bottom_order, 0))
        next_one = _matrix_max(next_one, pairs, N)
        left = tl.where(columns < length, 1 - _matrix_sum(top * top + bottom * bottom, pairs, N), -1.0)
        best = tl.argmax(left, 1)
        w = tl.where(columns == best[:, None], 1.0, 0.0).to(top.dtype)
        for _ in range(2):
            along = top * tl.sum(top * w, 1)[:, None] + bottom * tl.sum(bottom * w, 1)[:, None]
            w -= _matrix_sum(along, pairs, N)
        w *= _inverse_root(tl.sum(w * w, 1))[:, None]
        top_first = top_missing & (next_one == top_order)
        bottom_first = bottom_missing & (next_one == bottom_order)
        top = tl.where(top_first[:, None], w, top)
        bottom = tl.where(bottom_first[:, None], w, bottom)
        top_missing = top_missing & ~top_first
        bottom_missing = bottom_missing & ~bottom_first
    return top, bottom


@triton.jit
def _before(other: tl.tensor, s: tl.tensor, first: tl.tensor) -> tl.tensor:
    """1 where ``other`` comes before ``s`` in the descending order; of equal ones it does if it is ``first``."""
    return ((other > s) | ((other == s) & first)).to(tl.int32)


@triton.jit
def _rank(top: tl.tensor, bottom: tl.tensor, pairs: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """The positions of the values in the descending order of their matrix; of equal ones the first comes first."""
    top_rank = _before(bottom, top, pairs < 0)
    bottom_rank = _before(top, bottom, pairs >= 0)
    for k in range(1, N // 2):
        other_top, other_bottom = _across(top, pairs, k), _across(bottom, pairs, k)
        first = (pairs ^ k) < pairs
        top_rank += _before(other_top, top, first) + _before(other_bottom, top, first)
        bottom_rank += _before(other_top, bottom, first) + _before(other_bottom, bottom, first)
    return top_rank, bottom_rank


@triton.jit
def _entry(v: tl.tensor, k: tl.tensor) -> tl.tensor:
    """Column k ``(P,)`` of ``(P, C)``."""
    return tl.sum(tl.where(tl.arange(0, v.shape[1])[None, :] == k, v, 0.0), 1)


@triton.jit
def _product(
    top_v: tl.tensor, bottom_v: tl.tensor, top: tl.tensor, bottom: tl.tensor, pairs: tl.tensor, N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """``V^T X`` of each matrix: rows of V^T, ``(P, N)``, and of X, ``(P, C)``."""
    first = pairs - pairs % (N // 2)
    top_result, bottom_result = tl.zeros_like(top), tl.zeros_like(bottom)
    for k in tl.range(N // 2, disable_licm=True):
        x = _moved(top, first + k)
        top_result += _entry(top_v, 2 * k)[:, None] * x
        bottom_result += _entry(bottom_v, 2 * k)[:, None] * x
        x = _moved(bottom, first + k)
        top_result += _entry(top_v, 2 * k + 1)[:, None] * x
        bottom_result += _entry(bottom_v, 2 * k + 1)[:, None] * x
    return top_result, bottom_result


@triton.jit
def _transposed_product(
    top_v: tl.tensor, bottom_v: tl.tensor, top_weight: tl.tensor, bottom_weight: tl.tensor, top: tl.tensor,
    bottom: tl.tensor, pairs: tl.tensor, N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """``V diag(weight) X`` of each matrix: rows of V^T, ``(P, N)``, and of X, ``(P, C)``."""
    place = pairs % (N // 2)
    top_result, bottom_result = tl.zeros_like(top), tl.zeros_like(bottom)
    for k in tl.range(N // 2, disable_licm=True):
        # What the other pair has for this one.
        other = 2 * (place ^ k)[:, None]
        x = _across(top, pairs, k)
        top_result += _across(top_weight * _entry(top_v, other), pairs, k)[:, None] * x
        bottom_result += _across(top_weight * _entry(top_v, other + 1), pairs, k)[:, None] * x
        x = _across(bottom, pairs, k)
        top_result += _across(bottom_weight * _entry(bottom_v, other), pairs, k)[:, None] * x
        bottom_result += _across(bottom_weight * _entry(bottom_v, other + 1), pairs, k)[:, None] * x
    return top_result, bottom_result


@triton.jit
def _polar_parts(
    top: tl.tensor, bottom: tl.tensor, exponent: tl.tensor, rcond: tl.tensor, smooth: tl.tensor, pairs: tl.tensor,
    N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """P^T of normalised matrices, with what its derivative needs: u, v and s in their scale.

    With ``smooth == 0`` the values that were dropped are zero, and their rows of u too.
    """
    top_u, bottom_u, top_v, bottom_v, top_s, bottom_s = _diagonalise(top, bottom, pairs, N)
    e = _smoothing(smooth, exponent)
    least = rcond * _matrix_max(tl.maximum(top_s, bottom_s), pairs, N)
    top_s = tl.where((smooth > 0) | (top_s > least), top_s, 0.0)
    bottom_s = tl.where((smooth > 0) | (bottom_s > least), bottom_s, 0.0)
    top_u, bottom_u = tl.where((top_s > 0)[:, None], top_u, 0.0), tl.where((bottom_s > 0)[:, None], bottom_u, 0.0)
    top_weight = tl.where(smooth > 0, top_s / _hypotenuse(top_s, e), 1.0)
    bottom_weight = tl.where(smooth > 0, bottom_s / _hypotenuse(bottom_s, e), 1.0)
    top_p, bottom_p = _transposed_product(top_v, bottom_v, top_weight, bottom_weight, top_u, bottom_u, pairs, N)
    return top_p, bottom_p, top_u, bottom_u, top_v, bottom_v, top_s, bottom_s


@triton.jit
def _smoothing(smooth: tl.tensor, exponent: tl.tensor) -> tl.tensor:
    """``smooth`` in the scale of the normalised matrix; not so small that what is divided by it leaves the range."""
    least: tl.constexpr = 2.0**-960 if smooth.dtype == tl.float64 else 2.0**-96
    return tl.maximum(scaled(smooth, -exponent), least)


@triton.jit
def _hypotenuse(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """``sqrt(x^2 + y^2)`` without under- or overflow, for y > 0."""
    larger = tl.maximum(x, y)
    quotient = tl.minimum(x, y) / larger
    return larger * tl.sqrt(1 + quotient * quotient)


@triton.jit
def _coefficient(
    w_ij: tl.tensor, w_ji: tl.tensor, s_i: tl.tensor, s_j: tl.tensor, r_i: tl.tensor, r_j: tl.tensor,
    inverse_r_i: tl.tensor, inverse_r_j: tl.tensor, outside: tl.tensor, smoothed: tl.tensor, e: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """``Z_ij`` of ``svdrd.reference.derivatives.polar_factor_vjp``, less what the term for the outside has of it."""
    total = s_i + s_j
    inverse_total = 1 / tl.where(total > 0, total, 1.0)
    # Both terms of the mean are positive: with r_j - r_i in it, it would cancel where s_1 is far above e.
    t = tl.where(total > 0, r_i * (s_j * inverse_total) + r_j * (s_i * inverse_total), e)
    odd = tl.where(total > 0, (s_i * inverse_r_i + s_j * inverse_r_j) * inverse_total, inverse_r_i)
    even = (e * inverse_r_i) * (e * inverse_r_j) / t
    smooth_z = 0.5 * ((w_ij - w_ji) * odd + (w_ij + w_ji) * even)
    return tl.where(smoothed, smooth_z, (w_ij - w_ji) * inverse_total) - w_ij * outside


@triton.jit
def _polar_derivative(
    top_h: tl.tensor, bottom_h: tl.tensor, top_u: tl.tensor, bottom_u: tl.tensor, top_v: tl.tensor, bottom_v: tl.tensor,
    top_s: tl.tensor, bottom_s: tl.tensor, smooth: tl.tensor, e: tl.tensor, exponent: tl.tensor, width: tl.tensor,
    length: tl.tensor, pairs: tl.tensor, N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The vector-Jacobian product of ``svdrd.reference.derivatives.polar_factor_vjp``, transposed as a is.

    Row j of h is ``G v_j``.

    Row j of ``q`` is column j of ``U Z`` and of what lies outside the span of u. The rows of u that are zero make the
    matrix one with an outside: there the two agree, W_ij / s_j (W_ij / r_j if smoothed).
    """
    smoothed = smooth > 0
    column = 2 * (pairs % (N // 2))
    lost = ((top_s == 0) & (column < width)) | ((bottom_s == 0) & (column + 1 < width))
    has_outside = (_matrix_max(lost.to(tl.int32), pairs, N) > 0) | (length > width)
    top_r, bottom_r = (
        tl.where(smoothed, _hypotenuse(top_s, e), top_s),
        tl.where(smoothed, _hypotenuse(bottom_s, e), bottom_s),
    )
    top_inverse, bottom_inverse = 1 / tl.where(top_r > 0, top_r, 1.0), 1 / tl.where(bottom_r > 0, bottom_r, 1.0)
    top_outside = tl.where(has_outside & (top_r > 0), top_inverse, 0.0)
    bottom_outside = tl.where(has_outside & (bottom_r > 0), bottom_inverse, 0.0)
    top_q, bottom_q = top_outside[:, None] * top_h, bottom_outside[:, None] * bottom_h
    for k in tl.range(N // 2, disable_licm=True):
        s_i, r_i, inverse_i = _across(top_s, pairs, k), _across(top_r, pairs, k), _across(top_inverse, pairs, k)
        u_i = _across(top_u, pairs, k)
        top_w, bottom_w = tl.sum(top_h * u_i, 1), tl.sum(bottom_h * u_i, 1)
        z = _coefficient(
            top_w, _across(top_w, pairs, k), s_i, top_s, r_i, top_r, inverse_i, top_inverse, top_outside, smoothed, e
        )
        top_q += z[:, None] * u_i
        v_i = _across(bottom_u, pairs, k)
        cross_w = tl.sum(top_h * v_i, 1)
        z = _coefficient(
            bottom_w, _across(cross_w, pairs, k), s_i, bottom_s, r_i, bottom_r, inverse_i, bottom_inverse,
            bottom_outside, smoothed, e,
        )  # fmt: skip
        bottom_q += z[:, None] * u_i
        s_i, r_i = _across(bottom_s, pairs, k), _across(bottom_r, pairs, k)
        inverse_i = _across(bottom_inverse, pairs, k)
        z = _coefficient(
            cross_w, _across(bottom_w, pairs, k), s_i, top_s, r_i, top_r, inverse_i, top_inverse, top_outside, smoothed,
            e,
        )  # fmt: skip
        top_q += z[:, None] * v_i
        bottom_w = tl.sum(bottom_h * v_i, 1)
        z = _coefficient(
            bottom_w, _across(bottom_w, pairs, k), s_i, bottom_s, r_i, bottom_r, inverse_i, bottom_inverse,
            bottom_outside, smoothed, e,
        )  # fmt: skip
        bottom_q += z[:, None] * v_i
    one = tl.full([pairs.shape[0]], 1.0, top_q.dtype)
    top_d, bottom_d = _transposed_product(top_v, bottom_v, one, one, top_q, bottom_q, pairs, N)
    return clamped(scaled(top_d, -exponent)), clamped(scaled(bottom_d, -exponent))


@triton.jit
def _place(pairs: tl.tensor, batch: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """The matrix of each pair, clamped into the batch, whether it is in the batch, and the pair's first column."""
    P: tl.constexpr = pairs.shape[0]
    item = tl.program_id(0).to(tl.int64) * (P // (N // 2)) + pairs // (N // 2)
    return tl.minimum(item, batch - 1), item < batch, 2 * (pairs % (N // 2))


@triton.jit
def _read(
    a: tl.tensor, first: tl.tensor, j: tl.tensor, j_stride: tl.tensor, i_stride: tl.tensor, real: tl.tensor,
    length: tl.tensor, C: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """``(P, C)``: the entries i of vector j, zero where the vector is not real and from ``length`` on."""
    i = tl.arange(0, C)[:, None]
    at = a + (first[None, :] + (j[None, :] * j_stride + i * i_stride))
    return tl.trans(tl.load(at, mask=real[None, :] & (i < length), other=0.0))


@triton.jit
def _write(
    a: tl.tensor, x: tl.tensor, first: tl.tensor, j: tl.tensor, j_stride: tl.tensor, i_stride: tl.tensor,
    real: tl.tensor, length: tl.tensor, bad: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """Writes what :func:`_read` reads, NaN for matrices that are bad."""
    i = tl.arange(0, x.shape[1])[:, None]
    at = a + (first[None, :] + (j[None, :] * j_stride + i * i_stride))
    # + 0 turns -0 into +0: which zero it is depends on how often the neighbours in the tile made it rotate by nothing.
    tl.store(at, tl.trans(tl.where(bad[:, None], float("nan"), x + 0.0)), mask=real[None, :] & (i < length))


@triton.jit(
    do_not_specialize=["batch", "width", "length", "row_stride", "column_stride", "left_vector", "left_entry",
                       "right_vector", "right_entry"]
)  # fmt: skip
def svd_kernel(
    a: tl.tensor, left: tl.tensor, s: tl.tensor, right: tl.tensor, batch: tl.int64, width: tl.int32, length: tl.int32,
    row_stride: tl.int32, column_stride: tl.int32, left_vector: tl.int32, left_entry: tl.int32, right_vector: tl.int32,
    right_entry: tl.int32, P: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """``a = U diag(s) V^T``: ``width`` singular triplets of ``length x width`` matrices (of their transposes, if wide).

    Entry i of left vector j of a matrix is at ``j left_vector + i left_entry``, and so on.
    """
    pairs = tl.arange(0, P)
    item, live, j = _place(pairs, batch, N)
    real, bottom_real = live & (j < width), live & (j + 1 < width)
    size, square = item * (width.to(tl.int64) * length), item * (width * width)
    top = _read(a, size, j, row_stride, column_stride, real, length, M)
    bottom = _read(a, size, j + 1, row_stride, column_stride, bottom_real, length, M)
    top, bottom, exponent, bad = _normalised(top, bottom, 0.0, pairs, N)
    top, bottom, top_v, bottom_v, top_s, bottom_s = _diagonalise(top, bottom, pairs, N)
    top, bottom = _completed(top, bottom, real & (top_s == 0), bottom_real & (bottom_s == 0), length, pairs, N)
    _write_factors(
        left, s, right, top, bottom, top_v, bottom_v, top_s, bottom_s, exponent, bad, item, size, square, real,
        bottom_real, width, length, left_vector, left_entry, right_vector, right_entry, pairs, N,
    )  # fmt: skip


@triton.jit
def _write_factors(
    left: tl.tensor, s: tl.tensor, right: tl.tensor, top_u: tl.tensor, bottom_u: tl.tensor, top_v: tl.tensor,
    bottom_v: tl.tensor, top_s: tl.tensor, bottom_s: tl.tensor, exponent: tl.tensor, bad: tl.tensor, item: tl.tensor,
    size: tl.tensor, square: tl.tensor, real: tl.tensor, bottom_real: tl.tensor, width: tl.tensor, length: tl.tensor,
    left_vector: tl.tensor, left_entry: tl.tensor, right_vector: tl.tensor, right_entry: tl.tensor, pairs: tl.tensor,
    N: tl.constexpr,
) -> None:  # fmt: skip
    """Writes singular triplets in descending order."""
    rank, bottom_rank = _rank(top_s, bottom_s, pairs, N)
    values = s + item * width
    tl.store(values + rank, tl.where(bad, float("nan"), scaled(top_s, exponent)), mask=real)
    tl.store(values + bottom_rank, tl.where(bad, float("nan"), scaled(bottom_s, exponent)), mask=bottom_real)
    _write(left, top_u, size, rank, left_vector, left_entry, real, length, bad)
    _write(left, bottom_u, size, bottom_rank, left_vector, left_entry, bottom_real, length, bad)
    _write(right, top_v, square, rank, right_vector, right_entry, real, width, bad)
    _write(right, bottom_v, square, bottom_rank, right_vector, right_entry, bottom_real, width, bad)


@triton.jit(
    do_not_specialize=["rcond", "smooth", "batch", "width", "length", "row_stride", "column_stride", "left_vector",
                       "left_entry", "right_vector", "right_entry", "save_factors"]
)  # fmt: skip
def polar_kernel(
    a: tl.tensor, p: tl.tensor, left: tl.tensor, s: tl.tensor, right: tl.tensor, rcond: tl.float64, smooth: tl.float64,
    batch: tl.int64, width: tl.int32, length: tl.int32, row_stride: tl.int32, column_stride: tl.int32,
    left_vector: tl.int32, left_entry: tl.int32, right_vector: tl.int32, right_entry: tl.int32,
    save_factors: tl.int32, P: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """``P(a)``, and with ``save_factors`` what :func:`polar_backward_kernel` reads, as :func:`svd_kernel` writes it.

    Left vectors whose singular value was dropped, or that have no direction, are written as zeros.
    """
    pairs = tl.arange(0, P)
    item, live, j = _place(pairs, batch, N)
    real, bottom_real = live & (j < width), live & (j + 1 < width)
    size, square = item * (width.to(tl.int64) * length), item * (width * width)
    top = _read(a, size, j, row_stride, column_stride, real, length, M)
    bottom = _read(a, size, j + 1, row_stride, column_stride, bottom_real, length, M)
    rcond_row, smooth_row = tl.full([P], rcond, top.dtype), tl.full([P], smooth, top.dtype)
    top, bottom, exponent, bad = _normalised(top, bottom, smooth_row, pairs, N)
    top, bottom, top_u, bottom_u, top_v, bottom_v, top_s, bottom_s = _polar_parts(
        top, bottom, exponent, rcond_row, smooth_row, pairs, N
    )
    j_stride, i_stride = _anew(row_stride, width), _anew(column_stride, width)
    _write(p, top, size, j, j_stride, i_stride, real, length, bad)
    _write(p, bottom, size, j + 1, j_stride, i_stride, bottom_real, length, bad)
    if save_factors > 0:
        _write_factors(
            left, s, right, top_u, bottom_u, top_v, bottom_v, top_s, bottom_s, exponent, bad, item, size, square, real,
            bottom_real, width, length, left_vector, left_entry, right_vector, right_entry, pairs, N,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=["smooth", "batch", "width", "length", "row_stride", "column_stride", "left_vector", "left_entry",
                       "right_vector", "right_entry"]
)  # fmt: skip
def polar_backward_kernel(
    g: tl.tensor, left: tl.tensor, s: tl.tensor, right: tl.tensor, derivative: tl.tensor, smooth: tl.float64,
    batch: tl.int64, width: tl.int32, length: tl.int32, row_stride: tl.int32, column_stride: tl.int32,
    left_vector: tl.int32, left_entry: tl.int32, right_vector: tl.int32, right_entry: tl.int32,
    P: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """The vector-Jacobian product of P for g, from the factors that :func:`polar_kernel` wrote."""
    pairs = tl.arange(0, P)
    item, live, j = _place(pairs, batch, N)
    real, bottom_real = live & (j < width), live & (j + 1 < width)
    size, square = item * (width.to(tl.int64) * length), item * (width * width)
    top_h = _read(g, size, j, row_stride, column_stride, real, length, M)
    bottom_h = _read(g, size, j + 1, row_stride, column_stride, bottom_real, length, M)
    top_v = _read(right, square, j, right_vector, right_entry, real, width, N)
    bottom_v = _read(right, square, j + 1, right_vector, right_entry, bottom_real, width, N)
    top_h, bottom_h = _product(top_v, bottom_v, top_h, bottom_h, pairs, N)
    top_u = _read(left, size, j, left_vector, left_entry, real, length, M)
    bottom_u = _read(left, size, j + 1, left_vector, left_entry, bottom_real, length, M)
    values = s + item * width + j
    top_s = tl.load(values, mask=real, other=0.0)
    bottom_s = tl.load(values + 1, mask=bottom_real, other=0.0)
    bad = _matrix_max(((top_s != top_s) | (bottom_s != bottom_s)).to(tl.int32), pairs, N) > 0
    smooth_row = tl.full([P], smooth, top_s.dtype)
    largest = _matrix_max(tl.where(bad, 0.0, tl.maximum(top_s, bottom_s)), pairs, N)
    exponent = exponent_of(tl.maximum(largest, smooth_row))
    top, bottom = _polar_derivative(
        top_h, bottom_h, top_u, bottom_u, top_v, bottom_v, scaled(top_s, -exponent), scaled(bottom_s, -exponent),
        smooth_row, _smoothing(smooth_row, exponent), exponent, width, length, pairs, N,
    )  # fmt: skip
    j_stride, i_stride = _anew(row_stride, width), _anew(column_stride, width)
    _write(derivative, top, size, j, j_stride, i_stride, real, length, bad)
    _write(derivative, bottom, size, j + 1, j_stride, i_stride, bottom_real, length, bad)


@triton.jit(
    do_not_specialize=["rcond", "smooth", "batch", "image_height", "image_width", "block_height", "block_width",
                       "sides", "need_grad"]
)  # fmt: skip
def loss_kernel(
    x_hat: tl.tensor, x: tl.tensor, loss: tl.tensor, derivative: tl.tensor, rcond: tl.float64, smooth: tl.float64,
    batch: tl.int64, image_height: tl.int32, image_width: tl.int32, block_height: tl.int32, block_width: tl.int32,
    sides: tl.int32, need_grad: tl.int32, P: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """``mean |P(x_hat) - P(x)|`` of each block of ``(b, h, w)`` images, and with ``need_grad`` its derivative by x_hat.

    Args:
        batch: the number of blocks.
        sides: 2. As a constant it would let the compiler write the two factorisations out, and round each its own way:
            equal blocks have to give equal bits.
    """
    pairs = tl.arange(0, P)
    item, live, j = _place(pairs, batch, N)
    wide = block_height < block_width
    column_stride, row_stride = tl.where(wide, image_width, 1), tl.where(wide, 1, image_width)
    width, length = tl.minimum(block_height, block_width), tl.maximum(block_height, block_width)
    corner = corner_of(item, image_height, image_width, block_height, block_width)

    dtype: tl.constexpr = x.dtype.element_ty
    rcond_row, smooth_row = tl.full([P], rcond, dtype), tl.full([P], smooth, dtype)
    top_p, bottom_p = tl.zeros([P, M], dtype), tl.zeros([P, M], dtype)
    top_difference, bottom_difference = tl.zeros([P, M], dtype), tl.zeros([P, M], dtype)
    top_u, bottom_u = tl.zeros([P, M], dtype), tl.zeros([P, M], dtype)
    top_v, bottom_v = tl.zeros([P, N], dtype), tl.zeros([P, N], dtype)
    top_s, bottom_s = tl.zeros([P], dtype), tl.zeros([P], dtype)
    exponent = tl.zeros([P], tl.int32)
    norm = tl.zeros([P], dtype)
    broken = pairs < 0
    for side in tl.range(sides, disable_licm=True):
        image = x
        if side > 0:
            image = x_hat
        j_stride, i_stride = _anew(column_stride, side), _anew(row_stride, side)
        here, column, rows = _anew(corner, side), _anew(j, side), _anew(length, side)
        top = _read(image, here, column, j_stride, i_stride, live & (column < width), rows, M)
        bottom = _read(image, here, column + 1, j_stride, i_stride, live & (column + 1 < width), rows, M)
        top, bottom, exponent, bad = _normalised(top, bottom, smooth_row, pairs, N)
        top, bottom, top_u, bottom_u, top_v, bottom_v, top_s, bottom_s = _polar_parts(
            top, bottom, exponent, rcond_row, smooth_row, pairs, N
        )
        # The larger one's largest singular value.
        s = _matrix_max(tl.maximum(top_s, bottom_s), pairs, N)
        smoothed = s / _hypotenuse(s, _smoothing(smooth_row, exponent))
        norm = tl.maximum(norm, tl.where(smooth_row > 0, smoothed, 1.0))
        top_difference, bottom_difference = top - top_p, bottom - bottom_p
        top_p, bottom_p = top, bottom
        broken = broken | bad

    item, live, _ = _place(pairs, _anew(batch, sides), N)
    entries = (width * length).to(dtype)
    distance = tl.sum(tl.abs(top_difference) + tl.abs(bottom_difference), 1)
    distance = tl.where(broken, float("nan"), _matrix_sum(distance, pairs, N) / entries)
    tl.store(loss + item, distance, mask=live & (j == 0))
    if need_grad > 0:
        # Apart by rounding: svdrd.reference.definitions.signs.
        equal = EQUAL_WITHIN * (2.0**-52 if dtype == tl.float64 else 2.0**-23) * norm
        top, bottom = _product(
            top_v, bottom_v, _sign(top_difference, equal) / entries, _sign(bottom_difference, equal) / entries, pairs, N
        )
        top, bottom = _polar_derivative(
            top, bottom, top_u, bottom_u, top_v, bottom_v, top_s, bottom_s, smooth_row,
            _smoothing(smooth_row, exponent), exponent, width, length, pairs, N,
        )  # fmt: skip
        j_stride, i_stride = _anew(column_stride, sides), _anew(row_stride, sides)
        here, column, rows = _anew(corner, sides), _anew(j, sides), _anew(length, sides)
        _write(derivative, top, here, column, j_stride, i_stride, live & (column < width), rows, broken)
        _write(derivative, bottom, here, column + 1, j_stride, i_stride, live & (column + 1 < width), rows, broken)


@triton.jit
def _sign(x: tl.tensor, bound: tl.tensor) -> tl.tensor:
    """The sign of x, 0 up to ``bound`` of each row."""
    bound = bound[:, None]
    return (tl.where(x > bound, 1.0, 0.0) - tl.where(x < -bound, 1.0, 0.0)).to(x.dtype)


@triton.jit(
    do_not_specialize=["batch", "image_height", "image_width", "block_height", "block_width", "sides"]
)  # fmt: skip
def recompose_kernel(
    x_hat: tl.tensor, x: tl.tensor, result: tl.tensor, batch: tl.int64, image_height: tl.int32, image_width: tl.int32,
    block_height: tl.int32, block_width: tl.int32, sides: tl.int32, P: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """``U_x diag(S_xhat) V_x^T`` of each block of ``(b, h, w)`` images; the arguments are those of :func:`loss_kernel`.

    x_hat comes first: of its decomposition the singular values alone are kept.
    """
    pairs = tl.arange(0, P)
    item, live, j = _place(pairs, batch, N)
    wide = block_height < block_width
    column_stride, row_stride = tl.where(wide, image_width, 1), tl.where(wide, 1, image_width)
    width, length = tl.minimum(block_height, block_width), tl.maximum(block_height, block_width)
    real, bottom_real = live & (j < width), live & (j + 1 < width)
    corner = corner_of(item, image_height, image_width, block_height, block_width)

    dtype: tl.constexpr = x.dtype.element_ty
    top_u, bottom_u = tl.zeros([P, M], dtype), tl.zeros([P, M], dtype)
    top_v, bottom_v = tl.zeros([P, N], dtype), tl.zeros([P, N], dtype)
    top_s, bottom_s, exponent = tl.zeros([P], dtype), tl.zeros([P], dtype), tl.zeros([P], tl.int32)
    top_hat, bottom_hat, exponent_hat = tl.zeros([P], dtype), tl.zeros([P], dtype), tl.zeros([P], tl.int32)
    broken = pairs < 0
    for side in tl.range(sides, disable_licm=True):
        top_hat, bottom_hat, exponent_hat = top_s, bottom_s, exponent
        image = x_hat
        if side > 0:
            image = x
        j_stride, i_stride = _anew(column_stride, side), _anew(row_stride, side)
        top = _read(image, corner, j, j_stride, i_stride, real, length, M)
        bottom = _read(image, corner, j + 1, j_stride, i_stride, bottom_real, length, M)
        top, bottom, exponent, bad = _normalised(top, bottom, tl.zeros([P], dtype), pairs, N)
        top_u, bottom_u, top_v, bottom_v, top_s, bottom_s = _diagonalise(top, bottom, pairs, N)
        broken = broken | bad

    # The value of x_hat whose place in the order is that of the column's own value. Columns that are padding have the
    # last places: of equal values the first one comes first.
    rank, bottom_rank = _rank(top_s, bottom_s, pairs, N)
    rank_hat, bottom_rank_hat = _rank(top_hat, bottom_hat, pairs, N)
    top_weight, bottom_weight = tl.zeros([P], dtype), tl.zeros([P], dtype)
    for k in tl.range(N // 2, disable_licm=True):
        other, value = _across(rank_hat, pairs, k), _across(top_hat, pairs, k)
        top_weight += tl.where(other == rank, value, 0.0)
        bottom_weight += tl.where(other == bottom_rank, value, 0.0)
        other, value = _across(bottom_rank_hat, pairs, k), _across(bottom_hat, pairs, k)
        top_weight += tl.where(other == rank, value, 0.0)
        bottom_weight += tl.where(other == bottom_rank, value, 0.0)
    top_u, bottom_u = _completed(top_u, bottom_u, real & (top_s == 0), bottom_real & (bottom_s == 0), length, pairs, N)
    top, bottom = _transposed_product(top_v, bottom_v, top_weight, bottom_weight, top_u, bottom_u, pairs, N)
    j_stride, i_stride = _anew(column_stride, sides), _anew(row_stride, sides)
    _write(result, scaled(top, exponent_hat), corner, j, j_stride, i_stride, real, length, broken)
    _write(result, scaled(bottom, exponent_hat), corner, j + 1, j_stride, i_stride, bottom_real, length, broken)
