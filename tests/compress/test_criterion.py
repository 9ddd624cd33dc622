import math

import numpy as np
import pytest
import torch

pytest.importorskip("compressai")

from compressai.losses import RateDistortionLoss
from compressai.registry import CRITERIONS
from pytorch_msssim import ms_ssim

from svdrd.compress import BadInput, BasisRateDistortionLoss


def images_and_likelihoods(side: int = 32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 3, side, side, generator=generator)
    x_hat = (x + 0.1 * torch.randn(x.shape, generator=generator)).requires_grad_()
    likelihoods = {
        "y": torch.rand(2, 12, side // 16, side // 16, generator=generator).clamp(0.01).requires_grad_(),
        "z": torch.rand(2, 8, 1, 1, generator=generator).clamp(0.01).requires_grad_(),
    }
    return {"x_hat": x_hat, "likelihoods": likelihoods}, x


def basis_by_hand(x_hat: torch.Tensor, x: torch.Tensor, block: int) -> np.ndarray:
    """|U1 V1^T - U2 V2^T| of every block, in float64 with numpy's SVD; the blocks here have full rank."""

    def polar(a: torch.Tensor) -> np.ndarray:
        blocks = a.detach().double().unfold(-2, block, block).unfold(-2, block, block).numpy()
        u, _, vh = np.linalg.svd(blocks)
        return u @ vh

    return np.abs(polar(x_hat) - polar(x))


def bpp_by_hand(output: dict, x: torch.Tensor) -> float:
    bits = -sum(
        float(torch.log2(likelihoods.detach().double()).sum()) for likelihoods in output["likelihoods"].values()
    )
    return bits / (x.shape[0] * x.shape[2] * x.shape[3])


def test_is_registered():
    assert CRITERIONS["BasisRateDistortionLoss"] is BasisRateDistortionLoss


@pytest.mark.parametrize(("metric", "side"), [("mse", 32), ("ms-ssim", 192)])
def test_without_basis_term_it_is_compressais_loss(metric: str, side: int):
    output, x = images_and_likelihoods(side)
    theirs = RateDistortionLoss(lmbda=0.025, metric=metric)(output, x)
    ours = BasisRateDistortionLoss(lmbda=0.025, mu=0.0, metric=metric, block_size=16)(output, x)
    assert set(ours) == set(theirs) | {"mse_loss", "basis_loss"}
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-6, atol=0)
    inputs = [output["x_hat"], *output["likelihoods"].values()]
    for a, b in zip(
        torch.autograd.grad(ours["loss"], inputs), torch.autograd.grad(theirs["loss"], inputs), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("reduction", "scale", "block"), [("mean", 1.0, 32), ("mean", 255.0**2, 8), ("sum", 0.5, 16)])
def test_against_numpy(reduction: str, scale: float, block: int):
    output, x = images_and_likelihoods()
    lmbda, mu = 0.013, 10.0
    out = BasisRateDistortionLoss(
        lmbda, mu, block_size=None if block == 32 else block, reduction=reduction, basis_scale=scale
    )(output, x)
    difference = basis_by_hand(output["x_hat"], x, block)
    basis = difference.mean() if reduction == "mean" else difference.sum()
    mse = float(((output["x_hat"].detach().double() - x.double()) ** 2).mean())
    # Loss and parts are float32 sums over 6144 entries; the polar factors carry a few eps times the condition number.
    assert out["basis_loss"].item() == pytest.approx(basis, rel=1e-4)
    assert out["mse_loss"].item() == pytest.approx(mse, rel=1e-5)
    assert out["bpp_loss"].item() == pytest.approx(bpp_by_hand(output, x), rel=1e-5)
    expected = bpp_by_hand(output, x) + lmbda * (255**2 * mse + mu * scale * basis)
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_ms_ssim_with_basis_term_by_hand():
    output, x = images_and_likelihoods(192)
    out = BasisRateDistortionLoss(lmbda=8.73, mu=0.5, metric="ms-ssim")(output, x)
    similarity = ms_ssim(output["x_hat"], x, data_range=1).item()
    basis = basis_by_hand(output["x_hat"], x, 192).mean()
    assert out["loss"].item() == pytest.approx(bpp_by_hand(output, x) + 8.73 * (1 - similarity + 0.5 * basis), rel=1e-4)


def test_the_gradient_of_the_basis_term_is_added_with_its_weight():
    output, x = images_and_likelihoods()
    x_hat = output["x_hat"]

    def gradient(mu: float, key: str) -> torch.Tensor:
        return torch.autograd.grad(BasisRateDistortionLoss(0.02, mu)(output, x)[key], x_hat)[0]

    expected = gradient(0.0, "loss") + 0.02 * 7.0 * gradient(7.0, "basis_loss")
    torch.testing.assert_close(gradient(7.0, "loss"), expected, rtol=1e-4, atol=1e-7)


def test_control_reports_the_basis_loss_without_gradient():
    output, x = images_and_likelihoods()
    with_term = BasisRateDistortionLoss(mu=10.0)(output, x)
    control = BasisRateDistortionLoss(mu=0.0)(output, x)
    assert control["basis_loss"].item() == with_term["basis_loss"].item()
    assert not control["basis_loss"].requires_grad
    unmonitored = BasisRateDistortionLoss(mu=0.0, monitor_basis=False)(output, x)
    assert "basis_loss" not in unmonitored
    assert unmonitored["loss"].item() == control["loss"].item()


def test_rate_and_basis_are_float32_under_autocast():
    output, x = images_and_likelihoods()
    output["x_hat"] = output["x_hat"].bfloat16()
    criterion = BasisRateDistortionLoss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = criterion(output, x)
    assert {value.dtype for value in out.values()} == {torch.float32}
    outside = criterion({**output, "x_hat": output["x_hat"].float()}, x)
    assert {key: value.item() for key, value in out.items()} == {key: value.item() for key, value in outside.items()}


def test_return_type_selects_one_value():
    output, x = images_and_likelihoods()
    everything = BasisRateDistortionLoss()(output, x)
    assert BasisRateDistortionLoss(return_type="basis_loss")(output, x).item() == everything["basis_loss"].item()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"lmbda": 0.0}, "lmbda=0.0"),
        ({"lmbda": math.nan}, "lmbda=nan"),
        ({"mu": -1.0}, "mu=-1.0"),
        ({"metric": "psnr"}, "mse, ms-ssim"),
        ({"reduction": "none"}, "reduction='none'"),
        ({"basis_scale": 0.0}, "basis_scale=0.0"),
        ({"return_type": "total"}, "return_type='total'"),
    ],
)
def test_errors_name_argument_and_value(arguments: dict, named: str):
    with pytest.raises(BadInput, match=named):
        BasisRateDistortionLoss(**arguments)


def test_block_size_that_does_not_divide_is_the_ops_error():
    output, x = images_and_likelihoods()
    with pytest.raises(ValueError, match="block_size"):
        BasisRateDistortionLoss(block_size=7)(output, x)
