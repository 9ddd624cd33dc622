"""The smoothed polar factor where s_1 / smooth is anything from 1 to the range of the dtype.

``P_e`` has a derivative of up to ``1 / e`` and a second one of the order ``1 / e^2``: an error of ``eps s_1`` in the
matrix, which no general method avoids, makes one of ``eps s_1 / e`` in both, relative to 1 and to ``|G| / e``. On
diagonal matrices there is no such error, and every backend is held to the rounding of its own formulas as far as it
keeps the small values at all. Beyond, the result has to stay within the bounds of P and of its derivative.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svdrd.ops import basis_loss, polar_factor
from tests import closed_form
from tests.zoo import SPECTRA, with_spectrum

SMOOTH = 0.75
POWERS = {
    torch.float32: (0, 10, 20, 24, 27, 40, 60, 90, 110, 126),
    torch.float64: (0, 20, 24, 27, 53, 90, 200, 500, 900, 1020),
}
CASES = pytest.mark.parametrize(
    ("dtype", "power"), [(dtype, power) for dtype, powers in POWERS.items() for power in powers]
)
SHAPES = pytest.mark.parametrize(("m", "n"), [(4, 4), (6, 4), (3, 5), (8, 8), (24, 20), (40, 40)])


def exact_to(backend: str, dtype: torch.dtype, m: int, n: int) -> int:
    """The log2 of the largest of ``POWERS`` at which small values of a diagonal matrix count; docs/gradients.md."""
    single, k = dtype == torch.float32, min(m, n)
    if backend == "triton" and (single or k <= 32):
        return 40 if single else 90
    if backend == "cuda":
        return 60 if single else 500
    if backend == "cpp":
        return 90 if single else 900 if k <= 32 else 200
    # LAPACK's divide and conquer, for more than 25 columns, knows small values to eps s_1 in float64 and no better.
    return 1020 if k <= 25 else 27 if single else 0


def random(m: int, n: int, seed: int) -> Tensor:
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def diagonal(spectrum: str, m: int, n: int, power: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``m x n`` with the values, which are returned too, on its diagonal, the largest in the last place."""
    s = SPECTRA[spectrum](min(m, n), 2.0**power).flip(0).to(dtype)
    a = torch.zeros(m, n, dtype=dtype)
    a.diagonal().copy_(s)
    return a, s.double()


def value_and_derivatives(a: Tensor, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``P``, ``DP[g]`` and ``D^2P[g, h]`` at ``a``, in float64."""
    a, g = a.clone().requires_grad_(), g.clone().requires_grad_()
    p = polar_factor(a, smooth=SMOOTH)
    (first,) = torch.autograd.grad(p, a, g, create_graph=True)
    (second,) = torch.autograd.grad(first, a, h)
    return p.detach().double(), first.detach().double(), second.double()


@pytest.mark.parametrize("spectrum", SPECTRA)
@SHAPES
@CASES
def test_diagonal(backend: str, dtype: torch.dtype, power: int, m: int, n: int, spectrum: str) -> None:
    a, s = diagonal(spectrum, m, n, power, dtype)
    g, h = random(m, n, 1).to(dtype), random(m, n, 2).to(dtype)
    p, first, second = value_and_derivatives(a, g, h)
    eps, size = torch.finfo(dtype).eps, max(m, n)
    if power > exact_to(backend, dtype, m, n):
        assert torch.linalg.matrix_norm(p, 2) <= 1 + size * eps
        assert torch.linalg.matrix_norm(first) <= (1 + size * eps) * torch.linalg.matrix_norm(g.double()) / SMOOTH
    else:
        torch.testing.assert_close(p, closed_form.value(s, m, n, SMOOTH), atol=8 * eps, rtol=0)
        expected = closed_form.derivative(s, g, SMOOTH)
        assert torch.linalg.matrix_norm(first - expected) <= size * eps * torch.linalg.matrix_norm(expected)
    if size <= 8:  # mpmath takes seconds for larger ones, and the second derivative is one piece of code for all
        expected = closed_form.second_derivative(s, g, h, SMOOTH)
        assert torch.linalg.matrix_norm(second - expected) <= size * eps * torch.linalg.matrix_norm(expected)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("m", "n"), [(4, 4), (7, 3), (3, 5)])
@CASES
def test_any_basis(backend: str, dtype: torch.dtype, power: int, m: int, n: int, spectrum: str) -> None:
    a = with_spectrum(m, n, SPECTRA[spectrum](min(m, n), 2.0**power)).to(dtype)
    g = random(m, n, 1).to(dtype)
    p, first, _ = value_and_derivatives(a, g, g)
    expected_p, expected = closed_form.value_and_derivative(a, g, SMOOTH)
    size = max(m, n)
    error = min(size * torch.finfo(dtype).eps * (1 + 2.0**power / SMOOTH), 1.0)  # at most that of unrelated matrices: 2
    assert torch.linalg.matrix_norm(p - expected_p, 2) <= 2 * error
    assert torch.linalg.matrix_norm(first - expected) <= 2 * error * torch.linalg.matrix_norm(g.double()) / SMOOTH


@pytest.mark.parametrize(("m", "n"), [(4, 4), (8, 6), (5, 8), (24, 20)])
@CASES
def test_loss(backend: str, dtype: torch.dtype, power: int, m: int, n: int) -> None:
    """Both sides diagonal, so that everything has a closed form; in the rest both are zero, where the sign is 0."""
    x_hat, s = diagonal("one large", m, n, power, dtype)
    x, s_x = diagonal("graded", m, n, 3, dtype)
    x_hat.requires_grad_()
    loss = basis_loss(x_hat, x, smooth=SMOOTH)
    loss.backward()
    assert x_hat.grad is not None
    difference = closed_form.value(s, m, n, SMOOTH) - closed_form.value(s_x, m, n, SMOOTH)
    eps = torch.finfo(dtype).eps
    if power <= exact_to(backend, dtype, m, n):
        assert abs(loss.item() - difference.abs().mean().item()) <= 8 * eps * difference.abs().mean().item()
        g = difference.sign() / (m * n)
        expected = closed_form.derivative(s, g, SMOOTH)
        error = torch.linalg.matrix_norm(x_hat.grad.double() - expected)
        assert error <= max(m, n) * eps * torch.linalg.matrix_norm(expected)
    assert torch.linalg.matrix_norm(x_hat.grad.double()) <= (1 + eps * m * n) * (m * n) ** -0.5 / SMOOTH
