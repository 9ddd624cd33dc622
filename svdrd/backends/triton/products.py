"""Launchers of the tiled products: polar factor and loss of float32 matrices of any size.

The algorithm is in ``svdrd.backends.products.iteration``; :class:`TritonProducts` gives it its products.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from svdrd.backends import outputs
from svdrd.backends.products import iteration
from svdrd.backends.triton import products_kernels as kernels
from svdrd.backends.triton.configuration import Configuration, interpreted

# Up to how many columns which edge of the tiles of products, the last for all beyond. Rows and columns are padded to
# whole tiles. Predictions, as the other choices here: docs/design/gpu_products.md has the reasons.
TILES = ((16, 16), (32, 32), (64, 64), (96, 32))
LARGEST_TILE = 64
# Rows of an operand that a program holds at a time, by the edge of its tile; and its warps. Every warp reads one of the
# two operands as a whole, so few are better; with 2 there are no other instructions than those of sm_80.
DEPTHS = {16: 16, 32: 16, 64: 16}
WARPS = {16: 1, 32: 1, 64: 2}
# The same where sums are float64: on sm_100, where Triton 3.6 has no tensor cores for them, fewer cannot hold them.
DOUBLE_WARPS = {16: 1, 32: 4, 64: 8}
STAGES = 2
# The edge of the tiles of what only reads or writes, and its warps.
EDGE = 32
EDGE_WARPS = 4
# Entries of the matrices, padding included, that are worked on at once: all 96 of 256 x 256 of a training step.
CHUNK = 96 << 16
# Triton's interpreter pays for each operation of each program, so there tiles are as large as this.
INTERPRETED_EDGE = 256
DTYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.int32: "i32"}


def tile_edge(width: int, device: torch.device) -> int:
    """The edge of the tiles of products, for matrices whose shorter side is ``width``."""
    if interpreted(device):
        return min(INTERPRETED_EDGE, triton.next_power_of_2(width))
    return next((edge for largest, edge in TILES if width <= largest), LARGEST_TILE)


def _edge(device: torch.device) -> int:
    return INTERPRETED_EDGE if interpreted(device) else EDGE


@cache
def configuration(kernel: Any, dtypes: tuple[torch.dtype, ...], **constants: Any) -> Configuration:
    """The form of ``kernel`` whose pointers are of ``dtypes``, in their order."""
    first, *rest = (DTYPES[dtype] for dtype in dtypes)
    names = kernel.arg_names[1 : len(dtypes)]
    others = {name: dtype for name, dtype in zip(names, rest, strict=True) if dtype != first}
    tile = constants.get("TILE")
    if tile is None:
        return Configuration.of(kernel, constants, EDGE_WARPS, 1, first, others=others)
    by_tile = DOUBLE_WARPS if dtypes[-1] == torch.float64 else WARPS
    warps = by_tile.get(tile, max(by_tile.values()))
    # By itself the compiler stops at 128 or 168 registers for some of the forms, and spills.
    maxnreg = min(255, 65536 // (32 * warps))
    return Configuration.of(kernel, constants, warps, STAGES, first, maxnreg=maxnreg, others=others)


def configurations() -> Iterator[Configuration]:
    """Every form that the launchers below can choose."""
    single, double = torch.float32, torch.float64
    for tile in sorted(DEPTHS):
        products = {"TILE": tile, "DEPTH": DEPTHS[tile]}
        # The smallest tiles are for matrices that are one.
        for whole in (True, False) if tile > min(DEPTHS) else (True,):
            for x, out, transposed in (
                (single, single, False), (single, single, True), (double, single, False), (double, double, False),
                (double, double, True),
            ):  # fmt: skip
                forms = {"SAME": False, "TRANSPOSED": transposed, "WHOLE": whole}
                yield configuration(kernels.symmetric_kernel, (x, single, *(out,) * 4), **forms, **products)
            for x in (single, double):
                for transposed in (False, True):
                    forms = {"SAME": True, "TRANSPOSED": transposed, "WHOLE": whole}
                    yield configuration(kernels.symmetric_kernel, (x, x, *(single,) * 4), **forms, **products)
        for x in (single, double):
            yield configuration(kernels.product_kernel, (x, single, x, x), TRANSPOSED=False, **products)
        yield configuration(kernels.product_kernel, (single,) * 4, TRANSPOSED=True, **products)
    for wide in (False, True):
        blocks = {"WIDE": wide, "EDGE": EDGE}
        yield configuration(kernels.magnitude_kernel, (single, single), **blocks)
        for out in (single, double):
            yield configuration(kernels.read_kernel, (single, single, out, torch.int32, double), **blocks)
        yield configuration(kernels.write_kernel, (single, single, double, torch.int32), **blocks)
    yield configuration(kernels.distance_kernel, (single,) * 5, EDGE=EDGE)
    for root in (False, True):
        yield configuration(kernels.sum_kernel, (single, single), ROOT=root)


def _launch(
    kernel: Any, programs: int, tensors: tuple[Tensor, ...], scalars: tuple[Any, ...], **constants: Any
) -> None:
    chosen = configuration(kernel, tuple(tensor.dtype for tensor in tensors), **constants)
    with torch.cuda.device_of(tensors[0]):
        chosen.launch((programs,), *tensors, *scalars)


def _tiles(device: torch.device, rows: int, columns: int) -> tuple[int, int]:
    """How many tiles it takes to read or write ``rows x columns`` entries, and how many of them lie side by side."""
    across = triton.cdiv(columns, _edge(device))
    return triton.cdiv(rows, _edge(device)) * across, across


class Blocks(NamedTuple):
    """``batch`` blocks from number ``start`` on of contiguous images ``(b, h, w)``, row by row."""

    images: Tensor
    height: int
    width: int
    start: int
    batch: int

    @classmethod
    def matrices(cls, a: Tensor) -> Blocks:
        """All of ``(b, m, n)``."""
        return cls(a, a.shape[1], a.shape[2], 0, a.shape[0])

    def split(self, count: int) -> list[Blocks]:
        """Parts of at most ``count``, of nearly the same size."""
        parts = max(1, -(-self.batch // count))
        bounds = [self.start + self.batch * k // parts for k in range(parts + 1)]
        return [self._replace(start=a, batch=b - a) for a, b in pairwise(bounds)]

    @property
    def size(self) -> tuple[int, int]:
        """Longer and shorter side."""
        return max(self.height, self.width), min(self.height, self.width)

    @property
    def constants(self) -> dict[str, Any]:
        """What the kernels that read or write them are compiled with."""
        return {"WIDE": self.height < self.width, "EDGE": _edge(self.images.device)}

    @property
    def geometry(self) -> tuple[int, int, int, int, int]:
        """What these kernels are told of them."""
        return self.start, *self.images.shape[1:], self.height, self.width


class TritonProducts:
    """:class:`svdrd.backends.products.arithmetic.Products` by Triton's kernels, for :class:`Blocks`.

    Args:
        tile: the edge of the tiles of products.
    """

    def __init__(self, tile: int) -> None:
        self.tile = tile
        self.constants = {"TILE": tile, "DEPTH": DEPTHS.get(tile, tile)}

    def padded(self, blocks: Blocks, appended: bool) -> tuple[int, int]:
        """Height and side of the padded matrices, with or without an appended square."""
        length, width = blocks.size
        rows = length + width if appended else length
        return triton.cdiv(rows, self.tile) * self.tile, triton.cdiv(width, self.tile) * self.tile

    def read(
        self, matrices: Blocks, dtype: torch.dtype, scale: bool, appended: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        images, count = matrices.images, matrices.batch
        height, side = self.padded(matrices, appended is not None)
        out = images.new_empty(count, height, side, dtype=dtype)
        exponents = images.new_empty(count, dtype=torch.int32)
        health = images.new_empty(count, dtype=torch.float64)
        parts, across = _tiles(images.device, *matrices.size)
        partial = images.new_empty(count, parts)
        _launch(
            kernels.magnitude_kernel, count * parts, (images, partial), (*matrices.geometry, parts, across),
            **matrices.constants,
        )  # fmt: skip
        tiles, across = _tiles(images.device, height, side)
        scalars = (tiles, parts, across, height, side, appended or 0.0, int(appended is not None), int(scale))
        _launch(
            kernels.read_kernel, count * tiles, (images, partial, out, exponents, health),
            (*matrices.geometry, *scalars), **matrices.constants,
        )  # fmt: skip
        return out, exponents, health

    def write(self, into: Blocks, x: Tensor, factor: Tensor, exponent: Tensor | None) -> None:
        tiles, across = _tiles(x.device, *into.size)
        exponents = torch.zeros_like(factor, dtype=torch.int32) if exponent is None else exponent
        _launch(
            kernels.write_kernel, into.batch * tiles, (x, into.images, factor, exponents),
            (*into.geometry, tiles, across, *x.shape[1:]), **into.constants,
        )  # fmt: skip

    def _symmetric(
        self,
        x: Tensor,
        y: Tensor | None,
        dtype: torch.dtype,
        sign: float = 1.0,
        alpha: float = 1.0,
        d: Tensor | None = None,
        beta: float = 0.0,
        norm: Tensor | None = None,
        sums: Tensor | None = None,
        symmetric: bool = False,
    ) -> Tensor:
        count, height, n = x.shape
        out = x.new_empty(count, n, n, dtype=dtype)
        side = n // self.tile
        # In place of a pointer that is not followed stands one of the same type.
        tensors = (
            x,
            x if y is None else y,
            out if d is None else d,
            out if norm is None else norm,
            out,
            out if sums is None else sums,
        )
        scalars = (alpha, beta, sign, height // self.tile, side, int(d is not None), int(norm is not None))
        programs = count * (side * (side + 1) // 2)
        forms = {"SAME": y is None, "TRANSPOSED": not symmetric, "WHOLE": side == 1}
        _launch(kernels.symmetric_kernel, programs, tensors, scalars, **forms, **self.constants)
        return out

    def gram(
        self,
        x: Tensor,
        dtype: torch.dtype,
        alpha: float = 1.0,
        d: Tensor | None = None,
        beta: float = 0.0,
        symmetric: bool = False,
    ) -> Tensor:
        return self._symmetric(x, None, dtype, 1.0, alpha, d, beta, symmetric=symmetric)

    def unit_gram(self, x: Tensor, norm: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        count, side = len(x), x.shape[2] // self.tile
        sums = x.new_empty(count, side * (side + 1) // 2, dtype=dtype)
        divisor = x.new_ones(count, dtype=dtype) if norm is None else norm
        gram = self._symmetric(x, None, dtype, norm=divisor, sums=sums, symmetric=norm is not None)
        return gram, _sums(sums, root=True)

    def cross(
        self,
        x: Tensor,
        y: Tensor,
        sign: float,
        dtype: torch.dtype,
        alpha: float = 1.0,
        d: Tensor | None = None,
        beta: float = 0.0,
        symmetric: bool = False,
    ) -> Tensor:
        return self._symmetric(x, y, dtype, sign, alpha, d, beta, symmetric=symmetric)

    def _product(self, x: Tensor, y: Tensor, transposed: bool, alpha: float, d: Tensor | None, beta: float) -> Tensor:
        rows = x.shape[2 if transposed else 1]
        out = x.new_empty(len(x), rows, y.shape[2])
        depth, height, side = (size // self.tile for size in (y.shape[1], rows, y.shape[2]))
        tensors = (x, y, out if d is None else d, out)
        scalars = (alpha, beta, depth, height, side, int(d is not None))
        programs = len(x) * height * side
        _launch(kernels.product_kernel, programs, tensors, scalars, TRANSPOSED=transposed, **self.constants)
        return out

    def times(self, x: Tensor, y: Tensor, alpha: float = 1.0, d: Tensor | None = None, beta: float = 0.0) -> Tensor:
        return self._product(x, y, False, alpha, d, beta)

    def inner(self, x: Tensor, y: Tensor, alpha: float = 1.0, d: Tensor | None = None, beta: float = 0.0) -> Tensor:
        return self._product(x, y, True, alpha, d, beta)

    def distance(
        self, p: Tensor, q: Tensor, bound: Tensor, size: tuple[int, int], signed: bool
    ) -> tuple[Tensor, Tensor | None]:
        m, n = size
        tiles, across = _tiles(p.device, *p.shape[1:])
        sums = p.new_empty(len(p), tiles)
        sign = torch.empty_like(p) if signed else None
        _launch(
            kernels.distance_kernel, len(p) * tiles, (p, q, bound, p if sign is None else sign, sums),
            (max(m, n), m * n, tiles, across, *p.shape[1:], int(signed)), EDGE=_edge(p.device),
        )  # fmt: skip
        return _sums(sums, root=False) / (m * n), sign


def _sums(sums: Tensor, root: bool) -> Tensor:
    """The sum of each row; with ``root`` its square root, 1 for 0."""
    out = sums.new_empty(len(sums))
    _launch(kernels.sum_kernel, len(sums), (sums, out), (sums.shape[1],), ROOT=root)
    return out


def _chunk(products: TritonProducts, blocks: Blocks, smooth: float) -> int:
    height, side = products.padded(blocks, smooth > 0)
    return max(1, CHUNK // (height * side))


def polar_factor(a: Tensor, rcond: float, smooth: float, save_factors: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`svdrd.backends.products.iteration.polar_factor`; forms no factors."""
    _, m, n = a.shape
    a = a.contiguous()
    p, u, s, vh = outputs.of_polar_factor(a, outputs.NOTHING)
    products = TritonProducts(tile_edge(min(m, n), a.device))
    batches = [Blocks.matrices(x) for x in (a, p)]
    chunk = _chunk(products, batches[0], smooth)
    for matrices, into in zip(*(batch.split(chunk) for batch in batches), strict=True):
        iteration.write_polar_factor(products, matrices, into, a.dtype, rcond, smooth)
    return p, u, s, vh


