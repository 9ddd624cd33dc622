"""The fused products of the triton backend, called by their launchers: by default the Jacobi kernels come first.

Triton's interpreter forms float32 products in float32. Here they are rounded as the three-term TF32 of the tensor cores
is, so that the bars are those that a GPU has to meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import svdrd
from svdrd import backends, gradients, library, matmul, reference
from svdrd.ops import basis_loss, polar_factor
from tests.test_photographs import by_autograd, quantiles, relative_error
from tests.zoo import ZOO

EPS = torch.finfo(torch.float32).eps
RCOND = 4 * EPS
INTERPRETED = not torch.cuda.is_available()


def truncated(x: np.ndarray) -> np.ndarray:
    """What tensor cores take of float32: its first 11 bits."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def tf32(x: np.ndarray) -> np.ndarray:
    """float32 rounded to 11 bits, ties away from zero (``cvt.rna.tf32.f32``)."""
    return truncated((x.view(np.uint32) + np.uint32(0x1000)).view(np.float32))


def multiply_accumulate(x: np.ndarray, y: np.ndarray, total: np.ndarray) -> np.ndarray:
    """``total + x y`` as tensor cores do it: exact products, four at a time, their sum truncated to float32."""
    for k in range(0, x.shape[1], 4):
        exact = total + x[:, k : k + 4].astype(np.float64) @ y[k : k + 4].astype(np.float64)
        total = exact.astype(np.float32)
        total = np.where(np.abs(total) > np.abs(exact), np.nextafter(total, np.float32(0)), total)
    return total


