"""Several processes train as one. They talk over gloo here; what NCCL does with the same calls has not been run."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("compressai")

from svdrd.compress import load_codec
from svdrd.compress.codecs import checkpoints
from svdrd.compress.images.batches import EqualSizeBatches, TrainingBatches
from svdrd.compress.train.distributed import Processes, fingerprint
from svdrd.compress.train.noise import BatchNoise
from tests.compress.conftest import TINY_CODEC, TINY_RUN, differing, equal, weights
from tests.compress.train.faulty import MAGENTA, make_faulty
from tests.compress.train.several import errors, finetune_with, free_port, raise_signal_at

TEN_MINUTES = 600


def arguments(photographs: Path, out: Path, *options: object) -> list[str]:
    return [*TINY_CODEC, *TINY_RUN, "-d", str(photographs), "-o", str(out), *map(str, options)]


def assert_all_equal(states: list[dict[str, Any]], size: int) -> None:
    assert len(states) == size
    for state in states[1:]:
        assert [key for key in state if not equal(state[key], states[0][key])] == []


def assert_same_training(a: dict[str, Any], b: dict[str, Any]) -> None:
    """To rounding: sums of another order, in steps of Adam, whose first ones do not depend on a gradient's size."""
    for ours, theirs in zip(a["metrics"], b["metrics"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, nan_ok=True)
    for name, value in weights(a).items():
        if value.is_floating_point():
            torch.testing.assert_close(value, weights(b)[name], rtol=1e-3, atol=1e-4)


# Batches of 4 and 1 crops: with two processes one has nothing to do in every second step, with four three have.
@pytest.mark.parametrize(("size", "accumulate"), [(2, 1), (4, 1), (2, 2)])
def test_processes_train_as_one(
    train: Callable[..., dict[str, Any]], photographs: Path, tmp_path: Path, size: int, accumulate: int
):
    options = ("--batch-size", 4, "--epochs", 4)
    alone = train("alone", *options)
    argv = arguments(photographs, tmp_path / "run", *options, "--accumulate", accumulate, "--gradient-norms", 2)
    codes, states = finetune_with(size, argv, tmp_path / "processes")
    assert codes == [0] * size, errors(tmp_path / "processes", size)
    assert_all_equal(states, size)
    together = checkpoints.load(tmp_path / "run" / checkpoints.LAST)
    assert len(together["rng"]) == size
    assert together["step"] == alone["step"] == 8
    assert_same_training(together, alone)
    # Quantiles are trained, and by the aux loss alone.
    fresh = load_codec("bmshj2018-hyperprior", init="random", N=8, M=12).entropy_bottleneck.quantiles
    assert not torch.equal(states[0]["state_dict"]["entropy_bottleneck.quantiles"], fresh)
    # Only the first one speaks.
    assert (tmp_path / "processes" / "out_0").read_text().count("\nepoch ") == 4
    assert [(tmp_path / "processes" / f"out_{rank}").read_text() for rank in range(1, size)] == [""] * (size - 1)


@pytest.mark.parametrize(
    ("name", "options"), [("mbt2018", ()), ("mbt2018", ("--channels-last",)), ("elic2022-official", ())]
)
def test_parts_of_a_batch_train_as_the_whole(train: Callable[..., dict[str, Any]], name: str, options: tuple[str, ...]):
    """Context models quantise twice, the checkerboard without an instance of the entropy model."""
    codec = ["--model", name, "--init", "random", "--model-args", "N=8", "M=12"]
    if name.startswith("elic"):
        codec[-2:] = ["N=8", "M=16", "groups=[4,4,8]"]
    whole = train("whole", *codec, "--batch-size", 4, "--epochs", 2, *options)
    parts = train("parts", *codec, "--batch-size", 4, "--epochs", 2, *options, "--accumulate", 3)
    assert_same_training(parts, whole)


def test_noise_of_a_part_is_the_part_of_the_noise():
    torch.manual_seed(0)
    model = load_codec("bmshj2018-hyperprior", init="random", N=8, M=12)
    x = torch.rand(5, 3, 64, 64)
    noise = BatchNoise(torch.device("cpu"))
    state = torch.get_rng_state()
    expected = model(x)["likelihoods"]
    with noise.of(0, 5, 5):
        whole = model(x)["likelihoods"]
    assert all(torch.equal(whole[key], expected[key]) for key in expected)
    torch.set_rng_state(state)
    noise.undo_step()
    for first, last in ((0, 2), (2, 3), (3, 5)):
        with noise.of(first, last, 5):
            part = model(x[first:last])["likelihoods"]
        for key in expected:
            torch.testing.assert_close(part[key], expected[key][first:last])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_signal_to_one_process_stops_all_at_the_same_step(
    train: Callable[..., dict[str, Any]], photographs: Path, tmp_path: Path
):
    """And all of them continue bit for bit."""
    argv = arguments(photographs, tmp_path / "straight", "--epochs", 3)
    assert finetune_with(2, argv, tmp_path / "p0")[0] == [0, 0]
    argv = arguments(photographs, tmp_path / "run", "--epochs", 3)
    hook = functools.partial(raise_signal_at, 4, signal.SIGTERM)
    codes, states = finetune_with(2, argv, tmp_path / "p1", functools.partial(_only, 1, hook))
    assert codes == [128 + signal.SIGTERM] * 2
    assert [state["step"] for state in states] == [4, 4]
    codes, states = finetune_with(2, [*argv, "--resume", "auto"], tmp_path / "p2")
    assert codes == [0, 0], errors(tmp_path / "p2", 2)
    assert_all_equal(states, 2)
    straight, resumed = (checkpoints.load(tmp_path / name / checkpoints.LAST) for name in ("straight", "run"))
    assert differing(straight, resumed) == []


def _only(rank: int, hook: Callable[[int], None], own_rank: int) -> None:
    hook(rank)


def test_a_fault_on_one_process_is_skipped_by_all(photographs: Path, tmp_path: Path):
    shutil.copytree(photographs, tmp_path / "images")
    Image.new("RGB", (80, 80), MAGENTA).save(tmp_path / "images" / "train" / "magenta.png")
    argv = arguments(tmp_path / "images", tmp_path / "run", "--batch-size", 4, "--epochs", 2)
    codes, states = finetune_with(2, argv, tmp_path / "processes", _faulty)
    assert codes == [0, 0], errors(tmp_path / "processes", 2)
    assert_all_equal(states, 2)
    state = checkpoints.load(tmp_path / "run" / checkpoints.LAST)
    assert state["faults"]["terms"] == {"basis": 2}
    # Two epochs of two steps, one of which is left out in each.
    assert {int(entry["step"]) for entry in states[1]["optimizer"]["state"].values()} == {2}
    faults = [json.loads(line) for line in (tmp_path / "run" / "faults.jsonl").read_text().splitlines()]
    assert [fault["culprits"][0]["images"] for fault in faults] == [["magenta.png"]] * 2


def _faulty(_rank: int) -> None:
    make_faulty(pytest.MonkeyPatch(), "basis", "gradient")


def test_images_that_vanish_for_one_process(photographs: Path, tmp_path: Path):
    argv = arguments(photographs, tmp_path / "run", "--epochs", 2)
    codes, states = finetune_with(2, argv, tmp_path / "processes", _no_images_at_step_3)
    assert codes == [1, 1]
    assert [state["step"] for state in states] == [2, 2]
    assert all("step 2: its share is gone; when they are back" in text for text in errors(tmp_path / "processes", 2))
    assert checkpoints.load(tmp_path / "run" / checkpoints.LAST)["step"] == 2


def _no_images_at_step_3(rank: int) -> None:
    from svdrd.compress.images import batches
    from svdrd.compress.train import loop

    take = loop.Training.train_step

    def train_step(self: loop.Training, batch: Any) -> dict[str, float] | None:
        if rank == 1 and self.state.step == 2:
            batch = {**batches.collate([]), "problem": "its share is gone"}
        return take(self, batch)

    loop.Training.train_step = train_step


def test_processes_that_drift_apart_are_stopped(photographs: Path, tmp_path: Path):
    """As DistributedDataParallel around CompressAI's own step would let them."""
    argv = arguments(photographs, tmp_path / "run", "--epochs", 3)
    codes, _ = finetune_with(2, argv, tmp_path / "processes", _drift)
    assert codes == [1, 1]
    for text in errors(tmp_path / "processes", 2):
        assert "processes 1 of 2: their weights differ from the first one's" in text


def _drift(rank: int) -> None:
    from svdrd.compress.train import loop

    take = loop.Training.train_step

    def train_step(self: loop.Training, batch: Any) -> dict[str, float] | None:
        values = take(self, batch)
        if rank == 1:
            quantiles = self.state.model.entropy_bottleneck.quantiles.data
            quantiles[0, 0, 0] = torch.nextafter(quantiles[0, 0, 0], torch.tensor(torch.inf))
        return values

    loop.Training.train_step = train_step


def test_processes_with_other_images_are_refused(photographs: Path, tmp_path: Path):
    argv = arguments(photographs, tmp_path / "run", "--epochs", 1)
    codes, _ = finetune_with(2, argv, tmp_path / "processes", _one_image_less)
    assert codes == [1, 1]
    assert "arguments, images or versions differ" in errors(tmp_path / "processes", 2)[0]


def _one_image_less(rank: int) -> None:
    from svdrd.compress.train import preparation

    open_images = preparation.open_images

    def fewer(*arguments: Any) -> Any:
        train, validation = open_images(*arguments)
        if rank == 1:
            train.samples.pop()
            train.sizes.pop()
        return train, validation

    preparation.open_images = fewer


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_shares_make_up_the_batches_of_one_process(size: int):
    whole = TrainingBatches(11, 2, 5, seed=3)
    shares = [
        list(TrainingBatches(11, 2, 5, seed=3, part=Processes(torch.device("cpu"), rank, size).part))
        for rank in range(size)
    ]
    joined = [[key for part in parts for key in part] for parts in zip(*shares, strict=True)]
    assert joined == list(whole)
    lengths = [[len(part) for part in parts] for parts in zip(*shares, strict=True)]
    assert all(max(parts) - min(parts) <= 1 for parts in lengths)


def test_validation_is_shared_out():
    sizes = [(64, 64)] * 5 + [(64, 128)] * 2
    whole = EqualSizeBatches(sizes, 2)
    parts = [EqualSizeBatches(sizes, 2, rank, 3) for rank in range(3)]
    numbered = sorted((number, batch) for part in parts for number, batch in zip(part.numbers, part, strict=True))
    assert numbered == list(enumerate(whole))


def test_fingerprint_sees_a_single_bit():
    values = torch.randn(1000)
    other = values.clone()
    other[500] = torch.nextafter(other[500], torch.tensor(9.0))
    swapped = values[[1, 0, *range(2, 1000)]]
    prints = {fingerprint([x]) for x in (values, other, swapped)}
    assert len(prints) == 3
    assert fingerprint([values.clone()]) == fingerprint([values])
    assert fingerprint([values, other]) != fingerprint([other, values])


def test_torchrun(photographs: Path, tmp_path: Path):
    """The command of the README; and a process that is killed ends all, after which the same command goes on."""
    argv = arguments(photographs, tmp_path / "run", "--resume", "auto", "--checkpoint-minutes", 0)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    command = [*torchrun, "-m", "svdrd", "finetune", *argv, "--epochs", "3"]
    environment = {**os.environ, "SVDRD_TEST_KILL": "4"}
    module = ["-m", "tests.compress.train.killed_finetune"]
    killed = subprocess.run(
        [*torchrun, *module, *argv, "--epochs", "3"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TEN_MINUTES,
    )
    assert killed.returncode != 0
    assert checkpoints.load(tmp_path / "run" / checkpoints.LAST)["step"] == 4, killed.stderr
    resumed = subprocess.run(command, capture_output=True, text=True, timeout=TEN_MINUTES)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("2 processes") == 1
    assert "steps 4 to 9" in resumed.stdout
    codes, _ = finetune_with(2, arguments(photographs, tmp_path / "straight", "--epochs", 3), tmp_path / "p")
    assert codes == [0, 0]
    straight, run = (checkpoints.load(tmp_path / name / checkpoints.LAST) for name in ("straight", "run"))
    assert differing(straight, run) == []
