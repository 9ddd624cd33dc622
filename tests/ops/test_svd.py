"""svd against LAPACK's own test ratios, and its derivative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import svdrd
from svdrd.backends import availability, cpp
from svdrd.ops import svd
from tests.zoo import LARGE_SIZES, SIZES, ZOO, exact_rank, with_spectrum

# Small enough and large enough that a squared entry leaves the dtype's range.
SCALES = {torch.float32: (1.0, 1e30, 1e-30), torch.float64: (1.0, 1e300, 1e-300)}


def ratios(a: Tensor, u: Tensor, s: Tensor, vh: Tensor) -> Tensor:
    """``(3, batch)``: LAPACK's residual and orthogonality ratios, which it accepts below 30."""
    m, n, k = a.shape[-2], a.shape[-1], s.shape[-1]
    eps = torch.finfo(a.dtype).eps
    # Dividing by the largest entry first keeps the check itself from over- and underflowing.
    scale = a.double().abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    a, u, s, vh = a.double() / scale, u.double(), s.double() / scale[..., 0], vh.double()
    norm = torch.linalg.matrix_norm(a).clamp(min=torch.finfo(torch.float64).tiny)
    identity = torch.eye(k, dtype=torch.float64)
    return torch.stack(
        [
            torch.linalg.matrix_norm(a - (u * s[..., None, :]) @ vh) / (norm * max(m, n) * eps),
            torch.linalg.matrix_norm(identity - u.mT @ u) / (m * eps),
            torch.linalg.matrix_norm(identity - vh @ vh.mT) / (n * eps),
        ]
    )


@pytest.mark.skipif(availability.native is None, reason="there is no compiled module")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("n", [3, 4, 5, 6, 8, 12, 16, 24, 32, 40])
def test_equal_singular_values(n: int, dtype: torch.dtype) -> None:
    """Multiples of orthogonal matrices.

    Of one in some ten thousand the shift of the QR iteration was the leading entry itself, to rounding: it went on
    to its bound, and what it had not come to by then stayed undone.
    """
    generator = torch.Generator().manual_seed(n)
    batch = 40000 // n if n <= 32 else 100
    q = torch.linalg.qr(torch.randn(batch, n, n, dtype=torch.float64, generator=generator))[0]
    a = (q * torch.rand(batch, 1, 1, dtype=torch.float64, generator=generator)).to(dtype)
    with svdrd.use_backend("cpp"):
        worst = ratios(a, *svd(a)).max().item()
    assert worst < 5


@pytest.mark.skipif(availability.native is None, reason="there is no compiled module")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_shift_halfway_between_two_values(dtype: torch.dtype) -> None:
    """``[[d, a, 0], [0, a, e], [0, 0, b]]`` with small d and e: the shift is a, halfway between 0 and 2 a^2 squared.

    Sweeps with it exchanged the two and came to nothing. One in some thousand was off by up to 6e-4 s_1 (float32).
    """
    generator = torch.Generator().manual_seed(0)
    batch, eps = 100_000, torch.finfo(dtype).eps

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, dtype=torch.float64, generator=generator)

    a, digits = between(0.25, 0.75).to(dtype), 10 if dtype == torch.float64 else 6
    matrices = torch.zeros(batch, 3, 3, dtype=dtype)
    matrices[:, 0, 0] = 10 ** between(-digits, -2)
    matrices[:, 0, 1] = a
    matrices[:, 1, 1] = a * (1 + eps * torch.randint(-2, 3, (batch,), generator=generator))
    matrices[:, 1, 2] = eps * 10 ** between(0, 3)
    matrices[:, 2, 2] = a * between(1.415, 2.015)
    with svdrd.use_backend("cpp"):
        assert ratios(matrices, *svd(matrices)).max() < 10


@pytest.mark.parametrize("last", [-8, -14, -20, -30])
@pytest.mark.parametrize(("m", "n"), [(64, 64), (60, 62), (64, 100)])
@pytest.mark.slow_interpreted
def test_values_over_many_digits(backend: str, m: int, n: int, last: int) -> None:
    """Falling evenly, they take one-sided Jacobi the most sweeps. The CUDA kernel needed more than it was allowed."""
    a = with_spectrum(m, n, torch.logspace(0, last, min(m, n), dtype=torch.float64))[None]
    assert (ratios(a, *svd(a)) < 30).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("m", "n"), SIZES + LARGE_SIZES)
def test_zoo(backend: str, m: int, n: int, dtype: torch.dtype) -> None:
    names = list(ZOO)
    for scale in SCALES[dtype]:
        a = (torch.stack([ZOO[name](m, n) for name in names]) * scale).to(dtype)
        u, s, vh = svd(a)
        worst = ratios(a, u, s, vh)
        assert torch.isfinite(worst).all()
        bad = (worst >= 30).any(0)
        assert not bad.any(), [(name, worst[:, i].tolist()) for i, name in enumerate(names) if bad[i]]
        assert worst.median() < 5
        assert (s >= 0).all()
        assert (s.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("m", "n"), [(2, 2), (8, 8), (16, 16), (33, 32), (64, 64), (256, 256)])
def test_noise_floor_of_exactly_deficient_matrices(backend: str, m: int, n: int, dtype: torch.dtype) -> None:
    """Rank decisions at 4 eps need a computed zero to stay below it."""
    for name in ZOO:
        rank = exact_rank(name, m, n)
        if not rank or rank == min(m, n):
            continue
        s = svd(ZOO[name](m, n).to(dtype)).S
        assert s[rank] < 4 * torch.finfo(dtype).eps * s[0], name


