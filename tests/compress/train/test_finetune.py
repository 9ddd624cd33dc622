import csv
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("compressai")

from compressai.losses import RateDistortionLoss
from compressai.utils.eval_model.__main__ import load_checkpoint as eval_model_load
from compressai.zoo import image_models
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from svdrd.compress import BadInput, BasisRateDistortionLoss, load_codec
from svdrd.compress.codecs import checkpoints
from svdrd.compress.commands import call
from svdrd.compress.images.batches import TrainingBatches
from svdrd.compress.train import loop, optimizers, validation
from svdrd.compress.train.preparation import open_images
from tests.compress.conftest import (
    STEPS_PER_EPOCH,
    TINY_CODEC,
    TINY_RUN,
    differing,
    resume,
    synthetic_photograph,
    weights,
)
from tests.conftest import threads_of_pytorch
from tests.project.examples import example
from tests.warm import Warm


def test_a_run_leaves_checkpoints_metrics_and_logs(
    train: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    state = train("run", "--epochs", 2)
    folder = tmp_path / "run"
    assert {"epoch", "state_dict", "loss", "optimizer", "aux_optimizer", "lr_scheduler"} <= state.keys()
    assert (state["epoch"], state["step"]) == (1, 2 * STEPS_PER_EPOCH)
    assert state["best_loss"] == min(row["val_loss"] for row in state["metrics"])
    assert checkpoints.load(folder / checkpoints.BEST)["loss"] == state["best_loss"]

    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "3"), ("1", "6")]
    for row in rows:
        bpp, mse, basis = (float(row[f"val_{key}_loss"]) for key in ("bpp", "mse", "basis"))
        assert float(row["val_loss"]) == pytest.approx(bpp + 0.01 * (255**2 * mse + 10 * basis), rel=1e-5)
        assert 0 < float(row["val_psnr"]) < 60
        assert float(row["train_basis_loss"]) > 0

    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("val/psnr")] == [3, 6]
    out = capsys.readouterr().out
    assert "5 training images" in out
    assert "2 validation images" in out
    assert "lambda 0.01, mu 10, mse; steps 0 to 6, 3 an epoch" in out
    assert out.count("\nepoch ") == 2
    assert f"val loss {float(rows[-1]['val_loss']):.4f}" in out


def test_training_lowers_the_loss(train: Callable[..., dict[str, Any]]):
    history = train("run", "--crops-per-image", 8, "--epochs", 6, "-lr", "3e-3", "--lr-schedule", "constant")["metrics"]
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    assert history[-1]["val_psnr"] > history[0]["val_psnr"] + 3


@pytest.mark.parametrize(
    ("mu", "criterion"),
    [
        pytest.param(0, RateDistortionLoss(lmbda=0.01), id="CompressAI's loss"),
        pytest.param(10, BasisRateDistortionLoss(lmbda=0.01, mu=10), id="basis loss"),
    ],
)
def test_training_is_that_of_compressais_script(
    train: Callable[..., dict[str, Any]], photographs: Path, mu: int, criterion: torch.nn.Module
):
    """examples/finetune.py, which is CompressAI's script, over the same batches: the same weights, bit for bit."""
    state = train("run", "--epochs", 2, "--mu", mu)

    images, _ = open_images(str(photographs), None, [64, 64])
    batches = TrainingBatches(len(images), 1, 2, 0)
    torch.manual_seed(0)
    model = load_codec("bmshj2018-hyperprior", init="random", N=8, M=12)
    script = example("finetune")
    adams = script.configure_optimizers(model, 1e-3, 1e-3)
    for batches.epoch in range(2):
        epoch = (torch.stack([images[key] for key in batch]) for batch in batches)
        script.train_one_epoch(model, criterion, epoch, *adams, 1.0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights(state)[name]), name


@pytest.mark.parametrize("name", sorted(name for name in image_models if not name.endswith("-vbr")))
def test_every_codec_of_the_zoo_trains(train: Callable[..., dict[str, Any]], tmp_path: Path, name: str):
    size = ["N=8"] if name.startswith("cheng") else ["N=8", "M=12"]
    start = ["--model", name, "--init", "random", "--model-args", *size, "--crops-per-image", 4]
    history = train("run", *start, "--epochs", 2)["metrics"]
    assert history[1]["train_loss"] < history[0]["train_loss"]
    assert resume(tmp_path / "run", "--epochs", 3)["step"] == 30


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
@pytest.mark.parametrize("first", [STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1])
def test_resume_is_bit_for_bit(
    train: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, first: int
):
    straight = train("straight", "--epochs", 3, "--lr-schedule", schedule)
    interrupt_after(first, signal.SIGTERM, monkeypatch)
    interrupted = train("resumed", "--epochs", 3, "--lr-schedule", schedule, code=128 + signal.SIGTERM)
    assert interrupted["step"] == first
    monkeypatch.undo()
    # What happens to the global generator in between must not matter.
    torch.manual_seed(99)
    resumed = resume(tmp_path / "resumed")
    assert differing(straight, resumed) == []
    assert (tmp_path / "straight/metrics.csv").read_text() == (tmp_path / "resumed/metrics.csv").read_text()
    best = (checkpoints.load(tmp_path / name / checkpoints.BEST) for name in ("straight", "resumed"))
    assert differing(*best) == []


