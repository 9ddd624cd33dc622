import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("compressai")

from svdrd.compress import BadInput, BasisRateDistortionLoss, load_codec
from svdrd.compress.codecs import checkpoints
from svdrd.compress.commands import call
from svdrd.compress.errors import TrainingDiverged, TrainingStopped
from svdrd.compress.images.folders import ImageFolder
from svdrd.compress.train import loop
from tests.compress.conftest import (
    STEPS_PER_EPOCH,
    TINY_CODEC,
    TINY_RUN,
    differing,
    resume,
    synthetic_photograph,
    weights,
)
from tests.compress.train.faulty import MAGENTA, make_faulty


@pytest.fixture
def with_magenta(photographs: Path, tmp_path: Path) -> Path:
    """The training images with a sixth one, which the faulty loss cannot stand."""
    shutil.copytree(photographs, tmp_path / "images")
    Image.new("RGB", (80, 80), MAGENTA).save(tmp_path / "images" / "train" / "nested" / "magenta.png")
    return tmp_path / "images"


def faults_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "faults.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("where", ["value", "gradient"])
@pytest.mark.parametrize("term", ["bpp", "mse", "basis"])
def test_the_guilty_term_and_image_are_named(
    train: Callable[..., dict[str, Any]],
    with_magenta: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    term: str,
    where: str,
    accumulate: int,
):
    make_faulty(monkeypatch, term, where)
    state = train("run", "-d", with_magenta, "--epochs", 2, "--accumulate", accumulate)
    # Each epoch has the image once.
    assert (state["step"], state["skipped_steps"]) == (2 * STEPS_PER_EPOCH, 2)
    assert state["faults"] == {"steps": 2, "in_a_row": state["faults"]["in_a_row"], "terms": {term: 2}}
    faults = faults_of(tmp_path / "run")
    assert [fault["culprits"] for fault in faults] == [
        [{"term": term, "where": where, "images": ["nested/magenta.png"]}]
    ] * 2
    assert f"skipped, its loss is {'nan' if where == 'value' else ''}" in (err := capsys.readouterr().err)
    assert f": {where} of the {term} term of nested/magenta.png\n" in err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["skipped_steps"], summary["skipped_by_term"]) == (2, {term: 2})


@pytest.mark.parametrize("where", ["value", "gradient"])
def test_step_that_is_not_finite_is_skipped_and_counted(
    train: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
):
    make_faulty(monkeypatch, "mse", where, steps=range(2, 4))
    state = train("run", "--epochs", 2)
    assert state["skipped_steps"] == 2
    assert [row["skipped_steps"] for row in state["metrics"]] == [2, 2]
    assert all(math.isfinite(value) for row in state["metrics"] for key, value in row.items() if "ms_ssim" not in key)
    assert all(torch.isfinite(value).all() for value in weights(state).values())
    # Adam has seen the finite steps only.
    assert {int(entry["step"]) for entry in state["optimizer"]["state"].values()} == {4}
    assert "step 2: skipped, its loss is" in capsys.readouterr().err


