"""float32 polar factors where one backend takes two ways: by Newton's iteration, and by the SVD where that is no good.

``cpp`` chooses for each matrix by ``norm(A) norm(A^-1)``, Frobenius, with the switch at 2^18.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import svdrd
from svdrd.backends import availability, cpp, outputs
from svdrd.dispatch.registration import ops
from svdrd.ops import basis_loss, polar_factor
from tests.conftest import lapack_bits_depend_on_the_place
from tests.zoo import ZOO, with_spectrum

EPS = torch.finfo(torch.float32).eps
RCOND = 4 * EPS
SIZES = [(1, 1), (5, 5), (8, 8), (11, 7), (7, 11), (12, 12), (16, 16), (32, 32)]
SHAPES = pytest.mark.parametrize(("m", "n"), SIZES)
cpp_alone = pytest.mark.skipif(availability.native is None, reason="there is no compiled module")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def derivative(a: Tensor, g: Tensor) -> Tensor:
    a = a.detach().requires_grad_()
    return torch.autograd.grad(polar_factor(a, rcond=RCOND), a, g)[0]


def of_condition(m: int, n: int, condition: float, seed: int = 1) -> Tensor:
    """A matrix whose ``norm(A) norm(A^-1)`` is ``condition``, with one small singular value."""
    k = min(m, n)
    s = torch.linspace(1, 0.5, k, dtype=torch.float64)
    if k > 1:  # s_k^-1 is all of norm(A^-1) but for what the others add
        others = s[:-1].square().reciprocal().sum()
        s[-1] = ((condition / s[:-1].norm()) ** 2 - others).rsqrt()
    return with_spectrum(m, n, s, seed)


def errors(a: Tensor, g: Tensor) -> tuple[float, float]:
    """Of the polar factor and of its derivative, relative and Frobenius, against float64 of the same numbers."""
    pairs = (
        (polar_factor(a), polar_factor(a.double(), rcond=RCOND)),
        (
            derivative(a, g),
            derivative(a.double(), g.double()),
        ),
    )
    factor, slope = (((x - y).norm() / y.norm().clamp(min=1e-300)).item() for x, y in pairs)
    return factor, slope


@pytest.mark.parametrize("kind", ["bits", "signs", "a row twice"])
@pytest.mark.parametrize(("m", "n"), [(4, 4), (7, 7), (8, 8), (12, 8), (8, 7), (11, 11), (12, 12)])
@pytest.mark.slow_interpreted
def test_singular_matrices_of_two_numbers(backend: str, m: int, n: int, kind: str) -> None:
    """Elimination meets exact zeros, and their noise, of either sign.

    By L D L^T negative ones passed: of 4000 matrices of 7 or 8 columns one to ten had a polar factor of up to 1e31.
    """
    a = torch.randint(0, 2, (12000, m, n), generator=torch.Generator().manual_seed(3)).float()
    if kind == "signs":
        a = 2 * a - 1
    if kind == "a row twice":
        a[:, 1] = a[:, 0]
    a = a[torch.linalg.matrix_rank(a.double()) < min(m, n)][: 4000 if backend == "cpp" else 100].requires_grad_()
    p = polar_factor(a)
    (by_polar_factor,) = torch.autograd.grad(p, a, torch.ones_like(p))
    loss = basis_loss(a, torch.eye(m, n).expand_as(a), reduction="none")
    (by_loss,) = torch.autograd.grad(loss.sum(), a)
    p = p.detach().double()
    assert torch.linalg.matrix_norm(p @ p.mT @ p - p).max() < 30 * max(m, n) * EPS
    assert loss.max() <= 1
    smallest = torch.linalg.svdvals(a.detach().double())
    steepest = 2 / torch.where(smallest > 1e-6, smallest, torch.inf).amin(-1)
    assert (torch.linalg.matrix_norm(by_polar_factor) <= steepest * (m * n) ** 0.5).all()
    assert (torch.linalg.matrix_norm(by_loss) <= steepest / (m * n) ** 0.5).all()


@SHAPES
@pytest.mark.slow_interpreted
def test_on_both_sides_of_the_switch(backend: str, m: int, n: int) -> None:
    for condition in (2.0**6, 2.0**12, 2.0**17.9, 2.0**18.1):
        for seed in (1, 5):
            factor, slope = errors(of_condition(m, n, condition, seed).float(), random(m, n))
            bound = 30 * max(m, n) * EPS * (condition if min(m, n) > 1 else 1)
            assert factor <= bound, (condition, factor)
            assert slope <= bound, (condition, slope)


@cpp_alone
@pytest.mark.parametrize(("m", "n"), [*SIZES, (4, 4), (256, 4), (4, 256), (341, 3), (128, 8)])
def test_the_bars_of_the_compiled_kernels(m: int, n: int) -> None:
    """Far below what the rounding of the matrix to float32 does, because what decides is computed in double."""
    with svdrd.use_backend("cpp"):
        for condition in (2.0**6, 2.0**12, 2.0**17.9, 2.0**18.1):
            factor, slope = errors(of_condition(m, n, condition).float(), random(m, n))
            assert factor <= 1e-5, (condition, factor)
            assert slope <= 1e-4, (condition, slope)


@cpp_alone
@pytest.mark.parametrize(("m", "n"), [(512, 2), (256, 4)])
def test_many_rows_of_nearly_parallel_columns(m: int, n: int) -> None:
    """The sums over them lose digits of the small singular values, which the condition multiplies by its square."""
    common = torch.full((m, 1), m**-0.5, dtype=torch.float64)
    a = torch.stack([
        common + 2.0**-power * torch.linalg.qr(random(m, n, seed=seed).double())[0]
        for power in range(8, 18)
        for seed in range(4)
    ]).float()  # fmt: skip
    other = random(*a.shape, seed=9)
    with svdrd.use_backend("cpp"):
        p, expected = polar_factor(a), polar_factor(a.double(), rcond=RCOND)
        assert ((p - expected).norm(dim=(1, 2)) <= 1e-5 * expected.norm(dim=(1, 2))).all()
        for one, target in zip(a, other, strict=True):
            got, right = basis_loss(one, target), basis_loss(one.double(), target.double(), rcond=RCOND)
            # Off by 7e-7 at most with the bound that falls, by 1e-5 and 3e-6 with one that does not.
            torch.testing.assert_close(got.double(), right, rtol=2e-6, atol=0)


@cpp_alone
def test_which_way_a_matrix_goes() -> None:
    a = torch.stack([of_condition(8, 8, 2.0**power) for power in (3, 17.9, 18.1, 21)]).float()
    a = torch.cat([a, torch.zeros(1, 8, 8), torch.ones(1, 8, 8), torch.full((1, 8, 8), torch.nan), 2.0**60 * a[:1]])
    with svdrd.use_backend("cpp"):
        saved = ops.polar_factor(a, RCOND, 0.0, outputs.ITERATES)[1]
    assert availability.native is not None
    assert saved.shape == (8, outputs.saved_size(8, 8)) == (8, availability.native.saved_size(8, 8))
    assert saved[:, -3].tolist() == [2, 2, 1, 1, 1, 1, 1, 1]  # iterates, factors: SavedLayout of csrc/cpu/kernels.h


@SHAPES
@pytest.mark.slow_interpreted
def test_the_jacobian_is_symmetric(backend: str, m: int, n: int) -> None:
    """And annihilates A, as far as float32 goes: ``s_1 / s_k`` is 64 or 2^20."""
    a = torch.stack([of_condition(m, n, 64.0), of_condition(m, n, 2.0**20)]).float()
    e, f = random(2, m, n), random(2, m, n, seed=1)
    je, jf = derivative(a, e), derivative(a, f)
    size = je.flatten(1).norm(dim=1) * f.flatten(1).norm(dim=1) + e.flatten(1).norm(dim=1) * jf.flatten(1).norm(dim=1)
    accuracy = torch.tensor([64.0, 2.0**20]) if min(m, n) > 1 else torch.ones(2)
    accuracy = accuracy * 4 * max(m, n) * EPS
    assert (((je * f) - (e * jf)).sum((1, 2)).abs() <= accuracy * size).all()
    assert ((je * a).sum((1, 2)).abs() <= accuracy * je.flatten(1).norm(dim=1) * a.flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize("n", [2, 5, 8, 16, 32])
@pytest.mark.slow_interpreted
def test_exact_at_repeated_values(backend: str, n: int) -> None:
    """Of an orthogonal matrix the derivative is ``(E - Q E^T Q) / 2``; the pairs of (4, 1) have the mean 2.5."""
    g = random(n, n)
    for scale in (1.0, 2.0**-20):
        q = torch.linalg.qr(random(n, n).double())[0]
        expected = (g.double() - q @ g.double().mT @ q) / 2
        got = derivative((q * scale).float(), g) * scale
        assert (got - expected).norm() <= 4 * n * EPS * expected.norm()
        values = torch.ones(n, dtype=torch.float64)
        values[: n // 2] = 4
        w = q.mT @ g.double()
        expected = q @ ((w - w.mT) / (values[:, None] + values))
        got = derivative((q * values * scale).float(), g) * scale
        assert (got - expected).norm() <= 16 * n * EPS * expected.norm()


def mixed(m: int, n: int) -> Tensor:
    """Both ways, in an order that fills no group with one of them; with zeros, low rank, NaN and large numbers."""
    animals = [ZOO[name](m, n).float() for name in ZOO]
    animals.insert(5, torch.full((m, n), torch.nan))
    animals.insert(9, animals[0] * 2.0**70)
    animals += [random(m, n, seed=i) for i in range(12)]
    return torch.stack(animals)


@pytest.mark.parametrize(("m", "n"), [(8, 8), (11, 7), (7, 11), (12, 12), (20, 12)])
@pytest.mark.slow_interpreted
def test_bits_do_not_depend_on_the_batch(backend: str, m: int, n: int) -> None:
    if backend == "torch" and m * n % 8 and lapack_bits_depend_on_the_place():
        pytest.skip("torch.linalg.svd gives a matrix other bits in another place of the batch here")
    a = mixed(m, n)
    g = random(*a.shape)
    p, d = polar_factor(a), derivative(a, g)
    for order in (torch.arange(len(a)).flip(0), torch.arange(0, len(a), 3), torch.tensor([len(a) - 1])):
        assert torch.equal(polar_factor(a[order]).nan_to_num(7.0), p[order].nan_to_num(7.0))
        assert torch.equal(derivative(a[order], g[order]).nan_to_num(7.0), d[order].nan_to_num(7.0))
    for i in range(0, len(a), 7):
        assert torch.equal(polar_factor(a[i]).nan_to_num(7.0), p[i].nan_to_num(7.0))
        assert torch.equal(derivative(a[i], g[i]).nan_to_num(7.0), d[i].nan_to_num(7.0))
    alone = a.flatten(1).isnan().any(1)
    assert torch.equal(p.flatten(1).isnan().all(1), alone)
    assert torch.equal(p.flatten(1).isnan().any(1), alone)
    assert torch.equal(d.flatten(1).isnan().any(1), alone)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.slow_interpreted
def test_a_direction_that_is_not_finite_stays_alone(backend: str, bad: float) -> None:
    a = torch.stack([ZOO["random"](8, 8), ZOO["image"](8, 8), torch.ones(8, 8).double(), ZOO["random"](8, 8)]).float()
    g = random(4, 8, 8)
    expected = derivative(a, g)
    for item in range(4):
        spoilt = g.clone()
        spoilt[item, 2, 5] = bad
        d = derivative(a, spoilt)
        others = [i for i in range(4) if i != item]
        assert d[item].isnan().all()
        assert torch.equal(d[others], expected[others])


@pytest.mark.slow_interpreted
def test_directions_of_every_scale(backend: str) -> None:
    a, g = ZOO["random"](8, 8).float(), random(8, 8)
    expected = derivative(a, g)
    for scale in (2.0**100, 2.0**-90):
        torch.testing.assert_close(derivative(a, g * scale) / scale, expected)
    assert torch.isfinite(derivative(a * 2.0**-40, g * 2.0**120)).all()


@cpp_alone
def test_what_is_saved_is_no_matter() -> None:
    """Of the factor not a bit; and a backward pass may find what another backend left, or nothing."""
    a = mixed(8, 8)
    a = a[~a.flatten(1).isnan().any(1)]
    g = random(*a.shape)
    with svdrd.use_backend("cpp"):
        kept = [ops.polar_factor(a, RCOND, 0.0, save) for save in range(3)]
        for p, *_ in kept[1:]:
            assert torch.equal(p, kept[0][0])
        backward = [ops.polar_factor_backward(g, a, *of, RCOND, 0.0) for of in kept]
        assert torch.equal(backward[0], backward[2])  # starts again from a, in the same way
    with svdrd.use_backend("torch"):
        left = ops.polar_factor(a, RCOND, 0.0, outputs.ITERATES)
        elsewhere = ops.polar_factor_backward(g, a, *kept[2], RCOND, 0.0)
    with svdrd.use_backend("cpp"):
        again = ops.polar_factor_backward(g, a, kept[2][0], *left[1:], RCOND, 0.0)
    assert torch.equal(again, backward[2])
    well = torch.linalg.cond(a.double()) < 1e4
    for other in (backward[1], elsewhere):
        torch.testing.assert_close(other[well], again[well], rtol=1e-3, atol=1e-4)


@cpp_alone
@pytest.mark.parametrize(
    ("dtype", "n", "smooth"), [(torch.float32, 40, 0.0), (torch.float64, 4, 0.0), (torch.float32, 4, 0.5)]
)
def test_where_there_are_no_iterates(dtype: torch.dtype, n: int, smooth: float) -> None:
    """Matrices that the iteration does not take leave nothing when they are asked for it."""
    a, g = random(3, n, n).to(dtype), random(3, n, n, seed=1).to(dtype)
    with svdrd.use_backend("cpp"):
        p, *nothing = ops.polar_factor(a, RCOND, smooth, outputs.ITERATES)
        expected, *factors = ops.polar_factor(a, RCOND, smooth, outputs.FACTORS)
        assert torch.equal(p, expected)
        derivatives = [ops.polar_factor_backward(g, a, p, *saved, RCOND, smooth) for saved in (nothing, factors)]
    assert torch.equal(*derivatives)


@cpp_alone
def test_a_program_for_a_range_of_sizes() -> None:
    """Exported from a small matrix, for which iterates would be kept, and run on one for which they would not."""

    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, a: Tensor) -> Tensor:
            return polar_factor(self.scale * a)

    side = torch.export.Dim("side", min=2, max=1000)
    for strict in (False, True):
        program = torch.export.export(
            Scaled(), (random(3, 8, 8),), dynamic_shapes=({1: side, 2: side},), strict=strict
        ).module()
        for n in (8, 40):
            a = random(3, n, n, seed=n)
            torch.testing.assert_close(program(a), polar_factor(a))
            (program(a) * random(3, n, n)).sum().backward()


@cpp_alone
def test_python_and_the_kernels_agree_on_the_sizes() -> None:
    """What Python asks to be kept as iterates, the kernels keep: otherwise every backward would start again."""
    with svdrd.use_backend("cpp"):
        for m, n in [*((n, n) for n in range(1, 36)), (256, 4), (257, 4), (4, 256), (65, 16)]:
            saved = ops.polar_factor(random(1, m, n), RCOND, 0.0, outputs.ITERATES)[1]
            assert bool(saved[0, -3] != 0) == cpp.saves_iterates(torch.float32, m, n, 0.0), (m, n)


@cpp_alone
def test_an_unknown_wish_is_refused() -> None:
    with pytest.raises(ValueError, match="save_factors is 3; it has to be 0"):
        ops.polar_factor(random(1, 8, 8), RCOND, 0.0, 3)


@pytest.mark.automatic
def test_opcheck(backend: str) -> None:
    a = random(3, 5, 4).requires_grad_()
    torch.library.opcheck(ops.polar_factor, (a, RCOND, 0.0, outputs.ITERATES))
    p, *saved = ops.polar_factor(a.detach(), RCOND, 0.0, outputs.ITERATES)
    torch.library.opcheck(
        ops.polar_factor_backward, (random(3, 5, 4, seed=1).requires_grad_(), a, p, *saved, RCOND, 0.0)
    )
