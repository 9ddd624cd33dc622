import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("compressai")

from svdrd.compress import BadInput, BasisRateDistortionLoss, load_codec
from svdrd.compress.commands import call
from svdrd.compress.train import loop, precision
from svdrd.compress.train.optimizers import freeze, make_optimizers
from svdrd.compress.train.precision import Precision, likelihoods_in_float32, reproducible_products
from tests.compress.conftest import TINY_CODEC, TINY_RUN, differing, resume, weights

CPU = torch.device("cpu")


def tiny(name: str = "mbt2018-mean") -> torch.nn.Module:
    torch.manual_seed(0)
    return load_codec(name, init="random", N=8, M=12)


@pytest.mark.parametrize("number_format", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["bmshj2018-hyperprior", "mbt2018-mean", "mbt2018"])
def test_likelihoods_and_loss_are_float32(name: str, number_format: str):
    model = tiny(name)
    likelihoods_in_float32(model)
    seen = []
    for part in ("entropy_bottleneck", "gaussian_conditional"):
        module = getattr(model, part)
        likelihood = module._likelihood

        def spied(*tensors: torch.Tensor | None, likelihood: Callable[..., Any] = likelihood) -> Any:
            seen.append([tensor.dtype for tensor in tensors if tensor is not None])
            return likelihood(*tensors)

        module._likelihood = spied
    x = torch.rand(2, 3, 64, 64)
    with Precision(number_format, CPU).autocast():
        output = model(x)
    assert output["x_hat"].dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[number_format]
    assert {value.dtype for value in output["likelihoods"].values()} == {torch.float32}
    # The latents in it, too: the noise is drawn and added in float32.
    assert {dtype for dtypes in seen for dtype in dtypes} == {torch.float32}
    losses = BasisRateDistortionLoss(0.01)(output, x)
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_noise_survives_large_latents():
    """In bfloat16, 100 + noise would be 100 or 100.5; uniform noise has a standard deviation of 0.2887."""
    bottleneck = tiny("bmshj2018-factorized").entropy_bottleneck
    holder = torch.nn.ModuleList([bottleneck])
    x = torch.full((1, 12, 64, 64), 100.0, dtype=torch.bfloat16)
    likelihoods_in_float32(holder)
    with torch.autocast("cpu", torch.bfloat16):
        x_hat, _ = bottleneck(x)
    noise = x_hat - 100
    assert noise.unique().numel() > 10_000
    assert noise.std().item() == pytest.approx(12**-0.5, rel=0.02)


@pytest.mark.parametrize("number_format", ["bf16", "fp16"])
def test_mixed_precision_trains_like_fp32_and_resumes(
    train: Callable[..., dict[str, Any]], tmp_path: Path, number_format: str
):
    options = ("--crops-per-image", 4, "--epochs", 3)
    exact = train("fp32", *options)["metrics"]
    mixed = train("mixed", *options, "--precision", number_format)
    # A few bits of x_hat: within some percent after 30 steps, and both learn.
    assert mixed["metrics"][-1]["train_loss"] == pytest.approx(exact[-1]["train_loss"], rel=0.05)
    assert mixed["metrics"][-1]["train_loss"] < 0.8 * mixed["metrics"][0]["train_loss"]
    assert mixed["skipped_steps"] == 0
    assert {value.dtype for value in weights(mixed).values() if value.is_floating_point()} == {torch.float32}
    train("resumed", *options, "--precision", number_format, "--steps", 20)
    assert differing(mixed, resume(tmp_path / "resumed", "--steps", 30)) == []
    with pytest.raises(BadInput, match=f"the run has precision {number_format}, given is fp32"):
        resume(tmp_path / "mixed", "--precision", "fp32")


