"""Triton's tiled products: every kernel beside PyTorch's products, and the algorithm over them.

``svdrd.backends.products.iteration`` is one algorithm over two implementations of ``arithmetic.Products``;
tests/backends/test_iteration.py tests it over PyTorch's. Here each method of Triton's is compared with PyTorch's, over
several tiles and ragged edges, and the whole is run where the whole matters.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import svdrd
from svdrd.backends import availability
from svdrd.backends.products import arithmetic, iteration
from svdrd.backends.products.arithmetic import TORCH
from svdrd.dispatch import registration, routes
from svdrd.dispatch.registration import ops
from svdrd.ops import polar_factor
from svdrd.reference import definitions, derivatives
from tests.backends.test_iteration import default_rcond, relative_spectra, undecided
from tests.ops.test_photographs import by_autograd, crops, quantiles, relative_error
from tests.zoo import ZOO

INTERPRETED = not torch.cuda.is_available()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
# Several tiles of products in the smallest matrices: on a GPU a tile has 16 rows and columns at least.
TILE = 4 if INTERPRETED else 16
RCOND = default_rcond(torch.float32)
# Six quintics fewer than at the default: for what does not depend on how many there are.
COARSE = 0.2


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    record = next(record for record in availability.describe() if record.name == "triton")
    if not record.available:
        pytest.skip(f"triton: {record.reason}")
    if INTERPRETED:
        from triton.runtime.interpreter import interpreter_builder

        # The interpreter's look at each integer operation for an overflow takes a third of its time.
        options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=False)
        monkeypatch.setattr(interpreter_builder, "options", options)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with svdrd.use_backend("triton"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Triton's launchers, with tiles so small that small matrices have several of them."""
    from svdrd.backends.triton import products as launchers

    monkeypatch.setattr(launchers, "INTERPRETED_EDGE", TILE)
    return launchers


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def symmetric(n: int, sign: float, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    a = random(2, n, n, seed=seed, dtype=dtype)
    return a + sign * a.mT


# Each method beside PyTorch's, of matrices of whole tiles


@pytest.mark.parametrize(("height", "side"), [(4, 3), (2, 1)], ids=["tiles", "one"])
@pytest.mark.parametrize(("x_dtype", "y_dtype", "dtype"), [
    (torch.float32, torch.float32, torch.float32),
    (torch.float64, torch.float32, torch.float32),
    (torch.float64, torch.float32, torch.float64),
], ids=["single", "narrowed", "double"])  # fmt: skip
def test_products(
    small_tiles: Any, x_dtype: torch.dtype, y_dtype: torch.dtype, dtype: torch.dtype, height: int, side: int
) -> None:
    ours = small_tiles.TritonProducts(TILE)
    tolerance = 100 * torch.finfo(dtype).eps

    def same(result: Tensor, expected: Tensor) -> None:
        assert result.dtype == dtype
        torch.testing.assert_close(result, expected, atol=tolerance, rtol=tolerance)

    m, n = height * TILE, side * TILE
    x, y = random(2, m, n, dtype=x_dtype), random(2, m, n, seed=1, dtype=y_dtype)
    even, odd = symmetric(n, 1.0, 2, dtype), symmetric(n, -1.0, 3, dtype)
    square = symmetric(n, 1.0, 7, x_dtype)
    if dtype == torch.float32:
        for arguments in ((), (-0.5, even, 2.0)):
            for operand in (x, square):
                gram = ours.gram(operand, dtype, *arguments, symmetric=operand is square)
                same(gram, TORCH.gram(operand, dtype, *arguments))
                assert torch.equal(gram, gram.mT)
        gram, norm = ours.unit_gram(x, None, dtype)
        for result, expected in zip((gram, norm), TORCH.unit_gram(x, None, dtype), strict=True):
            same(result, expected)
        for result, expected in zip(ours.unit_gram(gram, norm, dtype), TORCH.unit_gram(gram, norm, dtype), strict=True):
            same(result, expected)
        zero = ours.unit_gram(torch.zeros_like(x), None, dtype)
        assert (zero[0] == 0).all()
        assert (zero[1] == 1).all()
    for sign, d in ((1.0, even), (-1.0, odd)):
        for arguments in ((), (0.5, d, 3.0)):
            for left, right in ((x, y), (square, y[:, :n])):
                cross = ours.cross(left, right.contiguous(), sign, dtype, *arguments, symmetric=left is square)
                same(cross, TORCH.cross(left, right, sign, dtype, *arguments))
                assert torch.equal(cross, sign * cross.mT)
    if x_dtype == dtype:
        right = random(2, n, 2 * TILE, seed=4, dtype=y_dtype)
        for d in (None, random(2, m, 2 * TILE, seed=5, dtype=dtype)):
            same(ours.times(x, right, -2.0, d, 0.25), TORCH.times(x, right, -2.0, d, 0.25))
    if x_dtype == y_dtype:
        for d in (None, random(2, n, n, seed=6)):
            same(ours.inner(x, y, -2.0, d, 0.25), TORCH.inner(x, y, -2.0, d, 0.25))


def test_upper_tiles_are_all_there(small_tiles: Any) -> None:
    """Of a triangle of many tiles, none is left out: unwritten memory is NaN here."""
    ours = small_tiles.TritonProducts(TILE)
    x = random(1, TILE, 9 * TILE)
    torch.testing.assert_close(ours.gram(x, x.dtype), TORCH.gram(x, x.dtype), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("m", "n", "appended"), [(5, 5, None), (6, 5, 0.0), (5, 6, 3.0), (1, 6, None)])
def test_read_and_write(small_tiles: Any, m: int, n: int, appended: float | None) -> None:
    """Blocks of images, in part; an item that is not finite; what is padding stays zero."""
    ours, (length, width) = small_tiles.TritonProducts(TILE), (max(m, n), min(m, n))
    images = 100 * random(2, m, 3 * n)
    images[0, 0, 2 * n] = torch.nan
    images[1, 0, n] = -torch.inf
    images[0, :, n : 2 * n] = 0
    images[1, :, :n] *= 1e-38  # down to denormal numbers
    blocks = definitions.to_blocks(images, m, n)[1:5]
    source = small_tiles.Blocks(images, m, n, 1, 4)
    rows = length if appended is None else length + width
    for scale in (True, False):
        x, exponent, health = ours.read(source, torch.float64, scale, appended)
        expected, expected_exponent, expected_health = TORCH.read(blocks, torch.float64, scale, appended)
        assert torch.equal(x[:, :rows, :width], expected)
        assert torch.equal(exponent, expected_exponent)
        torch.testing.assert_close(health, expected_health, equal_nan=True)
        assert x[:, rows:].count_nonzero() == x[:, :, width:].count_nonzero() == 0
        assert health.isnan().sum() == 2
    single = ours.read(source, torch.float32, True, appended)[0]
    assert torch.equal(single, ours.read(source, torch.float64, True, appended)[0].float())

    factor = random(4, seed=1, dtype=torch.float64) * health
    into = torch.full_like(images, 7.0)
    for shift in (None, torch.tensor([-5, 0, 400, -400], dtype=torch.int32, device=DEVICE)):
        ours.write(source._replace(images=into), single, factor, shift)
        expected = torch.empty_like(blocks)
        TORCH.write(expected, single[:, :, :width], factor, shift)
        result = definitions.to_blocks(into, m, n)
        assert torch.equal(result[1:5].nan_to_num(9.0), expected.nan_to_num(9.0))
        assert (result[[0, 5]] == 7).all()


def test_distance(small_tiles: Any) -> None:
    ours = small_tiles.TritonProducts(TILE)
    p = random(3, 3 * TILE, 2 * TILE)
    q = p + random(3, 3 * TILE, 2 * TILE, seed=1).relu()
    size, length = (2 * TILE, TILE + 2), 2 * TILE
    p[:, :, TILE + 2 :] = q[:, :, TILE + 2 :] = 0  # as read() pads; rows below may be of an appended identity
    bound = torch.tensor([0.0, 0.1, 1e9])
    loss, sign = ours.distance(p, q, bound, size, True)
    expected, expected_sign = TORCH.distance(p[:, :, : TILE + 2], q[:, :, : TILE + 2], bound, size, True)
    torch.testing.assert_close(loss, expected)
    assert sign is not None
    assert expected_sign is not None
    torch.testing.assert_close(sign[:, :, : TILE + 2], expected_sign)
    assert sign[:, length:].count_nonzero() == sign[:, :, TILE + 2 :].count_nonzero() == 0
    assert (sign == 0).any()
    assert (sign[1] == 0).sum() > (sign[0] == 0).sum()
    assert not sign[2].any()
    alone, nothing = ours.distance(p, q, bound, size, False)
    assert torch.equal(alone, loss)
    assert nothing is None


# The algorithm over them


def empty() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty(0, device=DEVICE) for _ in range(3))  # type: ignore[return-value]


