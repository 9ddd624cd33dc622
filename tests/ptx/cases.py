"""Calls of the launchers, over matrices that break decompositions, and what their results have to be.

The bounds are those of the tests in Triton's interpreter: tests/backends, test_jacobi.py and test_triton_products.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from svdrd.reference import definitions, derivatives
from tests.ops.test_svd import ratios
from tests.ptx.machine import ORDERS, Options, Record
from tests.ptx.poison import unwritten
from tests.zoo import ZOO

# The zoo's hardest, and two that are not; with a NaN in one of them.
ANIMALS = (
    "image", "zero", "random", "rank 1", "duplicated columns", "rank k/2", "half flat", "geometric", "tiny element",
    "equal pairs", "rank k-1", "constant image", "clustered",
)  # fmt: skip
NAN_ITEM = 2
OPERATIONS = ("svd", "polar_factor", "polar_factor_backward", "basis_loss", "recompose")
SMOOTH = 0.1


@dataclass(frozen=True)
class Case:
    """One operator on matrices of one size.

    Args:
        operation: which of :data:`OPERATIONS`.
        m, n: the matrices' size.
        dtype: as torch names it.
        count: how many matrices.
        smooth: 0 for the plain polar factor.
        sides: by which of its arguments the loss is to be derived.
    """

    operation: str
    m: int
    n: int
    dtype: str = "float32"
    count: int = len(ANIMALS)
    smooth: float = 0.0
    sides: tuple[bool, bool] = (True, False)

    def __str__(self) -> str:
        words = [self.operation, *(["smoothed"] if self.smooth else []), f"{self.m}x{self.n}", self.dtype]
        if self.operation == "basis_loss" and self.sides != (True, False):
            words.append({(False, False): "value", (False, True): "by x", (True, True): "by both"}[self.sides])
        return "-".join(words)

    @property
    def rcond(self) -> float:
        """The default of the operators."""
        return 4 * torch.finfo(getattr(torch, self.dtype)).eps

    def matrices(self) -> Tensor:
        """From the zoo, one with a NaN; unless smoothed some very large and some very small."""
        scales = [1.0] if self.smooth else [1.0, 2.0**20, 2.0**-30]
        pairs = zip(itertools.islice(itertools.cycle(ANIMALS), self.count), itertools.cycle(scales), strict=False)
        a = torch.stack([ZOO[name](self.m, self.n) * scale for name, scale in pairs])
        if self.count > NAN_ITEM:
            a[NAN_ITEM, self.m // 2, self.n // 3] = torch.nan
        return a.to(getattr(torch, self.dtype))

    def images(self) -> tuple[Tensor, Tensor]:
        """Two images ``(1, m, count n)``: the matrices side by side, and others near them."""
        x = self.matrices()
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        x_hat = x + 0.05 * noise * x.abs().amax((-1, -2), keepdim=True)
        x_hat[self.count // 2] = x[self.count // 2]
        return tuple(  # type: ignore[return-value]  # two of them
            side.to(x).transpose(0, 1).reshape(1, self.m, self.count * self.n) for side in (x_hat, x)
        )

    def blocks(self, image: Tensor) -> Tensor:
        """The matrices of an image."""
        return definitions.to_blocks(image, self.m, self.n)

    def gradient(self, a: Tensor) -> Tensor:
        """What a derivative is multiplied with."""
        return torch.randn(a.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(a)


def run(module: Any, case: Case) -> tuple[Tensor, ...]:
    """Calls the launcher of ``module``."""
    a, rcond, smooth = case.matrices(), case.rcond, case.smooth
    if case.operation == "svd":
        out = module.svd(a)
    elif case.operation == "polar_factor":
        out = module.polar_factor(a, rcond, smooth, module.__name__.endswith("jacobi"))
    elif case.operation == "polar_factor_backward":
        factor = module.polar_factor(a, rcond, smooth, module.__name__.endswith(("jacobi", "cuda")))
        out = module.polar_factor_backward(case.gradient(a), a, *factor, rcond, smooth)
    elif case.operation == "basis_loss":
        out = module.basis_loss(*case.images(), case.m, case.n, rcond, smooth, *case.sides)
    else:
        out = module.recompose(*case.images(), case.m, case.n)
    return out if isinstance(out, tuple) else (out,)


def options(number: int, perturb: float = 1.0, limit: float = 1800.0) -> Options:
    """Those of the case with this number: the orders of the warps take turns."""
    return Options(order=ORDERS[number % len(ORDERS)], seed=number, perturb=perturb, limit=limit)


def parametrize(cases: list[Case], targets: tuple[int, ...], short: set[tuple[str, int]]) -> pytest.MarkDecorator:
    """A test of each case and target, marked ``nightly`` unless it is ``short``."""
    names = [str(case) for case in cases]
    if unknown := short - set(itertools.product(names, targets)):
        raise ValueError(f"no such cases: {sorted(unknown)}")
    parameters = []
    for (number, name), target in itertools.product(enumerate(names), targets):
        marks = [] if (name, target) in short else [pytest.mark.nightly]
        parameters.append(pytest.param(number, target, id=f"{name}-sm_{target}", marks=marks))
    return pytest.mark.parametrize(("number", "target"), parameters)


def check(case: Case, out: tuple[Tensor, ...] | None, records: list[Record]) -> None:
    """The kernels did nothing wrong, wrote all, and what they wrote is right."""
    assert out is not None, "the launcher does not take the case"
    found = {f"{record.name}: {text}" for record in records for text in record.examples.values()}
    found |= {f"{record.name}: {key}" for record in records for key in record.errors if isinstance(key, str)}
    assert not found, "\n".join(sorted(found)[:10])
    assert records, "no kernel was launched"
    assert [unwritten(tensor) for tensor in out] == [0] * len(out)
    JUDGES[case.operation](case, out)


def _finite(*batches: Tensor) -> Tensor:
    return torch.stack([torch.isfinite(a).all(-1).all(-1) for a in batches]).all(0)


def _check_nan(finite: Tensor, *results: Tensor) -> None:
    """A matrix with a NaN gives NaN, and no other does."""
    for result in results:
        assert result[~finite].isnan().all()
        assert torch.isfinite(result[finite]).all()


def _spectra(case: Case, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest kept singular value over the largest; the largest; whether it is clear which are kept."""
    values = torch.linalg.svdvals(torch.nan_to_num(a.double()))
    largest = values[:, :1].clamp(min=1e-300)
    if case.smooth:
        first = largest.clamp(min=case.smooth)
        smallest = torch.hypot(values, torch.full_like(values, case.smooth)).amin(-1) / first[:, 0]
        return smallest.clamp(max=1.0), first[:, 0], torch.ones(len(a), dtype=torch.bool)
    relative, rcond = values / largest, case.rcond
    smallest = torch.where(relative > rcond, relative, torch.inf).amin(-1).clamp(max=1.0)
    return smallest, largest[:, 0], ~((relative > rcond / 4) & (relative < 4 * rcond)).any(-1)


