"""File names that a terminal, a locale or an encoding cannot show: no command loses a result by them."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("compressai")

from compressai.models import ScaleHyperprior

from svdrd.__main__ import main as svdrd
from svdrd.compress import showing
from svdrd.compress.codecs import checkpoints
from svdrd.compress.files import read_text, write_text
from tests.compress.conftest import TINY_CODEC, TINY_RUN, synthetic_photograph
from tests.warm import Warm

MODEL = "bmshj2018-hyperprior"
# A byte that is no UTF-8, as in archives from Latin-1 systems; a letter that ASCII lacks; a formula for matplotlib.
NAMES = (b"caf\xe9.png", "naïve.png".encode(), b"$\\frac$.png")
SURROGATE = "caf\udce9.png"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("names")
    (place / "images").mkdir()
    for seed, name in enumerate(NAMES):
        synthetic_photograph(176, 176, seed).save(place / "x.png")
        try:
            (place / "x.png").rename(place / "images" / os.fsdecode(name))
        except OSError:
            pytest.skip("this file system takes no such names")
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save({"state_dict": ScaleHyperprior(8, 12).state_dict()}, place / f"{seed}.pth.tar")
    return place


@pytest.fixture(scope="module")
def in_ascii() -> Iterator[Warm]:
    """Programs of a terminal and a locale in ASCII, without Python's ways around such a locale."""
    python = Warm(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", PYTHONIOENCODING="ascii:strict")
    yield python
    python.close()


def test_evaluate_on_a_terminal_in_ascii(place: Path, tmp_path: Path, in_ascii: Warm):
    argv = ["-m", "svdrd", "evaluate", "-m", MODEL, "-d", place / "images", "--checkpoint", place / "0.pth.tar"]
    argv += ["-o", tmp_path / "out.json", "--decoded", tmp_path / "decoded"]
    result = in_ascii.run(argv, tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    images = json.loads((tmp_path / "out.json").read_bytes())["images"]
    assert [os.fsencode(image["source"]) for image in images] == sorted(NAMES)
    assert sorted(os.fsencode(path.name) for path in (tmp_path / "decoded").iterdir()) == sorted(NAMES)
    assert "caf\\udce9.png" in result.stdout.decode("ascii")


def compared(place: Path, output: Path) -> list[str]:
    arms = [word for seed in range(2) for word in ("--arm", f"arm{seed}", str(place / f"{seed}.pth.tar"))]
    return ["compare", "-m", MODEL, "-d", str(place / "images"), *arms, "--visual", "-o", str(output)]


def test_compare_and_its_files(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert svdrd(compared(place, tmp_path)) == 0
    assert "caf\\udce9.png: " in capsys.readouterr().out
    # Whoever reads UTF-8 can read them.
    rows = list(csv.DictReader((tmp_path / "points.csv").open(encoding="utf-8", newline="")))
    assert {row["image"] for row in rows} == {"caf\\udce9.png", "naïve.png", "$\\frac$.png"}
    assert "arm1" in (tmp_path / "comparison.md").read_text(encoding="utf-8")
    # And what was coded is found again by its names.
    assert svdrd(compared(place, tmp_path)) == 0
    assert capsys.readouterr().out.count("(kept)") == 2


def test_a_figure_that_cannot_be_drawn_costs_no_table(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from svdrd.compress.comparison import writing

    def fails(*_: Any) -> None:
        raise ValueError("no font")

    monkeypatch.setattr(writing, "draw_curves", fails)
    with pytest.raises(ValueError, match="no font"):
        svdrd(compared(place, tmp_path))
    assert (tmp_path / "comparison.json").is_file()
    assert (tmp_path / "points.csv").is_file()


def test_recompose_and_its_figures(place: Path, tmp_path: Path):
    argv = ["recompose", "-m", MODEL, "-d", str(place / "images"), "--checkpoint", str(place / "0.pth.tar")]
    for name in ("caf\udce9", "$\\frac$"):
        assert svdrd([*argv, "--patch-size", "64", "--show", name, "-o", str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / "recompose.csv").open(encoding="utf-8")))
    assert {row["image"] for row in rows} == {"caf\\udce9.png", "naïve.png", "$\\frac$.png"}


def test_finetune_and_resume_in_a_folder_of_such_a_name(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "caf\udce9"
    argv = [*TINY_CODEC, *TINY_RUN, "-d", str(place / "images"), "-o", str(folder), "--steps", "1"]
    assert svdrd(["finetune", *argv]) == 0
    kept = checkpoints.load(folder / checkpoints.LAST)
    kept["damaged_images"] = [SURROGATE]
    checkpoints.save(folder / checkpoints.LAST, kept)
    assert svdrd(["finetune", "--resume", str(folder / checkpoints.LAST), "--steps", "2"]) == 0
    assert checkpoints.load(folder / checkpoints.LAST)["damaged_images"] == [SURROGATE]
    assert json.loads((folder / "summary.json").read_bytes())["damaged_images"] == [SURROGATE]
    # TensorBoard's own writer takes no such folder; that is said, and all else is there.
    assert capsys.readouterr().err.count("surrogates not allowed); the training goes on, its logs have gaps\n") == 2
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint.pth.tar", "checkpoint_best_loss.pth.tar", "config.json", "metrics.csv", "summary.json"
    }  # fmt: skip


def test_configurations_do_not_depend_on_the_locale(place: Path, tmp_path: Path, in_ascii: Warm):
    """A folder of letters that the locale lacks, in a file with a byte-order mark."""
    (tmp_path / "größe").symlink_to(place / "images")
    config = f'model = "{MODEL}"\ninit = "random"\nlambda = 0.01\npatch-size = [64, 64]\ndataset = "größe"\n'
    (tmp_path / "run.toml").write_bytes(b"\xef\xbb\xbf" + config.encode())
    argv = ["-m", "svdrd", "finetune", "--config", tmp_path / "run.toml", "--dry-run", "--no-save"]
    result = in_ascii.run([*argv, "-d", tmp_path / "größe", "--model-args", "N=8", "M=12", "-n", "0"], tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    said = result.stdout.decode("ascii")
    assert "1 training images" not in said
    assert "gr\\xf6\\xdfe" in said or "gr\\udcc3" in said


@pytest.mark.parametrize("nobody", ["closed pipe", "full disk"])
def test_a_result_is_written_though_nobody_reads(place: Path, tmp_path: Path, warm: Warm, nobody: str):
    """Two codecs: the first table is shown before the second one is coded."""
    argv = ["-m", "svdrd", "evaluate", "-m", MODEL, "-d", place / "images", "--estimate", "-o", tmp_path / "out.json"]
    argv += ["--checkpoint", place / "0.pth.tar", place / "1.pth.tar"]
    if nobody == "full disk":
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full on this system")
        out = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, out = os.pipe()
        os.close(reader)
    result = warm.run(argv, tmp_path, stdout=out)
    os.close(out)
    said = "the output takes no more (No space left on device): what follows is not shown\n"
    assert (result.returncode, result.stderr.decode()) == (0, said if nobody == "full disk" else "")
    assert len(json.loads((tmp_path / "out.json").read_text())["results"]["bpp"]) == 2


def test_text_files(tmp_path: Path):
    write_text(tmp_path / "new" / "a.csv", f"{SURROGATE},ï\n")
    assert (tmp_path / "new" / "a.csv").read_bytes() == b"caf\\udce9.png,\xc3\xaf\n"
    (tmp_path / "b").write_bytes(b"\xef\xbb\xbfx = 1")
    assert read_text(tmp_path / "b") == "x = 1"


def test_text_in_a_figure():
    assert showing.in_a_figure(f"a$b$ {SURROGATE} ï") == "a\\$b\\$ caf\\udce9.png ï"
