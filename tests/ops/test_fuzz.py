"""hypothesis draws shapes, ranks, scales, strides and options; the definition has to hold for each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from svdrd.ops import basis_loss, polar_factor, svd
from tests.ops.test_svd import ratios

pytestmark = pytest.mark.slow_interpreted

FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def matrices(draw: st.DrawFn, largest: int = 40) -> Tensor:
    """``(batch, m, n)`` of a drawn rank, dtype, scale and memory layout."""
    batch, m, n = draw(st.integers(1, 20)), draw(st.integers(1, largest)), draw(st.integers(1, largest))
    rank = draw(st.integers(0, min(m, n)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    exponent = draw(st.integers(-25, 25)) if dtype == torch.float32 else draw(st.integers(-250, 250))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    # Small integers: the product is exact, and so is its rank.
    left = torch.randint(-3, 4, (batch, m, rank), generator=generator, dtype=torch.float64)
    right = torch.randint(-3, 4, (batch, rank, n), generator=generator, dtype=torch.float64)
    a = (left @ right * 10.0**exponent).to(dtype)
    layout = draw(st.sampled_from(["contiguous", "transposed", "strided"]))
    if layout == "transposed":
        return a.mT.contiguous().mT
    if layout == "strided":
        return a.new_full((batch, 2 * m, n + 1), torch.nan).index_put(
            (torch.arange(batch)[:, None, None], 2 * torch.arange(m)[None, :, None], torch.arange(n)[None, None]), a
        )[:, ::2, :n]
    return a


def _block(kind: str, size: int, generator: torch.Generator) -> Tensor:
    unit = torch.eye(size, dtype=torch.float64)
    above = unit.roll(1, dims=-1).triu()
    if kind == "orthogonal":
        return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    return {"unit": unit, "nearly unit": unit + 1e-15 * above, "nilpotent": above, "ones": torch.ones_like(unit)}[kind]


@st.composite
def blocks_on_the_diagonal(draw: st.DrawFn, largest: int = 40) -> Tensor:
    """``(batch, n, n)`` with singular values that are equal, to rounding, within a block.

    Equal values are what an iteration with a shift has trouble with, and what a bound on its steps hides.
    Blocks of other sizes split off first, nilpotent ones have zeros on the diagonal.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    kinds = st.sampled_from(["orthogonal", "unit", "nearly unit", "nilpotent", "ones"])
    parts = st.tuples(kinds, st.integers(1, 16), st.sampled_from([0.09, 0.3, 1.0]), st.integers(-14, 0))
    chosen = draw(st.lists(parts, min_size=1, max_size=8))

    def matrix() -> Tensor:
        blocks = [_block(kind, size, generator) * factor * 10.0**power for kind, size, factor, power in chosen]
        return torch.block_diag(*blocks)[:largest, :largest]

    a = torch.stack([matrix() for _ in range(draw(st.integers(1, 20)))])
    if draw(st.booleans()):
        a = a[:, torch.randperm(a.shape[-1], generator=generator)]
    return a.to(draw(st.sampled_from([torch.float32, torch.float64])))


@given(a=matrices() | blocks_on_the_diagonal())
@FUZZ
def test_svd(backend: str, a: Tensor) -> None:
    u, s, vh = svd(a)
    assert (ratios(a, u, s, vh) < 30).all()
    assert (s >= 0).all()
    assert (s.diff(dim=-1) <= 0).all()


@given(a=matrices() | blocks_on_the_diagonal())
@FUZZ
def test_polar_factor(backend: str, a: Tensor) -> None:
    """A partial isometry of the right rank whose ``P^T A`` is symmetric positive semidefinite."""
    p = polar_factor(a).double()
    scaled = a.double() / a.double().abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    s = torch.linalg.svdvals(scaled)
    eps = torch.finfo(a.dtype).eps
    tolerance = 30 * max(a.shape[-2:]) * eps
    clear = ~((s > 0.25 * 4 * eps * s[:, :1]) & (s < 4 * 4 * eps * s[:, :1])).any(-1)
    rank = (s > 4 * eps * s[:, :1]).sum(-1)
    assert (((p.square().sum((-2, -1)) - rank).abs() < 10 * tolerance) | ~clear).all()
    assert (torch.linalg.matrix_norm(p @ p.mT @ p - p) < tolerance).all()
    h = p.mT @ scaled
    norm = torch.linalg.matrix_norm(scaled)
    assert (torch.linalg.matrix_norm(h - h.mT) <= tolerance * norm).all()
    assert (torch.linalg.eigvalsh((h + h.mT) / 2).amin(-1) >= -tolerance * norm).all()


@given(a=matrices(), smooth=st.sampled_from([0.0, 0.1]), seed=st.integers(0, 2**32))
@FUZZ
def test_derivative(backend: str, a: Tensor, smooth: float, seed: int) -> None:
    """Finite, symmetric as an operator, and without a component along A."""
    scale = a.abs().amax().item() or 1.0
    generator = torch.Generator().manual_seed(seed)
    e, f = (torch.randn(a.shape, dtype=a.dtype, generator=generator) for _ in range(2))

    def product(g: Tensor) -> Tensor:
        x = a.detach().requires_grad_()
        return torch.autograd.grad(polar_factor(x, smooth=smooth * scale), x, g)[0]

    je, jf = product(e), product(f)
    assert torch.isfinite(je).all()
    je, jf, e, f = je.double() * scale, jf.double() * scale, e.double(), f.double()
    norm = torch.linalg.matrix_norm
    # The error of a product is eps cond |J|; cond of these integer matrices is far below 1e5 times their size.
    size = norm(je) * norm(f) + norm(jf) * norm(e)
    tolerance = 1e5 * torch.finfo(a.dtype).eps
    assert (((je * f).sum((-2, -1)) - (e * jf).sum((-2, -1))).abs() <= tolerance * size).all()
    if smooth == 0:
        scaled = a.double() / scale
        assert ((je * scaled).sum((-2, -1)).abs() <= tolerance * norm(je) * norm(scaled).clamp(min=1e-300)).all()


@given(
    batch=st.integers(1, 4), rows=st.integers(1, 5), columns=st.integers(1, 5), block=st.integers(1, 12),
    dtype=st.sampled_from([torch.float32, torch.float64]), seed=st.integers(0, 2**32),
)  # fmt: skip
@FUZZ
def test_blocks_of_an_image(
    backend: str, batch: int, rows: int, columns: int, block: int, dtype: torch.dtype, seed: int
) -> None:
    """The loss of an image by blocks is the loss of the blocks, value and derivative."""
    generator = torch.Generator().manual_seed(seed)
    shape = batch, rows * block, columns * block
    x_hat, x = (torch.rand(shape, dtype=dtype, generator=generator).requires_grad_() for _ in range(2))

    def cut(image: Tensor) -> Tensor:
        return image.unflatten(-1, (columns, block)).unflatten(-3, (rows, block)).transpose(-2, -3)

    by_image = basis_loss(x_hat, x, block_size=block, reduction="none")
    by_block = basis_loss(cut(x_hat), cut(x), reduction="none")
    assert torch.equal(by_image, by_block)
    for gradient, other in zip(
        torch.autograd.grad(by_image.sum(), (x_hat, x)), torch.autograd.grad(by_block.sum(), (x_hat, x)), strict=True
    ):
        assert torch.equal(gradient, other)