def test_an_overflow_of_float16_is_no_fault(
    train: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The scale begins too large, comes down, and nobody is blamed; Adam does not see those steps."""
    monkeypatch.setattr(precision, "FIRST_SCALE", 2.0**120)
    state = train("run", "--precision", "fp16", "--crops-per-image", 20, "--epochs", 3)
    assert state["skipped_steps"] == 0
    assert "skipped" not in capsys.readouterr().err
    assert state["scaler"]["scale"] < 2.0**120
    taken = {int(entry["step"]) for entry in state["optimizer"]["state"].values()}
    assert len(taken) == 1
    assert 0 < taken.pop() < 150


@pytest.mark.parametrize(
    "options", [("--tf32",), ("--channels-last",), ("--accumulate", 2)], ids=["tf32", "channels-last", "accumulate"]
)
def test_options_that_only_round_differently(train: Callable[..., dict[str, Any]], options: tuple[object, ...]):
    plain = train("plain", "--epochs", 2)["metrics"]
    other = train("other", "--epochs", 2, *options)["metrics"]
    for a, b in zip(plain, other, strict=True):
        # channels_last draws the same noise for other latents.
        rel = 0.05 if "--channels-last" in options else 1e-4
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=rel)
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=rel)


def test_compiled_training_is_the_training(train: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch):
    """Its checkpoints have no trace of it; every sixth step measures the terms, on the model as it was.

    Without the generation of code, which takes minutes; all else that --compile does to a model is done here.
    """
    from torch._dynamo.backends.debugging import aot_eager

    translated, after_step = 0, []

    def counting(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        nonlocal translated
        translated += 1
        return aot_eager(module, inputs)

    take = loop.Training.train_step

    def train_step(self: loop.Training, batch: Any) -> dict[str, float] | None:
        values = take(self, batch)
        after_step.append(translated)
        return values

    options = ("--epochs", 4, "--gradient-norms", 6)
    plain = train("plain", *options)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
    monkeypatch.setattr(loop.Training, "train_step", train_step)
    compiled = train("compiled", *options, "--compile")
    assert weights(compiled).keys() == weights(plain).keys()
    for a, b in zip(plain["metrics"], compiled["metrics"], strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-3)
    # The first epoch has batches of both sizes; after it nothing is translated again.
    assert after_step[0] > 0
    assert after_step[3:] == [after_step[2]] * 9


def test_reproducible_products_restores_what_it_found():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    for tf32, wanted in ((True, "high"), (False, "highest")):
        with reproducible_products(tf32):
            assert torch.get_float32_matmul_precision() == wanted
            assert torch.backends.cudnn.allow_tf32 is tf32
            assert torch.backends.cudnn.deterministic
    after = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    assert before == after


@pytest.mark.parametrize(
    ("parts", "frozen"),
    [
        (["encoder"], ("g_a.",)),
        (["decoder"], ("g_s.",)),
        (["entropy"], ("h_a.", "h_s.", "entropy_bottleneck.")),
        (["encoder", "h_a"], ("g_a.", "h_a.")),
        (["g_s.6", "g_s.0.bias"], ("g_s.6.", "g_s.0.bias")),
        (["entropy_bottleneck.quantiles"], ("entropy_bottleneck.quantiles",)),
    ],
)
def test_frozen_parts_stay_and_the_others_train(
    train: Callable[..., dict[str, Any]], tmp_path: Path, parts: list[str], frozen: tuple[str, ...]
):
    torch.manual_seed(0)
    start = load_codec("bmshj2018-hyperprior", init="random", N=8, M=12)
    state = train("run", "--freeze", *parts, "--epochs", 2)
    for name, value in start.named_parameters():
        assert torch.equal(value, weights(state)[name]) is name.startswith(frozen), name
    assert resume(tmp_path / "run", "--epochs", 3)["step"] == 9
    with pytest.raises(BadInput, match="the run has freeze"):
        resume(tmp_path / "run", "--epochs", 4, "--freeze", "g_s.2")


def test_optimizers_of_a_frozen_model():
    model = tiny()
    freeze(model, ["encoder"])
    weights_optimizer, quantiles_optimizer = make_optimizers(model, 1e-4, 1e-3)
    trained = {id(p) for group in weights_optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for n, p in model.named_parameters() if not n.startswith("g_a.") and "quantiles" not in n}
    assert quantiles_optimizer.param_groups[0]["params"] == [model.entropy_bottleneck.quantiles]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            ["encodr"],
            "--freeze encodr: no such part; encoder, decoder, entropy, or one of entropy_bottleneck, g_a, g_s",
        ),
        (["g"], "--freeze g: no such part"),
        (["encoder", "decoder", "entropy"], "nothing is left to train"),
    ],
)
def test_freezing_what_is_not_there(photographs: Path, parts: list[str], said: str):
    # bmshj2018-factorized has g_a, g_s and the bottleneck.
    codec = ["--model", "bmshj2018-factorized", *TINY_CODEC[2:]]
    with pytest.raises(BadInput, match=said):
        call("finetune", [*codec, *TINY_RUN, "-d", str(photographs), "--no-save", "--freeze", *parts])