def product_vjp(launchers: Any, g: Tensor, a: Tensor, p: Tensor, rcond: float, smooth: float = 0.0) -> Tensor:
    return launchers.polar_factor_backward(g, a, p, *empty(), rcond, smooth)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("m", "n", "smooth"), [(5, 6, 0.0), (5, 4, 0.3)])
def test_agrees_with_the_same_over_torch(small_tiles: Any, m: int, n: int, smooth: float) -> None:
    """Well-conditioned matrices: only rounding differs."""
    a, g = random(1, m, n) + 3 * torch.eye(m, n, device=DEVICE), random(1, m, n, seed=1)
    p = small_tiles.polar_factor(a, COARSE, smooth, False)[0]
    torch.testing.assert_close(p, iteration.polar_factor(a, COARSE, smooth), atol=2e-6, rtol=0)
    derivative = product_vjp(small_tiles, g, a, p, COARSE, smooth)
    torch.testing.assert_close(derivative, iteration.polar_factor_vjp(g, a, p, COARSE, smooth), atol=1e-5, rtol=0)


def check_against_the_specification(launchers: Any, names: list[str], m: int, n: int, gradient: bool) -> None:
    """The bounds of tests/backends/test_iteration.py."""
    eps = torch.finfo(torch.float32).eps
    a = torch.stack([ZOO[name](m, n) for name in names]).to(DEVICE, torch.float32)
    p = launchers.polar_factor(a, RCOND, 0.0, False)[0]
    s = relative_spectra(a)
    clear = ~undecided(s, RCOND)
    assert clear.sum() >= 0.7 * len(names)
    assert (iteration.certificate(a, p)[clear] < 30 * max(m, n) * eps).all()
    exact, *factors = definitions.polar_factor(a.double(), RCOND, 0.0)
    smallest = torch.where(s > RCOND, s, 1.0).amin(-1)
    error = torch.linalg.matrix_norm(p.double() - exact)
    assert (error <= 30 * max(m, n) * eps / smallest)[clear].all()
    if gradient:
        g = random(*a.shape, seed=1)
        derivative = product_vjp(launchers, g, a, p, RCOND)
        assert torch.isfinite(derivative).all()
        expected = derivatives.polar_factor_vjp(g.double(), *factors)
        largest = torch.linalg.svdvals(a.double())[:, 0].clamp(min=1e-300)
        bound = 10 * max(m, n) * eps / smallest * torch.linalg.matrix_norm(g.double()) / (smallest * largest)
        error = torch.linalg.matrix_norm(derivative.double() - expected)
        assert (error <= bound)[clear].all()


