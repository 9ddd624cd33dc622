"""What every operation promises about dtypes, strides, batches, non-finite items and bad arguments."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import svdrd.ops.basis_loss
from svdrd.ops import basis_loss, polar_factor, recompose, svd
from tests.zoo import ZOO

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "svd": lambda a: svd(a).S,
    "polar_factor": polar_factor,
    "polar_factor smoothed": lambda a: polar_factor(a, smooth=0.5),
    "basis_loss": lambda a: basis_loss(a, a.flip(-1), reduction="none"),
    "basis_loss blocks": lambda a: basis_loss(a, a.flip(-1), block_size=2, reduction="none"),
    "recompose": lambda a: recompose(a, a.flip(-1)),
}
EVERY = pytest.mark.parametrize("name", OPERATIONS)


def matrices(*batch: int) -> Tensor:
    return torch.randn(*batch, 6, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.automatic
def test_both_ways_to_import() -> None:
    assert svdrd.ops.basis_loss is basis_loss
    assert svdrd.ops.basis_loss.basis_loss is basis_loss
    module = importlib.import_module("svdrd.ops.basis_loss")
    assert module.basis_loss is basis_loss
    from svdrd.ops.basis_loss import basis_loss as again

    assert again is basis_loss


@pytest.mark.automatic
def test_shapes(backend: str) -> None:
    u, s, vh = svd(matrices(2, 5))
    assert (u.shape, s.shape, vh.shape) == ((2, 5, 6, 4), (2, 5, 4), (2, 5, 4, 4))
    u, s, vh = svd(matrices()[:3].mT)
    assert (u.shape, s.shape, vh.shape) == ((4, 3), (3,), (3, 3))
    assert polar_factor(matrices(2, 1, 3)).shape == (2, 1, 3, 6, 4)
    assert basis_loss(matrices(2, 3), matrices(2, 3), reduction="none").shape == (2, 3)
    assert basis_loss(matrices(2, 3), matrices(2, 3), 2, reduction="none").shape == (2, 3, 3, 2)
    assert basis_loss(matrices(2, 3), matrices(2, 3)).shape == ()


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(backend: str, name: str, dtype: torch.dtype) -> None:
    a = matrices(3).to(dtype)
    result = OPERATIONS[name](a)
    assert result.dtype == dtype
    assert torch.equal(result, OPERATIONS[name](a.float()).to(dtype))
    a.requires_grad_()
    OPERATIONS[name](a).sum().backward()
    assert a.grad.dtype == dtype


def test_two_dtypes_give_the_wider(backend: str) -> None:
    a = matrices(3)
    assert basis_loss(a.bfloat16(), a).dtype == torch.float32
    assert basis_loss(a, a.double()).dtype == torch.float64


@EVERY
def test_strides(backend: str, name: str) -> None:
    operation = OPERATIONS[name]
    a = matrices(3, 2)
    expected = operation(a.contiguous())
    wide = torch.zeros(3, 2, 12, 8)
    wide[..., ::2, 1::2] = a
    swapped = a.transpose(0, 1).contiguous().transpose(0, 1)
    for view in (a.mT.contiguous().mT, wide[..., ::2, 1::2], swapped):
        assert torch.equal(operation(view), expected)
    expanded = a[:1].expand(3, 2, 6, 4).requires_grad_()
    gradient = torch.autograd.grad(operation(expanded).sum(), expanded)[0]
    assert torch.equal(gradient[0], gradient[1])
    image = torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert torch.equal(operation(image), operation(image.contiguous()))


@EVERY
@pytest.mark.parametrize("size", [4, 8, 24, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.slow_interpreted
def test_same_bits_whatever_else_is_in_the_batch(backend: str, name: str, size: int, dtype: torch.dtype) -> None:
    operation = OPERATIONS[name]
    a = torch.stack([ZOO[animal](size, size) for animal in ZOO]).to(dtype)
    a.requires_grad_()
    together = operation(a)
    (gradient,) = torch.autograd.grad(together.sum(), a)
    for i in range(0, len(a), 7):
        alone = a[i : i + 1].detach().requires_grad_()
        result = operation(alone)
        assert torch.equal(result[0], together[i])
        assert torch.equal(torch.autograd.grad(result.sum(), alone)[0][0], gradient[i])
    shuffled = torch.randperm(len(a), generator=torch.Generator().manual_seed(0))
    assert torch.equal(operation(a[shuffled]), together[shuffled])


@pytest.mark.parametrize("backend", ["cpp"], indirect=True)
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (16, 16), (5, 3), (7, 12), (32, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_in_a_batch_of_any_size(backend: str, name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """The C++ kernels work on groups of 4 to 32 matrices, whichever suits the size of the batch."""
    if name == "basis_loss blocks" and (shape[0] % 2 or shape[1] % 2):
        pytest.skip("cannot be cut into blocks of 2 x 2")
    operation = OPERATIONS[name]
    a = torch.randn(150, *shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    a[::5, 1] = a[::5, 0]  # of lower rank: by the SVD, where others go through Newton's iteration
    a.requires_grad_()
    together = operation(a)
    (gradient,) = torch.autograd.grad(together.sum(), a)
    for size in (1, 3, 4, 5, 9, 17, 33, 70):
        part = a[:size].detach().requires_grad_()
        result = operation(part)
        assert torch.equal(result, together[:size])
        assert torch.equal(torch.autograd.grad(result.sum(), part)[0], gradient[:size])


@pytest.mark.parametrize("backend", ["cpp"], indirect=True)
@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (8, 8), (17, 15), (31, 32), (32, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_vectors_have_the_same_bits_in_any_batch(
    backend: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    a = torch.stack([animal(*shape) for animal in ZOO.values()]).to(dtype)
    a = torch.cat([a, torch.randn(100, *shape, dtype=dtype, generator=torch.Generator().manual_seed(3))])
    together = svd(a)
    for size in (1, 4, 5, 9, 33, 70):
        for first in (0, 7):
            part = svd(a[first : first + size])
            for x, y in zip(part, together, strict=True):
                assert torch.equal(x, y[first : first + size])


@EVERY
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.slow_interpreted
def test_a_non_finite_item_is_nan_alone(backend: str, name: str, value: float) -> None:
    operation = OPERATIONS[name]
    for size in (4, 12, 72):
        a = torch.randn(5, size, size, generator=torch.Generator().manual_seed(1))
        a[1, 0, 0] = a[3, size - 1, 1] = value
        a.requires_grad_()
        result = operation(a)
        broken = torch.tensor([False, True, False, True, False])
        if name == "basis_loss blocks":
            assert result[1].isnan().any()
            assert torch.isfinite(result[~broken]).all()
            continue
        assert result[broken].isnan().all()
        (gradient,) = torch.autograd.grad(result.sum(), a)
        healthy = a[~broken].detach().requires_grad_()
        expected = operation(healthy)
        assert torch.equal(result[~broken], expected)
        assert torch.equal(gradient[~broken], torch.autograd.grad(expected.sum(), healthy)[0])
        assert gradient[broken].isnan().any(-1).any(-1).all()


def test_a_nan_target_is_no_finite_lie(backend: str) -> None:
    x_hat, x = matrices(2).requires_grad_(), matrices(2)
    x[0, 0, 0] = torch.nan
    loss = basis_loss(x_hat, x, reduction="none")
    loss.sum().backward()
    assert loss.isnan().tolist() == [True, False]
    assert x_hat.grad[0].isnan().all()
    assert torch.isfinite(x_hat.grad[1]).all()


@EVERY
@pytest.mark.slow_interpreted
def test_concurrent_callers(backend: str, name: str) -> None:
    inputs = [torch.randn(40, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    expected = [OPERATIONS[name](a) for a in inputs]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            for result, other in zip(threads.map(OPERATIONS[name], inputs), expected, strict=True):
                assert torch.equal(result, other)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: svd(torch.zeros(3)), ValueError, r"svd: a has shape \(3,\).*\.reshape"),
        (lambda: svd(torch.zeros(3, 3, dtype=torch.int32)), TypeError, r"dtype torch\.int32.*a\.float\(\)"),
        (lambda: svd([[1.0]]), TypeError, r"a is a list.*torch\.as_tensor"),
        (lambda: polar_factor(torch.zeros(3, 3), rcond=-1e-3), ValueError, r"rcond is -0\.001.*\[0, 1\)"),
        (lambda: polar_factor(torch.zeros(3, 3), rcond=float("nan")), ValueError, "rcond is nan"),
        (lambda: polar_factor(torch.zeros(3, 3), smooth=-1.0), ValueError, r"smooth is -1\.0.*>= 0"),
        (lambda: polar_factor(torch.zeros(3, 3), smooth=float("inf")), ValueError, "smooth is inf"),
        (lambda: basis_loss(torch.zeros(2, 3, 3), torch.zeros(3, 3)), ValueError, r"\(2, 3, 3\) and x \(3, 3\).*equal"),
        (lambda: basis_loss(torch.zeros(8, 12), torch.zeros(8, 12), 3), ValueError, r"=3.*8 x 12.*fits is 1, 2, 4\."),
        (lambda: basis_loss(torch.zeros(8, 8), torch.zeros(8, 8), 0), ValueError, "block_size is 0.*positive"),
        (lambda: basis_loss(torch.zeros(8, 8), torch.zeros(8, 8), reduction="avg"), ValueError, "'avg'.*'mean', 'sum'"),
        (lambda: recompose(torch.zeros(8, 8), torch.zeros(8, 4)), ValueError, r"\(8, 8\) and x \(8, 4\)"),
        (lambda: basis_loss(torch.zeros(2, 2), torch.zeros(2, 2, device="meta")), ValueError, "on cpu and x on meta"),
    ],
)  # fmt: skip
def test_bad_arguments_say_what_would_work(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
