"""The smoothed polar factor where s_1 / smooth is anything from 1 to the range of the dtype.

``P_e`` has a derivative of up to ``1 / e`` and a second one of the order ``1 / e^2``: an error of ``eps s_1`` in the
matrix, which no general method avoids, makes one of ``eps s_1 / e`` in both, relative to 1 and to ``|G| / e``. On
diagonal matrices there is no such error, and every backend is held to the rounding of its own formulas as far as it
keeps the small values at all. Beyond, the result has to stay within the bounds of P and of its derivative.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from svdrd.ops import basis_loss, polar_factor
from svdrd.reference import definitions
from tests import closed_form
from tests.zoo import SPECTRA, with_spectrum

SMOOTH = 0.75
POWERS = {
    torch.float32: (0, 10, 20, 24, 27, 40, 60, 90, 110, 126),
    torch.float64: (0, 20, 24, 27, 53, 90, 200, 500, 900, 1020),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def exact_to(backend: str, dtype: torch.dtype, m: int, n: int) -> int:
    """log2 of the largest of ``POWERS`` at which small values of a diagonal matrix count: docs/design/gradients.md."""
    single, k = dtype == torch.float32, min(m, n)
    if backend == "triton" and (single or k <= 32):
        return 40 if single else 90
    if backend == "cuda":
        return 60 if single else 500
    if backend == "cpp":
        return 90 if single else 900 if k <= 32 else 200
    # LAPACK's divide and conquer, for more than 25 columns, knows small values to eps s_1 in float64 and no better.
    return 1020 if k <= 25 else 27 if single else 0


def random(m: int, n: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def values(spectrum: str, power: int, k: int, dtype: torch.dtype) -> Tensor:
    """Singular values, the largest last, as the dtype has them."""
    return SPECTRA[spectrum](k, 2.0**power).flip(0).to(dtype).double()


def diagonal(s: Tensor, m: int, n: int) -> Tensor:
    a = torch.zeros(m, n, dtype=s.dtype)
    a.diagonal().copy_(s)
    return a


@cache
def derivative_of_diagonal(spectrum: str, power: int, m: int, n: int, dtype: torch.dtype) -> Tensor:
    return closed_form.derivative(values(spectrum, power, min(m, n), dtype), random(m, n, 1, dtype), SMOOTH)


@cache
def derivatives_in_any_basis(spectrum: str, power: int, m: int, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    a = with_spectrum(m, n, SPECTRA[spectrum](min(m, n), 2.0**power)).to(dtype)
    return closed_form.value_and_derivative(a, random(m, n, 1, dtype), SMOOTH)


@cache
def second_derivative_of_diagonal(spectrum: str, power: int, m: int, n: int, dtype: torch.dtype) -> Tensor:
    g, h = random(m, n, 1, dtype), random(m, n, 2, dtype)
    return closed_form.second_derivative(values(spectrum, power, min(m, n), dtype), g, h, SMOOTH)


def norm(x: Tensor) -> float:
    return torch.linalg.matrix_norm(x.double()).item()


@DTYPES
@pytest.mark.parametrize(("m", "n"), [(4, 4), (6, 4), (3, 5), (8, 8), (24, 20), (40, 40)])
def test_diagonal(backend: str, m: int, n: int, dtype: torch.dtype) -> None:
    cases = [(spectrum, power) for spectrum in SPECTRA for power in POWERS[dtype]]
    spectra = [values(*case, min(m, n), dtype) for case in cases]
    a = torch.stack([diagonal(s, m, n) for s in spectra]).to(dtype).requires_grad_()
    g, eps, size = random(m, n, 1, dtype), torch.finfo(dtype).eps, max(m, n)
    p = polar_factor(a, smooth=SMOOTH)
    (derivatives,) = torch.autograd.grad(p, a, g.expand_as(a))
    for (spectrum, power), s, value, derivative in zip(cases, spectra, p.detach(), derivatives, strict=True):
        where = f"{spectrum}, 2^{power}"
        if power > exact_to(backend, dtype, m, n):
            assert torch.linalg.matrix_norm(value.double(), 2) <= 1 + size * eps, where
            assert norm(derivative) <= (1 + size * eps) * norm(g) / SMOOTH, where
        else:
            expected = closed_form.value(s, m, n, SMOOTH)
            assert (value - expected).abs().max() <= 8 * eps, where
            expected = derivative_of_diagonal(spectrum, power, m, n, dtype)
            assert norm(derivative - expected) <= size * eps * norm(expected), where


@DTYPES
@pytest.mark.parametrize(("m", "n"), [(4, 4), (6, 4), (3, 5), (8, 8)])
def test_second_derivative(backend: str, m: int, n: int, dtype: torch.dtype) -> None:
    """The double backward."""
    cases = [(spectrum, power) for spectrum in SPECTRA for power in POWERS[dtype]]
    a = torch.stack([diagonal(values(*case, min(m, n), dtype), m, n) for case in cases]).to(dtype).requires_grad_()
    g, h = (random(m, n, seed, dtype).expand_as(a).clone().requires_grad_() for seed in (1, 2))
    (first,) = torch.autograd.grad(polar_factor(a, smooth=SMOOTH), a, g, create_graph=True)
    (found,) = torch.autograd.grad(first, a, h)
    for i, case in enumerate(cases):
        expected = second_derivative_of_diagonal(*case, m, n, dtype)
        assert norm(found[i] - expected) <= max(m, n) * torch.finfo(dtype).eps * norm(expected), case


@pytest.mark.parametrize("power", POWERS[torch.float64])
@pytest.mark.parametrize(("m", "n"), [(4, 4), (6, 4), (3, 5)])
def test_second_derivative_along_the_large_value(m: int, n: int, power: int) -> None:
    """It is far smaller there than ``1 / e^2``, and as exact."""
    s = values("one large", power, min(m, n), torch.float64)
    g, h = random(m, n, 1, torch.float64), random(m, n, 2, torch.float64)
    g[: min(m, n) - 1] = 0
    found = definitions.polar_factor_second_derivative(diagonal(s, m, n)[None], g[None], h[None], 0.0, SMOOTH)[0]
    expected = closed_form.second_derivative(s, g, h, SMOOTH)
    assert norm(found - expected) <= max(m, n) * torch.finfo(torch.float64).eps * norm(expected)


@DTYPES
@pytest.mark.parametrize(("m", "n"), [(4, 4), (7, 3), (3, 5)])
def test_any_basis(backend: str, m: int, n: int, dtype: torch.dtype) -> None:
    cases = [(spectrum, power) for spectrum in SPECTRA for power in POWERS[dtype]]
    spectra = [SPECTRA[spectrum](min(m, n), 2.0**power) for spectrum, power in cases]
    a = torch.stack([with_spectrum(m, n, s) for s in spectra]).to(dtype).requires_grad_()
    g = random(m, n, 1, dtype)
    p = polar_factor(a, smooth=SMOOTH)
    (derivatives,) = torch.autograd.grad(p, a, g.expand_as(a))
    for case, value, derivative in zip(cases, p.detach(), derivatives, strict=True):
        expected, expected_derivative = derivatives_in_any_basis(*case, m, n, dtype)
        # At most that of two matrices that have nothing to do with each other, which is 2.
        error = 2 * min(max(m, n) * torch.finfo(dtype).eps * (1 + 2.0 ** case[1] / SMOOTH), 1.0)
        assert torch.linalg.matrix_norm(value - expected, 2) <= error, case
        assert norm(derivative - expected_derivative) <= error * norm(g) / SMOOTH, case


@DTYPES
@pytest.mark.parametrize(("m", "n"), [(4, 4), (8, 6), (5, 8), (24, 20)])
def test_loss(backend: str, m: int, n: int, dtype: torch.dtype) -> None:
    """Both sides are diagonal, so that all has a closed form; beside the diagonal both are 0, and so the sign."""
    spectra = [values("one large", power, min(m, n), dtype) for power in POWERS[dtype]]
    other = values("graded", 3, min(m, n), dtype)
    x_hat = torch.stack([diagonal(s, m, n) for s in spectra]).to(dtype).requires_grad_()
    x = diagonal(other, m, n).to(dtype).expand_as(x_hat)
    loss = basis_loss(x_hat, x, reduction="none", smooth=SMOOTH)
    (derivatives,) = torch.autograd.grad(loss.sum(), x_hat)
    eps = torch.finfo(dtype).eps
    for power, s, value, derivative in zip(POWERS[dtype], spectra, loss.flatten(), derivatives, strict=True):
        assert norm(derivative) <= (1 + m * n * eps) * (m * n) ** -0.5 / SMOOTH, power
        if power <= exact_to(backend, dtype, m, n):
            difference = closed_form.value(s, m, n, SMOOTH) - closed_form.value(other, m, n, SMOOTH)
            assert abs(value.item() - difference.abs().mean().item()) <= 8 * eps * difference.abs().mean(), power
            expected = closed_form.derivative(s, difference.sign() / (m * n), SMOOTH)
            assert norm(derivative - expected) <= max(m, n) * eps * norm(expected), power