def test_zoo() -> None:
    from svdrd.backends.triton import products as launchers

    names = list(ZOO)
    check_against_the_specification(launchers, names[:: 3 if INTERPRETED else 1], 9, 7, gradient=not INTERPRETED)
    some = ["zero", "geometric", "half flat", "rank k-1"] if INTERPRETED else names
    check_against_the_specification(launchers, some, 8, 8, gradient=True)


def test_beyond_the_jacobi_kernels_the_operators_come_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the reference was called")

    for name in ("polar_factor", "polar_factor_backward", "basis_loss"):
        operator = registration.OPERATORS[name]
        monkeypatch.setitem(registration.OPERATORS, name, replace(operator, default=refuse))
        rows = tuple(row for row in routes.ROUTES[name] if row.computer != "products")
        monkeypatch.setitem(routes.ROUTES, name, rows)
    a = ZOO["image"](20, 66)[None].to(DEVICE, torch.float32).requires_grad_()
    g = random(1, 20, 66, seed=1)
    (derivative,) = torch.autograd.grad(polar_factor(a, rcond=COARSE), a, g)
    exact = derivatives.polar_factor_vjp(g.double(), *definitions.polar_factor(a.detach().double(), COARSE, 0.0)[1:])
    assert relative_error(derivative, exact).max() < 1e-4
    with pytest.raises(AssertionError, match="the reference"):
        polar_factor(a.detach(), rcond=0.3)
    with pytest.raises(AssertionError, match="the reference"):
        polar_factor(a.detach().double())