def _eps(case: Case) -> float:
    return float(torch.finfo(getattr(torch, case.dtype)).eps)


def _check_svd(case: Case, out: tuple[Tensor, ...]) -> None:
    a, (u, s, vh) = case.matrices(), out
    finite = _finite(a)
    _check_nan(finite, u, s, vh)
    worst = ratios(a[finite], u[finite], s[finite], vh[finite])
    assert (worst < 30).all(), worst  # LAPACK's own bound
    assert (s[finite] >= 0).all()
    assert (s[finite].diff(dim=-1) <= 0).all()


def _check_polar_factor(case: Case, out: tuple[Tensor, ...]) -> None:
    a, p = case.matrices(), out[0]
    exact = definitions.polar_factor(a.double(), case.rcond, case.smooth)[0]
    smallest, _, clear = _spectra(case, a)
    finite = _finite(a)
    _check_nan(finite, p)
    error = torch.linalg.matrix_norm(p.double() - exact) * smallest
    assert (error <= 30 * max(case.m, case.n) * _eps(case))[clear & finite].all(), error / _eps(case)


def _check_backward(case: Case, out: tuple[Tensor, ...]) -> None:
    a, (derivative,) = case.matrices(), out
    grad = case.gradient(a)
    factors = definitions.polar_factor(a.double(), case.rcond, case.smooth)[1:]
    exact = derivatives.polar_factor_vjp(grad.double(), *factors, case.smooth)
    smallest, largest, clear = _spectra(case, a)
    finite = _finite(a)
    _check_nan(finite, derivative)
    steepest = torch.linalg.matrix_norm(grad.double()) / (smallest * largest)
    error = torch.linalg.matrix_norm(derivative.double() - exact) * smallest / steepest
    assert (error <= 10 * max(case.m, case.n) * _eps(case))[clear & finite].all(), error / _eps(case)


