"""The kernels behind ``svdrd.backends.triton.products``: tiled batched products, and reading, padding and writing.

Matrices are tall, contiguous, and padded with zeros to whole tiles, so that products need no masks. One program makes
one tile. Of a symmetric result only the tiles on and above the diagonal are made, and their mirror images are written
as well: such a result is symmetric to the bit. Every sum is in an order that depends on the shape alone, and no program
looks beyond its matrix. The batch lies along the first axis of the grid, because the other two end at 65535.

A product of float32 is three products of TF32: each operand is split into two parts, and the product of the two small
parts is dropped. That leaves about 2^-21 of each term. A product of float64 is float64's own, on tensor cores where
there are such (compute capability 8.0, 9.0, 10.0).
"""

from __future__ import annotations

import triton
import triton.language as tl

from svdrd.backends.triton.floats import exponent_of, largest_of, times_power_of_two
from svdrd.backends.triton.images import corner_of


@triton.jit
def _upper_tile(t: tl.tensor) -> tl.tensor:
    """Row and column of tile t, counting the columns of the upper triangle one after another."""
    # In float32 the root is good to 1e-4 for a side of up to 1000 tiles, and the next smaller t is 1e-3 away.
    column = ((tl.sqrt(8.0 * t + 1.0) - 1.0) * 0.5 + 3e-4).to(tl.int32)
    return t - column * (column + 1) // 2, column


