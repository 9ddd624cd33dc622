"""The polar factor and the loss by matrix products alone: the polynomials, the certificate, and the specification."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from svdrd.backends import selection
from svdrd.backends.products import iteration
from svdrd.backends.products.arithmetic import TORCH, reduced_precision
from svdrd.dispatch import registration, routes
from svdrd.dispatch.registration import ops
from svdrd.ops import basis_loss, polar_factor
from svdrd.reference import definitions, derivatives
from tests import closed_form
from tests.ops.test_photographs import by_autograd, crops, quantiles, relative_error
from tests.zoo import SIZES, ZOO, with_spectrum

# The products here are too small for two threads, which wait for each other most of the time.
pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
SHAPES = pytest.mark.parametrize(("m", "n"), [*SIZES, (64, 64), (63, 64), (100, 24), (24, 100)])
SCALES = {torch.float32: (1.0, 1e30, 1e-30), torch.float64: (1.0, 1e300, 1e-300)}


@pytest.fixture
def _denormals_are_zero() -> Iterator[None]:
    """What is truncated ends as denormals, with which a CPU (not a GPU) multiplies a hundred times more slowly."""
    supported = torch.set_flush_denormal(True)
    yield
    if supported:
        torch.set_flush_denormal(False)


FAST = pytest.mark.usefixtures("_denormals_are_zero")


def default_rcond(dtype: torch.dtype) -> float:
    return 4 * torch.finfo(dtype).eps


def animals(m: int, n: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.stack([ZOO[name](m, n) for name in ZOO]) * scale).to(dtype)


def relative_spectra(a: Tensor) -> Tensor:
    """Singular values over the largest, of matrices that may be near overflow."""
    a = a.double()
    s = torch.linalg.svdvals(a / a.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny))
    return s / s[:, :1].clamp(min=torch.finfo(torch.float64).tiny)


def undecided(s: Tensor, rcond: float) -> Tensor:
    """Within rounding of the threshold (and of what scaling to a float32 does to a small value) either decision is
    right.
    """
    return ((s > rcond / 4) & (s < rcond * 4)).any(-1)


def product_vjp(g: Tensor, a: Tensor, rcond: float, smooth: float = 0.0) -> Tensor:
    return iteration.polar_factor_vjp(g, a, iteration.polar_factor(a, rcond, smooth), rcond, smooth)


# The polynomials


@pytest.mark.parametrize("rcond", [0.25, 0.1, 3e-2, 1e-3, 1e-5, 4 * 2**-23, 2**-23, 4 * 2**-52, 2**-52])
def test_the_step_lies_at_rcond_and_the_band_around_it_is_as_documented(rcond: float) -> None:
    steps = iteration.schedule(rcond)
    threshold = rcond / (1 + iteration.MARGIN)

    def image(x: Tensor) -> Tensor:
        for a, b, c in steps:
            x = x * (a + x**2 * (b + x**2 * c))
        return x

    assert iteration.watershed(steps[: -iteration.TRUNCATIONS]) == pytest.approx(threshold, rel=1e-6)
    # Also a little above the norm that is promised, by which rounding may raise it.
    kept = torch.logspace(0, 1, 200_001, dtype=torch.float64).log10()
    kept = (1.13 * threshold) * ((1 + 1e-3) / (1.13 * rcond)) ** kept
    assert (image(kept) - 1).abs().max() < 1e-6
    assert image(torch.linspace(0, 0.85, 10_001, dtype=torch.float64) * threshold).abs().max() < 1e-6
    between = image(torch.linspace(0.85, 1.13, 10_001, dtype=torch.float64) * threshold)
    assert (between.diff() >= -1e-9).all()


def test_minimax_quintic_equioscillates() -> None:
    for lower in (0.04, 0.2, 0.5, 0.8):
        quintic, error = iteration.minimax_quintic(lower)
        x = torch.linspace(lower, 1, 200_001, dtype=torch.float64)
        distance = x * (quintic.a + x**2 * (quintic.b + x**2 * quintic.c)) - 1
        assert distance.abs().max().item() == pytest.approx(error, abs=1e-9)
        inner = distance[1:-1]
        turns = (inner[1:-1] - inner[:-2]) * (inner[2:] - inner[1:-1]) < 0
        extrema = torch.cat([distance[:1], inner[1:-1][turns], distance[-1:]])
        expected = error * torch.tensor([-1, 1, -1, 1], dtype=torch.float64)
        torch.testing.assert_close(extrema, expected, atol=1e-8, rtol=0)


@FAST
@DTYPES
@SHAPES
def test_norm_bound(m: int, n: int, dtype: torch.dtype) -> None:
    a = animals(max(m, n), min(m, n), dtype)
    s = torch.linalg.svdvals(a.double())[:, 0]
    bound = iteration._norm_bound(TORCH, a, dtype).double()
    looseness = min(m, n) ** (1 / 2 ** (iteration.SQUARINGS + 2)) * (1 + 1e-4)
    some = s > torch.finfo(dtype).tiny ** 0.5  # matrices come scaled to entries near 1
    assert (bound >= s * (1 - 1e-4))[some].all()  # rounding; MARGIN is 20 times that
    assert (bound <= s * looseness)[some].all()


def test_a_value_in_the_band_is_seen_by_the_certificate() -> None:
    rcond = 1e-3
    for ratio, weight in ((0.8, 0.0), (1.2, 1.0), (1.0, None)):
        s = torch.tensor([1, 0.1, rcond * ratio], dtype=torch.float64)
        a = with_spectrum(5, 3, s)[None]
        p = iteration.polar_factor(a, rcond, 0.0)
        rank = torch.linalg.matrix_norm(p).square().item()
        isometry, symmetry = iteration.certificate(a, p)[0].tolist()
        assert symmetry < 1e-12
        if weight is None:
            assert 2 <= rank <= 3
            w = (rank - 2) ** 0.5
            assert isometry == pytest.approx(w - w**3, abs=1e-9)
        else:
            assert rank == pytest.approx(2 + weight, abs=1e-6)
            assert isometry < 1e-6


def test_rcond_out_of_range() -> None:
    for rcond in (-1e-3, 0.3, float("nan")):
        with pytest.raises(ValueError, match=r"rcond is .*0 <= rcond <= 0\.25.*svdrd\.reference"):
            iteration.polar_factor(torch.eye(3)[None], rcond, 0.0)


# The polar factor


@DTYPES
@SHAPES
def test_certificate_and_definition_on_the_zoo(m: int, n: int, dtype: torch.dtype) -> None:
    """Bars of tests/ops/test_polar_factor.py. A polar factor errs by ``eps s_1 / s_k`` (Higham 2008, theorem 8.10)."""
    eps, rcond = torch.finfo(dtype).eps, default_rcond(dtype)
    for scale in SCALES[dtype]:
        a = animals(m, n, dtype, scale)
        p = iteration.polar_factor(a, rcond, 0.0)
        s = relative_spectra(a)
        clear = ~undecided(s, rcond)
        assert (iteration.certificate(a, p)[clear] < 30 * max(m, n) * eps).all()
        expected = definitions.polar_factor(a.double(), rcond, 0.0)[0]
        smallest = torch.where(s > rcond, s, 1.0).amin(-1)
        error = torch.linalg.matrix_norm(p.double() - expected)
        assert (error <= 30 * max(m, n) * eps / smallest)[clear].all()
        assert (p[list(ZOO).index("zero")] == 0).all()


@FAST
@DTYPES
def test_smoothed(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for m, n in [*SIZES, (64, 64)]:
        a = animals(m, n, dtype)
        g = torch.randn(a.shape, generator=generator).to(dtype)
        for e in (1e-3, 1e-1, 3.0, 1e4):
            expected, u, s, vh = definitions.polar_factor(a.double(), 0.0, e)
            derivative = derivatives.polar_factor_vjp(g.double(), u, s, vh, e)
            p = iteration.polar_factor(a, 0.0, e)
            bound = 30 * max(m, n) * torch.finfo(dtype).eps * (1 + s[:, 0] / e)
            assert (torch.linalg.matrix_norm(p.double() - expected) <= bound).all(), (m, n, e)
            error = torch.linalg.matrix_norm(iteration.polar_factor_vjp(g, a, p, 0.0, e).double() - derivative)
            # The Jacobian is bounded by 1/e; the error of H, which it is solved with, enters twice.
            assert (error <= 3 * bound * torch.linalg.matrix_norm(g.double()) / e).all(), (m, n, e)


@DTYPES
def test_smoothed_far_below_the_largest_value(dtype: torch.dtype) -> None:
    """Small values count up to ``s_1 / e = 1 / (4 eps)``, on diagonal matrices exactly; beyond, they are dropped."""
    n, eps, e = 12, torch.finfo(dtype).eps, 1.0
    last = -int(math.log2(4 * eps))
    for power in (0, 10, last - 1, last + 2, 2 * last):
        s = torch.ones(n, dtype=torch.float64)
        s[0] = 2.0**power
        g = torch.randn(n, n, generator=torch.Generator().manual_seed(0)).to(dtype)
        a = torch.stack([torch.diag(s), with_spectrum(n, n, s)]).to(dtype)
        p = iteration.polar_factor(a, 0.0, e)
        derivative = iteration.polar_factor_vjp(g.expand_as(a), a, p, 0.0, e)
        steepest = torch.linalg.matrix_norm(g.double()) / e
        if power > last:
            assert (torch.linalg.matrix_norm(p.double(), 2) <= 1 + 30 * n * eps).all()
            assert (torch.linalg.matrix_norm(derivative.double()) <= steepest).all()
            torch.testing.assert_close(p[0].double(), torch.diag((s > 1).double()), atol=30 * n * eps, rtol=0)
            continue
        expected = closed_form.value(s, n, n, e), *closed_form.value_and_derivative(a[1], g, e)
        torch.testing.assert_close(p[0].double(), expected[0], atol=30 * n * eps, rtol=0)
        error = torch.linalg.matrix_norm(derivative[0].double() - closed_form.derivative(s, g, e))
        assert error <= 30 * n * eps * steepest, power
        bound = 30 * n * eps * (1 + 2.0**power / e)
        assert torch.linalg.matrix_norm(p[1].double() - expected[1]) <= bound, power
        assert torch.linalg.matrix_norm(derivative[1].double() - expected[2]) <= bound * steepest, power


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_non_finite_item_is_nan_alone(value: float) -> None:
    a = torch.randn(4, 9, 7, generator=torch.Generator().manual_seed(0))
    g = torch.randn(4, 9, 7, generator=torch.Generator().manual_seed(1))
    healthy = iteration.polar_factor(a, 1e-6, 0.0)
    derivative = iteration.polar_factor_vjp(g, a, healthy, 1e-6, 0.0)
    a[2, 3, 1] = value
    p = iteration.polar_factor(a, 1e-6, 0.0)
    others = torch.tensor([True, True, False, True])
    assert p[2].isnan().all()
    assert iteration.certificate(a, p)[2].isnan().all()
    assert torch.equal(p[others], healthy[others])
    result = iteration.polar_factor_vjp(g, a, p, 1e-6, 0.0)
    assert result[2].isnan().all()
    assert torch.equal(result[others], derivative[others])
    g[0, 0, 0] = value
    assert iteration.polar_factor_vjp(g, a, p, 1e-6, 0.0)[0].isnan().all()


def test_empty() -> None:
    for shape in ((0, 5, 4), (3, 0, 4), (3, 5, 0)):
        a = torch.zeros(shape)
        assert product_vjp(a, a, 1e-6).shape == iteration.polar_factor(a, 1e-6, 0.0).shape == shape


def test_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    a = animals(9, 7, torch.float64)
    g = torch.randn(a.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = iteration.polar_factor(a, 1e-6, 0.0), product_vjp(g, a, 1e-6)
    monkeypatch.setattr(iteration, "_CHUNK", 4 * 9 * 7)
    parts = iteration.polar_factor(a, 1e-6, 0.0), product_vjp(g, a, 1e-6)
    # To rounding, not to the bit: PyTorch may choose other kernels for other batch sizes.
    torch.testing.assert_close(parts[0], whole[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(parts[1], whole[1], atol=1e-12, rtol=1e-6)


# The derivative


@FAST
@DTYPES
@SHAPES
def test_derivative_against_the_specification(m: int, n: int, dtype: torch.dtype) -> None:
    """The bound of tests/ops/test_polar_factor.py, for deficient matrices as well."""
    eps, rcond = torch.finfo(dtype).eps, default_rcond(dtype)
    a = animals(m, n, dtype)
    g = torch.randn(a.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = derivatives.polar_factor_vjp(g.double(), *definitions.polar_factor(a.double(), rcond, 0.0)[1:])
    result = product_vjp(g, a, rcond)
    spectra = torch.linalg.svdvals(a.double())
    for name, x, y, s, direction in zip(ZOO, result, expected, spectra, g, strict=True):
        if undecided((s / s[0].clamp(min=1e-300))[None], rcond).item():
            continue
        kept = s[s > rcond * s[0]]
        if not len(kept):
            assert (x == 0).all()
            continue
        steepest = 2 / kept[-2:].sum().item() if len(kept) == len(s) == max(m, n) > 1 else 1 / kept[-1].item()
        # float64 has nothing wider for the products that decide, as float32 has.
        times = 10 if dtype == torch.float32 else 30
        bound = (
            times * max(m, n) * eps * (s[0] / kept[-1]).item() * steepest * torch.linalg.matrix_norm(direction).item()
        )
        error = torch.linalg.matrix_norm(x.double() - y).item()
        assert error <= bound, (name, error, bound)


@DTYPES
def test_finite_at_every_scale(dtype: torch.dtype) -> None:
    tiny, largest = torch.finfo(dtype).tiny, torch.finfo(dtype).max / 4096
    for m, n in ((1, 1), (8, 5), (5, 8), (33, 33)):
        for scale in (*SCALES[dtype], tiny, tiny * 2.0**-8, largest):
            a = animals(m, n, dtype, scale)
            for smooth in (0.0, scale):
                assert torch.isfinite(iteration.polar_factor(a, default_rcond(dtype), smooth)).all()
                for size in (1.0, 1e30, 1e-30):
                    g = torch.full_like(a, size)
                    assert torch.isfinite(product_vjp(g, a, default_rcond(dtype), smooth)).all(), (m, n, scale, size)


@FAST
@pytest.mark.parametrize("smooth", [0.0, 0.3])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (7, 7), (8, 5), (5, 8), (32, 32), (64, 64), (24, 100)])
def test_adjoint_identity(m: int, n: int, smooth: float) -> None:
    a = animals(m, n, torch.float64)
    rcond = 1e-9  # nothing of the zoo in float64 is near it
    clear = ~undecided(relative_spectra(a), rcond)
    a = a[clear]
    e, f = (torch.randn(a.shape, dtype=a.dtype, generator=torch.Generator().manual_seed(i)) for i in range(2))
    je, jf = product_vjp(e, a, rcond, smooth), product_vjp(f, a, rcond, smooth)
    # 1e-20: the derivative of a square matrix of one column is 0, and the rounding of it is not symmetric.
    size = (torch.linalg.matrix_norm(je) * torch.linalg.matrix_norm(f)).clamp(min=1e-20)
    assert (((je * f).sum((-2, -1)) - (e * jf).sum((-2, -1))).abs() <= 1e-9 * size).all()
    assert ((je * e).sum((-2, -1)) >= -1e-9 * size).all()
    if smooth == 0:
        sizes = (torch.linalg.matrix_norm(je) * torch.linalg.matrix_norm(a)).clamp(min=1e-20)
        assert ((je * a).sum((-2, -1)).abs() <= 1e-9 * sizes).all()


def test_the_derivative_annihilates_the_matrix_in_float32() -> None:
    a = animals(33, 33, torch.float32)
    g = torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    derivative = product_vjp(g, a, default_rcond(a.dtype))
    sizes = torch.linalg.matrix_norm(derivative.double()) * torch.linalg.matrix_norm(a.double())
    against = (derivative.double() * a.double()).sum((-2, -1)).abs()
    # Where the derivative itself is small (full rank, g nearly symmetric in P's sense) the rounding of g shows.
    floor = torch.linalg.matrix_norm(g.double())
    assert (against <= 10 * torch.finfo(a.dtype).eps * (sizes + floor)).all()


class ByProducts(torch.autograd.Function):
    """``svdrd.backends.products.iteration`` for gradcheck."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, rcond: float, smooth: float) -> Tensor:
        p = iteration.polar_factor(a, rcond, smooth)
        ctx.save_for_backward(a, p)
        ctx.options = rcond, smooth
        return p

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return iteration.polar_factor_vjp(g, *ctx.saved_tensors, *ctx.options), None, None