def three_term_tf32(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What Triton makes of ``tl.dot(x, y, input_precision="tf32x3")``: it rounds the big parts alone."""
    (x_big, y_big), zero = (tf32(x), tf32(y)), np.zeros((x.shape[0], y.shape[1]), np.float32)
    x_small, y_small = truncated(x - x_big), truncated(y - y_big)
    return multiply_accumulate(
        x_big, y_big, multiply_accumulate(x_big, y_small, multiply_accumulate(x_small, y_big, zero))
    )


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    record = next(record for record in backends.describe() if record.name == "triton")
    if not record.available:
        pytest.skip(f"triton: {record.reason}")
    with svdrd.use_backend("triton"):
        yield


@pytest.fixture(autouse=True)
def _rounded_as_by_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    if not INTERPRETED:
        return
    from triton.runtime import interpreter

    def create_dot(self: Any, x: Any, y: Any, total: Any, precision: Any, *_: Any) -> Any:
        assert str(precision).endswith("IEEE" if x.data.dtype == np.float64 else "TF32x3")
        product = x.data @ y.data if x.data.dtype == np.float64 else three_term_tf32(x.data, y.data)
        return interpreter.TensorHandle(product + total.data, total.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture
def fused(_triton: None) -> Any:
    from svdrd.triton import fused

    return fused


def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


def zoo(m: int, n: int, names: list[str] | None = None) -> Tensor:
    return torch.stack([ZOO[name](m, n) for name in names or list(ZOO)]).to(device(), torch.float32)


def polar_factor_and_vjp(fused: Any, a: Tensor, g: Tensor, smooth: float = 0.0) -> tuple[Tensor, Tensor]:
    p, *factors = fused.polar_factor(a, RCOND, smooth, False)
    return p, fused.polar_factor_backward(g, a, p, *factors, RCOND, smooth)


def test_emulated_products_round_as_three_term_tf32_does() -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((16, 32)).astype(np.float32) for _ in range(2))
    exact = x.astype(np.float64) @ y.T.astype(np.float64)
    scale = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
    error = np.abs(three_term_tf32(x, y.T.copy()) - exact) / scale
    assert EPS / 16 < error.max() < 4 * EPS
    rounded = np.abs(multiply_accumulate(tf32(x), tf32(y.T.copy()), np.zeros((16, 16), np.float32)) - exact) / scale
    assert rounded.max() > 100 * EPS


@pytest.mark.parametrize(("m", "n"), [(16, 16), (7, 12), (32, 32), (41, 23)])
def test_zoo(fused: Any, m: int, n: int) -> None:
    """The bounds of tests/test_matmul.py for the same algorithm in PyTorch's float32."""
    names = list(ZOO)[:: 1 if m == n else 3]  # a matrix takes the interpreter a third of a second
    a = zoo(m, n, names)
    g = torch.randn(a.shape, generator=torch.Generator().manual_seed(0)).to(a)
    p, derivative = polar_factor_and_vjp(fused, a, g)
    exact, *factors = reference.polar_factor(a.double(), RCOND, 0.0)
    expected = gradients.polar_factor_vjp(g.double(), *factors)
    values = torch.linalg.svdvals(a.double())
    relative = values / values[:, :1].clamp(min=1e-300)
    # Within rounding of the threshold either decision is right.
    clear = ~((relative > RCOND / 4) & (relative < 4 * RCOND)).any(-1)
    assert clear.sum() > len(names) / 2
    assert torch.isfinite(derivative).all()
    smallest = torch.where(relative > RCOND, relative, torch.inf).amin(-1).clamp(max=1.0)
    error = torch.linalg.matrix_norm(p.double() - exact)
    assert (error <= 30 * max(m, n) * EPS / smallest)[clear].all()
    assert (matmul.certificate(a, p)[clear] < 30 * max(m, n) * EPS).all()
    steepest = torch.linalg.matrix_norm(g.double()) / (smallest * values[:, 0].clamp(min=1e-300))
    error = torch.linalg.matrix_norm(derivative.double() - expected)
    assert (error <= 10 * max(m, n) * EPS / smallest * steepest)[clear].all()
    zero = names.index("zero")
    assert (p[zero] == 0).all()
    assert (derivative[zero] == 0).all()


@pytest.mark.parametrize(("m", "n"), [(16, 16), (5, 9), (20, 18)])
def test_smoothed(fused: Any, m: int, n: int) -> None:
    a = zoo(m, n, ["zero", "clustered", "rank k/2"])
    g = torch.randn(a.shape, generator=torch.Generator().manual_seed(0)).to(a)
    for e in (1e-3, 3.0):
        p, derivative = polar_factor_and_vjp(fused, a, g, e)
        exact, u, s, vh = reference.polar_factor(a.double(), 0.0, e)
        bound = 30 * max(m, n) * EPS * (1 + s[:, 0] / e)
        assert (torch.linalg.matrix_norm(p.double() - exact) <= bound).all()
        error = torch.linalg.matrix_norm(derivative.double() - gradients.polar_factor_vjp(g.double(), u, s, vh, e))
        # The Jacobian is bounded by 1/e; the error of H, which it is solved with, enters twice.
        assert (error <= 3 * bound * torch.linalg.matrix_norm(g.double()) / e).all()


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-42])
def test_every_scale(fused: Any, scale: float) -> None:
    a = (zoo(6, 6, ["random", "rank k-1"]).double() * scale).float()
    for smooth in (0.0, scale):
        p, derivative = polar_factor_and_vjp(fused, a, torch.ones_like(a), smooth)
        assert torch.isfinite(p).all()
        assert torch.isfinite(derivative).all()
        if scale > 1e-40:  # the others have lost their digits
            torch.testing.assert_close(p[0], reference.polar_factor(a.double(), RCOND, smooth)[0][0].float())


