import argparse
import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytest.importorskip("compressai")

from svdrd.compress import BadInput, criterion, lambda_for, load_codec
from svdrd.compress.codecs import checkpoints
from svdrd.compress.commands import call
from svdrd.compress.devices import default_device
from svdrd.compress.images.batches import TrainingBatches
from svdrd.compress.train import memory
from svdrd.compress.train.command_line import add_arguments, as_config, parse
from svdrd.compress.train.config import TrainConfig
from svdrd.compress.train.preparation import open_images
from tests.compress.conftest import TINY_CODEC, TINY_RUN, differing

TOML = """
batch-size = 7
learning_rate = 3e-4
freeze = ["encoder", "h_a"]
save = false

[loss]   # a heading
lambda = 0.02
patch-size = [64, 128]
"""


def parsed(*argv: object) -> Any:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parse(parser, list(map(str, argv)))[0]


def test_the_configuration_is_settled_once():
    config = TrainConfig.from_arguments(
        parsed("-d", "photographs", "-q", 3, "--patch-size", 64, 128, "--resume", "auto")
    )
    assert (config.lmbda, config.device) == (lambda_for(config.model, 3), default_device())
    assert config.patch_size == (64, 128)
    with pytest.raises(FrozenInstanceError):
        config.mu = 0.0
    saved = config.saved()
    assert json.loads(json.dumps(saved)) == saved
    assert {*saved, "resume", "config", "dry_run"} == set(vars(parsed()))


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_configuration_file(tmp_path: Path, suffix: str):
    text = TOML
    if suffix == "json":
        text = json.dumps(
            {"batch-size": 7, "learning_rate": 3e-4, "freeze": ["encoder", "h_a"], "save": False, "steps": None}
            | {"loss": {"lambda": 0.02, "patch-size": [64, 128]}}
        )
    path = written(tmp_path / f"run.{suffix}", text)
    arguments = parsed("--config", path, "--batch-size", 9)
    # The command line wins.
    assert arguments.batch_size == 9
    assert (arguments.learning_rate, arguments.lmbda) == (3e-4, 0.02)
    assert (arguments.freeze, arguments.patch_size, arguments.save) == (["encoder", "h_a"], [64, 128], False)
    assert arguments.mu == 10


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_byte_order_mark_is_none_of_the_text(tmp_path: Path, suffix: str):
    """As editors on Windows write it, with a name that ASCII lacks; whatever the locale."""
    text = 'dataset = "größe"' if suffix == "toml" else '{"dataset": "größe"}'
    path = tmp_path / f"run.{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert parsed("--config", path).dataset == "größe"
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(BadInput, match=rf"--config .*run\.{suffix}: not UTF-8 \(.*\); save it in UTF-8"):
        parsed("--config", path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "batch_sise = 3", "no option 'batch_sise'; did you mean batch-size?"),
        ("a.toml", "nonsense = 3", "no option 'nonsense'; svdrd finetune --help lists them"),
        ("a.toml", "batch-size", "not TOML"),
        ("a.json", "{", "not JSON"),
        ("a.json", "[1]", "holds a list"),
        ("a.toml", "save = 1", "save = 1: wanted true or false"),
        ("a.toml", "mu = true", "mu = true: wanted a value"),
        ("a.toml", "dry-run = true", "no option 'dry-run'"),
    ],
)
def test_bad_configuration_file(tmp_path: Path, name: str, text: str, said: str):
    with pytest.raises(BadInput, match=f"--config {tmp_path / name}: {said}".replace("?", r"\?")):
        parsed("--config", written(tmp_path / name, text))


def test_missing_configuration_file():
    with pytest.raises(BadInput, match=r"--config none\.toml: No such file"):
        parsed("--config", "none.toml")


def test_value_that_argparse_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parsed("--config", written(tmp_path / "a.toml", 'mu = "much"'))
    assert "argument --mu: invalid float value: 'much'" in capsys.readouterr().err


def test_the_saved_configuration_repeats_the_run(photographs: Path, tmp_path: Path):
    argv = [*TINY_CODEC, *TINY_RUN, "-d", str(photographs), "--freeze", "h_a", "--mu", "3", "--steps", "2"]
    assert call("finetune", [*argv, "-o", str(tmp_path / "first")]) == 0
    config = tmp_path / "first" / "config.json"
    assert call("finetune", ["--config", str(config), "-o", str(tmp_path / "second")]) == 0
    first, second = (checkpoints.load(tmp_path / name / checkpoints.LAST) for name in ("first", "second"))
    assert differing(first, second) == []
    assert first["arguments"] == {**second["arguments"], "save_dir": first["arguments"]["save_dir"]}