def test_resume_after_the_last_epoch_goes_on_with_more(train: Callable[..., dict[str, Any]], tmp_path: Path):
    straight = train("straight", "--epochs", 2)
    train("resumed", "--epochs", 1)
    resumed = resume(tmp_path / "resumed", "--epochs", 2)
    assert differing(straight, resumed) == []


def test_best_loss_survives_a_resume(train: Callable[..., dict[str, Any]], tmp_path: Path):
    state = train("run", "--epochs", 1)
    state["best_loss"] = -1.0
    checkpoints.save(tmp_path / "run" / checkpoints.LAST, state)
    best_before = (tmp_path / "run" / checkpoints.BEST).read_bytes()
    assert resume(tmp_path / "run", "--epochs", 2)["best_loss"] == -1.0
    assert (tmp_path / "run" / checkpoints.BEST).read_bytes() == best_before


def test_plateau_schedule_counts_across_resumes(train: Callable[..., dict[str, Any]], tmp_path: Path):
    state = train("run", "--epochs", 1)
    state["lr_scheduler"].update(best=-math.inf, num_bad_epochs=10)
    checkpoints.save(tmp_path / "run" / checkpoints.LAST, state)
    assert resume(tmp_path / "run", "--epochs", 2)["optimizer"]["param_groups"][0]["lr"] == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", {0: 1.0, 50: 1.0, 100: 1.0}),
        ("cosine", {0: 1.0, 50: 0.505, 100: 0.01, 120: 0.01}),
        ("step", {0: 1.0, 79: 1.0, 80: 0.1, 100: 0.1}),
    ],
)
def test_schedules(name: str, expected: dict[int, float]):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = optimizers.make_schedule(name, optimizer, total_steps=100)
    rates = []
    for _ in range(121):
        rates.append(optimizer.param_groups[0]["lr"] / 2.0)
        optimizer.step()
        schedule.step()
    assert {step: rates[step] for step in expected} == pytest.approx(expected)


def test_the_number_of_workers_changes_nothing(train: Callable[..., dict[str, Any]]):
    with threads_of_pytorch(2):  # workers are forked from a process with threads, as a user's are
        assert differing(train("alone", "--epochs", 2), train("two", "--epochs", 2, "--num-workers", 2)) == []


def test_a_checkpoint_in_between_does_not_disturb_training(train: Callable[..., dict[str, Any]]):
    """``update(force=True)`` at every step against none before the end."""
    quiet = train("quiet", "--epochs", 2)
    step = loop.Training.train_step

    def with_state(self: loop.Training, x: torch.Tensor) -> dict[str, float] | None:
        self.state.state_dict()
        return step(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "train_step", with_state)
        assert differing(quiet, train("disturbed", "--epochs", 2)) == []


def test_saved_tables_belong_to_the_saved_weights(train: Callable[..., dict[str, Any]], tmp_path: Path):
    """A checkpoint whose CDFs are those of earlier weights codes correctly, but at too high a rate."""
    train("run", "--epochs", 1, "--aux-learning-rate", 1)
    resume(tmp_path / "run", "--epochs", 2)
    path = str(tmp_path / "run" / checkpoints.LAST)
    as_saved, updated = (eval_model_load("bmshj2018-hyperprior", no_update, path) for no_update in (True, False))
    for key, value in updated.state_dict().items():
        assert torch.equal(as_saved.state_dict()[key], value), key


def test_the_basis_term_and_its_options_reach_the_training(train: Callable[..., dict[str, Any]]):
    runs = {
        options: weights(train("-".join(options).replace("--", "") or "default", "--epochs", 1, *options))
        for options in ((), ("--mu", "0"), ("--mu", "100"), ("--block-size", "8"), ("--smooth", "0.1"))
    }
    first = "g_a.0.weight"
    assert len({tuple(state[first].flatten().tolist()) for state in runs.values()}) == len(runs)


