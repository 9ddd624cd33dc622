"""``run_of_5c645b1.pth.tar`` was written by the code of that commit: such runs go on, and new ones hold the same."""

from collections.abc import Callable
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest

pytest.importorskip("compressai")

from svdrd.compress.codecs import checkpoints
from tests.compress.conftest import equal, resume

OLD = Path(__file__).with_name("run_of_5c645b1.pth.tar")


def test_an_old_run_goes_on(train: Callable[..., dict[str, Any]], photographs: Path, tmp_path: Path):
    before = checkpoints.load(OLD)
    (tmp_path / "old").mkdir()
    copyfile(OLD, tmp_path / "old" / checkpoints.LAST)
    after = resume(tmp_path / "old", "-d", photographs, "--steps", 6)
    assert (before["step"], after["step"]) == (4, 6)
    assert equal(after["metrics"][:2], before["metrics"])
    straight = train("straight", "-m", "bmshj2018-factorized", "--model-args", "N=2", "M=2", "--epochs", 2)
    assert straight["step"] == 6
    # Another processor rounds otherwise than the one that wrote the file.
    for name in ("val_loss", "val_psnr"):
        first, second = (state["metrics"][-1][name] for state in (after, straight))
        assert first == pytest.approx(second, rel=1e-3)


def test_a_checkpoint_holds_what_it_always_held(train: Callable[..., dict[str, Any]]):
    before, now = checkpoints.load(OLD), train("run", "--steps", 1)
    assert list(now) == list(before)
    assert list(now["arguments"]) == list(before["arguments"])
    assert all(type(now[key]) is type(before[key]) for key in before)
