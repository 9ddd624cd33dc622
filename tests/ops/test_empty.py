"""Matrices without rows or columns, and batches without matrices: values and two derivatives, of the right shapes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import Tensor

from svdrd.dispatch import routes
from svdrd.dispatch.registration import ops
from svdrd.ops import basis_loss, polar_factor, recompose, svd
from svdrd.reference import definitions, derivatives

SHAPES = [(2, 0, 4), (2, 4, 0), (2, 0, 0), (2, 1, 0), (0, 4), (4, 0), (0, 0), (0, 6, 4), (3, 0, 4, 6), (0, 0, 4)]
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)

OPERATIONS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, ...]]] = {
    "svd": lambda a, b: (*svd(a), *svd(b)),
    "polar_factor": lambda a, b: (polar_factor(a), polar_factor(b)),
    "polar_factor smoothed": lambda a, b: (polar_factor(a, smooth=0.5), polar_factor(b, smooth=0.5)),
    "basis_loss": lambda a, b: (basis_loss(a, b), basis_loss(b, a, smooth=0.5)),
    "basis_loss sum": lambda a, b: (basis_loss(a, b, reduction="sum"),),
    "basis_loss none": lambda a, b: (basis_loss(a, b, reduction="none"),),
    "basis_loss blocks": lambda a, b: (basis_loss(a, b, 1, reduction="none"), basis_loss(a, b, 1)),
    "recompose": lambda a, b: (recompose(a, b),),
    "recompose blocks": lambda a, b: (recompose(a, b, 1),),
}


def sides(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.zeros(shape, dtype=dtype, requires_grad=True), torch.ones(shape, dtype=dtype, requires_grad=True)


def check_two_derivatives(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    a, b = sides(shape, dtype)
    values = OPERATIONS[name](a, b)
    first = torch.autograd.grad([value.sum() for value in values], (a, b), create_graph=True)
    second = torch.autograd.grad([g.sum() for g in first], (a, b), allow_unused=True)
    assert any(g is not None for g in second)
    for x in (*first, *(g for g in second if g is not None)):
        assert (x.shape, x.dtype) == (shape, dtype)
    for x, y in zip(values, OPERATIONS[name](a.detach(), b.detach()), strict=True):
        assert torch.equal(x.isnan(), y.isnan())
        assert x.dtype == y.dtype == dtype


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.automatic
def test_two_derivatives(backend: str, name: str) -> None:
    for shape in SHAPES:
        for dtype in DTYPES:
            check_two_derivatives(name, shape, dtype)


@pytest.mark.parametrize("name", OPERATIONS)
def test_two_derivatives_by_products(name: str) -> None:
    """Where they take the case; unasked they compute on GPUs alone."""
    for shape in SHAPES:
        with routes.only("products"), suppress(routes.NotTaken):
            check_two_derivatives(name, shape, torch.float32)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.slow_interpreted
def test_transforms(backend: str, name: str) -> None:
    """Forward mode, gradients, batches, and each over the other."""

    def total(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([value.sum() for value in OPERATIONS[name](a, b)]).sum()

    for shape in SHAPES:
        a, b = (side.detach() for side in sides(shape))
        values, tangents = torch.func.jvp(OPERATIONS[name], (a, b), (b, b))
        assert [x.shape for x in tangents] == [x.shape for x in values]
        gradient, tangent = torch.func.jvp(torch.func.grad(total), (a, b), (b, b))
        assert gradient.shape == tangent.shape == shape
        rows = a.expand(3, *shape)
        for value, batch in zip(values, torch.func.vmap(OPERATIONS[name], (0, None))(rows, b), strict=True):
            assert batch.shape == (3, *value.shape)
            assert torch.equal(batch.isnan(), value.isnan().expand(batch.shape))
        assert torch.func.vmap(torch.func.grad(total), (0, None))(rows, b).shape == rows.shape


def test_shapes(backend: str) -> None:
    for shape in SHAPES:
        *batch, m, n = shape
        k = min(m, n)
        a, b = sides(shape)
        u, s, vh = svd(a)
        assert (u.shape, s.shape, vh.shape) == ((*batch, m, k), (*batch, k), (*batch, k, n))
        assert polar_factor(a).shape == polar_factor(a, smooth=1.0).shape == recompose(a, b).shape == shape
        assert basis_loss(a, b).isnan()
        assert basis_loss(a, b, reduction="sum") == 0
        of_each = basis_loss(a, b, reduction="none")
        assert of_each.shape == tuple(batch)
        assert of_each.isnan().all()
        assert basis_loss(a, b, 1, reduction="none").shape == shape


def test_images_without_blocks(backend: str) -> None:
    a, b = sides((3, 0, 8))
    assert basis_loss(a, b, 4, reduction="none").shape == (3, 0, 2)
    assert basis_loss(a, b, 4).isnan()
    assert recompose(a, b, 4).shape == (3, 0, 8)


@pytest.mark.parametrize("smooth", [0.0, 0.5])
@pytest.mark.parametrize("save_factors", [False, True])
def test_operators(backend: str, smooth: float, save_factors: bool) -> None:
    """Whether or not the forward keeps the factors, which are as empty as what is not kept."""
    for size in ((0, 4), (4, 0), (0, 0)):
        a, _ = sides((2, *size), torch.float64)
        p = ops.polar_factor(a, 1e-15, smooth, save_factors)[0]
        (first,) = torch.autograd.grad(p.sum(), a, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), a)
        assert p.shape == first.shape == second.shape == a.shape


@pytest.mark.parametrize("smooth", [0.0, 0.5])
@EVERY_SHAPE
def test_reference(shape: tuple[int, ...], smooth: float) -> None:
    a = torch.zeros(2, *shape[-2:])
    p, u, s, vh = definitions.polar_factor(a, 1e-6, smooth)
    assert derivatives.polar_factor_vjp(a, u, s, vh, smooth).shape == p.shape == a.shape
    assert derivatives.svd_vjp(u, s, vh, u, s, vh).shape == a.shape
    assert definitions.polar_factor_second_derivative(a, a, a, 1e-6, smooth).shape == a.shape