def _check_loss(case: Case, out: tuple[Tensor, ...]) -> None:
    loss, *derivatives = out
    x_hat, x = (image.double() for image in case.images())
    value, *exact = definitions.basis_loss(x_hat, x, case.m, case.n, case.rcond, case.smooth, *case.sides)
    a, b = (case.blocks(image) for image in case.images())
    finite = _finite(a, b)
    _check_nan(finite, loss.reshape(-1))
    spectra = [_spectra(case, side) for side in (a, b)]
    least = torch.minimum(spectra[0][0], spectra[1][0])
    clear = spectra[0][2] & spectra[1][2] & finite
    bound = 30 * max(case.m, case.n) * _eps(case) / least
    assert ((loss.double() - value).reshape(-1).abs() <= bound)[clear].all(), (loss - value) / _eps(case)
    # Where an entry of the difference is within rounding of 0 its sign is anyone's.
    p, q = (definitions.polar_factor(side.double(), case.rcond, case.smooth)[0] for side in (a, b))
    signed = ((p - q).abs() * least[:, None, None] > 8 * _eps(case)).all(-1).all(-1)
    for (smallest, largest, _), derivative, expected in zip(spectra, derivatives, exact, strict=True):
        if derivative.numel():
            d, e = (case.blocks(x.double()) for x in (derivative, expected))
            _check_nan(finite, d)
            error = torch.linalg.matrix_norm(d - e) * smallest
            steepest = (case.m * case.n) ** -0.5 / (smallest * largest)
            bound = 30 * max(case.m, case.n) * _eps(case) * steepest
            assert (error <= bound)[clear & signed].all(), error / steepest / _eps(case)


def _check_recompose(case: Case, out: tuple[Tensor, ...]) -> None:
    a, b = (case.blocks(image.double()) for image in case.images())
    finite = _finite(a, b)
    result = case.blocks(out[0].double())
    _check_nan(finite, result)
    a, b, result = a[finite], b[finite], result[finite]
    values = torch.linalg.svdvals(a)
    largest = values[:, :1].clamp(min=1e-300)
    bound = 30 * max(case.m, case.n) * _eps(case)
    # The singular values of the one, whatever the vectors.
    assert ((torch.linalg.svdvals(result) - values).abs() <= bound * largest).all()
    u, t, vh = torch.linalg.svd(b, full_matrices=False)
    # The vectors of the other are as far from LAPACK's as its values are close to one another and to 0.
    gaps = -torch.cat([t, torch.zeros_like(t[:, :1])], -1).diff(dim=-1).amax(-1) / t[:, 0].clamp(min=1e-300)
    error = torch.linalg.matrix_norm(result - (u * values[:, None]) @ vh) / largest[:, 0]
    assert (error * gaps <= bound).all(), error * gaps / _eps(case)


JUDGES: dict[str, Callable[[Case, tuple[Tensor, ...]], None]] = {
    "svd": _check_svd,
    "polar_factor": _check_polar_factor,
    "polar_factor_backward": _check_backward,
    "basis_loss": _check_loss,
    "recompose": _check_recompose,
}
