import math

import pytest
import torch

pytest.importorskip("compressai")

from compressai.utils.eval_model.__main__ import compute_metrics

from svdrd.compress.images.metrics import ms_ssim_8bit, psnr, to_8bit


def test_agree_with_eval_model_image_by_image():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 176, 192, generator=generator)
    # Beyond [0, 1] too: clamping belongs to the definition.
    x_hat = x + torch.tensor([0.01, 0.1, 0.4]).reshape(3, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    for i in range(3):
        theirs = compute_metrics(x[i : i + 1], x_hat[i : i + 1])
        assert psnr(x_hat, x)[i].item() == pytest.approx(theirs["psnr-rgb"], rel=1e-6)
        assert ms_ssim_8bit(x_hat, x)[i].item() == pytest.approx(theirs["ms-ssim-rgb"], rel=1e-6)


def test_psnr_of_a_known_error():
    x = torch.full((1, 3, 8, 8), 100 / 255)
    assert psnr(x + 2 / 255, x).item() == pytest.approx(10 * math.log10(255**2 / 4))
    assert psnr(x, x).item() == math.inf
    # Less than half a level vanishes in an 8-bit file.
    assert psnr(x + 0.4 / 255, x).item() == math.inf


def test_to_8bit_clamps_and_rounds():
    assert to_8bit(torch.tensor([-0.1, 0.0, 0.5 / 255 + 1e-4, 1.0, 1.7])).tolist() == [0, 0, 1, 255, 255]


def test_ms_ssim_of_images_too_small_for_it():
    x = torch.rand(2, 3, 160, 400)
    assert torch.isnan(ms_ssim_8bit(x, x)).tolist() == [True, True]
    assert ms_ssim_8bit(torch.ones(1, 3, 161, 161), torch.ones(1, 3, 161, 161)).item() == pytest.approx(1)