def test_same_bits_in_any_batch(fused: Any) -> None:
    """Alone, and beside one with a NaN, which is NaN for itself."""
    a = zoo(9, 16, ["image", "random", "geometric"])
    g = torch.ones_like(a)
    p, derivative = polar_factor_and_vjp(fused, a, g)
    broken = a.clone()
    broken[1, 3, 5] = torch.nan
    for one, other in zip(polar_factor_and_vjp(fused, broken, g), (p, derivative), strict=True):
        assert one[1].isnan().all()
        assert torch.equal(one[::2], other[::2])
    for one, other in zip(polar_factor_and_vjp(fused, a[2:], g[2:]), (p, derivative), strict=True):
        assert torch.equal(one[0], other[2])
    g[0, 0, 0] = torch.inf
    one = fused.polar_factor_backward(g[:2], a[:2], p[:2], *(a.new_empty(0) for _ in range(3)), RCOND, 0.0)
    assert one[0].isnan().all()
    assert torch.equal(one[1], derivative[1])


def test_same_bits_in_parts(fused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two blocks and one, and of one each."""
    a = zoo(5, 3, ["image", "random", "rank k-1"])
    g = torch.randn(a.shape, generator=torch.Generator().manual_seed(0)).to(a)
    whole = polar_factor_and_vjp(fused, a, g)[1]
    for limit, value in (("PART_BLOCKS", 2), ("PART", 1)):
        monkeypatch.setattr(fused, limit, value)
        assert torch.equal(polar_factor_and_vjp(fused, a, g)[1], whole)


def image_pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, height, width, generator=generator)
    x[0, : height // 2] = 0.5
    x_hat = (x + 0.05 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    return x_hat.to(device()), x.to(device())


@pytest.mark.parametrize(("block", "smooth"), [((16, 16), 0.0), ((5, 12), 0.1), ((20, 3), 0.0), ((19, 24), 0.0)])
def test_loss_reads_blocks_of_any_shape_from_the_image(fused: Any, block: tuple[int, int], smooth: float) -> None:
    # Several images once: each block takes the interpreter a second.
    x_hat, x = (image[: 2 if block == (20, 3) else 1] for image in image_pair(2 * block[0], 2 * block[1]))
    arguments = (*block, RCOND, smooth)
    loss, *derivatives = fused.basis_loss(x_hat, x, *arguments, True, True)
    exact, *expected = reference.basis_loss(x_hat.double(), x.double(), *arguments, True, True)
    torch.testing.assert_close(loss.double(), exact, atol=1e-5, rtol=0)
    for derivative, other in zip(derivatives, expected, strict=True):
        # A block's error is that of its factors over its smallest singular value.
        assert (derivative.double() - other).norm() < 1e-3 * other.norm()
    without = fused.basis_loss(x_hat, x, *arguments, False, False)
    assert torch.equal(without[0], loss)
    assert without[1].numel() == without[2].numel() == 0


def test_loss_of_equal_and_of_broken_blocks(fused: Any) -> None:
    x = torch.cat(list(zoo(16, 16, ["image", "rank k/2"])), -1)[None]
    loss, derivative, _ = fused.basis_loss(x, x, 16, 16, RCOND, 0.0, True, False)
    assert (loss == 0).all()
    assert (derivative == 0).all()
    broken = x.clone()
    broken[0, 2, 3] = torch.nan
    for pair in ((x.flip(1), broken), (broken, x.flip(1))):
        loss, derivative, _ = fused.basis_loss(*pair, 16, 16, RCOND, 0.0, True, False)
        assert loss.isnan().tolist() == [[[True, False]]]
        assert derivative[..., :16].isnan().all()
        assert torch.isfinite(derivative[..., 16:]).all()


@pytest.mark.parametrize("size", [16, 32])
def test_photographs_beside_lapack(fused: Any, kodak: list[Path], size: int) -> None:
    """float32 errors at or below those of LAPACK and torch's autograd, median and 90 %: blocks of full rank."""
    from torchvision.io import ImageReadMode, decode_image

    picture = decode_image(str(kodak[4]), ImageReadMode.RGB)[1, :256, :256].float() / 255
    blocks = reference.to_blocks(picture[None], size, size)
    s = torch.linalg.svdvals(blocks.double())
    blocks = blocks[s[:, -1] > 4 * RCOND * s[:, 0]]
    blocks = blocks[:: len(blocks) // 16][:16].to(device())
    assert len(blocks) == 16
    g = torch.randn(blocks.shape, generator=torch.Generator().manual_seed(0)).to(blocks)
    exact, *factors = reference.polar_factor(blocks.double(), RCOND, 0.0)
    expected = exact, gradients.polar_factor_vjp(g.double(), *factors)

    def lapack(a: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(a, full_matrices=False)
        return u @ vh

    ours = polar_factor_and_vjp(fused, blocks, g)
    theirs = by_autograd(lapack, blocks, g)
    errors = [
        quantiles(relative_error(x, y).nan_to_num(torch.inf))
        for result in (ours, theirs)
        for x, y in zip(result, expected, strict=True)
    ]
    print(f"forward {errors[0]}, gradient {errors[1]}; LAPACK float32 {errors[2]}, {errors[3]}")
    assert all(x <= y for x, y in zip(errors[0] + errors[1], errors[2] + errors[3], strict=True))


def test_schedule_is_that_of_the_specification(fused: Any) -> None:
    for rcond in torch.logspace(-7, -0.61, 20, dtype=torch.float64).tolist():
        repeats, count, *coefficients = fused.schedule(max(rcond, EPS))
        first, *later = (matmul.Quintic(*coefficients[i : i + 3]) for i in range(0, 15, 3))
        steps = [first] * repeats + later
        steps = (steps + [matmul.TRUNCATE] * count)[:count]
        assert tuple(steps) == matmul.schedule(max(rcond, EPS))


def test_ahead_of_time_every_form_is_compiled_that_a_launcher_chooses(fused: Any) -> None:
    compiled = set(fused.configurations())
    taken = 0
    for m in range(1, 140):
        for n in range(1, 140):
            for smooth in (0.0, 0.1):
                if fused.takes(m, n, torch.float32, RCOND, smooth):
                    taken += 1
                    assert all(fused.configuration(k, *fused.tile(m, n, smooth)) in compiled for k in fused.KERNELS)
    assert taken > 1000


def test_what_is_not_taken(fused: Any) -> None:
    a = zoo(8, 8, ["random"])
    assert fused.polar_factor(a, RCOND, 0.0, True) is NotImplemented
    assert fused.polar_factor(a.double(), RCOND, 0.0, False) is NotImplemented
    assert fused.polar_factor(a, 0.3, 0.0, False) is NotImplemented
    assert fused.polar_factor(a.new_zeros(1, 65, 65), RCOND, 0.0, False) is NotImplemented
    assert fused.polar_factor(a[:0], RCOND, 0.0, False)[0].shape == (0, 8, 8)
    assert fused.polar_factor_backward(a, a, a, a, a[:, 0], a, RCOND, 0.0) is NotImplemented


def test_the_operators_ask_in_the_order_of_the_table(fused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from svdrd.triton import choice

    assert library._triton_launcher("choice.basis_loss") in library._kernels("triton", "basis_loss")
    assert choice.order(12, 100)[0] == "jacobi"
    assert choice.order(100, 100) == ("products",)
    monkeypatch.setitem(choice.ORDER, 8, ("fused", "jacobi"))
    a = zoo(6, 8, ["random"])
    p, derivative = polar_factor_and_vjp(fused, a, torch.ones_like(a))
    # Factors, which Jacobi forms, are not asked for.
    result = polar_factor(a.requires_grad_())
    assert torch.equal(result, p)
    assert torch.equal(torch.autograd.grad(result, a, torch.ones_like(a))[0], derivative)
    x_hat, x = image_pair(12, 5)
    expected, derivative, _ = fused.basis_loss(x_hat, x, 12, 5, RCOND, 0.0, True, False)
    x_hat.requires_grad_()
    loss = basis_loss(x_hat, x, reduction="none")
    assert torch.equal(loss, expected[:, 0, 0])
    assert torch.equal(torch.autograd.grad(loss.sum(), x_hat)[0], derivative)
