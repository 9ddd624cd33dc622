"""The Jacobi kernels of the triton backend, in the sizes that the other files leave to a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import svdrd
from svdrd.backends import availability
from svdrd.backends.triton import jacobi_kernels
from svdrd.dispatch import registration, routes
from svdrd.ops import basis_loss, polar_factor, svd
from svdrd.reference import definitions, derivatives
from tests.ops.test_svd import ratios
from tests.zoo import ZOO, with_spectrum

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    record = next(record for record in availability.describe() if record.name == "triton")
    if not record.available:
        pytest.skip(f"triton: {record.reason}")
    with svdrd.use_backend("triton"):
        yield


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def zoo(m: int, n: int, dtype: torch.dtype) -> Tensor:
    return torch.stack([ZOO[name](m, n) for name in ZOO]).to(device(), dtype)


@pytest.mark.parametrize(("m", "n", "name"), [
    (3, 3, "float32"), (8, 8, "float32"), (5, 8, "float32"), (16, 16, "float32"), (32, 32, "float32"),
    (8, 8, "float64"), (16, 16, "float64"), (64, 5, "float64"),
])  # fmt: skip
def test_zoo(m: int, n: int, name: str) -> None:
    """LAPACK's ratios, the polar factor and its derivative, all from two calls a matrix."""
    dtype = DTYPES[name]
    eps = torch.finfo(dtype).eps
    a = zoo(m, n, dtype)
    u, s, vh = svd(a)
    worst = ratios(a.cpu(), u.cpu(), s.cpu(), vh.cpu())
    assert (worst < 30).all(), [(x, worst[:, i].tolist()) for i, x in enumerate(ZOO) if (worst[:, i] >= 30).any()]
    assert worst.median() < 5
    assert (s >= 0).all()
    assert (s.diff(dim=-1) <= 0).all()

    a.requires_grad_()
    p = polar_factor(a)
    g = torch.randn(a.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(a)
    (derivative,) = torch.autograd.grad(p, a, g)
    assert torch.isfinite(derivative).all()
    exact, *factors = definitions.polar_factor(a.detach().double(), 4 * eps, 0.0)
    expected = derivatives.polar_factor_vjp(g.double(), *factors)
    values = torch.linalg.svdvals(a.detach().double())
    relative = values / values[:, :1].clamp(min=1e-300)
    # Within rounding of the threshold either decision is right.
    clear = ~((relative > eps) & (relative < 16 * eps)).any(-1)
    assert clear.sum() > len(ZOO) / 2
    smallest = torch.where(relative > 4 * eps, relative, torch.inf).amin(-1).clamp(max=1.0)
    error = torch.linalg.matrix_norm(p.detach().double() - exact)
    assert (error <= 30 * max(m, n) * eps / smallest)[clear].all()
    steepest = torch.linalg.matrix_norm(g.double()) / (smallest * values[:, 0].clamp(min=1e-300))
    error = torch.linalg.matrix_norm(derivative.double() - expected)
    assert (error <= 10 * max(m, n) * eps / smallest * steepest)[clear].all()


@pytest.mark.parametrize("name", DTYPES)
def test_sixty_four_columns(name: str) -> None:
    a = ZOO["duplicated columns"](64, 64)[None].to(device(), DTYPES[name])
    u, s, vh = svd(a)
    assert (ratios(a.cpu(), u.cpu(), s.cpu(), vh.cpu()) < 5).all()
    assert (s[0, 32:] < 4 * torch.finfo(a.dtype).eps * s[0, 0]).all()


def test_values_over_many_digits() -> None:
    """Of the rows: seven equal ones and then down to 1e-37, evenly. It takes 45 sweeps, and 40 were allowed."""
    spectrum = torch.cat([torch.ones(7, dtype=torch.float64), torch.logspace(0, -37, 57, dtype=torch.float64)])
    a = (spectrum[:, None] * with_spectrum(64, 64, torch.ones(64).double(), seed=3))[None].to(device())
    u, s, vh = svd(a)
    assert (ratios(a.cpu(), u.cpu(), s.cpu(), vh.cpu()) < 30).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the compiled kernel has its own number of sweeps")
def test_a_matrix_that_has_not_converged_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside one that has."""
    a = torch.stack([with_spectrum(8, 8, torch.linspace(1, 2, 8).double()), torch.eye(8).double()])
    monkeypatch.setattr(jacobi_kernels, "SWEEPS", jacobi_kernels.tl.constexpr(2))
    for result in (svd(a).U, polar_factor(a), basis_loss(a, a.flip(0), reduction="none")[:, None, None]):
        assert result[0].isnan().all()
    assert not svd(a).U[1].isnan().any()


def deficient(n: int, count: int) -> dict[str, tuple[int, Tensor]]:
    """Rank and matrices whose entries are exact, so that the rank is too."""
    generator = torch.Generator().manual_seed(n)

    def levels(*shape: int) -> Tensor:
        return torch.randint(1, 256, shape, generator=generator).float() / 255

    def low_rank(rank: int) -> Tensor:
        left, right = (torch.randint(-9, 10, (count, n, rank), generator=generator).float() for _ in range(2))
        return left @ right.mT

    half = levels(count, n, n)
    half[:, :, n // 2 :] = levels(count, 1, 1)
    return {
        "constant": (1, levels(count, 1, 1).expand(count, n, n)),
        "half flat": (n // 2 + 1, half),
        "quadrants": (2, levels(count, 2, 2).repeat_interleave(n // 2, 1).repeat_interleave(n // 2, 2)),
        "duplicated columns": (n // 2, levels(count, n, n // 2).repeat_interleave(2, 2)),
        "upsampled": (n // 2, levels(count, n // 2, n // 2).repeat_interleave(2, 1).repeat_interleave(2, 2)),
        **{f"integers of rank {rank}": (rank, low_rank(rank)) for rank in {1, 3, n // 2} if rank < n},
    }


@pytest.mark.parametrize(("n", "count"), [(4, 200), (8, 100), (16, 40), (32, 5)])
def test_noise_floor(n: int, count: int) -> None:
    """Ranks are decided at 4 eps, so what is exactly zero has to come out below that."""
    kinds = deficient(n, count)
    s = svd(torch.cat([a for _, a in kinds.values()]).to(device())).S.split(count)
    for (name, (rank, _)), values in zip(kinds.items(), s, strict=True):
        assert (values[:, rank] < 4 * torch.finfo(torch.float32).eps * values[:, 0]).all(), name


def image_pair(height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, height, width, generator=generator)
    x[0, : height // 2] = 0.5
    x_hat = (x + 0.05 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    return x_hat.to(device(), dtype), x.to(device(), dtype)


@pytest.mark.parametrize(("block", "smooth", "name"), [
    ((4, 4), 0.0, "float32"), ((12, 5), 0.1, "float32"), ((16, 16), 0.0, "float32"),
    ((3, 7), 0.0, "float64"), ((4, 6), 0.1, "float64"),
])  # fmt: skip
def test_loss_reads_blocks_of_any_shape_from_the_image(block: tuple[int, int], smooth: float, name: str) -> None:
    dtype = DTYPES[name]
    rcond = 4 * torch.finfo(dtype).eps
    x_hat, x = image_pair(2 * block[0], 3 * block[1], dtype)
    arguments = (*block, rcond, smooth, True, True)
    loss, *derivatives = torch.ops.svdrd.basis_loss(x_hat, x, *arguments)
    exact, *expected = definitions.basis_loss(x_hat.double(), x.double(), *arguments)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(loss.double(), exact, atol=tolerance, rtol=0)
    for derivative, other in zip(derivatives, expected, strict=True):
        # A block's error is that of its factors over its smallest singular value.
        error = (derivative.double() - other).norm() / other.norm()
        assert error < (1e-3 if dtype == torch.float32 else 1e-9)
    without = torch.ops.svdrd.basis_loss(x_hat, x, *block, rcond, smooth, False, False)
    assert torch.equal(without[0], loss)
    assert without[1].numel() == without[2].numel() == 0
    only_x = torch.ops.svdrd.basis_loss(x_hat, x, *block, rcond, smooth, False, True)
    assert torch.equal(only_x[2], derivatives[1])


def test_equal_blocks_give_exactly_zero() -> None:
    x = zoo(16, 16, torch.float32)
    x_hat = x.clone().requires_grad_()
    loss = basis_loss(x_hat, x)
    loss.backward()
    assert loss.item() == 0
    assert (x_hat.grad == 0).all()


def test_same_bits_in_any_batch() -> None:
    """Alone, in another order, and beside matrices that need more sweeps or hold a NaN."""
    a = zoo(16, 16, torch.float32)
    u, s, vh = svd(a)
    broken = a.clone()
    broken[::2, 3, 5] = torch.nan
    for factor, other in zip((u, s, vh), svd(broken), strict=True):
        assert torch.equal(other[1::2], factor[1::2])
        assert other[::2].isnan().all()
    alone = svd(a[7:8])
    assert all(torch.equal(one[0], factor[7]) for one, factor in zip(alone, (u, s, vh), strict=True))


@pytest.mark.parametrize("smooth", [0.0, 0.5])
def test_same_bits_of_the_loss_and_its_gradient_in_any_batch(smooth: float) -> None:
    a, x = zoo(8, 8, torch.float32), zoo(8, 8, torch.float32).flip(-1)

    def loss_and_gradient(a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        a = a.clone().requires_grad_()
        loss = basis_loss(a, x, smooth=smooth, reduction="none")
        return loss.detach(), torch.autograd.grad(loss.sum(), a)[0]

    expected = loss_and_gradient(a, x)
    broken = a.clone()
    broken[::2, 3, 5] = torch.inf
    for one, other in zip(loss_and_gradient(broken, x), expected, strict=True):
        assert torch.equal(one[1::2], other[1::2])
        assert one[::2].isnan().all()
    for one in loss_and_gradient(a, broken):
        assert one[::2].isnan().all()
        assert torch.isfinite(one[1::2]).all()
    for one, other in zip(loss_and_gradient(a[4:5], x[4:5]), expected, strict=True):
        assert torch.equal(one[0], other[4])


@pytest.mark.parametrize(("m", "n", "name"), [(8, 8, "float32"), (6, 16, "float32"), (5, 3, "float64")])
def test_recompose_in_one_launch(m: int, n: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all pairs of neighbours in the zoo, side by side in one image; deficient ones have to be completed."""
    dtype = DTYPES[name]
    x, count = zoo(m, n, dtype), len(ZOO)
    x_hat = x.roll(1, 0)
    image_hat, image = (side.transpose(0, 1).reshape(m, count * n)[None] for side in (x_hat, x))
    u, _, vh = svd(x)
    values = svd(x_hat).S

    def refuse(*_: object) -> None:
        raise AssertionError("a second launch")

    with monkeypatch.context() as patch:
        for operator in ("svd", "recompose"):
            patch.setitem(registration.OPERATORS, operator, replace(registration.OPERATORS[operator], default=refuse))
        patch.setitem(routes.ROUTES, "svd", ())
        recomposed = torch.ops.svdrd.recompose(image_hat, image, m, n)
    result = recomposed.reshape(m, count, n).transpose(0, 1)
    # The same factors as svd's, bit for bit, so only the product is rounded.
    expected = (u.double() * values.double()[:, None, :]) @ vh.double()
    error = torch.linalg.matrix_norm(result.double() - expected)
    assert (error <= 4 * max(m, n) * torch.finfo(dtype).eps * values[:, 0].double()).all()

    broken = image_hat.clone()
    broken[0, 0, n] = torch.nan
    again = torch.ops.svdrd.recompose(broken, image, m, n).reshape(m, count, n).transpose(0, 1)
    assert again[1].isnan().all()
    kept = [index for index in range(count) if index != 1]
    assert torch.equal(again[kept], result[kept])


@pytest.mark.parametrize("smooth", [0.0, 0.3])
def test_gradcheck(smooth: float) -> None:
    for m, n in ((2, 2), (3, 2)):
        a = ZOO["random"](m, n).to(device()).requires_grad_()
        assert torch.autograd.gradcheck(lambda a: polar_factor(a, smooth=smooth), a)


# Without smoothing all scales are one batch: in the interpreter a call takes as long of one matrix as of a hundred.
@pytest.mark.parametrize(
    ("scales", "smooth"), [((1e30, 1e-30, 1e-42), 0.0), ((1e30,), 1e30), ((1e-30,), 1e-30), ((1e-42,), 1e-42)]
)
def test_derivatives_are_finite_at_every_scale(scales: tuple[float, ...], smooth: float) -> None:
    matrices = zoo(8, 8, torch.float64)
    a, b = (torch.cat([(side * scale).float() for scale in scales]) for side in (matrices, matrices.flip(0)))
    x = a.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(polar_factor(x, smooth=smooth), x, torch.ones_like(x))
    assert torch.isfinite(derivative).all()
    x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
    for side in torch.autograd.grad(len(scales) * basis_loss(x, y, smooth=smooth), (x, y)):
        assert torch.isfinite(side).all()


def test_what_does_not_fit_on_the_chip_is_computed_in_torch() -> None:
    a = ZOO["image"](70, 6)[None].to(device())
    assert torch.equal(svd(a).S, definitions.svd(a)[1])