@pytest.mark.parametrize("smooth", [0.0, 0.3])
@pytest.mark.parametrize("name", ["random", "identity", "orthogonal", "equal pairs", "two ulp gap", "clustered"])
def test_gradcheck(name: str, smooth: float) -> None:
    for m, n in ((1, 1), (3, 3), (4, 3), (3, 5)):
        a = (ZOO[name](m, n) * 2 + 0.5 * torch.eye(m, n, dtype=torch.float64))[None].requires_grad_()
        assert torch.autograd.gradcheck(lambda a: ByProducts.apply(a, 1e-15, smooth), a)


@pytest.mark.parametrize(("m", "n", "rank"), [(4, 4, 2), (5, 3, 1), (3, 5, 2), (6, 6, 5)])
def test_gradcheck_of_a_product_of_low_rank(m: int, n: int, rank: int) -> None:
    b = with_spectrum(m, rank, torch.linspace(2, 1, rank, dtype=torch.float64))[None].requires_grad_()
    c = with_spectrum(rank, n, torch.linspace(1, 3, rank, dtype=torch.float64).flip(0), seed=5)[None].requires_grad_()
    assert torch.autograd.gradcheck(lambda b, c: ByProducts.apply(b @ c, 1e-12, 0.0), (b, c))


# The loss


