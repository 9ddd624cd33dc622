import argparse
import urllib.error
from pathlib import Path

import pytest
import torch

pytest.importorskip("compressai")

from compressai.registry import MODELS
from compressai.zoo import image_models
from compressai.zoo.image import model_urls

from svdrd.compress import BadInput, lambda_for, load_codec
from svdrd.compress.codecs import models

TINY = {"N": 8, "M": 12}
FIXED_RATE = sorted(set(image_models) - {name for name in image_models if name.endswith("-vbr")})


def tiny(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return load_codec(name, init="random", **({"N": 8} if name.startswith("cheng") else TINY))


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_every_image_model_of_the_zoo_is_known_and_nothing_but_codecs():
    codecs = models.image_codecs()
    assert list(codecs)[: len(image_models)] == list(image_models)
    assert "elic2022-official" in codecs
    assert "ssf2020" not in codecs
    assert len(codecs) < len(MODELS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_in_16_bits_keeps_the_constants_of_the_code(tmp_path: Path, dtype: torch.dtype):
    """1e-9 is 0 in float16: likelihoods would be 0, rates infinite and their gradients NaN."""
    path = tmp_path / "half.pth.tar"
    codec = load_codec("bmshj2018-hyperprior", init="random", N=8, M=12)
    torch.save({"state_dict": {key: value.to(dtype) for key, value in codec.state_dict().items()}}, path)
    loaded = load_codec("bmshj2018-hyperprior", checkpoint=path)
    for (name, value), expected in zip(loaded.named_buffers(), codec.buffers(), strict=True):
        if name.endswith((".bound", ".pedestal")):
            assert torch.equal(value, expected), name
    for (name, value), expected in zip(loaded.named_parameters(), codec.parameters(), strict=True):
        assert torch.equal(value, expected.to(dtype).float()), name
    x = torch.rand(1, 3, 64, 64)
    # Latents far outside of what their scales allow.
    likelihoods = loaded.gaussian_conditional(100 * loaded.g_a(x), torch.full((1, 12, 4, 4), 0.11))[1]
    assert likelihoods.min() == torch.tensor(1e-9)
    (gradient,) = torch.autograd.grad(-likelihoods.log2().sum(), [loaded.g_a[0].weight])
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", FIXED_RATE)
def test_random_model_of_every_name(name: str):
    model = tiny(name)
    assert type(model) is MODELS[name]
    assert model.training
    assert model(torch.rand(1, 3, 64, 64))["x_hat"].shape == (1, 3, 64, 64)


def test_random_model_takes_its_size_from_the_quality():
    assert load_codec("bmshj2018-hyperprior", quality=2, init="random").g_a[6].weight.shape[:2] == (192, 128)


@pytest.mark.parametrize("updated", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "module.module."])
@pytest.mark.parametrize("layout", ["state_dict", "network", None])
def test_checkpoint(tmp_path: Path, updated: bool, prefix: str, layout: str | None):
    model = tiny("mbt2018-mean")
    if updated:
        model.update()
    state = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save({layout: state, "epoch": 3} if layout else state, tmp_path / "c.pth.tar")
    loaded = load_codec("mbt2018-mean", checkpoint=tmp_path / "c.pth.tar")
    assert same_weights(loaded, model)
    assert loaded.gaussian_conditional._quantized_cdf.numel() == model.gaussian_conditional._quantized_cdf.numel()


def older(key: str, layout: str) -> str:
    """The names of CompressAI 1.0, and of 1.1 to 1.2.6."""
    for old, present in (("_matrix", "matrices."), ("_bias", "biases."), ("_factor", "factors.")):
        name = {"1.0": {"_matrix": "_matrices.", "_bias": "_biases.", "_factor": "_factors."}[old], "1.1": old}[layout]
        key = key.replace(f"entropy_bottleneck.{present}", f"entropy_bottleneck.{name}")
    return key


@pytest.mark.parametrize("updated", [False, True])
@pytest.mark.parametrize("layout", ["1.0", "1.1"])
def test_checkpoint_of_an_older_compressai(tmp_path: Path, layout: str, updated: bool):
    model = tiny("mbt2018")
    if updated:
        model.update()
    state = {older(key, layout): value for key, value in model.state_dict().items()}
    assert "entropy_bottleneck.matrices.0" not in state
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "c.pth.tar")
    loaded = load_codec("mbt2018", checkpoint=tmp_path / "c.pth.tar")
    assert same_weights(loaded, model)


def test_checkpoint_without_tables(tmp_path: Path):
    """Weights alone; the tables are made from them."""
    model = tiny("mbt2018-mean")
    tables = ("_offset", "_quantized_cdf", "_cdf_length")
    state = {key: value for key, value in model.state_dict().items() if not key.endswith(tables)}
    torch.save({"state_dict": state}, tmp_path / "c.pth.tar")
    loaded = load_codec("mbt2018-mean", checkpoint=tmp_path / "c.pth.tar")
    assert same_weights(loaded, model)
    for codec in (loaded, model):
        codec.eval().update(force=True)
    x = torch.rand(1, 3, 64, 64)
    assert loaded.compress(x)["strings"] == model.compress(x)["strings"]