@pytest.mark.parametrize("backend", ["cpp"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("m", "n"), [(519, 530), (525, 520)])
def test_beyond_the_second_level_cache(backend: str, m: int, n: int, dtype: torch.dtype) -> None:
    """From 520 columns on the C++ kernels tridiagonalise in panels, here also one that is not full."""
    for name in ("random", "image", "ones"):
        a = ZOO[name](m, n).to(dtype)[None]
        u, s, vh = svd(a)
        assert (ratios(a, u, s, vh) < 5).all(), name
        if name != "ones":  # LAPACK's own noise is above this bound there
            error = (s - torch.linalg.svdvals(a.double())).abs().max()
            assert error <= 30 * torch.finfo(dtype).eps * s[0, 0], name


def test_values_agree_with_lapack(backend: str) -> None:
    a = torch.stack([ZOO[name](12, 9) for name in ZOO])
    expected = torch.linalg.svdvals(a)
    error = (svd(a).S - expected).abs().amax(-1)
    assert (error <= 30 * torch.finfo(a.dtype).eps * expected[:, 0].clamp(min=1e-300)).all()


def gauge_invariant(a: Tensor) -> tuple[Tensor, ...]:
    """Functions that the choice of singular vectors does not change."""
    u, s, vh = svd(a)
    return u @ vh, s, (u * s[..., None, :] ** 2) @ vh, u[..., :2] @ u[..., :2].mT


@pytest.mark.parametrize(("m", "n"), [(1, 1), (4, 4), (5, 3), (3, 5)])
@pytest.mark.slow_interpreted
def test_derivative_at_distinct_values(backend: str, m: int, n: int) -> None:
    a = with_spectrum(m, n, torch.arange(min(m, n), 0, -1).double()).expand(2, m, n).clone().requires_grad_()
    assert torch.autograd.gradcheck(gauge_invariant, a)
    assert torch.autograd.gradgradcheck(gauge_invariant, a)


@pytest.mark.parametrize(("m", "n"), [(4, 4), (6, 4), (4, 6)])
@pytest.mark.slow_interpreted
def test_derivative_at_repeated_values(backend: str, m: int, n: int) -> None:
    """Repeated vectors that take part with one weight: U V^T, a projection that does not split them, sums over S."""
    a = with_spectrum(m, n, torch.tensor([3.0, 1.0, 1.0, 1.0], dtype=torch.float64)).requires_grad_()

    def function(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vh = svd(a)
        return u @ vh, u[..., :1] @ vh[..., :1, :], s.pow(3).sum(-1)

    assert torch.autograd.gradcheck(function, a)


@pytest.mark.slow_interpreted
def test_derivative_is_finite_on_the_zoo(backend: str) -> None:
    for m, n in [(8, 8), (8, 5), (5, 8), (32, 32)]:
        for scale in (1.0, 1e30, 1e-30, 1e-42):
            a = (torch.stack([ZOO[name](m, n) for name in ZOO]) * scale).float().requires_grad_()
            u, s, vh = svd(a)
            weights = torch.linspace(-1, 1, u.shape[-1])
            ((u * weights).sum() + s.sum() + vh.pow(3).sum()).backward()
            assert torch.isfinite(a.grad).all()


@pytest.mark.slow_interpreted
def test_only_the_factors_that_are_used_need_a_gradient(backend: str) -> None:
    a = with_spectrum(5, 4, torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)).requires_grad_()
    for i in range(3):
        assert torch.autograd.gradcheck(lambda a, i=i: svd(a)[i].abs(), a)


@pytest.mark.slow_interpreted
def test_derivative_keeps_small_genuine_values(backend: str) -> None:
    """Small blocks of an image have singular values and gaps of few eps s_1 that are genuine, not noise."""
    a = with_spectrum(64, 64, torch.logspace(0, -5.5, 64, dtype=torch.float64)).float()
    g = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))

    def derivative(a: Tensor, g: Tensor) -> Tensor:
        a = a.detach().requires_grad_()
        u, _, vh = svd(a)
        return torch.autograd.grad(u @ vh, a, g)[0]

    expected = derivative(a.double(), g.double())
    error = torch.linalg.matrix_norm(derivative(a, g).double() - expected) / torch.linalg.matrix_norm(expected)
    assert error < 1e-2


@pytest.mark.skipif(availability.native is None, reason="the cpp backend is not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("m", "n"), SIZES + LARGE_SIZES)
def test_values_alone(m: int, n: int, dtype: torch.dtype) -> None:
    for scale in SCALES[dtype]:
        a = (torch.stack([ZOO[name](m, n) for name in ZOO]) * scale).to(dtype)
        expected, s = cpp.svd(a)[1], cpp.singular_values(a)
        assert (s[:, :-1] >= s[:, 1:]).all()
        assert (s >= 0).all()
        # Each is off by a few eps s_1 at most, which the zoo's ratios allow to grow with the size.
        bound = max(m, n) * torch.finfo(dtype).eps * expected[:, :1] + torch.finfo(dtype).tiny
        assert ((s - expected).abs() <= bound).all()
    a[1, 0, 0] = torch.nan
    assert torch.equal(cpp.singular_values(a).isnan().any(-1), torch.arange(len(a)) == 1)