def test_ms_ssim(train: Callable[..., dict[str, Any]], tmp_path: Path):
    for seed in range(2):
        (tmp_path / "large").mkdir(exist_ok=True)
        synthetic_photograph(200, 192, seed).save(tmp_path / "large" / f"{seed}.png")
    options = ("--metric", "ms-ssim", "--patch-size", 192, 192, "--mu", 0.1, "--steps", 1)
    row = train("run", "-d", tmp_path / "large", *options)["metrics"][0]
    expected = row["val_bpp_loss"] + 0.01 * (1 - row["val_ms_ssim_loss"] + 0.1 * row["val_basis_loss"])
    assert row["val_loss"] == pytest.approx(expected, rel=1e-5)
    assert 0 < row["val_ms_ssim"] < 1


def test_lambda_comes_from_the_quality(train: Callable[..., dict[str, Any]], photographs: Path, tmp_path: Path):
    codec = [option for option in TINY_CODEC if option not in ("--lambda", "0.01")]
    argv = [*codec, *TINY_RUN, "-d", str(photographs), "-o", str(tmp_path / "q"), "-q", "5", "--steps", "1"]
    assert call("finetune", argv) == 0
    assert checkpoints.load(tmp_path / "q" / checkpoints.LAST)["arguments"]["lmbda"] == 0.025


def test_checkpoint_starts_a_new_run_from_its_weights(train: Callable[..., dict[str, Any]], tmp_path: Path):
    start = train("start", "--epochs", 1)
    path = tmp_path / "start" / checkpoints.LAST
    # The rate is too small to change a float32 weight.
    new = train("new", "--checkpoint", path, "--steps", 1, "-lr", "1e-30", "--lr-schedule", "constant")
    assert (new["step"], new["epoch"]) == (1, 0)
    names = [name for name in weights(start) if name.startswith(("g_", "h_"))]
    assert all(torch.equal(weights(new)[name], weights(start)[name]) for name in names)


def test_steps_end_in_the_middle_of_an_epoch_and_go_on(train: Callable[..., dict[str, Any]], tmp_path: Path):
    state = train("run", "--steps", 4)
    assert [row["step"] for row in state["metrics"]] == [3, 4]
    assert [row["step"] for row in resume(tmp_path / "run", "--steps", 7)["metrics"]] == [3, 4, 6, 7]


