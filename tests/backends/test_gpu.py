"""What is special to tensors of a GPU: results, devices, graphs, synchronisation, memory. Runs where there is one.

The operators' own tests compute on the GPU too, but are given CPU tensors (``compute_on`` in ``tests/conftest.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import svdrd
from svdrd.backends import availability
from svdrd.ops import basis_loss, polar_factor, recompose, svd

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

GPU = torch.device("cuda", 0)
SIZES = [(8, 8), (16, 16), (32, 32), (24, 48), (64, 64), (100, 72), (256, 256)]


@pytest.fixture(params=["torch", "triton", "cuda"])
def on_gpu(request: pytest.FixtureRequest) -> Iterator[str]:
    record = next(record for record in availability.describe() if record.name == request.param)
    reason = None if record.available else record.reason
    reason = reason or availability.refusal(record.name, GPU)
    if reason:
        pytest.skip(f"{record.name}: {reason}")
    with svdrd.use_backend(record.name):
        yield record.name


def pair(m: int, n: int, batch: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, m, n, generator=generator)
    return (x + 0.1 * torch.randn(batch, m, n, generator=generator)).to(GPU), x.to(GPU)


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "svd": lambda x_hat, x: svd(x_hat).S,
    "polar_factor": lambda x_hat, x: polar_factor(x_hat),
    "basis_loss": lambda x_hat, x: basis_loss(x_hat, x, reduction="none"),
    "recompose": recompose,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("m", "n"), SIZES)
def test_results_and_derivatives_against_float64(on_gpu: str, name: str, m: int, n: int) -> None:
    x_hat, x = pair(m, n)
    x_hat.requires_grad_()
    result = FUNCTIONS[name](x_hat, x)
    weights = torch.cos(torch.arange(result.numel(), device=GPU)).reshape(result.shape)
    (derivative,) = torch.autograd.grad(result, x_hat, weights)
    assert result.device == derivative.device == GPU
    assert result.dtype == derivative.dtype == torch.float32
    with svdrd.use_backend("torch"):
        exact = x_hat.detach().cpu().double().requires_grad_()
        expected = FUNCTIONS[name](exact, x.cpu().double())
        (expected_derivative,) = torch.autograd.grad(expected, exact, weights.cpu().double())
    error = (result.cpu().double() - expected).norm() / expected.norm()
    assert error < 1e-3
    error = (derivative.cpu().double() - expected_derivative).norm() / expected_derivative.norm()
    # The loss's derivative jumps with the sign of a difference near zero; one of a few entries moves it by this.
    assert error < (5e-2 if name == "basis_loss" else 2e-2)


def loss_and_derivative(x_hat: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x_hat.detach().requires_grad_()
    loss = basis_loss(leaf, x)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_a_graph_of_the_loss_and_its_derivative(on_gpu: str, m: int, n: int) -> None:
    if on_gpu == "torch" and min(m, n) <= 32:
        pytest.skip("PyTorch's own SVD, which waits for the device")
    torch.use_deterministic_algorithms(False)
    x_hat, x = pair(m, n)
    other = x_hat.flip(0).contiguous()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        loss_and_derivative(x_hat, x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = loss_and_derivative(x_hat, x)
    x_hat.copy_(other)
    graph.replay()
    for output, expected in zip(outputs, loss_and_derivative(other, x), strict=True):
        assert torch.equal(output, expected)


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_nothing_waits_for_the_device(on_gpu: str, m: int, n: int) -> None:
    if on_gpu == "torch" and min(m, n) <= 32:
        pytest.skip("PyTorch's own SVD, which waits for the device")
    torch.use_deterministic_algorithms(False)
    x_hat, x = pair(m, n)
    loss_and_derivative(x_hat, x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_and_derivative(x_hat, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_same_bits_twice_and_alone(on_gpu: str) -> None:
    if on_gpu == "torch":
        pytest.skip("the libraries below PyTorch choose kernels by the size of the batch")
    x_hat, x = pair(16, 16, batch=1000)
    loss = basis_loss(x_hat, x, reduction="none")
    assert torch.equal(loss, basis_loss(x_hat, x, reduction="none"))
    assert torch.equal(loss[500:501], basis_loss(x_hat[500:501], x[500:501], reduction="none"))


def test_memory_of_a_training_batch() -> None:
    """96 x 256^2, forward and backward, beyond the inputs."""
    torch.use_deterministic_algorithms(False)
    x_hat, x = pair(256, 256, batch=96)
    loss_and_derivative(x_hat, x)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss_and_derivative(x_hat, x)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 600e6


def test_autocast_computes_in_float32(on_gpu: str) -> None:
    x_hat, x = pair(16, 16)
    expected = basis_loss(x_hat, x)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.equal(basis_loss(x_hat, x), expected)


def test_compile_without_a_graph_break(on_gpu: str) -> None:
    x_hat, x = pair(16, 16)
    x_hat.requires_grad_()
    compiled = torch.compile(lambda a, b: basis_loss(a, b.square()) * 3, fullgraph=True)
    expected = basis_loss(x_hat, x.square()) * 3
    torch.testing.assert_close(compiled(x_hat, x), expected)
    (gradient,) = torch.autograd.grad(compiled(x_hat, x), x_hat)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x_hat)[0])


def test_cpu_and_cuda_tensors_do_not_mix() -> None:
    with pytest.raises(ValueError, match=r"x_hat is on cuda:0 and x on cpu; write x\.to\(x_hat\.device\)"):
        basis_loss(torch.rand(4, 4, device=GPU), torch.rand(4, 4))
