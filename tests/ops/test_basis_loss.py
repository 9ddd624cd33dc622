"""basis_loss against its definition, block by block, and its derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import svdrd
from svdrd.ops import basis_loss, polar_factor
from svdrd.reference import definitions, derivatives
from tests.zoo import ZOO, with_spectrum


def pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*shape, dtype=torch.float64, generator=generator)
    x_hat = x + 0.05 * torch.randn(*shape, dtype=torch.float64, generator=generator)
    return x_hat.to(dtype), x.to(dtype)


def by_definition(x_hat: Tensor, x: Tensor, block: int) -> Tensor:
    """The mean of every block, in the plainest way: loops and polar factors."""
    rows, columns = x.shape[-2] // block, x.shape[-1] // block
    loss = x.new_empty(*x.shape[:-2], rows, columns)
    for i in range(rows):
        for j in range(columns):
            window = (..., slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
            loss[..., i, j] = (polar_factor(x_hat[window]) - polar_factor(x[window])).abs().mean((-2, -1))
    return loss


@pytest.mark.parametrize("block", [1, 2, 4, 8, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.slow_interpreted
def test_blocks(backend: str, block: int, dtype: torch.dtype) -> None:
    x_hat, x = pair(2, 3, 24, 48, dtype=dtype)
    expected = by_definition(x_hat.double(), x.double(), block)
    tolerance = {"atol": 2e-3 if dtype == torch.float32 else 1e-9, "rtol": 0.0}
    none = basis_loss(x_hat, x, block_size=block, reduction="none")
    torch.testing.assert_close(none.double(), expected, **tolerance)
    torch.testing.assert_close(basis_loss(x_hat, x, block).double(), expected.mean(), **tolerance)
    total = basis_loss(x_hat, x, block, reduction="sum").double()
    torch.testing.assert_close(total / x.numel(), expected.mean(), **tolerance)


def test_whole_matrices(backend: str) -> None:
    x_hat, x = pair(2, 3, 10, 7)
    expected = (polar_factor(x_hat) - polar_factor(x)).abs().mean((-2, -1))
    torch.testing.assert_close(basis_loss(x_hat, x, reduction="none"), expected)
    torch.testing.assert_close(basis_loss(x_hat, x), expected.mean())
    torch.testing.assert_close(basis_loss(x_hat[0, 0], x[0, 0], reduction="none"), expected[0, 0])
    torch.testing.assert_close(svdrd.BasisLoss(reduction="sum")(x_hat, x), expected.sum() * 70)


@pytest.mark.parametrize("smooth", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("block", [None, 3])
@pytest.mark.slow_interpreted
def test_gradcheck(backend: str, block: int | None, reduction: str, smooth: float) -> None:
    x_hat, x = (side.requires_grad_() for side in pair(2, 6, 3, seed=1))

    def function(x_hat: Tensor, x: Tensor) -> Tensor:
        return basis_loss(x_hat, x, block, reduction, smooth=smooth)

    assert torch.autograd.gradcheck(function, (x_hat, x))
    assert torch.autograd.gradgradcheck(function, (x_hat, x))


@pytest.mark.parametrize("block", [None, 4, 8])
def test_gradient_is_that_of_the_polar_factor(backend: str, block: int | None) -> None:
    x_hat, x = (side.requires_grad_() for side in pair(3, 16, 8, seed=2))
    gradients = torch.autograd.grad(basis_loss(x_hat, x, block), (x_hat, x))

    def cut(side: Tensor) -> Tensor:
        if block is None:
            return side
        return side.unflatten(-1, (-1, block)).unflatten(-3, (-1, block)).transpose(-2, -3)

    expected = torch.autograd.grad((polar_factor(cut(x_hat)) - polar_factor(cut(x))).abs().mean(), (x_hat, x))
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-10, rtol=1e-8)


def test_only_the_side_that_requires_grad_gets_one(backend: str) -> None:
    both = [side.requires_grad_() for side in pair(2, 8, 8)]
    expected = torch.autograd.grad(basis_loss(*both), both)
    for i in range(2):
        sides = [side.detach() for side in both]
        sides[i].requires_grad_()
        loss = basis_loss(*sides)
        loss.backward()
        assert sides[1 - i].grad is None
        assert torch.equal(sides[i].grad, expected[i])
        assert torch.equal(loss, basis_loss(*both))
    with torch.no_grad():
        assert not basis_loss(*both).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("m", "n"), [(4, 4), (8, 8), (5, 9), (32, 32), (64, 64), (100, 40), (128, 128)])
def test_equal_sides_give_exactly_zero(backend: str, m: int, n: int, dtype: torch.dtype) -> None:
    """``sign(0) = 0``: also where the two sides compute different things, one of them without a gradient."""
    x = torch.stack([ZOO[name](m, n) for name in ZOO]).to(dtype)
    x_hat = x.clone().requires_grad_()
    loss = basis_loss(x_hat, x)
    loss.backward()
    assert loss.item() == 0
    assert (x_hat.grad == 0).all()


@pytest.mark.parametrize("block", [4, 8, 16, 32, 64])
@pytest.mark.slow_interpreted
def test_gradients_are_finite_on_flat_saturated_and_duplicated_blocks(backend: str, block: int) -> None:
    x = torch.stack([ZOO[name](block, block) for name in ZOO]).float()
    for other in (x.flip(0), torch.zeros_like(x), torch.ones_like(x)):
        for scale in (1.0, 1e30, 1e-30):
            x_hat, target = (x * scale).requires_grad_(), (other * scale).requires_grad_()
            loss = basis_loss(x_hat, target)
            loss.backward()
            assert torch.isfinite(loss)
            assert torch.isfinite(x_hat.grad).all()
            assert torch.isfinite(target.grad).all()


@pytest.mark.slow_interpreted
def test_optimisation_converges(backend: str) -> None:
    """Gradient descent on the loss alone brings the bases together."""
    x_hat, x = pair(4, 8, 8, seed=3)
    x_hat.requires_grad_()
    optimizer = torch.optim.Adam([x_hat], lr=2e-3)
    first = basis_loss(x_hat, x).item()
    for _ in range(200):
        optimizer.zero_grad()
        loss = basis_loss(x_hat, x)
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 3


@pytest.mark.slow_interpreted
def test_training_loop_of_a_user(backend: str) -> None:
    """Flat, saturated and duplicated blocks, where torch.linalg.svd gives NaN at the first step."""
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x[0], x[1, :, :, 16:], x[2, :, ::2] = 0.5, 1.0, x[2, :, 1::2]
    model = torch.nn.Conv2d(3, 3, 3, padding=1)
    criterion = svdrd.BasisLoss(block_size=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(100):
        optimizer.zero_grad()
        x_hat = model(x).clamp(0, 1)
        loss = torch.nn.functional.mse_loss(x_hat, x) + 0.01 * criterion(x_hat, x)
        loss.backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
        optimizer.step()

    x_hat = x.clone().requires_grad_()
    u, _, vh = torch.linalg.svd(x_hat, full_matrices=False)
    (u @ vh).abs().mean().backward()
    assert not torch.isfinite(x_hat.grad).all()


@pytest.mark.parametrize(("m", "n"), [(1, 1), (4, 4), (7, 5), (8, 8), (8, 32), (16, 16), (31, 31), (32, 32)])
def test_error_over_condition_numbers(backend: str, m: int, n: int) -> None:
    """Float32 against float64 of the same numbers, from condition 1 to where the rank is decided at 2e6.

    A float32 SVD, LAPACK's for one, is off by condition * eps; a backend may take another way for well-conditioned
    matrices, and must not be caught where the ways meet.
    """
    k = min(m, n)
    conditions = torch.logspace(0, 6, 25)
    spectra = [torch.logspace(0, -torch.log10(c).item(), k, dtype=torch.float64) for c in conditions]
    spectra += [torch.cat([torch.ones(k - 1, dtype=torch.float64), 1 / c[None].double()]) for c in conditions]
    x = torch.stack([with_spectrum(m, n, s, seed=i) for i, s in enumerate(spectra)]).float()
    x_hat = torch.stack([with_spectrum(m, n, s, seed=i + 100) for i, s in enumerate(spectra)]).float()
    x_hat.requires_grad_()
    loss = basis_loss(x_hat, x, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), x_hat)
    eps = torch.finfo(torch.float32).eps
    exact_x_hat = x_hat.detach().double()
    p_hat, *factors = definitions.polar_factor(exact_x_hat, 4 * eps, 0.0)
    difference = p_hat - definitions.polar_factor(x.double(), 4 * eps, 0.0)[0]
    exact = difference.abs().mean((-2, -1))
    # By chance some entries are as near to each other as float32 counts as equal.
    sign = torch.where(difference.abs() <= definitions.EQUAL_WITHIN * eps, 0.0, torch.sign(difference))
    exact_gradient = derivatives.polar_factor_vjp(sign / (m * n), *factors)
    # In float64 inside, or as a float32 SVD.
    precise = torch.tensor(backend in ("torch", "cpp"))
    rounding = 16 * eps * conditions.double().repeat(2)
    assert ((loss.double() - exact).abs() <= torch.where(precise, 1e-5, rounding)).all()
    error = (gradient.double() - exact_gradient).flatten(1).norm(dim=1)
    size = exact_gradient.flatten(1).norm(dim=1)
    # 1 / s_k, what the derivative could be, for those that nearly vanish by symmetry.
    largest = 1 / torch.linalg.svdvals(exact_x_hat)[:, -1] / (m * n) ** 0.5
    assert (error <= torch.where(precise, 1e-4 * size + 1e-6 * largest, rounding * largest)).all(), (error / size).max()