@pytest.mark.parametrize("smooth", [0.0, 0.2])
def test_loss_reads_blocks_from_the_image(smooth: float) -> None:
    from svdrd.backends.triton import products as launchers

    generator = torch.Generator().manual_seed(0)
    x_hat, x = (torch.rand(1, 5, 9 if smooth else 18, generator=generator).to(DEVICE) for _ in range(2))
    arguments = (5, 9, 1e-2, smooth)
    by_x = smooth == 0
    result = launchers.basis_loss(x_hat, x, *arguments, True, by_x)
    expected = definitions.basis_loss(x_hat.double(), x.double(), *arguments, True, by_x)
    for one, value in zip(result[: 2 + by_x], expected[: 2 + by_x], strict=True):
        # As in test_iteration.py: condition numbers below 100, and the derivative's error has their square.
        assert (one.double() - value).abs().max() <= 1e4 * torch.finfo(x.dtype).eps * value.abs().max()


def test_only_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a gradient no derivative is formed; the values are the same to the bit."""
    from svdrd.backends.triton import products as launchers

    calls = []
    monkeypatch.setattr(iteration, "_derivative", lambda *arguments: calls.append(arguments) or arguments[4])
    x_hat, x = random(1, 5, 6), random(1, 5, 6, seed=1)
    losses = []
    for by_x_hat, by_x in ((False, False), (True, False), (False, True)):
        calls.clear()
        loss, *derivatives = launchers.basis_loss(x_hat, x, 5, 6, COARSE, 0.0, by_x_hat, by_x)
        losses.append(loss)
        assert [derivative.numel() > 0 for derivative in derivatives] == [by_x_hat, by_x]
        assert len(calls) == by_x_hat + by_x
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


def test_same_bits_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another place of another batch, beside an item that is not finite, and in chunks; equal pairs give 0."""
    from svdrd.backends.triton import products as launchers

    x_hat, x = random(2, 5, 6), random(2, 5, 6, seed=1)
    x[1] = x_hat[1]

    def loss(x_hat: Tensor, x: Tensor) -> list[Tensor]:
        return list(launchers.basis_loss(x_hat, x, 5, 6, COARSE, 0.0, True, False)[:2])

    whole = loss(x_hat, x)
    assert whole[0][1].item() == 0
    assert (whole[1][1] == 0).all()
    # Now the second alone in its chunk, and the first after a broken one.
    broken = x[[1, 0, 0]]
    broken[1, 2, 3] = torch.nan
    edge = launchers.tile_edge(5, DEVICE)
    monkeypatch.setattr(launchers, "CHUNK", 2 * edge * edge)
    for result, expected in zip(loss(x_hat[[1, 0, 0]], broken), whole, strict=True):
        assert result[1].isnan().all()
        assert torch.equal(result[[2, 0]], expected)


