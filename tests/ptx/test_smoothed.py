"""The smoothed derivative of the Jacobi kernels, compiled and executed, where s_1 is far above ``smooth``."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="no Triton beside this PyTorch")

import torch

from svdrd.backends.triton import jacobi
from tests import closed_form
from tests.ptx import cases, triton_launch

# As mended: with r_j - r_i in its formula the derivative was 0.25 % off at 2^20, by a factor of 2 at 2^24, NaN at 2^27.
POWERS = (0, 20, 24, 27, 40)
SIZE, COUNT, EPS = 4, 13, torch.finfo(torch.float32).eps


def spectra() -> torch.Tensor:
    """``(2^power, 1, 1, 1)``, in turns with the largest first and last, so that more than one program is full."""
    s = torch.ones(COUNT, SIZE, dtype=torch.float64)
    for k in range(COUNT):
        s[k, 0 if k % 2 else -1] = 2.0 ** POWERS[k % len(POWERS)]
    return s


@pytest.mark.parametrize("target", [80, 90])
def test_polar_factor_and_its_derivative(target: int) -> None:
    s = spectra()
    a = torch.diag_embed(s).float()
    g = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    with triton_launch.emulation(target, cases.options(target)) as records:
        p, u, values, vh = jacobi.polar_factor(a, 0.0, cases.SMOOTH, True)
        derivative = jacobi.polar_factor_backward(g, a, p, u, values, vh, 0.0, cases.SMOOTH)
    assert {record.name for record in records} == {"polar_kernel", "polar_backward_kernel"}
    for k in range(COUNT):
        expected = closed_form.value(s[k], SIZE, SIZE, cases.SMOOTH)
        torch.testing.assert_close(p[k].double(), expected, atol=8 * EPS, rtol=0)
        expected = closed_form.derivative(s[k], g[k], cases.SMOOTH)
        error = torch.linalg.matrix_norm(derivative[k].double() - expected)
        assert error <= 2 * SIZE * EPS * torch.linalg.matrix_norm(expected), s[k]


@pytest.mark.parametrize("target", [80, 90])
def test_loss(target: int) -> None:
    s, other = spectra(), torch.linspace(2, 9, SIZE, dtype=torch.float64)
    x_hat = torch.diag_embed(s).float().transpose(0, 1).reshape(1, SIZE, COUNT * SIZE)
    x = torch.diag(other).float().repeat(1, COUNT)[None]
    with triton_launch.emulation(target, cases.options(target)) as records:
        loss, derivative, _ = jacobi.basis_loss(x_hat, x, SIZE, SIZE, 0.0, cases.SMOOTH, True, False)
    assert {record.name for record in records} == {"loss_kernel"}
    target_value = closed_form.value(other, SIZE, SIZE, cases.SMOOTH)
    for k in range(COUNT):
        difference = closed_form.value(s[k], SIZE, SIZE, cases.SMOOTH) - target_value
        # P is rounded to eps, and the difference of two with it.
        assert abs(loss.flatten()[k].item() - difference.abs().mean().item()) <= 2 * EPS
        expected = closed_form.derivative(s[k], difference.sign() / SIZE**2, cases.SMOOTH)
        found = derivative[0, :, SIZE * k : SIZE * (k + 1)].double()
        assert torch.linalg.matrix_norm(found - expected) <= 2 * SIZE * EPS * torch.linalg.matrix_norm(expected), s[k]
