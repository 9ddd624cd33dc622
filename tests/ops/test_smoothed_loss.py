"""The smoothed float32 loss where one backend takes two ways: Newton's iteration, and the SVD where that is no good."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svdrd.backends import selection
from svdrd.ops import basis_loss, polar_factor
from tests.conftest import lapack_bits_depend_on_the_place
from tests.zoo import ZOO, with_spectrum

EPS = torch.finfo(torch.float32).eps
SHAPES = pytest.mark.parametrize(("m", "n"), [(1, 1), (4, 4), (8, 8), (11, 7), (7, 11), (16, 16), (64, 4), (32, 32)])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spectra(k: int) -> list[Tensor]:
    one_small, two_small = torch.linspace(1, 0.5, k, dtype=torch.float64), torch.ones(k, dtype=torch.float64)
    one_small[1:][-1:] = 1e-4
    two_small[1:][-2:] = 1e-5
    rank_one = torch.zeros(k, dtype=torch.float64)
    rank_one[0] = 1
    return [torch.ones(k, dtype=torch.float64), one_small, two_small, rank_one, torch.zeros(k, dtype=torch.float64)]


def pair(m: int, n: int, s: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    """float32 matrices whose smoothed factors differ everywhere by more than any rounding: no sign is in doubt."""
    for seed in range(100):
        a, b = with_spectrum(m, n, s, seed + 1).float(), random(m, n, seed=seed)
        p, q = (polar_factor(x.double(), smooth=smooth) for x in (a, b))
        if (p - q).abs().min() > 1e-4 * q.abs().max():
            return a, b
    raise AssertionError("no seed does")


@SHAPES
@pytest.mark.parametrize("smooth", [10.0, 1e-2, 5e-4, 1e-6])
@pytest.mark.slow_interpreted
def test_against_float64(backend: str, m: int, n: int, smooth: float) -> None:
    if backend in selection.ON_CUDA and smooth < 1e-5:
        pytest.skip("to kernels that compute in float, the zeros of a deficient matrix are not small beside e")
    for s in spectra(min(m, n)):
        a, b = pair(m, n, s, smooth)
        for x_hat, x in ((a, b), (b, a)):
            sides = [x_hat.clone().requires_grad_(), x.clone().requires_grad_()]
            exact = [side.detach().double().requires_grad_() for side in sides]
            loss, expected = (basis_loss(*of, smooth=smooth) for of in (sides, exact))
            radii = [torch.linalg.svdvals(side.detach()).square().add(smooth**2).sqrt() for side in exact]
            # The kernels of GPUs compute in float: the smallest value has its error of the largest.
            conditions = [(r[0] / (r[-1] if backend in selection.ON_CUDA else r[-2:].mean())).item() for r in radii]
            largest = max(polar_factor(side.detach(), smooth=smooth).abs().max().item() for side in exact)
            accuracy = 30 * EPS * (max(conditions) if backend in selection.ON_CUDA else 1)
            assert abs(loss.item() - expected.item()) <= accuracy * largest
            gradients = (torch.autograd.grad(of, by) for of, by in ((loss, sides), (expected, exact)))
            for got, right, condition in zip(*gradients, conditions, strict=True):
                assert (got - right).norm() <= 30 * max(m, n) * EPS * condition * right.norm(), s


@pytest.mark.parametrize("smooth", [10.0, 0.3, 1e-2, 1e-4, 1e-6])
@pytest.mark.slow_interpreted
def test_where_only_the_values_differ(backend: str, smooth: float) -> None:
    """Of diagonal matrices the derivative is ``e^2 / r^3``, a difference of two numbers near ``1 / r``."""
    a = torch.diag_embed(random(5, 8).abs() + 0.5).requires_grad_()
    b = -torch.diag_embed(random(5, 8, seed=1).abs() + 0.5)
    (gradient,) = torch.autograd.grad(basis_loss(a, b, smooth=smooth, reduction="sum"), a)
    s = a.detach().double().diagonal(dim1=1, dim2=2)
    expected = torch.diag_embed(smooth**2 / (s.square() + smooth**2) ** 1.5)
    torch.testing.assert_close(gradient.double(), expected, rtol=30 * EPS, atol=1e-30)


@pytest.mark.parametrize("n", [4, 7, 8, 16])
@pytest.mark.slow_interpreted
def test_bits_do_not_depend_on_the_batch(backend: str, n: int) -> None:
    """Both ways side by side: a matrix in 2^60 is too large for the iteration."""
    if backend == "torch" and n % 4 and lapack_bits_depend_on_the_place():
        pytest.skip("torch.linalg.svd gives a matrix other bits in another place of the batch here")
    a = torch.stack([animal(n, n) for animal in ZOO.values()]).float()
    a = torch.cat([a, 2.0**60 * a[:5], torch.full((1, n, n), torch.nan)])
    b = random(*a.shape)

    def gradients(order: Tensor) -> list[Tensor]:
        sides = [a[order].requires_grad_(), b[order].requires_grad_()]
        losses = basis_loss(*sides, smooth=0.3, reduction="none")
        return [losses.detach(), *torch.autograd.grad(losses.sum(), sides)]

    everything = torch.arange(len(a))
    together = [value.nan_to_num(7.0) for value in gradients(everything)]
    assert sum(bool((value == 7).any()) for value in together) == 3
    for order in (everything.flip(0), everything[::3], everything[-1:], everything[:2], everything[3:4]):
        for got, expected in zip(gradients(order), together, strict=True):
            assert torch.equal(got.nan_to_num(7.0), expected[order])


@pytest.mark.parametrize("smooth", [0.3, 1e-3])
def test_equal_blocks_have_no_gradient(backend: str, smooth: float) -> None:
    a = random(3, 8, 8)
    a[1] = 0.5
    sides = [a.clone().requires_grad_(), a.clone().requires_grad_()]
    loss = basis_loss(*sides, smooth=smooth)
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, sides))