def test_finite_at_every_scale() -> None:
    from svdrd.backends.triton import products as launchers

    tiny, largest = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max / 64
    a = ZOO["image"](5, 5).to(DEVICE)
    a = torch.stack([a * scale for scale in (1e-30, tiny, tiny * 2.0**-8, largest)]).float()
    g = torch.full_like(a, 1e30)
    p = launchers.polar_factor(a, COARSE, 0.0, False)[0]
    assert torch.isfinite(p).all()
    assert torch.isfinite(product_vjp(launchers, g, a, p, COARSE)).all()


def test_empty() -> None:
    a = torch.zeros(0, 70, 66, device=DEVICE)
    assert polar_factor(a).shape == a.shape
    loss, by_a, _ = ops.basis_loss(a, a, 35, 66, RCOND, 0.0, True, False)
    assert loss.shape == (0, 2, 1)
    assert by_a.shape == a.shape


# What the launchers choose, with kernels that do nothing


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """The configurations that are launched, as on a GPU, without running them."""
    from svdrd.backends.triton import products as launchers
    from svdrd.backends.triton.configuration import Configuration

    seen: set[Any] = set()

    def launch(self: Any, grid: tuple[int, ...], *arguments: Any) -> None:
        assert len(grid) == 1, "the other axes of a grid end at 65535"
        seen.add(self)

    monkeypatch.setattr(Configuration, "launch", launch)
    monkeypatch.setattr(launchers, "interpreted", lambda device: False)
    return seen


def test_what_is_launched_is_what_is_compiled_ahead_of_time(launched: set[Any]) -> None:
    from svdrd.backends.triton import products as launchers

    for m, n in ((16, 16), (17, 32), (64, 40), (33, 80), (90, 70), (256, 256), (300, 1000), (100, 3), (3, 100)):
        a = torch.empty(2, m, n, device="meta")  # it has no data to branch on, or to copy to the host
        for smooth in (0.0, 0.1):
            launchers.polar_factor(a, RCOND, smooth, False)
            launchers.polar_factor_backward(a, a, a, *(a.new_empty(0) for _ in range(3)), RCOND, smooth)
            launchers.basis_loss(a, a, m, n, RCOND, smooth, True, True)
    listed = list(launchers.configurations())
    assert len(set(listed)) == len(listed)
    assert launched == set(listed)


