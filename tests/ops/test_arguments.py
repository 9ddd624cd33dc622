"""Which tensors and options the public functions take, and what they say of the others."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import svdrd
from svdrd.ops import basis_loss, polar_factor, recompose, svd

FUNCTIONS: dict[str, Callable[[Any], object]] = {
    "svd": svd,
    "polar_factor": polar_factor,
    "basis_loss": lambda a: basis_loss(a, a),
    "recompose": lambda a: recompose(a, a),
    "BasisLoss": lambda a: svdrd.BasisLoss()(a, a),
}
EVERY = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def quantized() -> Tensor:
    return torch.quantize_per_tensor(torch.rand(4, 4), 0.1, 0, torch.qint8)


def nested(layout: torch.layout) -> Tensor:
    return torch.nested.nested_tensor([torch.rand(4, 4), torch.rand(6, 4)], layout=layout)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "COO": (lambda: torch.eye(4).to_sparse(), r"sparse_coo.*dense.*\.to_dense\(\)"),
    "CSR": (lambda: torch.eye(4).to_sparse_csr(), r"sparse_csr.*\.to_dense\(\)"),
    "CSC": (lambda: torch.eye(4).to_sparse_csc(), r"sparse_csc.*\.to_dense\(\)"),
    "BSR": (lambda: torch.eye(4).to_sparse_bsr((2, 2)), r"sparse_bsr.*\.to_dense\(\)"),
    "complex COO": (lambda: torch.eye(4).cfloat().to_sparse(), r"sparse_coo.*\.to_dense\(\)"),
    "MKL-DNN": (lambda: torch.rand(2, 4, 4).to_mkldnn(), r"mkldnn.*\.to_dense\(\)"),
    "nested": (lambda: nested(torch.strided), r"nested.*dense.*\.unbind\(\).*to_padded_tensor"),
    "jagged": (lambda: nested(torch.jagged), r"nested.*dense.*\.unbind\(\).*to_padded_tensor"),
    "quantized": (quantized, r"qint8.*\.dequantize\(\)"),
    "uint8": (lambda: torch.zeros(4, 4, dtype=torch.uint8), r"uint8.*\.float\(\)"),
    "bool": (lambda: torch.zeros(4, 4, dtype=torch.bool), r"bool.*\.float\(\)"),
    "complex": (lambda: torch.zeros(4, 4, dtype=torch.complex64), r"complex64.*real.*torch\.linalg\.svd"),
    "array": (lambda: np.zeros((4, 4)), r"is a ndarray.*torch\.as_tensor"),
    "None": (lambda: None, r"is a NoneType"),
}


def tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@EVERY
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_real_dense_tensor(function: Callable[[Any], object], kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(TypeError, match=message) as raised:
        function(make())
    assert ".real" not in str(raised.value)
    assert kind == "uint8" or kind == "bool" or ".float()" not in str(raised.value)


@EVERY
def test_meta_tensors_have_shapes(function: Callable[[Any], object]) -> None:
    here = function(torch.rand(2, 6, 4))
    there = function(torch.rand(2, 6, 4, device="meta", requires_grad=True))
    for x, y in zip(tensors(here), tensors(there), strict=True):
        assert y.is_meta
        assert x.shape == y.shape
        y.sum().backward(retain_graph=True)


class Marked(Tensor):
    """A subclass that counts the functions of PyTorch that it is given to."""

    calls = 0

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls += 1
        return super().__torch_function__(function, types, args, kwargs)


@EVERY
@pytest.mark.slow_interpreted
def test_subclasses(backend: str, function: Callable[[Any], object]) -> None:
    a = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    before = Marked.calls
    expected, marked, parameter = (function(x) for x in (a, a.as_subclass(Marked), nn.Parameter(a)))
    assert Marked.calls > before
    for x, y, z in zip(tensors(expected), tensors(marked), tensors(parameter), strict=True):
        assert isinstance(y, Marked)
        assert type(z) is Tensor
        assert torch.equal(x, y.as_subclass(Tensor))
        assert torch.equal(x, z)


X = torch.rand(2, 8, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"block_size": True}, TypeError, "block_size is True, of type bool"),
        ({"block_size": 4.0}, TypeError, r"block_size is 4\.0, of type float; it has to be an int"),
        ({"block_size": "4"}, TypeError, "block_size is '4', of type str"),
        ({"block_size": (4, 4)}, TypeError, r"block_size is \(4, 4\).*square blocks"),
        ({"block_size": torch.tensor(4)}, TypeError, r"block_size is of type Tensor.*int\(block_size\)"),
        ({"block_size": np.int64(0)}, ValueError, "block_size is 0; it has to be a positive int"),
        ({"rcond": "1e-3"}, TypeError, "rcond is '1e-3', of type str; it has to be a number"),
        ({"rcond": True}, TypeError, "rcond is True, of type bool"),
        ({"rcond": 1e-3j}, TypeError, "rcond is .*of type complex"),
        ({"rcond": torch.tensor(1e-3)}, TypeError, r"rcond is of type Tensor.*no derivative.*rcond=float\(rcond\)"),
        ({"rcond": 1}, ValueError, r"rcond is 1\.0; it has to be in \[0, 1\)"),
        ({"rcond": np.float32("nan")}, ValueError, "rcond is nan"),
        ({"smooth": "0.1"}, TypeError, "smooth is '0.1', of type str; it has to be a number"),
        ({"smooth": None}, TypeError, r"smooth is None.*smooth=0\.0 is the exact"),
        ({"smooth": torch.tensor(0.1, requires_grad=True)}, TypeError, r"smooth is of type Tensor.*no derivative"),
        ({"smooth": np.array(0.1)}, TypeError, r"smooth is of type ndarray.*smooth=float\(smooth\)"),
        ({"smooth": float("nan")}, ValueError, "smooth is nan"),
        ({"smooth": -1}, ValueError, r"smooth is -1\.0"),
        ({"smooth": 10**400}, ValueError, "smooth is inf; it has to be finite"),
        ({"reduction": None}, ValueError, "reduction is None; it has to be 'mean', 'sum' or 'none'"),
        ({"reduction": torch.ones(2)}, ValueError, "reduction is tensor"),
    ],
    ids=str,
)  # fmt: skip
def test_options_that_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"basis_loss: {message}"):
        basis_loss(X, X, **options)
    with pytest.raises(error, match=f"BasisLoss: {message}"):  # where it is written, not where it is used
        svdrd.BasisLoss(**options)


def test_numbers_of_other_libraries() -> None:
    a, b = X, X.flip(0)
    expected = basis_loss(a, b, 4, rcond=0.25, smooth=0.5)
    for integer, number in ((np.int64, np.float32), (np.uint8, np.float64), (np.array, np.float16)):
        options = {"block_size": integer(4), "rcond": number(0.25), "smooth": number(0.5)}
        assert torch.equal(basis_loss(a, b, **options), expected)
        module = svdrd.BasisLoss(**options)
        assert repr(module) == "BasisLoss(block_size=4, reduction='mean', rcond=0.25, smooth=0.5)"
        assert torch.equal(module(a, b), expected)
    assert torch.equal(polar_factor(a, smooth=1), polar_factor(a, smooth=1.0))


def test_a_block_larger_than_the_image() -> None:
    with pytest.raises(ValueError, match=r"block_size=16 does not divide.*fits is 1, 2, 4\.$"):
        basis_loss(X, X, 16)


def compiled(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)(*arguments)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: basis_loss(x, x, 3), "block_size=3 does not divide the size 8 x 12; what fits is 1, 2, 4"),
        (lambda x: basis_loss(x, x, np.int64(4)), r"block_size is of type ndarray.*int\(block_size\)"),
        (lambda x: polar_factor(x, smooth=np.float64(0.5)), r"smooth is of type ndarray.*float\(smooth\)"),
        (lambda x: polar_factor(x, smooth=x.mean()), r"smooth is of type Tensor.*float\(smooth\)"),
        (lambda x: svd(x.to(torch.complex64)), r"complex64.*torch\.linalg\.svd"),
    ],
    ids=["block", "index", "number", "tensor", "complex"],
)
def test_a_compiled_call_says_the_same(function: Callable[[Tensor], object], message: str) -> None:
    for dynamic in (False, True):
        with pytest.raises(Exception, match=message):  # the compiler wraps it
            compiled(function, X, dynamic=dynamic)
    with pytest.raises((TypeError, ValueError)):
        torch.compile(lambda x: basis_loss(x, x, 3), backend="aot_eager")(X)


def test_a_compiled_module_takes_numbers_of_numpy() -> None:
    criterion = svdrd.BasisLoss(np.int64(4), smooth=np.float32(0.5))
    assert torch.equal(compiled(criterion, X, X.flip(0)), criterion(X, X.flip(0)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.criterion = svdrd.BasisLoss(block_size=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.criterion(self.scale + x.flip(0), x)


def test_symbolic_trace() -> None:
    net = Net()
    traced = torch.fx.symbolic_trace(net)
    assert [node.target for node in traced.graph.nodes].count(basis_loss) == 1
    for graph in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        gradients = [torch.autograd.grad(module(X), module.parameters()) for module in (net, graph)]
        assert torch.equal(*(gradient for (gradient,) in gradients))
    with pytest.raises(TypeError, match=r"Proxy.*torch\.fx\.wrap\('polar_factor'\)"):
        torch.fx.symbolic_trace(lambda x: polar_factor(x))


class Everything(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, s, _ = svd(a)
        return s, polar_factor(a, None, 0.5), recompose(a, b, 4)


def test_torchscript_calls_python() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        criterion, everything = torch.jit.script(Net()), torch.jit.script(Everything())
    (gradient,) = torch.autograd.grad(criterion(X), criterion.parameters())
    net = Net()
    assert torch.equal(gradient, torch.autograd.grad(net(X), net.parameters())[0])
    for x, y in zip(everything(X, X.flip(0)), Everything()(X, X.flip(0)), strict=True):
        assert torch.equal(x, y)
