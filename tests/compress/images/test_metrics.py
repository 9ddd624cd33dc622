import math

import pytest
import torch

pytest.importorskip("compressai")

from compressai.utils.eval_model.__main__ import compute_metrics

from svdrd.compress import options
from svdrd.compress.images.metrics import MEASURES, basis_distance, gmsd_8bit, ms_ssim_8bit, psnr, to_8bit


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


def polar(a: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(a.double(), full_matrices=False)
    return u @ vh


def test_the_basis_distance_is_that_of_the_patches_around_the_centre() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 512 + 6, 256 + 9, generator=generator)
    x_hat = (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    a, b = (to_8bit(image)[:, :, 3 : 3 + 512, 4 : 4 + 256] / 255 for image in (x_hat, x))
    differences = [(polar(a[:, :, rows]) - polar(b[:, :, rows])).abs() for rows in (slice(256), slice(256, 512))]
    expected = torch.stack(differences).mean((0, 2, 3, 4))
    assert basis_distance(x_hat, x).double() == pytest.approx(expected, rel=1e-4)


def test_a_small_image_is_one_patch() -> None:
    x = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    x_hat = x.flip(0) * 0.9 + 0.05 * x.roll(1, -1)
    expected = (polar(to_8bit(x_hat)) - polar(to_8bit(x))).abs().mean().item()
    assert basis_distance(x_hat, x).item() == pytest.approx(expected, rel=1e-4)


def test_gmsd_is_the_deviation_of_the_similarity_of_gradients() -> None:
    """By hand, from the paper: Prewitt gradients of the halved luma, T = 170."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 40, 40, generator=generator)
    x_hat = (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    prewitt = torch.tensor([[1.0, 0, -1]] * 3) / 3
    magnitudes = []
    for image in (x_hat, x):
        luma = (to_8bit(image) * torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)).sum(1, keepdim=True)
        halved = torch.nn.functional.avg_pool2d(luma, 2)
        kernels = torch.stack([prewitt, prewitt.T]).unsqueeze(1)
        magnitudes.append(torch.nn.functional.conv2d(halved, kernels, padding=1).square().sum(1).sqrt())
    similarity = (2 * magnitudes[0] * magnitudes[1] + 170) / (magnitudes[0] ** 2 + magnitudes[1] ** 2 + 170)
    assert gmsd_8bit(x_hat, x).item() == pytest.approx(similarity.std(correction=0).item(), rel=0.02)


def test_the_options_name_all_measures() -> None:
    assert tuple(MEASURES) == options.MEASURES


@pytest.mark.parametrize("name", MEASURES)
def test_equal_images_have_no_distance(name: str) -> None:
    x = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    assert MEASURES[name](x, x).tolist() == [0, 0]
    assert (MEASURES[name](x * 0.5, x) > 0).all()
