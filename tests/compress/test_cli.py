import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

pytest.importorskip("compressai")

import svdrd
from svdrd.__main__ import COMMANDS, main
from svdrd.backends import availability
from svdrd.compress import load_codec
from tests.compress.conftest import TINY_CODEC, TINY_RUN, synthetic_photograph


@pytest.mark.parametrize("argv", [[], ["info"]])
def test_info(argv: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert f"svdrd {svdrd.__version__}, torch {torch.__version__}" in out
    assert "compressai 1." in out
    for backend in availability.describe():
        assert f"backend {backend.name}: {'available' if backend.available else 'missing'}, {backend.reason}" in out


def test_info_names_missing_packages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def version(package: str) -> str:
        raise svdrd.__main__.PackageNotFoundError(package)

    monkeypatch.setattr(svdrd.__main__, "version", version)
    assert main([]) == 0
    assert "compressai: missing, pip install 'svdrd[compress]'" in capsys.readouterr().out


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", ["finetune", "evaluate", "compare", "recompose", "experiment", "data"])
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: svdrd {command} " in capsys.readouterr().out


@pytest.mark.parametrize("command", ["finetune", "evaluate", "compare", "recompose"])
def test_without_compressai(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    for name in list(sys.modules):
        if name.startswith("svdrd.compress"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "compressai", None)
    assert main([command, "-d", "anywhere"]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"svdrd {command}: error: compressai is not installed; pip install 'svdrd[compress]'\n"
    assert captured.out == ""


def exit_code(argv: list[str]) -> int:
    """argparse's own errors leave through SystemExit, ours through the return value; a shell sees no difference."""
    try:
        return main(argv)
    except SystemExit as error:
        return int(error.code or 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-d", "missing"], "dataset 'missing': missing; give a folder"),
        (["-d", "empty"], "dataset 'empty': 0 files and no image"),
        (["-d", "a file"], "dataset 'a file': a file; give a folder"),
        (["-d", "small"], "1 of 1 images are smaller than the crop 64x64, first 1.png"),
        (["-d", "one"], "--dataset one: a single image"),
        (["-d", "damaged"], "dataset 'damaged': none of its images can be read"),
        (["--val-dataset", "missing"], "dataset 'missing': missing"),
        (["-m", "bmshj2018-hyperprio"], "did you mean bmshj2018-hyperprior"),
        (["-m", "mbt2018-vbr"], "take mbt2018"),
        (["--init", "zoo", "-q", "9"], "quality=9: bmshj2018-hyperprior has qualities 1 to 8"),
        (["-m", "cheng2020-attn", "--init", "zoo", "-q", "7"], "quality=7: cheng2020-attn has qualities 1 to 6"),
        (["--init", "zoo", "--model-args"], "expected at least one argument"),
        (["--model-args", "N"], "--model-args N: wanted NAME=VALUE"),
        (["--model-args", "N=many"], "--model-args N=many: wanted NAME=VALUE"),
        (["--model-args", "K=8"], "bmshj2018-hyperprior takes N, M"),
        (["--checkpoint", "missing"], "checkpoint 'missing': no such file"),
        (["--checkpoint", "a file"], "checkpoint 'a file': not readable"),
        (["--checkpoint", "mbt2018-mean.pth.tar"], "not a bmshj2018-hyperprior: "),
        (["--resume", "mbt2018-mean.pth.tar"], "not a run of svdrd finetune"),
        (["--mu", "-1"], "--mu -1.0: wanted a finite value of at least 0"),
        (["--mu", "nan"], "--mu nan: wanted a finite value"),
        (["--mu", "much"], "argument --mu: invalid float value: 'much'"),
        (["--lambda", "0"], "--lambda 0.0: wanted a finite value above 0"),
        (["--lambda", "-0.1"], "--lambda -0.1: wanted a finite value above 0"),
        (["--batch-size", "0"], "--batch-size 0: wanted a finite value of at least 1"),
        (["--test-batch-size", "-2"], "--test-batch-size -2: wanted"),
        (["--epochs", "0"], "--epochs 0: wanted"),
        (["--steps", "0"], "--steps 0: wanted"),
        (["-lr", "0"], "--learning-rate 0.0: wanted a finite value above 0"),
        (["--patch-size", "0", "64"], "--patch-size 0: wanted two sides"),
        (["--block-size", "7"], "--block-size 7: does not divide the side 64 of --patch-size; 8, 16, 32, 64 would"),
        (["--block-size", "0"], "--block-size 0: wanted"),
        (["--metric", "ms-ssim"], "--patch-size 64: MS-SSIM needs sides of at least 161"),
        (["--metric", "psnr"], "argument --metric: invalid choice: 'psnr'"),
        (["--device", "tpu9"], "--device tpu9: "),
        (["--accumulate", "0"], "--accumulate 0: wanted a finite value of at least 1"),
        (["--max-skipped", "0"], "--max-skipped 0: wanted"),
        (["--checkpoint-minutes", "-1"], "--checkpoint-minutes -1.0: wanted"),
        (["--precision", "fp8"], "argument --precision: invalid choice: 'fp8'"),
        (["--freeze", "encodr"], "--freeze encodr: no such part; encoder, decoder, entropy, or one of"),
        (["--config", "missing.toml"], "--config missing.toml: No such file or directory"),
        (["--config", "a file"], "--config a file: not TOML"),
        (["-o", "a file"], "--save-dir a file: not writable"),
        (["-o", "a file/below"], "--save-dir a file/below: not writable"),
        (["-o", "a run"], "--save-dir a run: holds a run already"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    options: list[str],
    said: str,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    for folder, sizes in {"empty": [], "small": [50, 60], "one": [64]}.items():
        (tmp_path / folder).mkdir()
        for index, side in enumerate(sizes):
            synthetic_photograph(side, side, index).save(tmp_path / folder / f"{index}.png")
    (tmp_path / "damaged").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "damaged" / name).write_bytes(b"no image")
    (tmp_path / "a file").write_bytes(b"\x80 is no checkpoint")
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "checkpoint.pth.tar").touch()
    other = load_codec("mbt2018-mean", init="random", N=8, M=12)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "mbt2018-mean.pth.tar")
    before = sorted(tmp_path.rglob("*"))

    with pytest.warns(UserWarning, match="skipped") if "damaged" in options else nullcontext():
        code = exit_code(["finetune", *TINY_CODEC, *TINY_RUN, "-d", str(photographs), "-o", "out", *options])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("svdrd finetune: error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_lambda_and_dataset(photographs: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["finetune", "-d", str(photographs)]) == 2
    assert "--lambda: missing; give it, or --quality" in capsys.readouterr().err
    assert main(["finetune", "-q", "3"]) == 2
    assert "--dataset: missing" in capsys.readouterr().err


def test_unknown_command(capsys: pytest.CaptureFixture[str]):
    assert exit_code(["finetun"]) == 2
    assert capsys.readouterr().err.startswith("svdrd: error: argument COMMAND: invalid choice: 'finetun'")


def test_a_fresh_process_says_one_line_too(tmp_path: Path):
    """CompressAI and torch warn at import; none of that reaches the user."""
    argv = [sys.executable, "-m", "svdrd", "finetune", "-q", "3", "-d", str(tmp_path / "missing")]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    assert result.stdout == ""
    assert (
        result.stderr == f"svdrd finetune: error: dataset '{tmp_path / 'missing'}': missing; give a folder of images\n"
    )
