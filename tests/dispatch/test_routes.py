"""Who computes what: the table of routes, read for devices and backends that need not be here."""

from __future__ import annotations

import importlib.util
import inspect

import pytest
import torch

from svdrd.backends import limits, selection
from svdrd.dispatch import registration, routes
from svdrd.ops import basis_loss, polar_factor, svd
from tests.zoo import ZOO

pytestmark = pytest.mark.automatic

SINGLE, DOUBLE = torch.float32, torch.float64


@pytest.mark.parametrize(("operator", "route"), [(name, row) for name, rows in routes.ROUTES.items() for row in rows])
def test_a_computer_has_the_operators_own_signature(operator: str, route: routes.Route) -> None:
    if route.computer.startswith("triton") and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    schema = getattr(torch.ops.svdrd, operator).default._schema
    names = list(inspect.signature(routes.kernel(route.computer, operator)).parameters)
    assert names == [argument.name for argument in schema.arguments]
    assert set(route.backends) <= {"torch", "cpp", "triton", "cuda"}


@pytest.mark.parametrize(
    ("selected", "device", "operator", "m", "n", "dtype", "computer"),
    [
        ("cpp", "cpu", "svd", 8, 8, SINGLE, "cpp"),
        ("cpp", "cpu", "basis_loss", 512, 768, DOUBLE, "cpp"),
        ("torch", "cpu", "polar_factor", 256, 256, SINGLE, "reference"),
        ("torch", "cuda", "svd", limits.BATCHED_SVD, 70, SINGLE, "reference"),
        ("torch", "cuda", "svd", limits.BATCHED_SVD + 1, 70, SINGLE, "products"),
        ("torch", "cuda", "svd", 64, 64, DOUBLE, "reference"),
        ("torch", "cuda", "basis_loss", 256, 256, SINGLE, "products"),
        ("triton", "cuda", "svd", limits.JACOBI, 3, DOUBLE, "triton.jacobi"),
        ("triton", "cuda", "svd", limits.JACOBI + 1, limits.JACOBI + 1, SINGLE, "products"),
        ("triton", "cuda", "polar_factor", 64, limits.JACOBI_DOUBLE, DOUBLE, "triton.jacobi"),
        ("triton", "cuda", "polar_factor", 64, limits.JACOBI_DOUBLE + 1, DOUBLE, "reference"),
        ("triton", "cuda", "basis_loss", 64, 64, SINGLE, "triton.jacobi"),
        ("triton", "cuda", "basis_loss", 65, 2, SINGLE, "triton.products"),
        ("triton", "cuda", "basis_loss", 65, 2, DOUBLE, "reference"),
        ("triton", "cuda", "recompose", 65, 65, SINGLE, "reference"),
        ("triton", "cuda", "svd_backward", 8, 8, SINGLE, "reference"),
    ],
)
def test_table(
    selected: str,
    device: str,
    operator: str,
    m: int,
    n: int,
    dtype: torch.dtype,
    computer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selection, "select", lambda device: selected)
    assert routes.route(operator, m, n, dtype, device) == computer


def test_what_products_do_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "select", lambda device: "triton")
    assert routes.route("polar_factor", 100, 100, device="cuda") == "triton.products"
    assert routes.route("polar_factor", 100, 100, device="cuda", rcond=0.3) == "reference"
    assert routes.route("polar_factor", 100, 100, device="cuda", factors=True) == "reference"


def test_one_computer_alone() -> None:
    a = ZOO["image"](8, 8).float()[None]
    with routes.only("products"):
        assert routes.restricted()
        assert not routes.saves_factors(a.device, a.dtype, 8, 8)
        near = polar_factor(a)
        with pytest.raises(routes.NotTaken, match="products does not compute basis_loss of 8 x 8 matrices"):
            basis_loss(a.double(), a.double())
    assert not routes.restricted()
    torch.testing.assert_close(near, polar_factor(a), atol=1e-5, rtol=0)
    with routes.only(routes.DEFAULT):
        values = svd(a).S
    assert torch.equal(values, registration.OPERATORS["svd"].default(a)[1])