@DTYPES
@pytest.mark.parametrize("smooth", [0.0, 0.2])
def test_basis_loss(dtype: torch.dtype, smooth: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x_hat, x = (torch.rand(2, 12, 18, generator=generator).to(dtype) for _ in range(2))
    rcond = default_rcond(dtype)
    arguments = (6, 9, rcond, smooth, True, True)
    expected = definitions.basis_loss(x_hat.double(), x.double(), *arguments)
    # The signs of P1 - P2 are those of float64 here: no difference is near rounding.
    for result, value in zip(iteration.basis_loss(x_hat, x, *arguments), expected, strict=True):
        # Condition numbers here are below 100, and the derivative's error has their square.
        assert (result.double() - value).abs().max() <= 1e4 * torch.finfo(dtype).eps * value.abs().max()
    loss, by_x_hat, by_x = iteration.basis_loss(x_hat, x, *arguments[:4], False, True)
    assert by_x_hat.numel() == 0
    assert by_x.shape == x.shape
    loss, *derivatives = iteration.basis_loss(x, x, *arguments)
    assert (loss == 0).all()
    assert all((derivative == 0).all() for derivative in derivatives)
    x[0, 0, 0] = torch.nan
    loss, by_x_hat, _ = iteration.basis_loss(x_hat, x, *arguments)
    assert loss.isnan().sum() == 1
    assert by_x_hat[0, :6, :9].isnan().all()
    assert by_x_hat.isnan().sum() == 54


# What it is used for: CUDA tensors, without a synchronisation, whatever the process permits its other products


def test_nothing_depends_on_data() -> None:
    """A meta tensor has no data: a branch on it, or a copy to the host, raises."""
    a = torch.empty(2, 40, 36, device="meta")
    for smooth in (0.0, 0.1):
        assert product_vjp(a, a.mT.contiguous().mT, 1e-6, smooth).shape == a.shape
        assert iteration.basis_loss(a, a, 20, 18, 1e-6, smooth, True, False)[0].shape == (2, 2, 2)
    assert iteration.certificate(a, a).shape == (2, 2)


class Products(TorchDispatchMode):
    """Records the dtypes of the operands of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default):
            self.dtypes += [x.dtype for x in args]
        return function(*args, **(kwargs or {}))


def test_products_are_never_rounded_to_tf32() -> None:
    a = animals(12, 9, torch.float32)
    arguments = (a, a.flip(0), 12, 9, default_rcond(a.dtype), 0.0, True, False)
    with Products() as products:
        expected = iteration.basis_loss(*arguments)
    assert torch.float32 in products.dtypes
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with Products() as products:
            result = iteration.basis_loss(*arguments)
        assert torch.get_float32_matmul_precision() == "medium"
        assert reduced_precision(torch.device("cpu"))
        assert reduced_precision(torch.device("cuda"))
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(products.dtypes) == {torch.float64}
    torch.testing.assert_close(result[0], expected[0], atol=1e-5, rtol=0)


def test_what_they_serve() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")

    def serves(m: int, n: int, rcond: float, dtype: torch.dtype, device: torch.device) -> bool:
        with selection.use_backend("torch"):
            return routes.route("basis_loss", m, n, dtype, device, rcond) == "products"

    assert serves(33, 256, 1e-6, torch.float32, cuda)
    assert not serves(32, 256, 1e-6, torch.float32, cuda)
    assert not serves(64, 64, 0.5, torch.float32, cuda)
    assert not serves(64, 64, 1e-6, torch.float64, cuda)
    assert not serves(64, 64, 1e-6, torch.float32, cpu)
    # Factors that nobody would compute are not asked for.
    with selection.use_backend("torch"):
        assert not routes.saves_factors(cuda, torch.float32, 33, 99)
        assert routes.saves_factors(cuda, torch.float32, 32, 99)
        assert routes.saves_factors(cpu, torch.float32, 33, 99)


@pytest.fixture
def on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators as they are on a CUDA device, on the CPU."""
    monkeypatch.setattr(routes, "saves_factors", lambda *_: False)

    def refuse(*_: object) -> None:
        raise AssertionError("the reference was called")

    for name in ("polar_factor", "polar_factor_backward", "basis_loss"):
        monkeypatch.setitem(registration.OPERATORS, name, replace(registration.OPERATORS[name], default=refuse))
        monkeypatch.setitem(routes.ROUTES, name, (routes.Route("products", ("torch",)),))


def test_operators(on_every_device: None) -> None:
    with selection.use_backend("torch"):
        a = ZOO["random"](2 * 6, 5).reshape(2, 6, 5).requires_grad_()
        assert torch.autograd.gradcheck(polar_factor, a)
        assert torch.autograd.gradgradcheck(polar_factor, a)
        assert torch.autograd.gradgradcheck(lambda a: polar_factor(a, smooth=0.2), a)
        x = ZOO["random"](2 * 6, 10).reshape(2, 6, 10)[..., :5]
        assert torch.autograd.gradcheck(lambda a: basis_loss(a, x), a)
        torch.library.opcheck(ops.polar_factor, (a.float(), 1e-6, 0.0, False))
        torch.library.opcheck(ops.basis_loss, (a.float(), x.float(), 3, 5, 1e-6, 0.0, True, False))


def test_compile_without_a_graph_break(on_every_device: None) -> None:
    torch._dynamo.reset()
    with selection.use_backend("torch"):
        compiled = torch.compile(basis_loss, fullgraph=True, backend="aot_eager")
        a = torch.rand(3, 8, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
        results = [function(a, a.detach().flip(0)) for function in (compiled, basis_loss)]
        assert torch.equal(*results)
        assert torch.equal(*(torch.autograd.grad(result, a)[0] for result in results))


@pytest.mark.parametrize("dither", [0.0, 0.5 / 255], ids=["original", "dithered"])
def test_photographs_beside_lapack(kodak: list[Path], dither: float) -> None:
    """float32 errors at or below those of LAPACK and torch's autograd, median and 90 %."""
    generator = torch.Generator().manual_seed(0)
    a = crops(kodak, 12)
    a = a + dither * (torch.rand(a.shape, generator=generator) - 0.5)
    g = torch.randn(a.shape, generator=generator)
    rcond = default_rcond(a.dtype)
    p, *factors = definitions.polar_factor(a.double(), rcond, 0.0)
    derivative = derivatives.polar_factor_vjp(g.double(), *factors)

    def lapack(a: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(a, full_matrices=False)
        return u @ vh

    theirs = by_autograd(lapack, a, g)
    result = iteration.polar_factor(a, rcond, 0.0)
    ours = result, iteration.polar_factor_vjp(g, a, result, rcond, 0.0)
    forward, gradient = (quantiles(relative_error(x, y)) for x, y in zip(ours, (p, derivative), strict=True))
    lapack_forward, lapack_gradient = (
        quantiles(relative_error(x, y).nan_to_num(torch.inf)) for x, y in zip(theirs, (p, derivative), strict=True)
    )
    print(f"forward {forward}, gradient {gradient}; LAPACK float32 {lapack_forward}, {lapack_gradient}")
    assert all(x <= y for x, y in zip(forward + gradient, lapack_forward + lapack_gradient, strict=True))
    clear = ~undecided(factors[1] / factors[1][:, :1], rcond)
    assert iteration.certificate(a, result)[clear].max() < 256 * torch.finfo(a.dtype).eps
