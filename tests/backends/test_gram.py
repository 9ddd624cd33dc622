"""The SVD by the Gram matrix: on CUDA devices for float32 beyond the kernels' sizes; here it is called directly."""

from __future__ import annotations

import pytest
import torch

from svdrd import use_backend
from svdrd.backends.products import gram
from svdrd.dispatch import routes
from svdrd.ops import svd
from tests.backends.test_jacobi import deficient
from tests.ops.test_svd import ratios
from tests.zoo import ZOO

EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize(("m", "n"), [(72, 72), (90, 66), (34, 70), (1, 1)])
def test_zoo(m: int, n: int) -> None:
    a = torch.stack([ZOO[name](m, n) for name in ZOO]).float()
    u, s, vh = gram.svd(a)
    worst = ratios(a, u, s, vh)
    assert (worst < 30).all(), [(x, worst[:, i].tolist()) for i, x in enumerate(ZOO) if (worst[:, i] >= 30).any()]
    assert worst.median() < 5
    assert (s >= 0).all()
    assert (s.diff(dim=-1) <= 0).all()
    exact = torch.linalg.svdvals(a.double())
    assert ((s.double() - exact).abs() <= 2 * EPS * exact[:, :1]).all()


def test_noise_floor() -> None:
    for name, (rank, a) in deficient(72, 5).items():
        s = gram.svd(a)[1]
        assert (s[:, rank] < 4 * EPS * s[:, 0]).all(), name


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-42])
def test_every_scale(scale: float) -> None:
    a = (ZOO["image"](40, 36) * scale).float()[None]
    u, s, _ = gram.svd(a)
    # Denormals are 2^-149 apart.
    bound = max(4 * EPS * s.max().item(), 2.0**-149)
    torch.testing.assert_close(s.double(), torch.linalg.svdvals(a.double()), rtol=0, atol=bound)
    torch.testing.assert_close(u.mT @ u, torch.eye(36)[None], atol=1e-5, rtol=0)


def test_a_non_finite_item_is_nan_alone() -> None:
    a = torch.rand(3, 40, 36, generator=torch.Generator().manual_seed(0))
    expected = gram.svd(a)
    a[1, 2, 3] = torch.inf
    for factor, other in zip(gram.svd(a), expected, strict=True):
        assert factor[1].isnan().all()
        torch.testing.assert_close(factor[[0, 2]], other[[0, 2]])
    assert [tuple(factor.shape) for factor in gram.svd(a[:0])] == [(0, 40, 36), (0, 36), (0, 36, 36)]


def test_what_it_serves() -> None:
    def serves(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cuda") -> bool:
        with use_backend("torch"):
            return routes.route("svd", *shape, dtype, device) == "products"

    assert serves(33, 70)
    assert not serves(32, 70)
    assert not serves(33, 70, dtype=torch.float64)
    assert not serves(33, 70, device="cpu")
    a = ZOO["image"](40, 36).float()[None]
    (row,) = (row for row in routes.ROUTES["svd"] if row.computer == "products")
    assert row.backends == ("triton", "cuda", "torch")
    with routes.only("products"):
        assert torch.equal(svd(a).S, gram.svd(a)[1])