def test_flat_folder_holds_every_tenth_image_out(photographs: Path, tmp_path: Path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for index in range(12):
        synthetic_photograph(64, 64, index).save(flat / f"{index:02}.png")
    train, validation = open_images(str(flat), None, [64, 64])
    assert [path.name for path in validation.samples] == ["00.png", "10.png"]
    assert [path.name for path in train.samples] == [f"{index:02}.png" for index in range(12) if index % 10]


def test_validation_sees_whole_images_in_patches(photographs: Path):
    _, images = open_images(str(photographs), None, [64, 32])
    assert [images[index].shape for index in range(2)] == [(3, 128, 64), (3, 64, 128)]
    x = images[0][None]
    patches = validation.tiles(x, (64, 32))
    assert patches.shape == (4, 3, 64, 32)
    assert torch.equal(patches[1], x[0, :, :64, 32:])
    assert torch.equal(patches[2], x[0, :, 64:, :32])


def test_damaged_image_among_good_ones(photographs: Path, tmp_path: Path, train: Callable[..., dict[str, Any]]):
    shutil.copytree(photographs / "train", tmp_path / "images")
    (tmp_path / "images" / "c.png").write_bytes(b"no image at all")
    with pytest.warns(UserWarning, match=r"skipped .*c\.png"):
        state = train("run", "-d", tmp_path / "images", "--val-dataset", photographs / "test", "--epochs", 1)
    assert state["steps_per_epoch"] == 2


def test_no_save_writes_nothing(photographs: Path, tmp_path: Path):
    argv = [*TINY_CODEC, *TINY_RUN, "-d", str(photographs), "-o", str(tmp_path / "run"), "--no-save", "--steps", "1"]
    assert call("finetune", argv) == 0
    assert list(tmp_path.iterdir()) == []


def interrupt_after(steps: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal arrives while step ``steps`` is being computed."""
    step = loop.Training.train_step

    def interrupted_step(self: loop.Training, x: torch.Tensor) -> dict[str, float] | None:
        if self.state.step + 1 == steps:
            signal.raise_signal(number)
        return step(self, x)

    monkeypatch.setattr(loop.Training, "train_step", interrupted_step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_leaves_a_checkpoint(
    train: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    capsys: pytest.CaptureFixture[str],
):
    before = signal.getsignal(number)
    interrupt_after(2, number, monkeypatch)
    state = train("run", "--epochs", 2, code=128 + number)
    assert state["step"] == 2
    assert "interrupted after step 2; go on with --resume" in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_signal_during_validation_validates_after_the_resume(
    train: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    straight = train("straight", "--epochs", 1)
    criterion = validation.metrics.psnr

    def interrupting_psnr(x_hat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        return criterion(x_hat, x)

    monkeypatch.setattr(validation.metrics, "psnr", interrupting_psnr)
    state = train("run", "--epochs", 1, code=130)
    assert (state["step"], state["validated_step"], state["metrics"]) == (STEPS_PER_EPOCH, 0, [])
    monkeypatch.undo()
    assert differing(straight, resume(tmp_path / "run")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_whole_process_group(photographs: Path, tmp_path: Path, warm: Warm, number: int):
    """As Ctrl-C on a terminal or the end of a cluster's time slot: the loaders get it too."""
    log = (tmp_path / "log").open("w+")
    options = ["-n", "2", "--epochs", "100000", "-d", str(photographs), "-o", str(tmp_path / "run")]
    argv = ["-m", "svdrd", "finetune", *TINY_CODEC, *TINY_RUN, *options]
    process = warm.start(argv, stdout=log, stderr=log, session=True)
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        os.killpg(process.pid, number)
        assert process.wait(timeout=60) == 128 + number
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    text = (tmp_path / "log").read_text()
    assert "interrupted after step" in text
    assert "Traceback" not in text
    assert checkpoints.load(tmp_path / "run" / checkpoints.LAST)["step"] > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-lr", "1e-4"], "the run has learning_rate 0.001, given is 0.0001"),
        (["--seed", "5"], "the run has seed 0, given is 5"),
        (["--lr-schedule", "cosine"], "the run has lr_schedule plateau"),
        (["--batch-size", "3"], "the run has batch_size 2, given is 3"),
        (["-m", "bmshj2018-factorized"], "not a bmshj2018-factorized"),
    ],
)
def test_resume_refuses_to_become_another_run(
    train: Callable[..., dict[str, Any]], tmp_path: Path, options: list[str], said: str
):
    train("run", "--steps", 1)
    before = (tmp_path / "run" / checkpoints.LAST).read_bytes()
    with pytest.raises(BadInput, match=said):
        resume(tmp_path / "run", "--steps", 2, *options)
    assert (tmp_path / "run" / checkpoints.LAST).read_bytes() == before


def test_resume_into_the_folder_of_another_run(train: Callable[..., dict[str, Any]], tmp_path: Path):
    train("first", "--steps", 1)
    train("second", "--steps", 1)
    with pytest.raises(BadInput, match=f"{tmp_path / 'second'}: holds a run already"):
        resume(tmp_path / "first", "--steps", 2, "-o", tmp_path / "second")
    resume(tmp_path / "first", "--steps", 2, "-o", tmp_path / "third")
    steps = {
        name: checkpoints.load(tmp_path / name / checkpoints.LAST)["step"] for name in ("first", "second", "third")
    }
    assert steps == {"first": 1, "second": 1, "third": 2}


def test_resume_refuses_other_images(train: Callable[..., dict[str, Any]], tmp_path: Path, photographs: Path):
    train("run", "--steps", 1)
    with pytest.raises(BadInput, match="3 steps an epoch, with these images there are 1"):
        resume(tmp_path / "run", "--steps", 2, "-d", photographs / "test")


def test_resume_of_a_checkpoint_of_compressai(tmp_path: Path):
    torch.save({"epoch": 0, "state_dict": {}}, tmp_path / "c.pth.tar")
    with pytest.raises(BadInput, match="not a run of svdrd finetune; use --checkpoint"):
        call("finetune", ["--resume", str(tmp_path / "c.pth.tar")])


def test_resume_of_another_version(train: Callable[..., dict[str, Any]], tmp_path: Path):
    state = train("run", "--steps", 1)
    del state["noise"]
    checkpoints.save(tmp_path / "run" / checkpoints.LAST, state)
    with pytest.raises(BadInput, match=r"has no 'noise', it is of another version of svdrd \({'svdrd': '"):
        resume(tmp_path / "run", "--steps", 2)


def test_python_random_state_is_not_involved(train: Callable[..., dict[str, Any]]):
    random.seed(1)
    first = train("first", "--steps", 2)
    random.seed(2)
    assert differing(first, train("second", "--steps", 2)) == []
