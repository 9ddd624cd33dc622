"""torch.func, forward mode and batched gradients: all four operations, against reverse mode and against loops."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import svdrd
from svdrd.dispatch import registration
from svdrd.ops import basis_loss, polar_factor, recompose, svd
from svdrd.reference import derivatives
from tests.zoo import ZOO

TARGET = torch.rand(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def target(a: Tensor) -> Tensor:
    """As many matrices as ``a`` has, all the same."""
    return TARGET[: a.shape[-2], : a.shape[-1]].to(a.dtype).expand_as(a)


def product_of_vectors(a: Tensor) -> Tensor:
    """``U diag(1, 2, ...) V^T``: of the vectors only what does not depend on their choice."""
    u, s, vh = svd(a)
    return (u * torch.arange(1, s.shape[-1] + 1, dtype=a.dtype)) @ vh


# Each takes (..., m, n) with even sides.
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "singular values": lambda a: svd(a).S,
    "singular vectors": product_of_vectors,
    "polar_factor": polar_factor,
    "polar_factor smoothed": lambda a: polar_factor(a, smooth=0.1),
    "basis_loss": lambda a: basis_loss(a, target(a), reduction="none"),
    "basis_loss of the target": lambda a: basis_loss(target(a), a),
    "basis_loss of both": lambda a: basis_loss(a, 2 * a.flip(-1)),
    "basis_loss blocks": lambda a: basis_loss(a, target(a), block_size=2),
    "basis_loss smoothed": lambda a: basis_loss(a, target(a), smooth=0.1),
    "recompose": lambda a: recompose(a, target(a)),
    "recompose of both": lambda a: recompose(a * a, a, block_size=2),
}
EVERY = pytest.mark.parametrize("name", OPERATIONS)


def matrices(*batch: int, rows: int = 4, columns: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*batch, rows, columns, dtype=dtype, generator=torch.Generator().manual_seed(3))


def jacobian(function: Callable[[Tensor], Tensor], a: Tensor, **options: Any) -> Tensor:
    """By reverse mode alone, one row at a time."""
    return torch.autograd.functional.jacobian(function, a, **options)


@pytest.fixture(autouse=True)
def _no_warning_about_a_missing_rule() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*performance drop.*")
        warnings.filterwarnings("error", message=".*batching rule.*")
        yield


@EVERY
@pytest.mark.slow_interpreted
def test_derivatives_by_torch_func(backend: str, name: str) -> None:
    operation = OPERATIONS[name]
    a = matrices(2)
    expected = jacobian(operation, a)
    torch.testing.assert_close(jacrev(operation)(a), expected)
    torch.testing.assert_close(jacfwd(operation)(a), expected)
    tangent = matrices(2).flip(-1)
    value, along = jvp(operation, (a,), (tangent,))
    torch.testing.assert_close(value, operation(a))
    torch.testing.assert_close(along, torch.tensordot(expected, tangent, 3))
    value, pulled = vjp(operation, a)
    cotangent = torch.rand_like(value)
    torch.testing.assert_close(pulled(cotangent)[0], torch.tensordot(cotangent, expected, value.ndim))


@EVERY
@pytest.mark.slow_interpreted
def test_forward_mode(backend: str, name: str) -> None:
    """Without torch.func; and with autograd through the tangent, and a tangent through autograd."""
    operation = OPERATIONS[name]
    a, tangent = matrices(2), matrices(2).flip(-1)
    expected = jvp(operation, (a,), (tangent,))[1]
    leaf = a.clone().requires_grad_()
    (through,) = torch.autograd.grad(jvp(operation, (leaf,), (tangent,))[1].sum(), leaf)
    with forward_ad.dual_level():
        dual = operation(forward_ad.make_dual(a, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected)
        dual = operation(forward_ad.make_dual(leaf, tangent))
        along = forward_ad.unpack_dual(dual).tangent
        assert along is not None
        torch.testing.assert_close(torch.autograd.grad(along.sum(), leaf)[0], through)
        leaf = a.clone().requires_grad_()
        dual = forward_ad.make_dual(leaf, tangent)
        (gradient,) = torch.autograd.grad(operation(dual).sum(), dual, create_graph=True)
        torch.testing.assert_close(forward_ad.unpack_dual(gradient).tangent, through)


@EVERY
@pytest.mark.slow_interpreted
def test_second_derivatives_by_every_pair_of_modes(backend: str, name: str) -> None:
    def total(a: Tensor) -> Tensor:
        value = OPERATIONS[name](a)
        return (value * torch.linspace(1, 2, value.numel(), dtype=a.dtype).reshape(value.shape)).sum()

    a = matrices(rows=2, columns=4)
    expected = torch.autograd.functional.hessian(total, a)
    for twice in (hessian(total), jacrev(jacrev(total)), jacrev(jacfwd(total)), jacfwd(jacfwd(total))):
        torch.testing.assert_close(twice(a), expected)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.slow_interpreted
def test_vmap_is_one_batch(backend: str, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    operation = OPERATIONS[name]
    a = matrices(3, 2, dtype=dtype)
    expected = torch.stack([operation(item) for item in a])
    torch.testing.assert_close(vmap(operation)(a), expected)
    torch.testing.assert_close(vmap(operation, in_dims=1)(a.movedim(0, 1)), expected)
    last = vmap(operation, in_dims=-1, out_dims=-1)(a.movedim(0, -1))
    torch.testing.assert_close(last.movedim(-1, 0), expected)
    torch.testing.assert_close(vmap(vmap(operation))(a[:, :, None].flip(1))[:, 1], vmap(operation)(a[:, :1]))
    assert vmap(operation)(a[:0]).shape == (0, *expected.shape[1:])

    calls: list[str] = []
    compute = registration.compute

    def counted(operator: str, *arguments: Any) -> Any:
        calls.append(operator)
        return compute(operator, *arguments)

    monkeypatch.setattr(registration, "compute", counted)
    numbers = []
    for size in (1, 3):
        calls.clear()
        vmap(operation)(a[:size])
        numbers.append(len(calls))
    assert numbers[0] == numbers[1] > 0


@EVERY
@pytest.mark.slow_interpreted
def test_gradients_of_each_sample(backend: str, name: str) -> None:
    def total(a: Tensor) -> Tensor:
        return OPERATIONS[name](a).sum()

    a = matrices(3, 2)
    leaf = a.clone().requires_grad_()
    expected = torch.stack([torch.autograd.grad(total(item), item)[0] for item in leaf.unbind()])
    torch.testing.assert_close(vmap(grad(total))(a), expected)
    torch.testing.assert_close(grad(lambda x: vmap(total)(x).sum())(a), expected)
    torch.testing.assert_close(torch.autograd.grad(vmap(total)(leaf).sum(), leaf)[0], expected)
    value = OPERATIONS[name](leaf[0])
    cotangents = torch.rand(3, *value.shape, dtype=a.dtype)
    (together,) = torch.autograd.grad(value, leaf, cotangents, is_grads_batched=True, retain_graph=True)
    for cotangent, gradient in zip(cotangents, together, strict=True):
        torch.testing.assert_close(torch.autograd.grad(value, leaf, cotangent, retain_graph=True)[0], gradient)


@pytest.mark.parametrize("smooth", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
@pytest.mark.slow_interpreted
def test_gradcheck_of_forward_mode_at_repeated_values(backend: str, shape: tuple[int, int], smooth: float) -> None:
    a = torch.eye(*shape, dtype=torch.float64).expand(2, *shape).clone().requires_grad_()
    options = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(lambda a: polar_factor(a, smooth=smooth), a, **options)
    assert torch.autograd.gradgradcheck(lambda a: polar_factor(a, smooth=smooth), a, check_fwd_over_rev=True)


@pytest.mark.parametrize("animal", ZOO)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.automatic
def test_the_jacobian_of_the_polar_factor_is_symmetric(animal: str, dtype: torch.dtype) -> None:
    a = ZOO[animal](6, 4).to(dtype)[None]
    tangent = target(a)
    forward, backward = jvp(polar_factor, (a,), (tangent,))[1], vjp(polar_factor, a)[1](tangent)[0]
    torch.testing.assert_close(forward, backward, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(4, 4), (6, 4), (4, 6)])
def test_svd_jvp_is_the_adjoint_of_svd_vjp(shape: tuple[int, int]) -> None:
    """At repeated and at zero singular values, too, where both take the same quotients as 0."""
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.rand(*shape, dtype=torch.float64), full_matrices=False)
    for values in ([4.0, 3.0, 2.0, 1.0], [2.0, 2.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0], [0.0] * 4):
        s = torch.tensor(values, dtype=torch.float64)
        tangent = torch.randn(*shape, dtype=torch.float64)
        gradients = torch.randn_like(u), torch.randn_like(s), torch.randn_like(vh)
        pulled = derivatives.svd_vjp(*gradients, u, s, vh)
        pushed = derivatives.svd_jvp(tangent, u, s, vh)
        inner = sum((g * t).sum() for g, t in zip(gradients, pushed, strict=True))
        torch.testing.assert_close((pulled * tangent).sum(), inner, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("transform", ["grad", "vjp", "jvp", "jacrev", "jacfwd", "vmap", "per sample", "hessian"])
@pytest.mark.parametrize("name", ["singular values", "basis_loss blocks"])
@pytest.mark.automatic
def test_compiled(name: str, transform: str) -> None:
    operation = OPERATIONS[name]

    def total(a: Tensor) -> Tensor:
        return operation(a).square().sum()

    transformed: dict[str, Callable[[Tensor], Tensor]] = {
        "grad": grad(total),
        "vjp": lambda a: vjp(operation, a)[1](operation(a))[0],
        "jvp": lambda a: jvp(operation, (a,), (a.flip(-1),))[1],
        "jacrev": jacrev(operation),
        "jacfwd": jacfwd(operation),
        "vmap": vmap(operation),
        "per sample": vmap(grad(total)),
        "hessian": hessian(total),
    }
    torch._dynamo.reset()
    a = matrices(2, rows=2, columns=4)
    compiled = torch.compile(lambda a: transformed[transform](a), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a), transformed[transform](a))


@pytest.mark.automatic
def test_a_tangent_is_compiled_for_any_number_of_matrices() -> None:
    """PyTorch cannot copy it into its output's layout where the sizes are symbols."""

    def along(a: Tensor) -> Tensor:
        return jvp(lambda a: tuple(svd(a)), (a,), (a.flip(-1),))[1][1]

    torch._dynamo.reset()
    compiled = torch.compile(along, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(matrices(3)), along(matrices(3)))
    torch.testing.assert_close(compiled(matrices(5)), along(matrices(5)))


