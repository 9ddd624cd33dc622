"""Real processes killed at random and at the worst moments, full disks: a checkpoint is there, and it continues."""

import functools
import json
import multiprocessing.process
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("compressai")

from svdrd.compress.codecs import checkpoints
from tests.compress.conftest import TINY_CODEC, TINY_RUN, differing, equal
from tests.compress.train.several import CONTEXT, _main, errors, finetune_with

# As in the processes that are killed: on some processors oneDNN's sums depend on the number of threads.
pytestmark = pytest.mark.usefixtures("one_thread")

# Kills of each run below; in the night more.
ROUNDS = int(os.environ.get("SVDRD_KILL_ROUNDS", "1"))


def arguments(photographs: Path, out: Path, *options: object) -> list[str]:
    # A checkpoint after every step.
    often = ["--checkpoint-minutes", "0", "--resume", "auto"]
    return [*TINY_CODEC, *TINY_RUN, *often, "-d", str(photographs), "-o", str(out), *map(str, options)]


def start(
    argv: list[str], folder: Path, hook: Callable[[int], None] | None = None
) -> multiprocessing.process.BaseProcess:
    folder.mkdir(exist_ok=True)
    process = CONTEXT.Process(target=_main, args=(0, 1, 0, argv, folder, hook))
    process.start()
    return process


