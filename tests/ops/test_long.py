"""Matrices much longer than wide, or wider than long, which the C++ kernels take another way.

Tall ones of few columns are computed as their transposes, and long float64 ones part after part of their length.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svdrd import reference
from svdrd.ops import basis_loss, polar_factor, recompose, svd
from svdrd.reference import definitions
from tests.ops.test_svd import SCALES, ratios
from tests.zoo import ZOO, with_spectrum

pytestmark = pytest.mark.parametrize("backend", ["cpp"], indirect=True)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
LENGTHS = [(20000, 1), (6000, 2), (23000, 3), (1100, 7), (9000, 8), (5000, 15), (4500, 17), (700, 100)]
TALL_AND_WIDE = [*LENGTHS, *((n, m) for m, n in LENGTHS)]


@DTYPES
@pytest.mark.parametrize(("m", "n"), TALL_AND_WIDE)
def test_svd_of_the_zoo(backend: str, m: int, n: int, dtype: torch.dtype) -> None:
    for name, animal in ZOO.items():
        a = torch.stack([animal(m, n) * scale for scale in SCALES[dtype]]).to(dtype)
        u, s, vh = svd(a)
        assert (ratios(a, u, s, vh) < 5).all(), name
        assert (s >= 0).all()
        assert (s.diff(dim=-1) <= 0).all()


@DTYPES
@pytest.mark.parametrize(("m", "n"), TALL_AND_WIDE)
def test_polar_factor_of_the_zoo(backend: str, m: int, n: int, dtype: torch.dtype) -> None:
    for name, animal in ZOO.items():
        a = animal(m, n).to(dtype)
        p, x = polar_factor(a).double(), a.double()
        if m < n:
            p, x = p.mT, x.mT
        h, norm = p.mT @ x, torch.linalg.matrix_norm(x).clamp(min=1e-300)
        wrong = [
            torch.linalg.matrix_norm(x - p @ h) / norm,
            torch.linalg.matrix_norm(h - h.mT) / norm,
            torch.linalg.matrix_norm(p @ (p.mT @ p) - p),
        ]
        # The bar of the other shapes is 30 max(m, n) eps, which for long matrices would let much pass.
        size = 5 * max(m, n) if dtype == torch.float64 else 100 * min(m, n)  # float32 is factored in double
        bound = size * torch.finfo(dtype).eps
        assert torch.stack(wrong).max() < bound, (name, wrong)


def pair(m: int, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two matrices of well separated values, one a little off the other."""
    k = min(m, n)
    x = with_spectrum(m, n, torch.linspace(2, 1, k, dtype=torch.float64))
    x_hat = x + 0.1 * with_spectrum(m, n, torch.linspace(1, 0.5, k, dtype=torch.float64), seed=5)
    return x_hat[None].to(dtype), x[None].to(dtype)


@DTYPES
@pytest.mark.parametrize("smooth", [0.0, 0.3])
@pytest.mark.parametrize(("m", "n"), TALL_AND_WIDE)
def test_values_and_gradients(backend: str, m: int, n: int, smooth: float, dtype: torch.dtype) -> None:
    x_hat, x = (side.requires_grad_() for side in pair(m, n, dtype))
    # s_1 / s_k is about 2 here. The errors found are at most 25 eps, with all instruction sets.
    rcond, tolerance = 4 * torch.finfo(dtype).eps, 100 * torch.finfo(dtype).eps
    grad = torch.cos(torch.arange(m * n, dtype=torch.float64)).reshape(1, m, n).to(dtype)

    def close(found: Tensor, expected: Tensor) -> None:
        error = torch.linalg.matrix_norm(found.double() - expected) / torch.linalg.matrix_norm(expected)
        assert error.max() < tolerance, error

    p, u, s, vh = reference.polar_factor(x_hat.detach().double(), rcond, smooth)
    found = polar_factor(x_hat, smooth=smooth)
    close(found, p)
    close(torch.autograd.grad(found, x_hat, grad)[0], reference.polar_factor_vjp(grad.double(), u, s, vh, smooth))

    # An entry where the two factors are equal but for rounding has the sign that their rounding gives it.
    found = basis_loss(x_hat, x, smooth=smooth)
    factors = [polar_factor(side, smooth=smooth).detach() for side in (x_hat, x)]
    sign = definitions.signs(*factors).double() / (m * n)
    assert abs(found.item() - (factors[0] - factors[1]).abs().mean().item()) < tolerance * found.item()
    for side, by_side, weight in zip((x_hat, x), torch.autograd.grad(found, (x_hat, x)), (1, -1), strict=True):
        _, u, s, vh = reference.polar_factor(side.detach().double(), rcond, smooth)
        close(by_side, weight * reference.polar_factor_vjp(sign, u, s, vh, smooth))


@DTYPES
@pytest.mark.parametrize(("m", "n"), [(6000, 2), (1100, 7), (2, 6000), (7, 1100), (300, 15)])
def test_derivatives_of_svd_and_recompose(backend: str, m: int, n: int, dtype: torch.dtype) -> None:
    sides = [side.requires_grad_() for side in pair(m, n, dtype)]
    doubles = [side.detach().double().requires_grad_() for side in sides]
    grad = torch.sin(torch.arange(m * n, dtype=torch.float64)).reshape(1, m, n)

    def recomposed_by_torch(x_hat: Tensor, x: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(x, full_matrices=False)
        return (u * torch.linalg.svdvals(x_hat)[:, None, :]) @ vh

    def squared(x: Tensor) -> Tensor:
        u, s, vh = svd(x)
        return (u * s[:, None, :] ** 2) @ vh

    expected = torch.autograd.grad(recomposed_by_torch(*doubles), doubles, grad)
    found = torch.autograd.grad(recompose(*sides), sides, grad.to(dtype))
    u, s, vh = torch.linalg.svd(doubles[0], full_matrices=False)
    expected += torch.autograd.grad((u * s[:, None, :] ** 2) @ vh, doubles[0], grad)
    found += torch.autograd.grad(squared(sides[0]), sides[0], grad.to(dtype))
    gap = (s.diff().abs() / s[:, :1]).min().item()
    for one, other in zip(found, expected, strict=True):
        error = torch.linalg.matrix_norm(one.double() - other) / torch.linalg.matrix_norm(other)
        assert error.max() < 50 * torch.finfo(dtype).eps / gap, error  # found: at most 12 eps / gap


@DTYPES
def test_what_is_not_finite_is_nan(backend: str, dtype: torch.dtype) -> None:
    for m, n in ((3000, 3), (3, 3000)):
        a = torch.rand(3, m, n, dtype=dtype)
        a[1, m // 2, n // 2] = torch.nan
        a.requires_grad_()
        p = polar_factor(a)
        (gradient,) = torch.autograd.grad(p.sum(), a)
        for x in (p, gradient, *svd(a)):
            assert x[1].isnan().all()
            assert torch.isfinite(x[[0, 2]]).all()