def test_looking_for_the_cause_does_not_disturb_the_run(
    train: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    make_faulty(monkeypatch, "mse", "gradient", steps=range(2, 4))
    looked = train("looked", "--epochs", 2)
    monkeypatch.setattr(loop.Step, "culprits", lambda *_: [])
    assert set(differing(looked, train("not", "--epochs", 2))) <= {"faults"}


def test_resume_among_skipped_steps(
    train: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_faulty(monkeypatch, "basis", "value", steps=range(2, 5))
    straight = train("straight", "--epochs", 2)
    train("resumed", "--epochs", 2, "--steps", 3)
    state = checkpoints.load(tmp_path / "resumed" / checkpoints.LAST)
    assert state["faults"] == {"steps": 2, "in_a_row": 2, "terms": {"basis": 2}}
    assert differing(straight, resume(tmp_path / "resumed", "--steps", 6)) == []


def test_run_that_stays_not_finite_is_given_up(
    train: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    make_faulty(monkeypatch, "basis", "value", steps=range(5, 1000))
    with pytest.raises(TrainingDiverged, match="step 24: 20 steps in a row"):
        train("run", "--epochs", 100)
    state = checkpoints.load(tmp_path / "run" / checkpoints.LAST)
    assert all(torch.isfinite(value).all() for value in weights(state).values())


def test_the_evidence_reproduces_the_fault(
    train: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photographs: Path
):
    make_faulty(monkeypatch, "mse", "value", steps=range(2, 1000))
    with pytest.raises(TrainingDiverged, match=r"step 4: 3 steps in a row .*fault_step_4\.pth\.tar"):
        train("run", "--epochs", 100, "--max-skipped", 3)
    evidence = checkpoints.load(tmp_path / "run" / "fault_step_4.pth.tar")
    assert evidence["culprits"] == [f"value of the mse term of {', '.join(evidence['images'])}"]
    assert set(evidence["images"]) <= {"a.png", "b.jpg", "c.png", "d.JPG", "nested/e.png"}
    # The loss of the fault, its NaN aside, from nothing but the file.
    model = load_codec("bmshj2018-hyperprior", checkpoint=tmp_path / "run" / "fault_step_4.pth.tar")
    torch.set_rng_state(evidence["noise"])
    bpp = BasisRateDistortionLoss(0.01)(model(evidence["x"]), evidence["x"])["bpp_loss"].item()
    lines = faults_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [2, 3, 4]
    assert lines[-1]["loss"] == "nan"
    assert 0 < bpp < 100


def test_broken_weights_are_blamed_on_no_image(
    train: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    take = loop.Training.train_step

    def with_broken_weights(self: loop.Training, batch: Any) -> dict[str, float] | None:
        with torch.no_grad():
            self.state.model.g_s[0].weight[0, 0, 0, 0] = torch.nan
        return take(self, batch)

    monkeypatch.setattr(loop.Training, "train_step", with_broken_weights)
    with pytest.raises(TrainingDiverged):
        train("run", "--max-skipped", 1)
    assert "gradient norm nan: weights of the model\n" in capsys.readouterr().err


def test_damaged_images_are_counted(train: Callable[..., dict[str, Any]], photographs: Path, tmp_path: Path):
    shutil.copytree(photographs, tmp_path / "images")
    damaged = tmp_path / "images" / "train" / "a.png"
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"skipped .*a\.png"):
        state = train("run", "-d", tmp_path / "images", "--epochs", 2, "-n", 0)
    assert state["damaged_images"] == ["a.png"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["damaged_images"] == ["a.png"]


@pytest.mark.parametrize("workers", [0, 2])
def test_vanished_images(
    train: Callable[..., dict[str, Any]],
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
):
    """The folder goes away after the fourth step and comes back."""
    straight = train("straight", "--epochs", 4)
    images, away = tmp_path / "images", tmp_path / "away"
    shutil.copytree(photographs, images)
    take = loop.Training.train_step

    def then_they_vanish(self: loop.Training, batch: Any) -> dict[str, float] | None:
        if self.state.step == 4 and images.exists():
            images.rename(away)
        return take(self, batch)

    monkeypatch.setattr(loop.Training, "train_step", then_they_vanish)
    # A loader that had read ahead ends the epoch, and the validation finds out.
    said = rf"dataset '{images}/{'test' if workers else 'train'}': .* \(No such file or directory\); when they are back"
    with pytest.raises(TrainingStopped, match=said):
        train("run", "--epochs", 4, "-d", images, "-n", workers)
    state = checkpoints.load(tmp_path / "run" / checkpoints.LAST)
    assert 5 <= state["step"] < 12
    assert state["damaged_images"] == []
    away.rename(images)
    monkeypatch.undo()
    assert differing(straight, resume(tmp_path / "run")) == []


def test_images_that_vanish_before_validation(
    train: Callable[..., dict[str, Any]], photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    straight = train("straight", "--epochs", 2)
    images = tmp_path / "images"
    shutil.copytree(photographs, images)
    validate = loop.Training.validate

    def without_images(self: loop.Training, end: int) -> None:
        (images / "test").rename(images / "away")
        validate(self, end)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "validate", without_images)
        with pytest.raises(TrainingStopped, match=r"step 3: .*x\.png cannot be read any more"):
            train("run", "--epochs", 2, "-d", images)
    (images / "away").rename(images / "test")
    assert differing(straight, resume(tmp_path / "run")) == []


def test_a_loader_that_is_killed(train: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As the kernel does when memory is short."""
    straight = train("straight", "--epochs", 20)
    take = loop.Training.train_step

    def kill_a_loader(self: loop.Training, batch: Any) -> dict[str, float] | None:
        if self.state.step == 1:
            for worker in self.train_loader._iterator._workers:
                worker.kill()
        return take(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "train_step", kill_a_loader)
        with pytest.raises(TrainingStopped, match="a loader of images ended"):
            train("run", "--epochs", 20, "-n", 1)
    assert differing(straight, resume(tmp_path / "run", "-n", 0)) == []


def test_resume_refuses_renamed_images(train: Callable[..., dict[str, Any]], photographs: Path, tmp_path: Path):
    train("run", "--steps", 1)
    shutil.copytree(photographs, tmp_path / "images")
    (tmp_path / "images" / "train" / "a.png").rename(tmp_path / "images" / "train" / "z.png")
    with pytest.raises(BadInput, match="are not those that the run began with"):
        resume(tmp_path / "run", "--steps", 2, "-d", tmp_path / "images")
    # Moved as a whole they are the same images.
    shutil.copytree(photographs, tmp_path / "moved")
    assert resume(tmp_path / "run", "--steps", 2, "-d", tmp_path / "moved")["step"] == 2


def test_permission_denied_is_no_damaged_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from svdrd.compress.images import folders

    for name in "ab":
        synthetic_photograph(64, 64, 0).save(tmp_path / f"{name}.png")
    folder = ImageFolder(tmp_path)

    def stale(_path: Path) -> Image.Image:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(folders, "read_image", stale)
    with pytest.raises(folders.ImagesVanished, match=r"a\.png cannot be read any more \(Stale file handle\)"):
        folder[0]


def test_no_save_gives_up_without_evidence(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_faulty(monkeypatch, "mse", "value", steps=range(1, 1000))
    argv = [*TINY_CODEC, *TINY_RUN, "-d", str(photographs), "-o", str(tmp_path / "run"), "--no-save"]
    with pytest.raises(TrainingDiverged, match="2 steps in a row"):
        call("finetune", [*argv, "--max-skipped", "2"])
    assert not (tmp_path / "run").exists()