@triton.jit
def _big(x: tl.tensor, FORM: tl.constexpr) -> tl.tensor:
    """The TF32 number nearest to x, float32: its first 11 bits, ties away from zero."""
    # Triton lets a product's operand lie in memory as it was loaded, and splits it in registers, only where no other
    # product has the same operand. So each asks for another form of the same bits; LLVM knows that they are the same.
    bits = x.to(tl.int32, bitcast=True) + 0x1000
    if FORM == 0:
        bits = bits & -0x2000
    elif FORM == 1:
        bits = (bits >> 13) << 13
    else:
        bits = bits - (bits & 0x1FFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _plus_product(total: tl.tensor, x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """``total + x y``, in float64 where ``total`` is."""
    if total.dtype == tl.float64:
        total = tl.dot(x, y, total, input_precision="ieee", out_dtype=tl.float64)
    else:
        # The sums of a slab are small beside the total: tensor cores cut what they add off, an addition rounds it.
        part = tl.dot(x - _big(x, 0), _big(y, 0), input_precision="tf32")
        part = tl.dot(_big(x, 1), y - _big(y, 0), part, input_precision="tf32")
        total += tl.dot(_big(x, 2), _big(y, 1), part, input_precision="tf32")
    return total


@triton.jit
def _plus_half_gram(total: tl.tensor, x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """``total`` + t with ``t + t^T = x y``, if ``x = y^T``; float32."""
    part = tl.dot(x - _big(x, 0), _big(y, 0), input_precision="tf32")
    return total + tl.dot(0.5 * _big(x, 1), _big(y, 1), part, input_precision="tf32")


@triton.jit
def _slab(
    x: tl.tensor, row: tl.tensor, column: tl.tensor, width: tl.tensor, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Addresses of the ``HEIGHT x WIDTH`` entries from ``row, column`` on, of a matrix with ``width`` in a row."""
    corner = row * width.to(tl.int64) + column
    return x + corner + (tl.arange(0, HEIGHT)[:, None] * width + tl.arange(0, WIDTH)[None, :])


@triton.jit
def _rows(
    x: tl.tensor, i: tl.tensor, k: tl.tensor, width: tl.tensor, TRANSPOSED: tl.constexpr, TILE: tl.constexpr,
    DEPTH: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Slab k of tile row i of x, or with ``TRANSPOSED`` of x^T: ``TILE x DEPTH``."""
    if TRANSPOSED:
        left = tl.trans(tl.load(_slab(x, k * DEPTH, i * TILE, width, DEPTH, TILE)))
    else:
        left = tl.load(_slab(x, i * TILE, k * DEPTH, width, TILE, DEPTH))
    return left


@triton.jit(do_not_specialize=["alpha", "beta", "sign", "height", "side", "add", "unit"])
def symmetric_kernel(
    x: tl.tensor, y: tl.tensor, d: tl.tensor, norm: tl.tensor, out: tl.tensor, sums: tl.tensor, alpha: tl.float64,
    beta: tl.float64, sign: tl.float64, height: tl.int32, side: tl.int32, add: tl.int32, unit: tl.int32,
    SAME: tl.constexpr, TRANSPOSED: tl.constexpr, WHOLE: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
) -> None:  # fmt: skip
    """``alpha (x^T y + sign y^T x) + beta d``, or with ``SAME`` ``alpha x^T x + beta d``: n x n, symmetric or skew.

    Args:
        x, y: ``(b, rows, n)``; without ``TRANSPOSED`` x is symmetric, and is read as it lies.
        d: read if ``add``; symmetric or skew as the result is.
        norm: ``(b,)``, read if ``unit``: the result is divided by its square.
        sums: ``(b, side (side + 1) / 2)``, written if ``unit``: what a tile and its mirror image add to the squared
            Frobenius norm.
        sign: 1 or -1; 1 with ``SAME``.
        height, side: tiles in a column and in a row of x.
        WHOLE: the result is one tile.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    tiles = side * (side + 1) // 2
    item = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    n = side * TILE
    x += item * (height * TILE) * n
    y += item * (height * TILE) * n
    out += item * n * n
    signed = tl.full([1, 1], sign, dtype)
    total = tl.zeros([TILE, TILE], dtype)
    steps = height * (TILE // DEPTH)
    # t + sign t^T is symmetric or skew to the bit; so of a tile on the diagonal t = x^T y is enough.
    if WHOLE:
        i, j = tile, tile  # the only one, 0
        for k in range(steps):
            right = tl.load(_slab(y, k * DEPTH, j * TILE, n, DEPTH, TILE)).to(dtype)
            if SAME and TRANSPOSED:
                total = _plus_half_gram(total, tl.trans(right), right)
            elif SAME:
                total = _plus_half_gram(total, _rows(x, i, k, n, TRANSPOSED, TILE, DEPTH).to(dtype), right)
            else:
                total = _plus_product(total, _rows(x, i, k, n, TRANSPOSED, TILE, DEPTH).to(dtype), right)
        total += signed * tl.trans(total)
    elif SAME:
        i, j = _upper_tile(tile)
        for k in range(steps):
            right = tl.load(_slab(x, k * DEPTH, j * TILE, n, DEPTH, TILE)).to(dtype)
            total = _plus_product(total, _rows(x, i, k, n, TRANSPOSED, TILE, DEPTH).to(dtype), right)
        if i == j:
            # Both triangles were computed, in different orders.
            rows, columns = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :]
            total = tl.where(rows <= columns, total, tl.trans(total))
    else:
        i, j = _upper_tile(tile)
        for k in range(steps):
            right = tl.load(_slab(y, k * DEPTH, i * TILE, n, DEPTH, TILE)).to(dtype)
            total = _plus_product(total, _rows(x, j, k, n, TRANSPOSED, TILE, DEPTH).to(dtype), right)
        mirrored = signed * tl.trans(total)
        total = tl.where(i == j, total + mirrored, mirrored)
        for k in range(tl.where(i == j, 0, steps)):
            right = tl.load(_slab(y, k * DEPTH, j * TILE, n, DEPTH, TILE)).to(dtype)
            total = _plus_product(total, _rows(x, i, k, n, TRANSPOSED, TILE, DEPTH).to(dtype), right)
    total *= tl.full([1, 1], alpha, dtype)
    if unit > 0:
        scale = tl.load(norm + item)
        total /= scale * scale
        tl.store(sums + item * tiles + tile, tl.sum(total * total) * tl.where(i == j, 1.0, 2.0).to(dtype))
    if add > 0:
        d += item * n * n
        total += tl.full([1, 1], beta, dtype) * tl.load(_slab(d, i * TILE, j * TILE, n, TILE, TILE)).to(dtype)
    tl.store(_slab(out, i * TILE, j * TILE, n, TILE, TILE), total)
    if not WHOLE and i < j:
        tl.store(_slab(out, j * TILE, i * TILE, n, TILE, TILE), signed * tl.trans(total))


@triton.jit(do_not_specialize=["alpha", "beta", "depth", "height", "side", "add"])
def product_kernel(
    x: tl.tensor, y: tl.tensor, d: tl.tensor, out: tl.tensor, alpha: tl.float64, beta: tl.float64, depth: tl.int32,
    height: tl.int32, side: tl.int32, add: tl.int32, TRANSPOSED: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
) -> None:  # fmt: skip
    """``alpha x y + beta d``, or with ``TRANSPOSED`` ``alpha x^T y + beta d``.

    Args:
        x: ``(b, height, depth)`` tiles, or transposed ``(b, depth, height)``.
        y: ``(b, depth, side)`` tiles.
        d: ``(b, height, side)`` tiles, read if ``add``.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    tiles = height * side
    item = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    i, j = tile // side, tile % side
    n, length = side * TILE, depth * TILE
    width = height * TILE if TRANSPOSED else length
    x += item * (height * TILE) * length
    y += item * length * n
    total = tl.zeros([TILE, TILE], dtype)
    for k in range(depth * (TILE // DEPTH)):
        right = tl.load(_slab(y, k * DEPTH, j * TILE, n, DEPTH, TILE)).to(dtype)
        total = _plus_product(total, _rows(x, i, k, width, TRANSPOSED, TILE, DEPTH).to(dtype), right)
    total *= tl.full([1, 1], alpha, dtype)
    square = item * (height * TILE) * n
    if add > 0:
        total += tl.full([1, 1], beta, dtype) * tl.load(_slab(d + square, i * TILE, j * TILE, n, TILE, TILE)).to(dtype)
    tl.store(_slab(out + square, i * TILE, j * TILE, n, TILE, TILE), total)


@triton.jit
def _place(
    image: tl.tensor, item: tl.tensor, tile: tl.tensor, tiles_across: tl.tensor, image_height: tl.tensor,
    image_width: tl.tensor, block_height: tl.tensor, block_width: tl.tensor, WIDE: tl.constexpr, EDGE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Where a tile of a block lies in its image, as the tile of the tall matrix or, if ``WIDE``, as its transpose.

    Returns row and column in the tall matrix, the addresses, and which are in the block; all in the shape of the block.
    """
    corner = corner_of(item, image_height, image_width, block_height, block_width)
    long = (tile // tiles_across) * EDGE + tl.arange(0, EDGE)
    short = (tile % tiles_across) * EDGE + tl.arange(0, EDGE)
    if WIDE:
        i, j = long[None, :], short[:, None]
        row, column = j, i
    else:
        i, j = long[:, None], short[None, :]
        row, column = i, j
    inside = (row < block_height) & (column < block_width)
    return i, j, image + (corner + row.to(tl.int64) * image_width + column), inside


@triton.jit(
    do_not_specialize=["start", "image_height", "image_width", "block_height", "block_width", "tiles", "tiles_across"]
)
def magnitude_kernel(
    image: tl.tensor, partial: tl.tensor, start: tl.int64, image_height: tl.int32, image_width: tl.int32,
    block_height: tl.int32, block_width: tl.int32, tiles: tl.int32, tiles_across: tl.int32, WIDE: tl.constexpr,
    EDGE: tl.constexpr,
) -> None:  # fmt: skip
    """The largest absolute value in each tile of each block, infinite where there is an infinity or a NaN."""
    item = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    _, _, at, inside = _place(
        image, start + item, tile, tiles_across, image_height, image_width, block_height, block_width, WIDE, EDGE
    )
    a = tl.abs(tl.load(at, mask=inside, other=0.0))
    a = tl.where(a <= largest_of(a.dtype), a, float("inf"))
    tl.store(partial + item * tiles + tile, tl.max(a))


@triton.jit(
    do_not_specialize=["start", "image_height", "image_width", "block_height", "block_width", "tiles", "parts",
                       "tiles_across", "height", "side", "appended", "append", "scale"]
)  # fmt: skip
def read_kernel(
    image: tl.tensor, partial: tl.tensor, out: tl.tensor, exponents: tl.tensor, health: tl.tensor, start: tl.int64,
    image_height: tl.int32, image_width: tl.int32, block_height: tl.int32, block_width: tl.int32, tiles: tl.int32,
    parts: tl.int32, tiles_across: tl.int32, height: tl.int32, side: tl.int32, appended: tl.float64, append: tl.int32,
    scale: tl.int32, WIDE: tl.constexpr, EDGE: tl.constexpr,
) -> None:  # fmt: skip
    """Blocks of images as padded tall matrices: ``svdrd.backends.products.arithmetic.Products.read``.

    Args:
        partial: ``(b, parts)``, what :func:`magnitude_kernel` found.
        out: ``(b, height, side)``; what is not of the block, nor appended, is written as zero.
        exponents, health: ``(b,)``, int32 and float64.
        start: the first block.
        append: whether ``appended`` times the identity is set below.
    """
    item = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    largest = tl.zeros([64], partial.dtype.element_ty)
    for k in range(0, parts, 64):
        part = k + tl.arange(0, 64)
        largest = tl.maximum(largest, tl.load(partial + item * parts + part, mask=part < parts, other=0.0))
    size = tl.max(largest)
    bad = size == float("inf")
    exponent = tl.where(scale > 0, exponent_of(tl.maximum(tl.where(bad, 0.0, size).to(tl.float64), appended)), 0)
    i, j, at, inside = _place(
        image, start + item, tile, tiles_across, image_height, image_width, block_height, block_width, WIDE, EDGE
    )
    a = tl.where(bad, 0.0, tl.load(at, mask=inside, other=0.0)).to(tl.float64)
    identity = (append > 0) & (i == j + tl.maximum(block_height, block_width))
    a = tl.where(identity & (j < tl.minimum(block_height, block_width)), appended, a)
    a = times_power_of_two(a, -exponent).to(out.dtype.element_ty)
    to = item * height * side + i.to(tl.int64) * side + j
    padded = (i < height) & (j < side)
    if WIDE:
        a, to, padded = tl.trans(a), tl.trans(to), tl.trans(padded)
    tl.store(out + to, a, mask=padded)
    if tile == 0:
        tl.store(exponents + item, exponent)
        tl.store(health + item, tl.where(bad, float("nan"), 1.0).to(tl.float64))


@triton.jit(
    do_not_specialize=["start", "image_height", "image_width", "block_height", "block_width", "tiles", "tiles_across",
                       "height", "side"]
)  # fmt: skip
def write_kernel(
    x: tl.tensor, image: tl.tensor, factor: tl.tensor, exponents: tl.tensor, start: tl.int64, image_height: tl.int32,
    image_width: tl.int32, block_height: tl.int32, block_width: tl.int32, tiles: tl.int32, tiles_across: tl.int32,
    height: tl.int32, side: tl.int32, WIDE: tl.constexpr, EDGE: tl.constexpr,
) -> None:  # fmt: skip
    """``factor 2^exponent x`` into the blocks of images: ``svdrd.backends.products.arithmetic.Products.write``.

    ``x`` is ``(b, height, side)``, ``factor`` ``(b,)`` in float64, ``exponents`` ``(b,)`` in int32.
    """
    item = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    i, j, at, inside = _place(
        image, start + item, tile, tiles_across, image_height, image_width, block_height, block_width, WIDE, EDGE
    )
    source = item * height * side + i.to(tl.int64) * side + j
    if WIDE:
        value = tl.trans(tl.load(x + tl.trans(source), mask=tl.trans(inside), other=0.0))
    else:
        value = tl.load(x + source, mask=inside, other=0.0)
    value = times_power_of_two(value.to(tl.float64) * tl.load(factor + item), tl.load(exponents + item))
    bound = largest_of(image.dtype.element_ty)
    value = tl.where(tl.abs(value) > bound, tl.where(value > 0, bound, -bound), value)
    tl.store(at, value.to(image.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["length", "entries", "tiles", "tiles_across", "height", "side", "signed"])
def distance_kernel(
    p: tl.tensor, q: tl.tensor, bound: tl.tensor, sign: tl.tensor, sums: tl.tensor, length: tl.int32, entries: tl.int32,
    tiles: tl.int32, tiles_across: tl.int32, height: tl.int32, side: tl.int32, signed: tl.int32, EDGE: tl.constexpr,
) -> None:  # fmt: skip
    """``|p - q|`` summed over each tile, ``(b, tiles)``, and if ``signed`` ``sign(p - q) / entries``.

    Up to ``bound``, ``(b,)``, the sign is 0. Matrices are ``(b, height, side)``; rows from ``length`` on do not count.
    """
    item = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    i = (tile // tiles_across) * EDGE + tl.arange(0, EDGE)[:, None]
    j = (tile % tiles_across) * EDGE + tl.arange(0, EDGE)[None, :]
    at = item * height * side + i.to(tl.int64) * side + j
    counted = (i < length) & (j < side)
    difference = tl.load(p + at, mask=counted, other=0.0) - tl.load(q + at, mask=counted, other=0.0)
    tl.store(sums + item * tiles + tile, tl.sum(tl.abs(difference)))
    if signed > 0:
        unit = 1 / tl.full([1, 1], entries, difference.dtype)
        equal = tl.load(bound + item)
        value = tl.where(difference > equal, unit, tl.where(difference < -equal, -unit, 0.0))
        tl.store(sign + at, value, mask=(i < height) & (j < side))


@triton.jit(do_not_specialize=["count"])
def sum_kernel(sums: tl.tensor, out: tl.tensor, count: tl.int32, ROOT: tl.constexpr) -> None:
    """The sum of ``count`` values of each item, ``(b, count)``; with ``ROOT`` its square root, 1 for 0."""
    item = tl.program_id(0).to(tl.int64)
    total = tl.zeros([64], out.dtype.element_ty)
    for k in range(0, count, 64):
        part = k + tl.arange(0, 64)
        total += tl.load(sums + item * count + part, mask=part < count, other=0.0)
    result = tl.sum(total)
    if ROOT:
        result = tl.where(result > 0, tl.sqrt(tl.where(result > 0, result, 1.0)), 1.0)
    tl.store(out + item, result)