def assert_same_run(straight: Path, killed: Path) -> None:
    for name in (checkpoints.LAST, checkpoints.BEST):
        assert differing(checkpoints.load(straight / name), checkpoints.load(killed / name)) == []
    assert (straight / "metrics.csv").read_text() == (killed / "metrics.csv").read_text()
    assert list(killed.glob("*.tmp")) == []
    assert json.loads((killed / "summary.json").read_text())["finished"]


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_and_resumed(photographs: Path, tmp_path: Path, workers: int):
    generator = random.Random(workers)
    options = ("--epochs", 8 * ROUNDS, "-n", workers)
    straight = start(arguments(photographs, tmp_path / "straight", *options), tmp_path / "process")
    last = tmp_path / "run" / checkpoints.LAST
    steps, half_written = [], 0
    for number in range(ROUNDS):
        process = start(arguments(photographs, tmp_path / "run", *options), tmp_path / "process")
        before = last.stat().st_mtime_ns if last.exists() else 0
        # Every fourth time at once, while it starts; else somewhere behind its first new checkpoint.
        while number % 4 != 3 and (not last.exists() or last.stat().st_mtime_ns == before):
            assert process.exitcode is None, errors(tmp_path / "process", 1)
            time.sleep(0.002)
        process.join(timeout=generator.uniform(0, 0.1))
        assert process.exitcode is None, "the run ended before it was killed: it is too short"
        process.kill()
        process.join()
        half_written += any((tmp_path / "run").glob("*.tmp"))
        steps.append(checkpoints.load(last)["step"])
    assert steps == sorted(steps)
    process = start(arguments(photographs, tmp_path / "run", *options), tmp_path / "process")
    process.join(timeout=600)
    assert process.exitcode == 0, errors(tmp_path / "process", 1)
    straight.join(timeout=600)
    assert straight.exitcode == 0
    print(f"{workers} loaders: killed {ROUNDS} times, after steps {steps}; {half_written} left a half-written file")
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def _killed_in_save(_rank: int, where: str, number: int) -> None:
    """SIGKILL in the ``number``-th call of ``checkpoints.save`` of this process."""
    from svdrd.compress.codecs import checkpoints

    calls = 0
    save, write = checkpoints.save, torch.save

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(path: Path, state: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        save(path, state)

    def write_half(state: dict[str, Any], file: Any) -> None:
        if calls == number and where == "half written":
            write(state, file)
            file.flush()
            os.truncate(file.fileno(), file.tell() // 2)
            die()
        write(state, file)
        if calls == number and where == "written":
            die()

    def rename(path: Path, target: Path) -> Path:
        if calls == number and where == "before the rename":
            die()
        result = replace(path, target)
        if calls == number and where == "after the rename":
            die()
        return result

    replace = Path.replace
    checkpoints.save = counted
    torch.save = write_half
    checkpoints.Path.replace = rename


PLACES = ("half written", "written", "before the rename", "after the rename")
# Two epochs of three steps save ten times: after steps 1, 2, 3, the best and the last after validation; 4, 5, 6, both.
SAVES = (2, 4, 5, 9)
# Every place and every save; in the night every pair of them.
KILLS = [(place, number) for place in PLACES for number in SAVES]


@pytest.mark.parametrize(("where", "number"), KILLS if ROUNDS > 1 else list(zip(PLACES, SAVES, strict=True)))
def test_killed_while_saving(
    train: Callable[..., dict[str, Any]], photographs: Path, tmp_path: Path, where: str, number: int
):
    train("straight", "--epochs", 2)
    argv = arguments(photographs, tmp_path / "run", "--epochs", 2)
    process = start(argv, tmp_path / "process", functools.partial(_killed_in_save, where=where, number=number))
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL, errors(tmp_path / "process", 1)
    if where != "after the rename":
        assert len(list((tmp_path / "run").glob("*.tmp"))) == 1
    assert checkpoints.load(tmp_path / "run" / checkpoints.LAST)["step"] > 0
    process = start(argv, tmp_path / "process")
    process.join(timeout=120)
    assert process.exitcode == 0, errors(tmp_path / "process", 1)
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def _no_space(_rank: int, steps: range) -> None:
    """During ``steps`` no file may grow beyond 10 kB: the kernel refuses in the middle of a write."""
    from svdrd.compress.train import loop

    take = loop.Training.train_step

    def train_step(self: loop.Training, batch: Any) -> dict[str, float] | None:
        limit = 10_000 if self.state.step + 1 in steps else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return take(self, batch)

    loop.Training.train_step = train_step


def test_a_disk_that_is_full_for_a_while(train: Callable[..., dict[str, Any]], photographs: Path, tmp_path: Path):
    straight = train("straight", "--epochs", 3)
    argv = arguments(photographs, tmp_path / "run", "--epochs", 3)
    codes, states = finetune_with(1, argv, tmp_path / "process", functools.partial(_no_space, steps=range(2, 8)))
    error = errors(tmp_path / "process", 1)[0]
    assert codes == [0], error
    assert "step 2: the checkpoint cannot be written" in error
    assert "(File too large); the training goes on, the checkpoint there is of step 1" in error
    run = checkpoints.load(tmp_path / "run" / checkpoints.LAST)
    # The best of the epochs that could not be saved is not the best on the disk.
    assert differing(straight, run) in ([], ["best_loss"])
    best = checkpoints.load(tmp_path / "run" / checkpoints.BEST)
    assert run["best_loss"] == best["loss"] == best["metrics"][-1]["val_loss"]
    assert equal(states[0]["state_dict"]["g_a.0.weight"], straight["state_dict"]["g_a.0.weight"])


def test_a_disk_that_stays_full(photographs: Path, tmp_path: Path, train: Callable[..., dict[str, Any]]):
    straight = train("straight", "--epochs", 3)
    argv = arguments(photographs, tmp_path / "run", "--epochs", 3)
    codes, _ = finetune_with(1, argv, tmp_path / "process", functools.partial(_no_space, steps=range(5, 100)))
    error = errors(tmp_path / "process", 1)[0]
    assert codes == [1]
    said = "step 9: the checkpoint cannot be written (File too large), the last one is of step 4; free some space in"
    assert said in error.splitlines()[-1]
    assert list((tmp_path / "run").glob("*.tmp")) == []
    assert checkpoints.load(tmp_path / "run" / checkpoints.LAST)["step"] == 4
    assert finetune_with(1, argv, tmp_path / "again")[0] == [0]
    assert differing(straight, checkpoints.load(tmp_path / "run" / checkpoints.LAST)) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root; the tests above refuse large files instead")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_real_disk_without_space(
    train: Callable[..., dict[str, Any]], photographs: Path, tmp_path: Path, small_disk: Path
):
    """Checkpoints of 1.1 MB: two of them fit, a third that is being written does not."""
    straight = train("straight", "--epochs", 3)
    (small_disk / "others").write_bytes(bytes(1_200_000))
    argv = arguments(photographs, small_disk / "run", "--epochs", 3)
    codes, _ = finetune_with(1, argv, tmp_path / "process")
    assert codes == [1]
    assert "No space left on device" in errors(tmp_path / "process", 1)[0].splitlines()[-1]
    assert 0 < checkpoints.load(small_disk / "run" / checkpoints.LAST)["step"] < 9
    (small_disk / "others").unlink()
    assert finetune_with(1, argv, tmp_path / "again")[0] == [0], errors(tmp_path / "again", 1)
    assert differing(straight, checkpoints.load(small_disk / "run" / checkpoints.LAST)) == []


def test_resume_auto_begins_and_continues(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from svdrd.compress.commands import call

    argv = arguments(photographs, tmp_path / "run", "--epochs", 2)
    assert call("finetune", [*argv, "--steps", "2"]) == 0
    assert "steps 0 to 2" in capsys.readouterr().out
    assert call("finetune", [*argv, "--steps", "6"]) == 0
    assert "steps 2 to 6" in capsys.readouterr().out
    before = (tmp_path / "run" / checkpoints.LAST).read_bytes()
    assert call("finetune", argv) == 0
    assert (tmp_path / "run" / checkpoints.LAST).read_bytes() == before
