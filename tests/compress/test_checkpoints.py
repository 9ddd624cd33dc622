from pathlib import Path

import pytest
import torch

pytest.importorskip("compressai")

from compressai.utils.eval_model.__main__ import load_checkpoint as eval_model_load

from svdrd.compress import BadInput, checkpoints, load_codec


def test_round_trip(tmp_path: Path):
    state = {"epoch": 3, "loss": float("inf"), "state_dict": {"a": torch.arange(3)}, "metrics": [{"bpp": 0.5}]}
    checkpoints.save(tmp_path / "c.pth.tar", state)
    loaded = checkpoints.load(tmp_path / "c.pth.tar")
    assert torch.equal(loaded.pop("state_dict")["a"], torch.arange(3))
    assert loaded == {"epoch": 3, "loss": float("inf"), "metrics": [{"bpp": 0.5}]}


def test_file_has_the_permissions_of_any_new_file(tmp_path: Path):
    (tmp_path / "ordinary").touch()
    checkpoints.save(tmp_path / "c.pth.tar", {"epoch": 0})
    assert (tmp_path / "c.pth.tar").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


class FailsHalfway:
    def __reduce__(self) -> tuple:
        raise RuntimeError("disk full")


def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "c.pth.tar"
    checkpoints.save(path, {"epoch": 1})
    with pytest.raises(RuntimeError, match="disk full"):
        checkpoints.save(path, {"epoch": 2, "weights": torch.zeros(1000), "broken": FailsHalfway()})
    assert checkpoints.load(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["missing", "folder", "garbage", "truncated", "no dict"])
def test_unreadable(tmp_path: Path, kind: str):
    path = tmp_path / "c.pth.tar"
    if kind == "folder":
        path.mkdir()
    elif kind == "garbage":
        path.write_bytes(b"\x80garbage")
    elif kind == "truncated":
        checkpoints.save(path, {"weights": torch.zeros(1000)})
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "no dict":
        torch.save([1, 2], path)
    with pytest.raises(BadInput, match=f"checkpoint '{path}'") as caught:
        checkpoints.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("no_update", [True, False])
def test_compressais_eval_model_reads_an_updated_model(tmp_path: Path, no_update: bool):
    model = load_codec("bmshj2018-hyperprior", init="random", N=8, M=12)
    model.update(force=True)
    checkpoints.save(tmp_path / "c.pth.tar", {"epoch": 0, "state_dict": model.state_dict()})
    read = eval_model_load("bmshj2018-hyperprior", no_update, str(tmp_path / "c.pth.tar"))
    x = torch.rand(1, 3, 64, 64)
    assert read.compress(x)["strings"] == model.eval().compress(x)["strings"]
