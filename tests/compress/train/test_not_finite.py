"""Training in which weights, quantiles, optimizers or the validation stop being finite: what was saved stays."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("compressai")

from compressai.models import ScaleHyperprior
from torch import Tensor

from svdrd.compress import BadInput
from svdrd.compress.codecs import checkpoints
from svdrd.compress.errors import TrainingDiverged
from svdrd.compress.train import loop
from tests.compress.conftest import STEPS_PER_EPOCH, differing, equal, resume, weights

Train = Callable[..., dict[str, Any]]


def at_step(patch: pytest.MonkeyPatch, number: int, damage: Callable[[loop.Training], None]) -> None:
    """Calls ``damage`` after the step ``number`` of the run was taken."""
    take = loop.Training.train_step

    def train_step(self: loop.Training, batch: Any) -> dict[str, float] | None:
        values = take(self, batch)
        if self.state.step + 1 == number:
            damage(self)
        return values

    patch.setattr(loop.Training, "train_step", train_step)


@torch.no_grad()
def nan_weight(training: loop.Training) -> None:
    training.state.model.g_s[0].weight[0, 0, 0, 0] = math.nan


@torch.no_grad()
def nan_buffer(training: loop.Training) -> None:
    training.state.model.g_s[1].beta_reparam.pedestal.fill_(math.nan)


@torch.no_grad()
def runaway_quantiles(training: loop.Training) -> None:
    training.state.model.entropy_bottleneck.quantiles[3, 0, 2] = 1e7


def nan_moments(training: loop.Training) -> None:
    parameter = training.state.model.h_a[0].weight
    training.state.optimizer.state[parameter]["exp_avg"][0] = math.nan


FAULTS = [
    (nan_weight, r"weights that are not finite: g_s\.0\.weight \(1 of 2400 entries\)"),
    (nan_buffer, r"weights that are not finite: g_s\.1\.beta_reparam\.pedestal"),
    (runaway_quantiles, r"entropy_bottleneck: its quantiles run away: those of channel 3 are .* a table of 100000"),
    (nan_moments, r"a state of the optimizer that is not finite: exp_avg of h_a\.0\.weight \(108 of 864 entries\)"),
]


@pytest.mark.parametrize("save", ["validation", "inside an epoch"])
@pytest.mark.parametrize(("damage", "said"), FAULTS)
def test_what_was_saved_stays(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, said: str, save: str
):
    """The damage is done in the last step of the second epoch, or with a save due right behind it."""
    often = [] if save == "validation" else ["--checkpoint-minutes", "0"]
    step = 2 * STEPS_PER_EPOCH if save == "validation" else STEPS_PER_EPOCH + 1
    at_step(monkeypatch, step, damage)
    last = tmp_path / "run" / checkpoints.LAST
    with pytest.raises(TrainingDiverged, match=rf"^step {step}: .*{said}") as caught:
        train("run", "--epochs", 3, *often)
    kept = checkpoints.load(last)
    assert f"nothing of it is saved, {last} is of step {kept['step']}; start anew from an earlier" in str(caught.value)
    assert kept["step"] == STEPS_PER_EPOCH
    assert equal(checkpoints.load(last.with_name(checkpoints.BEST)), kept)
    assert list(last.parent.glob("*.tmp")) == []
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["finished"], summary["step"]) == (False, step)
    if damage is nan_weight:
        # It is whole: the run goes on from there.
        monkeypatch.undo()
        straight = train("straight", "--epochs", 2)
        assert differing(straight, resume(tmp_path / "run", "--epochs", 2, "--checkpoint-minutes", 10)) == []


def test_an_interrupted_run_does_not_save_what_cannot_be_used(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(training: loop.Training) -> None:
        nan_weight(training)
        training.signal = 15

    at_step(monkeypatch, STEPS_PER_EPOCH + 1, interrupted)
    with pytest.raises(TrainingDiverged, match="weights that are not finite"):
        train("run", "--epochs", 2)
    assert checkpoints.load(tmp_path / "run" / checkpoints.LAST)["step"] == STEPS_PER_EPOCH


def test_a_first_epoch_leaves_nothing(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    at_step(monkeypatch, 1, nan_buffer)
    monkeypatch.setattr(loop.Training, "count_fault", lambda *_: None)
    with pytest.raises(TrainingDiverged, match="; nothing was saved; start anew"):
        train("run", "--epochs", 2)
    assert list((tmp_path / "run").glob("*.pth.tar*")) == []


def test_a_validation_that_is_not_finite(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With weights that are."""
    forward = ScaleHyperprior.forward
    validations = 0

    def overflows(self: ScaleHyperprior, x: Tensor) -> dict[str, Any]:
        nonlocal validations
        output: dict[str, Any] = forward(self, x)
        if not self.training:
            validations += 1
            # Two images a validation.
            output["x_hat"] = output["x_hat"] + (math.inf if validations > 2 else 0)
        return output

    monkeypatch.setattr(ScaleHyperprior, "forward", overflows)
    with pytest.raises(TrainingDiverged, match=r"step 6: the weights are finite, and the validation loss is (inf|nan)"):
        train("run", "--epochs", 3)
    kept = checkpoints.load(tmp_path / "run" / checkpoints.LAST)
    assert kept["step"] == STEPS_PER_EPOCH
    assert all(torch.isfinite(value).all() for value in weights(kept).values())


