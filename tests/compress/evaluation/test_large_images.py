"""What `svdrd evaluate` does for large images: nothing twice, memory that follows the image, a bar inside of it."""

import io
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_msssim import ms_ssim

pytest.importorskip("compressai")

from compressai.models import (
    CompressionModel,
    FactorizedPrior,
    JointAutoregressiveHierarchicalPriors,
    ScaleHyperprior,
)

from svdrd.compress.evaluation import coding, progress
from svdrd.compress.evaluation.recomposition import recompose_image
from svdrd.compress.images.folders import ImageFolder
from svdrd.compress.images.metrics import ms_ssim_8bit
from tests.compress.conftest import synthetic_photograph


def made(codec: Callable[..., CompressionModel]) -> CompressionModel:
    torch.manual_seed(0)
    model = codec(8, 12)
    model.update()
    return model.eval()


@pytest.mark.parametrize("codec", [FactorizedPrior, ScaleHyperprior])
def test_transforms_are_computed_once_with_the_same_numbers(
    codec: Callable[..., CompressionModel], monkeypatch: pytest.MonkeyPatch
):
    """The pass without entropy coding, behind the coding, is there to be compared with."""
    model, x = made(codec), torch.rand(1, 3, 70, 128)
    calls = []
    for name in ("g_a", "g_s"):
        getattr(model, name)[0].register_forward_hook(lambda *_, name=name: calls.append(name))
    once = coding.code(model, x)
    assert calls == ["g_a", "g_s"]
    monkeypatch.setattr(coding, "_remembering", lambda forward: forward)
    twice = coding.code(model, x)
    assert calls[2:] == ["g_a", "g_s", "g_a", "g_s"]
    assert torch.equal(once.x_hat, twice.x_hat)
    assert once.bpp == twice.bpp
    assert "forward" not in vars(model.g_a)


def test_other_latents_are_decoded_again(monkeypatch: pytest.MonkeyPatch):
    """A decoder that reads something else is found out, as before."""
    model = made(ScaleHyperprior)
    with torch.no_grad():
        model.g_a[6].weight.mul_(300)
    decompress = model.gaussian_conditional.decompress

    def other(*args: Any) -> torch.Tensor:
        return decompress(*args) + 3

    monkeypatch.setattr(model.gaussian_conditional, "decompress", other)
    decoded = []
    model.g_s.register_forward_hook(lambda _module, _inputs, output: decoded.append(output.clone()))
    coding.code(model, torch.rand(1, 3, 64, 64))
    assert not torch.equal(*decoded)


def test_ms_ssim_channel_by_channel_is_that_of_the_image():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 170, 200)
    x_hat = x + 0.1 * torch.randn_like(x)
    levels = [(255 * image).clamp(0, 255).round() for image in (x_hat, x)]
    whole = ms_ssim(*levels, data_range=255, size_average=False)
    assert torch.allclose(ms_ssim_8bit(x_hat, x), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("codec", [ScaleHyperprior, JointAutoregressiveHierarchicalPriors])
@pytest.mark.parametrize("coder", [coding.code, coding.estimate, recompose_image])
def test_the_bar_knows_its_end(codec: Callable[..., CompressionModel], coder: Callable[..., Any]):
    """Also of codecs that compute layers for every latent position."""
    model, x = made(codec), torch.rand(1, 3, 100, 200)
    inside = progress.InsideAnImage(model, coder, shown=True)
    expected = inside.layers(x)
    assert inside._count(x) == expected
    autoregressive = codec is JointAutoregressiveHierarchicalPriors and coder is not coding.estimate
    # 8 x 16 positions, in the encoder and in the decoder.
    assert (expected > 2 * 128) == autoregressive


def test_a_bar_for_each_image_that_takes_long(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    for seed in range(2):
        synthetic_photograph(161, 161, seed).save(tmp_path / f"{seed}.png")
    images, model = ImageFolder(tmp_path), made(ScaleHyperprior)
    for delay, bars in ((0.0, True), (60.0, False)):
        monkeypatch.setattr(progress, "SECONDS_WITHOUT_A_BAR", delay)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        results = coding.evaluate(model, images, progress=True)
        shown = sys.stderr.getvalue()
        assert ("1.png: 100%" in shown or "1.png:   0%" in shown) == bars
        assert "2/2" in shown
    silent = coding.evaluate(model, images)
    assert [image["results"]["bpp"] for image in silent] == [image["results"]["bpp"] for image in results]