def test_every_option_goes_through_a_file():
    """Whatever is added later, too."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    argv = ["--steps", "5", "-q", "3", "--val-dataset", "v", "-d", "x", "--checkpoint", "c", "--lic-tcm-repo", "r"]
    argv += ["--device", "cpu"]
    arguments = parser.parse_args(argv)
    names = set(as_config(parser, vars(arguments)))
    missing = {action.dest for action in parser._actions} - {name.replace("-", "_") for name in names} - {"lmbda"}
    # What is empty or unset has no line; the others are about one call.
    assert missing == {"help", "model_args", "freeze", "block_size", "resume", "config", "dry_run"}


def test_resumed_arguments_hold_unless_given_again(photographs: Path, tmp_path: Path):
    argv = [*TINY_CODEC, *TINY_RUN, "-d", str(photographs), "-o", str(tmp_path / "run"), "--steps", "1", "--mu", "4"]
    assert call("finetune", argv) == 0
    last = tmp_path / "run" / checkpoints.LAST
    assert parsed("--resume", last).mu == 4
    assert parsed("--resume", last, "--mu", 5).mu == 5
    assert parsed("--resume", last, "--config", written(tmp_path / "a.toml", "mu = 6")).mu == 6
    assert parsed("--resume", "auto", "-o", tmp_path / "run").resume == str(last)
    assert parsed("--resume", "auto", "-o", tmp_path / "elsewhere").resume is None


def test_a_checkpoint_holds_configuration_versions_and_metrics(photographs: Path, tmp_path: Path):
    argv = [*TINY_CODEC, *TINY_RUN, "-d", str(photographs), "-o", str(tmp_path / "run"), "--steps", "1"]
    assert call("finetune", argv) == 0
    state = checkpoints.load(tmp_path / "run" / checkpoints.LAST)
    assert state["arguments"]["lmbda"] == 0.01
    assert state["versions"]["torch"] == torch.__version__
    assert set(state["versions"]) == {"svdrd", "torch", "compressai", "numpy", "python"}
    assert state["metrics"][0]["val_psnr"] > 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["finished"]
    assert summary["best"]["val_loss"] == summary["last"]["val_loss"] == state["best_loss"]
    assert summary["images_per_second"] > 0
    # What is not a number in Python has no place in JSON.
    assert summary["last"]["val_ms_ssim"] is None


def test_dry_run_says_what_would_be_done_and_does_nothing(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = [*TINY_CODEC, *TINY_RUN, "-d", str(photographs), "-o", str(tmp_path / "run"), "--freeze", "encoder"]
    assert call("finetune", [*argv, "--dry-run"]) == 0
    assert not (tmp_path / "run").exists()
    out = capsys.readouterr().out
    assert "steps 0 to 300, 3 an epoch" in out
    assert "(4404 frozen)" in out or " frozen)" in out
    assert "memory of a process, 2 crops of 64x64 at once" in out
    assert out.rstrip().endswith("nothing was trained or written (--dry-run)")
    config = json.loads(out[out.index("{") : out.rindex("}") + 1])
    assert config["freeze"] == ["encoder"]
    # The check of the folder is part of it.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / checkpoints.LAST).touch()
    with pytest.raises(BadInput, match="holds a run already"):
        call("finetune", [*argv, "--dry-run"])


def test_memory_estimate_counts_what_autograd_holds():
    torch.manual_seed(0)
    model = load_codec("bmshj2018-hyperprior", init="random", N=32, M=48)
    loss = criterion.BasisRateDistortionLoss(0.01)

    def total(x: torch.Tensor) -> torch.Tensor:
        return loss(model(x), x)["loss"]

    crops = 4
    estimate = memory.estimate(model, total, torch.rand(1, 3, 128, 128), crops)
    parameters = sum(p.numel() for p in model.parameters())
    assert (estimate.gradients, estimate.optimizers) == (4 * parameters, 8 * parameters)
    assert estimate.weights >= 4 * parameters
    # What the allocator has handed out when the forward of the whole batch is over, and not taken back.
    x = torch.rand(crops, 3, 128, 128)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = total(x)
    held = sum(event.self_cpu_memory_usage for event in profile.events())
    assert result.requires_grad
    assert 0.8 < estimate.activations / held < 1.25


def test_gradient_norms_of_the_terms(photographs: Path, tmp_path: Path):
    """Against each term alone, differentiated on the model that the run began with."""
    argv = [*TINY_CODEC, *TINY_RUN, "-d", str(photographs), "-o", str(tmp_path / "run"), "--gradient-norms", "1"]
    assert call("finetune", [*argv, "--steps", "1", "--accumulate", "2", "--log-images", "1"]) == 0
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    logged = {term: events.Scalars(f"gradient_norm/{term}")[0].value for term in ("bpp", "mse", "basis")}

    images, _ = open_images(str(photographs), None, [64, 64])
    batch = next(iter(TrainingBatches(len(images), 1, 2, 0)))
    x = torch.stack([images[key] for key in batch])
    for term in logged:
        torch.manual_seed(0)
        model = load_codec("bmshj2018-hyperprior", init="random", N=8, M=12)
        loss = criterion.BasisRateDistortionLoss(0.01)
        loss.terms(loss(model(x), x))[term].backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert logged[term] == pytest.approx(torch.nn.utils.get_total_norm(gradients).item(), rel=1e-3)
    picture = events.Images("original_and_reconstruction/0")[0]
    assert (picture.height, picture.width) == (64, 128)
    assert len(events.Scalars("images_per_second")) == 1


def test_the_progress_bar_is_for_terminals(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = [*TINY_CODEC, *TINY_RUN, "-d", str(photographs), "-o", str(tmp_path / "run"), "--steps", "2"]
    assert call("finetune", argv) == 0
    assert capsys.readouterr().err == ""