def polar_factor_backward(
    grad: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float
) -> Tensor:
    """As :func:`svdrd.backends.products.iteration.polar_factor_vjp`."""
    _, m, n = a.shape
    grad, a, p = grad.contiguous(), a.contiguous(), p.contiguous()
    derivative = torch.empty_like(a)
    products = TritonProducts(tile_edge(min(m, n), a.device))
    batches = [Blocks.matrices(x) for x in (grad, a, p, derivative)]
    chunk = _chunk(products, batches[0], smooth)
    for g, matrices, factor, into in zip(*(batch.split(chunk) for batch in batches), strict=True):
        iteration.write_polar_factor_vjp(products, g, matrices, factor, into, a.dtype, rcond, smooth)
    return derivative


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
    """As :func:`svdrd.reference.definitions.basis_loss`, blocks read from the images."""
    x_hat, x = x_hat.contiguous(), x.contiguous()
    loss, by_x_hat, by_x = outputs.of_basis_loss(x_hat, block_height, block_width, need_grad_x_hat, need_grad_x)
    products = TritonProducts(tile_edge(min(block_height, block_width), x.device))
    batches = [Blocks(images, block_height, block_width, 0, loss.numel()) for images in (x_hat, by_x_hat, x, by_x)]
    chunk = _chunk(products, batches[0], smooth)
    for hat, into_hat, target, into in zip(*(batch.split(chunk) for batch in batches), strict=True):
        sides = ((hat, into_hat if need_grad_x_hat else None), (target, into if need_grad_x else None))
        size = (block_height, block_width)
        part = iteration.write_basis_loss(products, sides, size, x.dtype, rcond, smooth)
        loss.view(-1)[hat.start : hat.start + hat.batch] = part
    return loss, by_x_hat, by_x