class Memory(TorchDispatchMode):
    """The largest number of bytes that lived at once in what was allocated inside the ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if not isinstance(x, Tensor):
                continue
            storage = x.untyped_storage()
            if storage.data_ptr() in self.known or id(storage) in given or not storage.nbytes():
                continue
            self.known.add(storage.data_ptr())
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._free, storage.data_ptr(), storage.nbytes())
        return result


@pytest.mark.parametrize(("batch", "m", "n", "smooth", "megabytes"), [
    (96, 256, 256, 0.0, 600),
    # Beyond that, what is worked on at once does not grow: the derivatives do.
    (1000, 256, 256, 0.0, 600 + 2 * 1000 * 0.262144),
    (96, 256, 256, 0.1, 600),
])  # fmt: skip
def test_memory(launched: set[Any], batch: int, m: int, n: int, smooth: float, megabytes: float) -> None:
    """The bar of 96 x 256 x 256, forward and backward, by both sides, results included."""
    from svdrd.backends.triton import products as launchers

    torch.utils.deterministic.fill_uninitialized_memory = False
    a = torch.empty(batch, m, n)
    with Memory() as memory:
        result = launchers.basis_loss(a, a, m, n, RCOND, smooth, True, True)
    print(f"{batch} x {m} x {n}, smooth {smooth}: {memory.most / 1e6:.0f} MB at most")
    assert memory.most > 2 * a.nbytes
    assert memory.most <= megabytes * 1e6
    del result


# Three-term TF32, which the interpreter computes in float32


def truncated_to_tf32(x: Tensor) -> Tensor:
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


def three_term_tf32(x: Tensor, y: Tensor) -> Tensor:
    """As tensor cores form it: operands cut off after 10 bits, three of four products, each summed in float32."""
    if x.dtype == torch.float64:
        return x @ y
    x, y = x.contiguous(), y.contiguous()
    x_big, y_big = truncated_to_tf32(x), truncated_to_tf32(y)
    x_small, y_small = truncated_to_tf32(x - x_big), truncated_to_tf32(y - y_big)
    return (x_small @ y_big + x_big @ y_small) + x_big @ y_big


def test_three_term_tf32_is_what_it_says() -> None:
    x, y = random(1, 8, 64).cpu(), random(1, 64, 8, seed=1).cpu()
    exact, scale = x.double() @ y.double(), x.abs().double() @ y.abs().double()

    def error(result: Tensor) -> float:
        return ((result.double() - exact).abs() / scale).max().item()

    assert error(truncated_to_tf32(x) @ truncated_to_tf32(y)) > 2**-13
    assert 2**-26 < error(three_term_tf32(x, y)) < 2**-20


@pytest.mark.parametrize(("m", "n"), [(8, 8), (12, 33), (64, 64)])
def test_zoo_with_three_term_tf32(monkeypatch: pytest.MonkeyPatch, m: int, n: int) -> None:
    class Torch:
        @staticmethod
        def polar_factor(a: Tensor, rcond: float, smooth: float, save_factors: bool) -> tuple[Tensor]:
            return (iteration.polar_factor(a, rcond, smooth),)

        @staticmethod
        def polar_factor_backward(
            g: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float
        ) -> Tensor:
            return iteration.polar_factor_vjp(g, a, p, rcond, smooth)

    monkeypatch.setattr(arithmetic, "product", three_term_tf32)
    check_against_the_specification(Torch, list(ZOO), m, n, gradient=True)


def errors(a: Tensor, g: Tensor, result: tuple[Tensor, Tensor]) -> tuple[float, ...]:
    """Median and 90 % of the relative errors of P and of its derivative."""
    exact, *factors = definitions.polar_factor(a.double(), RCOND, 0.0)
    derivative = derivatives.polar_factor_vjp(g.double(), *factors)
    relative = (relative_error(x, y).nan_to_num(torch.inf) for x, y in zip(result, (exact, derivative), strict=True))
    return tuple(x for error in relative for x in quantiles(error))


def lapack(a: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(a, full_matrices=False)
    return u @ vh


@pytest.mark.parametrize("dither", [0.0, 0.5 / 255], ids=["original", "dithered"])
def test_photographs_with_three_term_tf32(kodak: list[Path], monkeypatch: pytest.MonkeyPatch, dither: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a = crops(kodak, 4)
    a = a + dither * (torch.rand(a.shape, generator=generator) - 0.5)
    g = torch.randn(a.shape, generator=generator)
    theirs = errors(a, g, by_autograd(lapack, a, g))
    monkeypatch.setattr(arithmetic, "product", three_term_tf32)
    p = iteration.polar_factor(a, RCOND, 0.0)
    ours = errors(a, g, (p, iteration.polar_factor_vjp(g, a, p, RCOND, 0.0)))
    print(f"three-term TF32: {ours}; LAPACK float32 {theirs}")
    assert all(x <= y for x, y in zip(ours, theirs, strict=True))


def test_photographs(kodak: list[Path]) -> None:
    """The kernels on whole patches; each item is on its own, so on a GPU all of them are."""
    from svdrd.backends.triton import products as launchers

    a = crops(kodak, 2 if INTERPRETED else 24).to(DEVICE)
    g = random(*a.shape)
    theirs = errors(a, g, by_autograd(lapack, a, g))
    p = launchers.polar_factor(a, RCOND, 0.0, False)[0]
    ours = errors(a, g, (p, product_vjp(launchers, g, a, p, RCOND)))
    print(f"triton: {ours}; torch float32 {theirs}")
    assert all(x <= y for x, y in zip(ours, theirs, strict=True))
