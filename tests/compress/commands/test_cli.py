import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

pytest.importorskip("compressai")

from svdrd.__main__ import COMMANDS, main
from svdrd.compress import load_codec, options
from svdrd.compress.train import optimizers, precision
from tests.compress.conftest import TINY_CODEC, TINY_RUN, synthetic_photograph

# A process in another folder finds this tree, and argparse has the same room everywhere.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]),
    "COLUMNS": "120",
}


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


HEAVY = ("torch", "compressai", "matplotlib", "torchvision", "bjontegaard")
# Runs the command line of its arguments, and says which of the heavy packages that has imported.
WHAT_IS_IMPORTED = f"""
import sys
from svdrd.__main__ import main
try:
    code = main(sys.argv[1:])
except SystemExit as error:
    code = error.code
print("imported:", *(name for name in {HEAVY} if name in sys.modules))
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ("--help", 0, "commands:"),
        ("finetune --help", 0, "--device DEVICE       (default: cuda where there is a GPU, else cpu)"),
        ("evaluate --help", 0, "usage: svdrd evaluate "),
        ("compare --help", 0, "usage: svdrd compare "),
        ("recompose --help", 0, "usage: svdrd recompose "),
        ("experiment --help", 0, "usage: svdrd experiment "),
        ("data --help", 0, "usage: svdrd data "),
        ("finetun", 2, "argument COMMAND: invalid choice: 'finetun'"),
        ("finetune --no-such-option", 2, "unrecognized arguments: --no-such-option"),
        ("finetune --precision fp8", 2, "argument --precision: invalid choice: 'fp8'"),
        ("finetune --lr-schedule never", 2, "argument --lr-schedule: invalid choice: 'never'"),
        ("finetune --epochs many", 2, "argument -e/--epochs: invalid int value: 'many'"),
        ("finetune -q 3", 2, "--dataset: missing; give a folder of training images"),
        ("finetune -d x -q 3 --mu -1", 2, "--mu -1.0: wanted a finite value of at least 0"),
        ("finetune --config missing.toml", 2, "--config missing.toml: No such file or directory"),
        ("evaluate", 2, "the following arguments are required: -m/--model, -d/--dataset"),
        ("evaluate -m x -d y -q 1 --metric psnr", 2, "argument --metric: invalid choice: 'psnr'"),
        ("evaluate -m x -d y -q 1 -o no/where.json", 2, "no folder 'no'; make it first"),
        ("compare -o out", 2, "the following arguments are required: --arm"),
        ("compare -o out --arm a=zoo:1 --arm b=zoo:1 -m x --resamples 9", 2, "--resamples 9: wanted at least 100"),
        ("compare -o out --arm a=zoo:1 -m x", 2, "--arm a: the only one"),
        ("recompose -m x -d y", 2, "one of the arguments --checkpoint -q/--quality is required"),
        ("experiment", 2, "the following arguments are required: config"),
        ("data get coco", 2, "argument name: invalid choice: 'coco'"),
    ],
)
def test_help_and_wrong_options_do_not_wait_for_torch(argv: str, code: int, said: str, tmp_path: Path):
    # As pip's script is called, and does.
    program = tmp_path / "svdrd"
    program.write_text(WHAT_IS_IMPORTED)
    words = [sys.executable, str(program), *argv.split()]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=ENVIRONMENT)
    assert result.returncode == code
    assert result.stdout.endswith("imported:\n")
    if code:
        assert result.stderr.count("\n") == 1
        assert "error: " in result.stderr
    assert said in result.stdout + result.stderr


def test_started_as_a_module_too():
    words = [sys.executable, "-X", "importtime", "-m", "svdrd", "finetune", "--help"]
    listed = subprocess.run(words, capture_output=True, text=True, timeout=300, env=ENVIRONMENT).stderr
    imported = {line.rpartition("|")[2].strip() for line in listed.splitlines()}
    assert "svdrd.compress.train.command_line" in imported
    assert not imported & set(HEAVY)


def test_the_choices_are_what_there_is():
    """The table of options stands where nothing is imported, apart from what it names."""
    assert tuple(precision.AUTOCAST_DTYPES) == options.PRECISIONS
    weight = torch.nn.Parameter(torch.zeros(1))
    for schedule in options.SCHEDULES:
        optimizers.make_schedule(schedule, torch.optim.SGD([weight]), 10)


def test_without_compressai(tmp_path: Path):
    code = """
import sys
sys.modules["compressai"] = None
from svdrd.__main__ import main
for argv in ("finetune -d x -q 3", "evaluate -m x -d x -q 1", "recompose -m x -d x -q 1",
             "compare -m x -d x -o out --arm a=zoo:1 --arm b=zoo:2"):
    assert main(argv.split()) == 2
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=tmp_path, env=ENVIRONMENT
    )
    assert result.returncode == 0
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"svdrd {command}: error: compressai is not installed; pip install 'svdrd[compress]'"
        for command in ("finetune", "evaluate", "recompose", "compare")
    ]


NAMES = """
import sys
import svdrd
assert set(svdrd.__all__) <= set(dir(svdrd))
import svdrd.compress
from compressai.registry import CRITERIONS
assert "BasisRateDistortionLoss" in CRITERIONS
assert set(svdrd.compress.__all__) <= set(dir(svdrd.compress))
for package in (svdrd, svdrd.compress):
    try:
        package.no_such_name
    except AttributeError as error:
        assert str(error) == f"module '{package.__name__}' has no attribute 'no_such_name'"
    else:
        raise AssertionError(package)
assert CRITERIONS["BasisRateDistortionLoss"] is svdrd.compress.BasisRateDistortionLoss
from svdrd import BasisLoss, use_backend
from svdrd.compress import BadInput, lambda_for, load_codec
import torch  # after svdrd, as sorted imports have it
x = torch.rand(1, 3, 8, 8)
assert torch.ops.svdrd.basis_loss(x[0], x[0], 4, 4, 1e-6, 0.0, False, False)[0].sum() == 0
with use_backend("torch"):
    assert BasisLoss()(x, x) == svdrd.ops.basis_loss(x, x) == 0
"""
REGISTERED = """
import compressai.registry
import svdrd.__main__
assert "BasisRateDistortionLoss" in compressai.registry.CRITERIONS
import torch
x = torch.rand(2, 4, 4)
assert torch.ops.svdrd.basis_loss(x, x, 4, 4, 1e-6, 0.0, False, False)[0].sum() == 0
"""


def test_whoever_imports_the_packages_has_all_names_operators_and_the_criterion():
    """And CompressAI's FutureWarning is spent in silence."""
    words = [sys.executable, "-W", "error::FutureWarning", "-c", NAMES]
    assert subprocess.run(words, capture_output=True, text=True, timeout=300, env=ENVIRONMENT).stderr == ""


def test_nothing_waits_where_torch_and_compressai_are_imported_already():
    words = [sys.executable, "-c", REGISTERED]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr


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
        (["--config", "a file"], "--config a file: not UTF-8"),
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
