import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("compressai")

from compressai.utils.eval_model.__main__ import load_checkpoint as eval_model_load

from svdrd.compress import BadInput, files, load_codec
from svdrd.compress.codecs import checkpoints
from svdrd.compress.commands import call
from tests.compress.conftest import TINY_CODEC, TINY_RUN


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


class Call:
    """What pickle would call on loading, were code in checkpoints allowed."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["state_dict", "optimizer", "metrics", "arguments"])
@pytest.mark.parametrize(
    ("function", "name"), [(os.system, "posix.system"), (eval, "eval"), (Path.touch, "getattr|Path|touch")]
)
def test_hostile_checkpoint(
    photographs: Path, tmp_path: Path, function: Callable[..., Any], name: str, where: str, zipped: bool
):
    """Wherever the code is, in both formats, on every way in; nothing of it runs."""
    touched = tmp_path / "touched"
    argument = {os.system: f"touch {touched}", eval: f"open({str(touched)!r}, 'w')", Path.touch: touched}[function]
    model = load_codec("bmshj2018-hyperprior", init="random", N=8, M=12)
    state = {"state_dict": dict(model.state_dict()), where: {"x": Call(function, argument)}}
    path = tmp_path / "c.pth.tar"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    for argv in (["--resume", path], ["--checkpoint", path]):
        with pytest.raises(BadInput, match=f"not readable as tensors and plain values: it holds .*({name})") as caught:
            call("finetune", [*TINY_CODEC, *TINY_RUN, "-d", str(photographs), "--no-save", *map(str, argv)])
        assert "\n" not in str(caught.value)
        assert "can run any code" in str(caught.value)
    assert not touched.exists()


def test_a_pickled_model_is_refused_by_name(tmp_path: Path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(BadInput, match=r"it holds torch\.nn\.modules\.linear\.Linear, and loading that can run"):
        checkpoints.load(tmp_path / "model.pth")


def test_a_plain_pickle_and_a_scripted_model_are_no_checkpoints(tmp_path: Path):
    (tmp_path / "pickle").write_bytes(pickle.dumps({"state_dict": Call(os.system, f"touch {tmp_path / 'touched'}")}))
    with pytest.raises(BadInput, match="not readable as tensors and plain values"):
        checkpoints.load(tmp_path / "pickle")
    assert not (tmp_path / "touched").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "scripted")
    with pytest.raises(BadInput, match=r"\(Cannot use ``weights_only=True`` with TorchScript archives"):
        checkpoints.load(tmp_path / "scripted")


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path):
    for name in (checkpoints.LAST, checkpoints.BEST):
        (tmp_path / f"{name}x1y2.tmp").touch()
    for name in (checkpoints.LAST, "checkpoint of mine.tmp", "metrics.csv.tmp"):
        (tmp_path / name).touch()
    checkpoints.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {checkpoints.LAST, "checkpoint of mine.tmp", "metrics.csv.tmp"}


def test_a_full_disk_is_an_oserror_not_torchs_own(tmp_path: Path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    path = tmp_path / "c.pth.tar"
    checkpoints.save(path, {"epoch": 1})
    full = os.open("/dev/full", os.O_WRONLY)

    def on_the_full_disk(**_options: Any) -> tuple[int, str]:
        name = tmp_path / "c.pth.tar.tmp"
        name.touch()
        return full, str(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.tempfile, "mkstemp", on_the_full_disk)
        with pytest.raises(OSError, match="No space left on device"):
            checkpoints.save(path, {"epoch": 2, "weights": torch.zeros(100_000)})
    assert list(tmp_path.iterdir()) == [path]
    assert checkpoints.load(path) == {"epoch": 1}