@pytest.mark.parametrize("part", ["value", "gradient"])
def test_quantiles_stay_where_their_own_loss_is_not_finite(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part: str
):
    """Nothing else depends on it: the training would go on with quantiles of NaN up to the validation."""
    aux_loss = ScaleHyperprior.aux_loss
    steps = 0

    def broken(self: ScaleHyperprior) -> Tensor:
        nonlocal steps
        steps += 1
        loss: Tensor = aux_loss(self)
        if steps not in (2, 3):
            return loss
        return loss.detach() * math.nan + 0 * loss if part == "value" else torch.sqrt(0 * loss) + loss

    monkeypatch.setattr(ScaleHyperprior, "aux_loss", broken)
    kept = train("run", "--epochs", 2)
    assert kept["skipped_steps"] == 2
    assert kept["faults"] == {"steps": 2, "in_a_row": 0, "terms": {"aux": 2}}
    assert {int(entry["step"]) for entry in kept["optimizer"]["state"].values()} == {6}
    assert {int(entry["step"]) for entry in kept["aux_optimizer"]["state"].values()} == {4}
    assert all(math.isfinite(row["train_aux_loss"]) for row in kept["metrics"])
    assert "step 2: the quantiles stay, its loss is " in (said := capsys.readouterr().err)
    assert "value or gradient of the aux term\n" in said
    lines = [json.loads(line) for line in (tmp_path / "run" / "faults.jsonl").read_text().splitlines()]
    assert [line["culprits"][0]["term"] for line in lines] == ["aux", "aux"]


def test_quantiles_that_stay_for_too_long_end_the_run(train: Train, monkeypatch: pytest.MonkeyPatch):
    aux_loss = ScaleHyperprior.aux_loss
    monkeypatch.setattr(ScaleHyperprior, "aux_loss", lambda self: aux_loss(self) * math.nan)
    with pytest.raises(TrainingDiverged, match="step 3: 3 steps in a row"):
        train("run", "--epochs", 2, "--max-skipped", 3)


def test_a_skipped_step_leaves_no_nan_in_running_statistics(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A codec with batch normalisation: its forward changes buffers, whatever comes of the step."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "normalised.py").write_text(
        "import torch\n"
        "from compressai.models import ScaleHyperprior\n"
        "class Codec(ScaleHyperprior):\n"
        "    steps = 0\n"
        "    def __init__(self, width):\n"
        "        super().__init__(width, 12)\n"
        "        self.norm = torch.nn.BatchNorm2d(3)\n"
        "    def forward(self, x):\n"
        "        if self.training:\n"
        "            Codec.steps += 1\n"
        "            if Codec.steps == 2:\n"
        "                x = x * torch.nan\n"
        "        return super().forward(self.norm(x))\n"
    )
    kept = train("run", "--epochs", 1, "-m", "normalised:Codec", "--model-args", "width=8")
    assert kept["skipped_steps"] == 1
    assert torch.isfinite(weights(kept)["norm.running_mean"]).all()
    # The step that was skipped and the search for its cause do not count.
    assert int(weights(kept)["norm.num_batches_tracked"]) == STEPS_PER_EPOCH - 1


@pytest.mark.parametrize("optimizer", ["optimizer", "aux_optimizer"])
def test_resume_refuses_optimizers_that_are_not_finite(train: Train, tmp_path: Path, optimizer: str):
    kept = train("run", "--steps", 1)
    kept[optimizer]["state"][0]["exp_avg_sq"].view(-1)[0] = math.inf
    checkpoints.save(tmp_path / "run" / checkpoints.LAST, kept)
    with pytest.raises(BadInput, match=r"--resume .*: a state of the optimizer.* that is not finite: exp_avg_sq of "):
        resume(tmp_path / "run", "--steps", 2)
    # Its weights are whole.
    train("new", "--checkpoint", tmp_path / "run" / checkpoints.LAST, "--steps", 1)


def test_resume_refuses_weights_that_are_not_finite(train: Train, tmp_path: Path):
    kept = train("run", "--steps", 1)
    kept["state_dict"]["g_s.0.weight"][0] = math.nan
    checkpoints.save(tmp_path / "run" / checkpoints.LAST, kept)
    best = tmp_path / "run" / checkpoints.BEST
    with pytest.raises(BadInput, match=rf"g_s\.0\.weight \(200 of 2400 entries\); take an earlier .* such as '{best}'"):
        resume(tmp_path / "run", "--steps", 2)


def test_a_best_loss_of_nan_is_beaten(train: Train, tmp_path: Path):
    """Earlier versions kept it."""
    kept = train("run", "--epochs", 1)
    kept["best_loss"] = math.nan
    checkpoints.save(tmp_path / "run" / checkpoints.LAST, kept)
    resumed = resume(tmp_path / "run", "--epochs", 2)
    assert math.isfinite(resumed["best_loss"])
