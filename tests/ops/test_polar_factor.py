"""polar_factor against its definition, and its derivatives three ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import svdrd
from svdrd.ops import polar_factor
from tests.zoo import LARGE_SIZES, SIZES, ZOO, with_spectrum

SCALES = {torch.float32: (1.0, 1e30, 1e-30), torch.float64: (1.0, 1e300, 1e-300)}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def oracle(a: Tensor, rcond: float, smooth: float = 0.0) -> tuple[Tensor, Tensor]:
    """The definition by a float64 SVD of ``a``, and the singular values."""
    u, s, vh = torch.linalg.svd(a.double(), full_matrices=False)
    weight = s / torch.hypot(s, s.new_tensor(smooth)) if smooth else (s > rcond * s[..., :1]).double()
    return (u * weight[..., None, :]) @ vh, s


@DTYPES
@pytest.mark.parametrize(("m", "n"), SIZES + LARGE_SIZES)
def test_zoo(backend: str, m: int, n: int, dtype: torch.dtype) -> None:
    """``A = P H`` with ``H = P^T A`` symmetric, and P a partial isometry, each over ``n eps``."""
    eps, size = torch.finfo(dtype).eps, max(m, n)
    for scale in SCALES[dtype]:
        a = (torch.stack([ZOO[name](m, n) for name in ZOO]) * scale).to(dtype)
        p = polar_factor(a).double()
        a = a.double() / a.double().abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        norm = torch.linalg.matrix_norm(a).clamp(min=torch.finfo(torch.float64).tiny)
        h = p.mT @ a
        worst = torch.stack(
            [
                torch.linalg.matrix_norm(a - p @ h) / norm,
                torch.linalg.matrix_norm(h - h.mT) / norm,
                torch.linalg.matrix_norm(p @ p.mT @ p - p),
            ]
        ) / (size * eps)
        bad = ~(worst < 30).all(0)
        assert not bad.any(), [(name, scale, worst[:, i].tolist()) for i, name in enumerate(ZOO) if bad[i]]


@DTYPES
@pytest.mark.parametrize(("m", "n"), SIZES + LARGE_SIZES)
@pytest.mark.slow_interpreted
def test_agrees_with_the_definition(backend: str, m: int, n: int, dtype: torch.dtype) -> None:
    """Error of a polar factor: ``eps s_1 / (s_k + s_(k-1))``, s_k the smallest kept value (Higham 2008, theorem
    8.10)."""
    eps = torch.finfo(dtype).eps
    for name, generate in ZOO.items():
        a = generate(m, n).to(dtype)
        expected, s = oracle(a, 4 * eps)
        kept = s > 4 * eps * s[0]
        near = (s / s[0].clamp(min=1e-300) / (4 * eps)).clamp(min=1e-3)
        if ((near > 0.25) & (near < 4)).any():  # within rounding of the threshold either decision is right
            continue
        k = int(kept.sum())
        condition = (s[0] / s[k - 1]).item() if k else 1.0
        error = torch.linalg.matrix_norm(polar_factor(a).double() - expected).item()
        assert error <= 30 * max(m, n) * eps * condition, (name, error, condition)


@DTYPES
@pytest.mark.slow_interpreted
def test_smoothed(backend: str, dtype: torch.dtype) -> None:
    for m, n in [*SIZES, (64, 64)]:
        a = torch.stack([ZOO[name](m, n) for name in ZOO]).to(dtype)
        for e in (1e-1, 3.0):
            expected, s = oracle(a, 0.0, e)
            error = torch.linalg.matrix_norm(polar_factor(a, smooth=e).double() - expected)
            bound = 30 * max(m, n) * torch.finfo(dtype).eps * (1 + s[..., 0] / e)
            assert (error <= bound).all(), (m, n, e)


def test_properties(backend: str) -> None:
    a = torch.stack([ZOO[name](6, 4) for name in ("random", "half flat", "rank 1", "identity", "zero")])
    q, z = torch.linalg.qr(ZOO["random"](6, 6))[0], torch.linalg.qr(ZOO["random"](4, 4))[0]
    p = polar_factor(a)
    torch.testing.assert_close(polar_factor(q @ a @ z), q @ p @ z, atol=1e-12, rtol=0)
    torch.testing.assert_close(polar_factor(a.mT), p.mT, atol=1e-12, rtol=0)
    torch.testing.assert_close(polar_factor(a * 7.3), p, atol=1e-12, rtol=0)
    torch.testing.assert_close(polar_factor(-a), -p, atol=1e-12, rtol=0)
    assert (p[-1] == 0).all()


def test_rcond_decides_the_rank(backend: str) -> None:
    a = with_spectrum(5, 5, torch.tensor([1, 1e-1, 1e-2, 1e-3, 1e-4], dtype=torch.float64))
    for rcond, rank in ((0.5, 1), (0.05, 2), (5e-4, 4), (0.0, 5)):
        assert torch.linalg.matrix_norm(polar_factor(a, rcond=rcond)).square().item() == pytest.approx(rank, abs=1e-9)


@pytest.mark.parametrize(("m", "n"), [(6, 6), (8, 5), (5, 8), (20, 20), (40, 40), (48, 36), (36, 48)])
def test_zero_rows_and_columns_of_ill_conditioned_matrices(backend: str, m: int, n: int) -> None:
    """Singular vectors have noise of eps s_1 / s_i there. P has none and is a partial isometry without it."""
    filled, kept = with_spectrum(m - 1, n - 1, torch.logspace(0, -14, min(m, n) - 1).double()), min(m, n) - 1
    a = torch.zeros(m, n, dtype=torch.float64)
    rows, columns = torch.arange(m) != m // 3, torch.arange(n) != n // 2
    a[rows.nonzero(), columns.nonzero()[:, 0]] = filled
    p = polar_factor(torch.stack([a, filled.new_ones(m, n)]))[0]
    eps = torch.finfo(torch.float64).eps
    assert not p[~rows].any()
    assert not p[:, ~columns].any()
    assert torch.linalg.matrix_norm(p @ p.mT @ p - p) < 30 * max(m, n) * eps
    assert (p.square().sum() - kept).abs() < 30 * max(m, n) * eps
    h = p.mT @ a
    assert torch.linalg.matrix_norm(h - h.mT) < 30 * max(m, n) * eps
    assert torch.equal(p, polar_factor(a))


@pytest.mark.parametrize("kind", ["flat", "equal rows", "a column twice"])
@pytest.mark.parametrize(("m", "n"), [(512, 2), (300, 3), (128, 8), (64, 16), (64, 64), (80, 40), (256, 64), (130, 64)])
@pytest.mark.slow_interpreted
def test_rank_of_long_float64_matrices(backend: str, m: int, n: int, kind: str) -> None:
    """What is exactly zero may come out of hundreds of rows as 45 eps s_1, where 4 eps decide."""
    batch = 20 if backend == "cuda" or m * n > 2000 else 200
    a = torch.rand(batch, m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(m + n))
    rank = 1 if kind != "a column twice" else n - 1
    if kind == "a column twice":
        a[:, :, -1] = a[:, :, 0]
    else:
        a = (a[:, :1, :1] if kind == "flat" else a[:, :1]).expand(batch, m, n).clone()
    a.requires_grad_()
    p = polar_factor(a)
    torch.testing.assert_close(p.square().sum((-2, -1)), torch.full((batch,), float(rank)).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(polar_factor(a.mT), p.mT, rtol=0, atol=1e-10)
    (derivative,) = torch.autograd.grad(p, a, torch.ones_like(p))
    values = torch.linalg.svdvals(a.detach())[:, rank - 1]
    assert (torch.linalg.matrix_norm(derivative) <= 2 * (m * n) ** 0.5 / values).all()


@pytest.mark.parametrize("n", [20, 33, 40, 64])
@pytest.mark.slow_interpreted
def test_float32_values_around_the_rounding(backend: str, n: int) -> None:
    """Beyond 32 columns ``cpp`` takes vectors from the Gram matrix; those of values below 1e-6 s_1 need mending."""
    for last, rcond in ((5e-7, None), (3.9e-7, 1e-7), (1.2e-7, 1e-7)):
        spectrum = torch.full((n,), last, dtype=torch.float64)
        spectrum[: n // 2] = torch.logspace(0, -6, n // 2, dtype=torch.float64)
        p = polar_factor(with_spectrum(n, n, spectrum, seed=n).float(), rcond=rcond).double()
        assert torch.linalg.matrix_norm(p @ p.mT @ p - p) < 5 * n * torch.finfo(torch.float32).eps


@DTYPES
@pytest.mark.parametrize(("m", "n"), [(5, 5), (9, 14), (16, 16), (20, 7), (32, 32)])
@pytest.mark.slow_interpreted
def test_values_next_to_rcond(backend: str, m: int, n: int, dtype: torch.dtype) -> None:
    """Many are dropped at once, all of them just below the bound or down to nothing, beside ones just above it."""
    k, rcond = min(m, n), 1e-2
    spectra, ranks = [], []
    for rank in (1, 2, k // 2, k - 1):
        kept = torch.logspace(0, 0 if rank == 1 else -1.9, rank, dtype=torch.float64)
        for last in (-2.1, -9.0, -18.0):
            spectra.append(torch.cat([kept, torch.logspace(-2.1, last, k - rank, dtype=torch.float64)]))
            ranks.append(rank)
    a = torch.stack([with_spectrum(m, n, s, seed=i) for i, s in enumerate(spectra)]).to(dtype)
    g = torch.randn(a.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    p, d = polar_factor(a, rcond=rcond), jacobian_product(a, g, rcond=rcond)
    eps = torch.finfo(dtype).eps
    # The kept directions are known to eps s_1 over the distance of the first that is dropped.
    torch.testing.assert_close(p.double(), oracle(a, rcond)[0], rtol=0, atol=300 * k * eps)
    assert torch.linalg.matrix_norm(p.double()).square().round().tolist() == ranks
    with svdrd.use_backend("torch"):
        expected = jacobian_product(a.double(), g.double(), rcond=rcond)
    error = torch.linalg.matrix_norm(d.double() - expected) / torch.linalg.matrix_norm(expected)
    assert error.max() <= 300 * k * eps
    for i in (0, 5, len(a) - 1) if backend != "torch" else ():  # LAPACK's bits may depend on where a matrix lies
        assert torch.equal(polar_factor(a[i], rcond=rcond), p[i])


# Derivatives: gradcheck, adjoint identity, degenerate inputs.

SMOOTH = pytest.mark.parametrize("smooth", [0.0, 0.3])


@SMOOTH
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 3), (4, 3), (3, 5), (1, 4), (4, 1)])
@pytest.mark.parametrize("name", ["random", "identity", "orthogonal", "equal pairs", "two ulp gap", "clustered"])
@pytest.mark.slow_interpreted
def test_gradcheck_at_full_rank(backend: str, name: str, m: int, n: int, smooth: float) -> None:
    a = (
        ZOO[name](m, n) * 2 + (0.5 * torch.eye(m, n, dtype=torch.float64) if name == "clustered" else 0)
    ).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: polar_factor(a, smooth=smooth), a)
    assert torch.autograd.gradgradcheck(lambda a: polar_factor(a, smooth=smooth), a)


@pytest.mark.parametrize(("m", "n", "rank"), [(4, 4, 2), (5, 3, 1), (3, 5, 2), (6, 6, 5)])
@pytest.mark.slow_interpreted
def test_gradcheck_of_a_product_of_low_rank(backend: str, m: int, n: int, rank: int) -> None:
    b = with_spectrum(m, rank, torch.linspace(2, 1, rank, dtype=torch.float64)).requires_grad_()
    c = with_spectrum(rank, n, torch.linspace(1, 3, rank, dtype=torch.float64).flip(0), seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda b, c: polar_factor(b @ c), (b, c))
    assert torch.autograd.gradgradcheck(lambda b, c: polar_factor(b @ c), (b, c))


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.slow_interpreted
def test_gradcheck_at_zero_and_deficient_matrices_when_smoothed(backend: str, smooth: float) -> None:
    if smooth == 0:
        a = torch.zeros(2, 3, 4, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(polar_factor(a).sum(), a)
        assert (gradient == 0).all()
        return
    for name in ("zero", "ones", "rank k/2", "zero row and column"):
        assert torch.autograd.gradcheck(lambda a: polar_factor(a, smooth=smooth), ZOO[name](4, 3).requires_grad_())


def jacobian_product(a: Tensor, g: Tensor, **options: float) -> Tensor:
    a = a.detach().requires_grad_()
    return torch.autograd.grad(polar_factor(a, **options), a, g)[0]


@SMOOTH
@pytest.mark.parametrize(
    ("m", "n"), [(1, 1), (7, 7), (8, 5), (5, 8), (16, 16), (32, 32), (64, 64), (100, 24), (24, 100)]
)
def test_adjoint_identity(backend: str, m: int, n: int, smooth: float) -> None:
    """The Jacobian is symmetric, positive semidefinite, and annihilates A (for ``smooth == 0``)."""
    a = torch.stack([ZOO[name](m, n) for name in ZOO])
    e, f = torch.randn_like(a), torch.randn_like(a)
    je, jf = jacobian_product(a, e, smooth=smooth), jacobian_product(a, f, smooth=smooth)
    size = (torch.linalg.matrix_norm(je) * torch.linalg.matrix_norm(f)).clamp(min=1e-300)
    assert (((je * f).sum((-2, -1)) - (e * jf).sum((-2, -1))).abs() <= 1e-9 * size).all()
    assert ((je * e).sum((-2, -1)) >= -1e-9 * size).all()
    if smooth == 0:
        against_a = (je * a).sum((-2, -1)).abs()
        assert (against_a <= 1e-9 * torch.linalg.matrix_norm(je) * torch.linalg.matrix_norm(a)).all()


@pytest.mark.parametrize(("m", "n"), SIZES + LARGE_SIZES)
@pytest.mark.slow_interpreted
def test_float32_derivative_against_float64(backend: str, m: int, n: int) -> None:
    eps = torch.finfo(torch.float32).eps
    for name, generate in ZOO.items():
        a = generate(m, n).float()
        g = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
        s = torch.linalg.svdvals(a.double())
        relative = s / s[0].clamp(min=1e-300) / (4 * eps)
        if ((relative > 0.25) & (relative < 4)).any():  # see test_agrees_with_the_definition
            continue
        kept = s[relative > 1]
        expected = jacobian_product(a.double(), g.double(), rcond=4 * eps)
        if len(kept) == 0:
            assert (jacobian_product(a, g) == 0).all()
            continue
        # 2/(s_k + s_(k-1)) bounds the Jacobian, 1/s_k where a direction was dropped or lies outside the thin part.
        steepest = 2 / kept[-2:].sum().item() if len(kept) == len(s) == max(m, n) > 1 else 1 / kept[-1].item()
        error = torch.linalg.matrix_norm(jacobian_product(a, g).double() - expected).item()
        bound = 10 * max(m, n) * eps * s[0].item() / kept[-1].item() * steepest * torch.linalg.matrix_norm(g).item()
        assert error <= bound, (name, error, bound)


@DTYPES
@pytest.mark.slow_interpreted
def test_derivative_is_finite_on_the_zoo_at_every_scale(backend: str, dtype: torch.dtype) -> None:
    tiny, largest = (
        torch.finfo(dtype).tiny,
        torch.finfo(dtype).max / 4096,
    )  # all singular values can still be represented
    for m, n in [*SIZES, (64, 64)]:
        animals = torch.stack([ZOO[name](m, n) for name in ZOO])
        for scale in (*SCALES[dtype], tiny, tiny * 2.0**-8, largest):
            a = (animals * scale).to(dtype)
            assert torch.isfinite(polar_factor(a)).all()
            assert torch.isfinite(jacobian_product(a, torch.ones_like(a))).all(), (m, n, scale)
            assert torch.isfinite(jacobian_product(a, torch.ones_like(a), smooth=scale)).all(), (m, n, scale)


@pytest.mark.slow_interpreted
def test_jacobian_has_the_stated_spectrum(backend: str) -> None:
    s = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    a = with_spectrum(4, 3, s)
    jacobian = torch.autograd.functional.jacobian(polar_factor, a).reshape(12, 12)
    pairs = [2 / (s[i] + s[j]) for i in range(3) for j in range(i)]
    expected = torch.tensor([0.0] * 6 + sorted([*pairs, *(1 / s)])).double()
    torch.testing.assert_close(torch.linalg.eigvalsh(jacobian), expected, atol=1e-10, rtol=0)


def test_third_derivatives_raise(backend: str) -> None:
    a = ZOO["random"](3, 3).requires_grad_()
    (first,) = torch.autograd.grad(polar_factor(a).pow(2)[0].sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), a, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        torch.autograd.grad(second.sum(), a)
