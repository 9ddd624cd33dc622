"""float32 polar factors where ``cpp`` takes two ways: by the Gram matrix, and by the SVD where that is no good.

It chooses for each matrix by ``s_1 norm(A^-1)``, with the switch at 2^18, at sizes that Newton's iteration does not
take.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import svdrd
from svdrd.backends import availability, outputs
from svdrd.dispatch.registration import ops
from svdrd.ops import polar_factor
from tests.zoo import ZOO, with_spectrum

EPS = torch.finfo(torch.float32).eps
RCOND = 4 * EPS
SIZES = [(6, 6), (9, 14), (13, 13), (24, 24), (32, 32), (42, 24), (24, 42), (170, 6), (6, 170)]
SHAPES = pytest.mark.parametrize(("m", "n"), SIZES)

pytestmark = pytest.mark.skipif(availability.native is None, reason="there is no compiled module")


@pytest.fixture(autouse=True)
def compiled_kernels() -> Iterator[None]:
    with svdrd.use_backend("cpp"):
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def derivative(a: Tensor, g: Tensor) -> Tensor:
    a = a.detach().requires_grad_()
    return torch.autograd.grad(polar_factor(a, rcond=RCOND), a, g)[0]


def spectra(k: int, condition: float) -> list[Tensor]:
    """With one small value, with half of them small, and spread evenly."""
    one, half = torch.linspace(1, 0.5, k, dtype=torch.float64), torch.linspace(1, 0.5, k, dtype=torch.float64)
    one[-1] = 1 / condition
    half[k // 2 :] = torch.linspace(2, 1, k - k // 2, dtype=torch.float64) / condition
    return [one, half, condition ** -torch.linspace(0, 1, k, dtype=torch.float64)]


@SHAPES
@pytest.mark.parametrize("power", [6, 12, 15, 16.3, 16.9, 17.9, 18.1])
def test_errors(m: int, n: int, power: float) -> None:
    """Against float64 of the same numbers, on both sides of the switch of each spectrum."""
    for i, spectrum in enumerate(spectra(min(m, n), 2.0**power)):
        a, g = with_spectrum(m, n, spectrum, seed=i).float(), random(m, n)
        p, expected = polar_factor(a), polar_factor(a.double(), rcond=RCOND)
        assert (p - expected).norm() <= 3e-7 * expected.norm(), i
        d, expected = derivative(a, g), derivative(a.double(), g.double())
        assert (d - expected).norm() <= 1e-5 * expected.norm(), i


@pytest.mark.parametrize(("m", "n"), [*SIZES, (64, 64), (70, 40), (40, 70)])
def test_factors(m: int, n: int) -> None:
    """What is saved for the backward: of either way orthonormal, in descending order, and the matrix.

    The last shapes take the Gram matrix one matrix at a time.
    """
    k = min(m, n)
    a = torch.stack(
        [with_spectrum(m, n, s, seed=1) for power in (10, 17.9, 20) for s in spectra(k, 2.0**power)]
    ).float()
    a = torch.cat([a, 2.0**70 * a[:2], 2.0**-70 * a[3:5]])
    p, u, s, vh = ops.polar_factor(a, RCOND, 0.0, outputs.FACTORS)
    eye = torch.eye(k, dtype=torch.float64)
    assert torch.linalg.matrix_norm(u.double().mT @ u.double() - eye).max() <= 30 * k * EPS
    assert torch.linalg.matrix_norm(vh.double() @ vh.double().mT - eye).max() <= 30 * k * EPS
    assert (s.diff(dim=-1) <= 0).all()
    assert (s > 0).all()
    residual = torch.linalg.matrix_norm((u.double() * s.double()[:, None]) @ vh.double() - a.double())
    assert (residual <= 30 * EPS * torch.linalg.matrix_norm(a.double())).all()
    assert torch.equal(p, polar_factor(a))


@SHAPES
def test_bits_do_not_depend_on_the_batch(m: int, n: int) -> None:
    """Both ways side by side, and lanes of which some need the correction, all of it or a part."""
    k = min(m, n)
    animals = [animal(m, n).float() for animal in ZOO.values()]
    animals += [with_spectrum(m, n, s, seed=3).float() for power in (2, 13, 16, 17.9) for s in spectra(k, 2.0**power)]
    a = torch.stack([*animals, torch.full((m, n), torch.nan), 2.0**60 * animals[0], 2.0**-60 * animals[0]])
    g = random(*a.shape)
    p, d = polar_factor(a).nan_to_num(7.0), derivative(a, g).nan_to_num(7.0)
    assert ((p == 7).flatten(1).all(1) == a.flatten(1).isnan().any(1)).all()
    everything = torch.arange(len(a))
    for order in (everything.flip(0), everything[::3], everything[-1:], everything[5:9], everything[2:3]):
        assert torch.equal(polar_factor(a[order]).nan_to_num(7.0), p[order])
        assert torch.equal(derivative(a[order], g[order]).nan_to_num(7.0), d[order])


@pytest.mark.parametrize("share", [0.03, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("n", [6, 16, 27])
def test_bits_where_many_are_refused(n: int, share: float) -> None:
    """In groups of which a good part is refused the others wait for a group of their own."""
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(300, n, n, generator=generator)
    singular = torch.rand(300, generator=generator) < share
    a[singular, 1] = a[singular, 0]
    a[7] = with_spectrum(n, n, spectra(n, 2.0**18.02)[0], seed=1).float()  # refused at the end of the way, if at all
    singular[7] = False
    factors = ops.polar_factor(a, RCOND, 0.0, outputs.FACTORS)
    ranks = (factors[2] > 0).sum(-1)
    assert torch.equal(ranks, n - singular.long())
    for size in (1, 2, 5, 21, 40, 75):
        for first in (0, 60, 225):
            part = slice(first, first + size)
            for x, y in zip(ops.polar_factor(a[part], RCOND, 0.0, outputs.FACTORS), factors, strict=True):
                assert torch.equal(x, y[part])


def test_a_larger_rcond_goes_by_the_svd() -> None:
    a = with_spectrum(24, 24, torch.logspace(0, -4, 24, dtype=torch.float64)).float()
    for rcond in (1e-2, 1e-3):
        p = polar_factor(a, rcond=rcond)
        u, s, vh = torch.linalg.svd(a.double())
        kept = s > rcond * s[0]
        torch.testing.assert_close(p.double(), (u * kept) @ vh, rtol=0, atol=1e-6)
