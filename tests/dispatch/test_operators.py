"""The operators' registration: opcheck, torch.compile, autocast."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from svdrd.dispatch.registration import ops
from svdrd.ops import basis_loss, polar_factor, recompose, svd

ARGUMENTS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "svd": lambda: (torch.randn(3, 5, 4, requires_grad=True),),
    "svd_backward": lambda: (
        *torch.linalg.svd(torch.randn(2, 5, 4), full_matrices=False), torch.randn(2, 5, 4), None, torch.randn(2, 4, 4),
    ),
    "polar_factor": lambda: (torch.randn(3, 5, 4, requires_grad=True), 1e-6, 0.0, True),
    "polar_factor_backward": lambda: (
        torch.randn(2, 5, 4, requires_grad=True),
        *(torch.randn(2, 5, 4) for _ in range(2)),
        *torch.linalg.svd(torch.randn(2, 5, 4), full_matrices=False),
        1e-6,
        0.0,
    ),
    "polar_factor_second_derivative": lambda: (*(torch.randn(2, 5, 4) for _ in range(3)), 1e-6, 0.0),
    "basis_loss": lambda: (
        torch.randn(2, 8, 6, requires_grad=True), torch.randn(2, 8, 6), 4, 3, 1e-6, 0.0, True, False,
    ),
    "basis_loss_backward": lambda: (
        torch.randn(2, 2, 2, requires_grad=True), *(torch.randn(2, 8, 6) for _ in range(3)), 4, 3, 1e-6, 0.0,
    ),
    "basis_loss_second_derivative": lambda: (
        torch.randn(2, 8, 6), torch.randn(2, 8, 6), torch.randn(2, 2, 2), torch.randn(2, 8, 6), 4, 3, 1e-6, 0.0,
    ),
    "recompose": lambda: (torch.randn(2, 8, 6, requires_grad=True), torch.randn(2, 8, 6), 4, 3),
    "recompose_backward": lambda: (*(torch.randn(2, 8, 6) for _ in range(3)), 4, 3, True, False),
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.automatic
def test_opcheck(backend: str, name: str) -> None:
    torch.manual_seed(0)
    torch.library.opcheck(getattr(ops, name), ARGUMENTS[name]())


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "svd": lambda a: svd(a).S * svd(a).U.abs().sum(-2),
    "polar_factor": lambda a: polar_factor(a * 2, smooth=0.1),
    "basis_loss": lambda a: basis_loss(a, a.square(), block_size=2) * 3,
    "recompose": lambda a: recompose(a, a.square()),
}


class Listener(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[object] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(function)
        return function(*args, **(kwargs or {}))


def test_whoever_listens_sees_the_operators(backend: str) -> None:
    """Plain calls on the CPU go past the dispatcher, and only they."""
    a, b = torch.randn(2, 3, 4, 4)

    def both(x: Tensor) -> Tensor:
        return svd(x).S.sum() + basis_loss(x, b) + polar_factor(x).sum()

    expected = both(a)
    with Listener() as listener:
        assert torch.equal(both(a), expected)
    assert {ops.svd.default, ops.basis_loss.default, ops.polar_factor.default} <= listener.seen

    graph = make_fx(both)(a).graph
    targets = {node.target for node in graph.nodes}
    assert {ops.svd.default, ops.basis_loss.default, ops.polar_factor.default} <= targets
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert isinstance(both(mode.from_tensor(a)), FakeTensor)
        assert isinstance(svd(torch.empty(2, 3, 3)).U, FakeTensor)

    leaf = a.clone().requires_grad_()
    result = polar_factor(leaf)
    with Listener() as listener:
        torch.autograd.grad(result.sum(), leaf)
    assert ops.polar_factor_backward.default in listener.seen

    class Subclass(Tensor):
        pass

    assert isinstance(svd(a.as_subclass(Subclass)).U, Subclass)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compile_without_a_graph_break(backend: str, name: str) -> None:
    torch._dynamo.reset()
    # What is traced is the same for all backends. Inductor takes ten times as long: it compiles one graph.
    # Without a C++ compiler it cannot build its own CPU code.
    can_compile = any(map(shutil.which, ("g++", "clang++", "c++")))
    compiler = "inductor" if (backend, name) == ("cpp", "basis_loss") and can_compile else "aot_eager"
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend=compiler)
    for batch in (3, 5):
        a = torch.randn(batch, 2, 8, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
        expected, result = FUNCTIONS[name](a), compiled(a)
        torch.testing.assert_close(result, expected)
        gradients = [torch.autograd.grad(value.sum(), a)[0] for value in (result, expected)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_computes_in_float32(backend: str, name: str) -> None:
    a = torch.rand(2, 8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = FUNCTIONS[name](a)
    (gradient,) = torch.autograd.grad(expected.sum(), a)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = FUNCTIONS[name](a)
        half = basis_loss(a.bfloat16(), a)
        gradient_within = torch.autograd.grad(result.sum(), a, retain_graph=True)[0]
    assert torch.equal(result, expected)
    assert torch.equal(gradient_within, gradient)
    assert torch.equal(torch.autograd.grad(result.sum(), a)[0], gradient)
    assert half.dtype == torch.float32


class NothingChanged(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(2, 2), (8, 8), (12, 6), (40, 40), (1200, 2)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_way_past_the_dispatcher_gives_the_same_bits(name: str, shape: tuple[int, int]) -> None:
    """A mode, which changes nothing here, sends a call the long way."""
    a = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = FUNCTIONS[name](a)
    (gradient,) = torch.autograd.grad(found.sum(), a)
    with NothingChanged():
        expected = FUNCTIONS[name](a)
        (expected_gradient,) = torch.autograd.grad(expected.sum(), a)
    assert torch.equal(found, expected)
    assert torch.equal(gradient, expected_gradient)


def test_autocast_keeps_float64(backend: str) -> None:
    a = torch.rand(2, 8, 4, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert polar_factor(a).dtype == torch.float64
        assert torch.equal(polar_factor(a), polar_factor(a.clone()))


def test_backward_twice_and_accumulation(backend: str) -> None:
    a = torch.rand(2, 8, 4).requires_grad_()
    loss = basis_loss(a, a.detach().flip(0))
    (first,) = torch.autograd.grad(loss, a, retain_graph=True)
    (second,) = torch.autograd.grad(3 * loss, a)
    torch.testing.assert_close(second, 3 * first)


def test_gradient_inside_inference_and_detached(backend: str) -> None:
    a = torch.rand(2, 4, 4)
    with torch.inference_mode():
        assert torch.isfinite(basis_loss(a, a.flip(0)))
        assert torch.isfinite(polar_factor(a)).all()


def test_backward_without_factors_starts_again_from_the_matrix(backend: str) -> None:
    a = torch.rand(2, 8, 4, dtype=torch.float64, requires_grad=True)
    g = torch.rand_like(a)
    without, with_factors = (ops.polar_factor(a, 1e-6, 0.0, save_factors) for save_factors in (False, True))
    assert without[1].numel() == 0
    assert with_factors[1].shape == a.shape
    gradients = [torch.autograd.grad(outputs[0], a, g)[0] for outputs in (without, with_factors)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-12)


class Loss(torch.nn.Module):
    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return basis_loss(x_hat, x, block_size=4)


CAPTURES: dict[str, Callable[[Tensor, Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "export": lambda x_hat, x: torch.export.export(Loss(), (x_hat, x)).module(),
    "strict export": lambda x_hat, x: torch.export.export(Loss(), (x_hat, x), strict=True).module(),
    "jit.trace": lambda x_hat, x: torch.jit.trace(Loss(), (x_hat, x)),
    "make_fx": lambda x_hat, x: make_fx(Loss())(x_hat, x),
}


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace is deprecated
@pytest.mark.parametrize("capture", CAPTURES)
def test_a_loss_captured_from_plain_examples_trains(capture: str) -> None:
    """Whether the examples required a gradient says nothing about the tensors of later."""
    torch.manual_seed(0)
    x_hat, x = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        loss = CAPTURES[capture](x_hat, x)
    sides = [side.clone().requires_grad_() for side in (x_hat, x)]
    expected = torch.autograd.grad(Loss()(*sides), sides)
    for found, right in zip(torch.autograd.grad(loss(*sides), sides), expected, strict=True):
        assert torch.equal(found, right)


def test_tensors_whose_memory_holds_other_values(backend: str) -> None:
    """A negative bit, and zeros without memory: the way past the dispatcher is not for them."""
    a = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    negated, zeros = torch._neg_view(a), torch._efficientzerotensor((2, 4, 4))
    for function in (lambda x: svd(x).U, polar_factor, lambda x: basis_loss(x, a), lambda x: recompose(x, a)):
        assert torch.equal(function(negated), function(-a))
        assert torch.equal(function(zeros), function(torch.zeros(2, 4, 4)))