@EVERY
@pytest.mark.automatic
def test_functionalize(name: str) -> None:
    operation = OPERATIONS[name]

    def in_place(a: Tensor) -> Tensor:
        a = a.clone()
        a[0] += 1
        return operation(a).mul_(2)

    a = matrices(2)
    torch.testing.assert_close(functionalize(in_place)(a), in_place(a))
    torch.testing.assert_close(vmap(functionalize(operation))(a[None]), operation(a)[None])
    gradient = grad(lambda a: functionalize(operation)(a).sum())(a)
    torch.testing.assert_close(gradient, grad(lambda a: operation(a).sum())(a))


@pytest.mark.automatic
def test_tangents_of_compiled_code_without_torch_func() -> None:
    def along(a: Tensor, tangent: Tensor) -> Tensor:
        with forward_ad.dual_level():
            result = forward_ad.unpack_dual(polar_factor(forward_ad.make_dual(a, tangent))).tangent
        assert result is not None
        return result

    torch._dynamo.reset()
    a = matrices(2)
    expected = jvp(polar_factor, (a,), (a.flip(-1),))[1]
    compiled = torch.compile(along, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, a.flip(-1)), expected)


@pytest.mark.automatic
def test_nothing_is_computed_for_a_side_without_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    needed: list[tuple[bool, bool]] = []
    compute = registration.compute

    def seen(operator: str, *arguments: Any) -> Any:
        if operator == "basis_loss":
            needed.append(arguments[-2:])
        return compute(operator, *arguments)

    monkeypatch.setattr(registration, "compute", seen)
    a, x = matrices(3, 2), matrices(3, 2).flip(0)
    vmap(basis_loss)(a, x)
    vmap(grad(basis_loss))(a, x)
    grad(lambda a: vmap(basis_loss)(a, x).sum())(a)
    assert needed == [(False, False), (True, False), (True, False)]


@pytest.mark.automatic
def test_a_model_trains_by_functional_call() -> None:
    torch.manual_seed(0)
    model = torch.nn.Conv2d(1, 1, 3, padding=1)
    images, wanted = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    criterion = svdrd.BasisLoss(block_size=4)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, wanted: Tensor) -> Tensor:
        return criterion(functional_call(model, parameters, (image[None],)), wanted[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, wanted)
    values = [criterion(model(image[None]), x[None]) for image, x in zip(images, wanted, strict=True)]
    for name, parameter in model.named_parameters():
        expected = torch.stack([torch.autograd.grad(v, parameter, retain_graph=True)[0] for v in values])
        torch.testing.assert_close(each[name], expected)


@pytest.mark.automatic
def test_third_derivatives_are_refused() -> None:
    a = matrices(rows=2, columns=2)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        jacfwd(jacfwd(jacfwd(polar_factor)))(a)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        jacrev(jacrev(jacrev(polar_factor)))(a)