@pytest.mark.parametrize(
    ("written", "read", "said"),
    [
        ("bmshj2018-hyperprior", "bmshj2018-factorized", "keys unexpected (h_a.0."),
        ("bmshj2018-factorized", "bmshj2018-hyperprior", "keys missing (h_a.0."),
        ("bmshj2018-hyperprior", "cheng2020-anchor", "keys missing"),
        ("bmshj2018-factorized", "bmshj2018-factorized-relu", "keys unexpected (g_a.1."),
        # These two have the same keys.
        ("mbt2018-mean", "bmshj2018-hyperprior", "shapes differ, the first: size mismatch for"),
    ],
)
def test_checkpoint_of_another_model(tmp_path: Path, written: str, read: str, said: str):
    torch.save({"state_dict": tiny(written).state_dict()}, tmp_path / "c.pth.tar")
    with pytest.raises(BadInput) as caught:
        load_codec(read, checkpoint=tmp_path / "c.pth.tar")
    message = str(caught.value)
    assert message.startswith(f"checkpoint '{tmp_path / 'c.pth.tar'}': not a {read}: ")
    assert said in message
    assert "\n" not in message


def test_checkpoint_without_weights(tmp_path: Path):
    torch.save({"epoch": 3}, tmp_path / "c.pth.tar")
    with pytest.raises(BadInput, match="holds epoch; wanted a 'state_dict'"):
        load_codec("mbt2018", checkpoint=tmp_path / "c.pth.tar")


class Harmful(argparse.Namespace):
    """What pickle would call on loading, were code in checkpoints allowed."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path(self.path),)


def test_checkpoint_cannot_run_code(tmp_path: Path):
    torch.save({"state_dict": Harmful(path=str(tmp_path / "touched"))}, tmp_path / "c.pth.tar")
    with pytest.raises(BadInput, match="not readable as tensors and plain values"):
        load_codec("mbt2018", checkpoint=tmp_path / "c.pth.tar")
    assert not (tmp_path / "touched").exists()


def test_zoo_weights_come_from_torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = tiny("bmshj2018-hyperprior")
    model.update()
    file = tmp_path / "hub" / "checkpoints" / Path(model_urls["bmshj2018-hyperprior"]["ms-ssim"][4]).name
    file.parent.mkdir(parents=True)
    torch.save(model.state_dict(), file)
    assert same_weights(load_codec("bmshj2018-hyperprior", quality=4, metric="ms-ssim"), model)


def test_zoo_weights_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_network(*_args: object, **_options: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(BadInput, match=r"no network.*put that file into .*hub/checkpoints"):
        load_codec("bmshj2018-hyperprior", quality=4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "bmshj2018-hyperpior"}, "model 'bmshj2018-hyperpior': .* did you mean bmshj2018-hyperprior"),
        ({"name": "jpeg"}, "CompressAI has bmshj2018-factorized, "),
        ({"name": "ssf2020"}, "no such image codec"),
        ({"name": "mbt2018", "quality": 9}, "quality=9: mbt2018 has qualities 1 to 8"),
        ({"name": "cheng2020-anchor", "quality": 7}, "quality=7: cheng2020-anchor has qualities 1 to 6"),
        ({"name": "mbt2018", "quality": 0}, "quality=0: mbt2018 has qualities 1 to 8"),
        ({"name": "mbt2018"}, "quality=None: mbt2018 has zoo weights for qualities 1 to 8"),
        ({"name": "mbt2018", "quality": 3, "N": 8}, "the zoo's weights fix the size"),
        # CompressAI's zoo function of this name returns bmshj2018-factorized.
        ({"name": "bmshj2018-factorized-relu", "quality": 1}, "has no mse weights for it"),
        ({"name": "mbt2018-vbr", "metric": "ms-ssim"}, "has no ms-ssim weights for it"),
        ({"name": "mbt2018", "init": "zero"}, "init='zero'"),
        ({"name": "bmshj2018-hyperprior", "init": "random"}, "bmshj2018-hyperprior takes N, M"),
        ({"name": "bmshj2018-hyperprior", "init": "random", "K": 3}, "bmshj2018-hyperprior takes N, M"),
        ({"name": "mbt2018", "checkpoint": "missing.pth.tar"}, "'missing.pth.tar': no such file"),
        ({"name": "mbt2018", "checkpoint": __file__}, "not readable as tensors"),
    ],
)
def test_bad_input(arguments: dict, said: str):
    with pytest.raises(BadInput, match=said) as caught:
        load_codec(**arguments)
    assert "\n" not in str(caught.value)


def test_lambdas_are_the_zoos():
    assert [lambda_for("mbt2018", quality) for quality in range(1, 9)] == [
        0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.0483, 0.0932, 0.18,
    ]  # fmt: skip
    assert lambda_for("cheng2020-attn", 6, "ms-ssim") == 60.5
    for name, quality, metric in (
        ("cheng2020-attn", 7, "mse"),
        ("mbt2018-vbr", 1, "mse"),
        ("elic2022-official", 1, "mse"),
        ("mbt2018", 1, "psnr"),
    ):
        with pytest.raises(BadInput):
            lambda_for(name, quality, metric)
