import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("compressai")

from svdrd.__main__ import main as svdrd
from svdrd.compress import load_codec
from svdrd.compress.codecs import checkpoints
from svdrd.compress.images import batches
from svdrd.compress.study import run as study_run
from svdrd.compress.train import loop
from tests.compress.conftest import differing, synthetic_photograph, weights
from tests.compress.train.several import CONTEXT

IN_A_PROCESS_OF_ITS_OWN = study_run.OwnProcess
LAMBDAS = (0.001, 0.004, 0.016, 0.064)
STUDY = """
output = "study"
model = "bmshj2018-hyperprior"
lambdas = [0.001, 0.004, 0.016, 0.064]
seeds = [0]

[base]
init = "random"
model-args = ["N=8", "M=12"]
mu = 0
steps = 2
learning-rate = 1e-3
{training}

[finetune]
steps = 3
learning-rate = 1e-3
{training}

[arms.control]
mu = 0

[arms.basis]
mu = 300
block_size = 8

[evaluate]
folders = {{ held-out = "held_out" }}
"""
TRAINING = """dataset = "photographs"
patch-size = [64, 64]
batch-size = 2
num-workers = 0
device = "cpu"
"""


@pytest.fixture
def place(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a study, its photographs, and the stages in this process: starting one takes seconds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").symlink_to(photographs)
    (tmp_path / "held_out").mkdir()
    for seed in range(2):
        synthetic_photograph(176, 192, seed).save(tmp_path / "held_out" / f"{seed}.png")
    monkeypatch.setattr(study_run, "OwnProcess", lambda _lock: svdrd)
    write_study()
    return tmp_path


def write_study(*replacements: tuple[str, str]) -> None:
    text = STUDY.format(training=TRAINING)
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    Path("study.toml").write_text(text)


# Two rates are enough where the comparison is not looked at.
SHORT = (("lambdas = [0.001, 0.004, 0.016, 0.064]", "lambdas = [0.001, 0.016]"),)


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def stages_run(out: str) -> list[str]:
    """The stages whose commands were printed, in order."""
    lines = out.splitlines()
    return [
        lines[number - 1].partition("] ")[2].partition(":")[0]
        for number, line in enumerate(lines)
        if line.startswith("$ svdrd") and lines[number - 1].startswith("[")
    ]


def test_a_study_from_end_to_end(place: Path, capsys: pytest.CaptureFixture[str]):
    assert svdrd(["experiment", "study.toml", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert not Path("study").exists()
    assert "bmshj2018-hyperprior, 4 rates, 2 arms, 1 seed, 1 folder; into study" in plan
    assert "arms/basis/lambda-0.016/seed-0: to do\n$ svdrd finetune -m bmshj2018-hyperprior --lambda 0.016" in plan

    assert svdrd(["experiment", "study.toml"]) == 0
    out = capsys.readouterr().out
    names = [f"base/lambda-{lmbda:g}" for lmbda in LAMBDAS]
    names += [f"arms/{arm}/lambda-{lmbda:g}/seed-0" for lmbda in LAMBDAS for arm in ("control", "basis")]
    names += [f"evaluations/held-out/base/lambda-{lmbda:g}" for lmbda in LAMBDAS]
    names += [
        f"evaluations/held-out/{arm}/lambda-{lmbda:g}/seed-0" for lmbda in LAMBDAS for arm in ("control", "basis")
    ]
    names.append("report/held-out/seed-0")
    assert stages_run(out) == names
    # The plan's commands are those that were run.
    commands = [line for line in plan.splitlines() if line.startswith("$ svdrd")]
    assert commands == [line for line in out.splitlines() if line.startswith("$ svdrd")]

    for lmbda in LAMBDAS:
        base = checkpoints.load(f"study/base/lambda-{lmbda:g}/checkpoint.pth.tar")
        assert (base["step"], base["arguments"]["lmbda"], base["arguments"]["mu"]) == (2, lmbda, 0)
        for arm, mu in (("control", 0), ("basis", 300)):
            state = checkpoints.load(f"study/arms/{arm}/lambda-{lmbda:g}/seed-0/checkpoint.pth.tar")
            assert (state["step"], state["arguments"]["lmbda"], state["arguments"]["mu"]) == (3, lmbda, mu)
            assert state["arguments"]["checkpoint"] == f"study/base/lambda-{lmbda:g}/checkpoint.pth.tar"
            results = json.loads(Path(f"study/evaluations/held-out/{arm}/lambda-{lmbda:g}/seed-0.json").read_text())
            assert [image["source"] for image in results["images"]] == ["0.png", "1.png"]

    report = Path("study/report/report.md").read_text()
    assert out.endswith("report: study/report/report.md\n")
    assert "| arm basis | `--mu=300 --block-size=8` |" in report
    for command in commands:
        assert command.removeprefix("$ ") in report
    links = re.findall(r"\]\(([^)]+)\)", report)
    assert len(links) == 3  # the tables, a figure for each anchor
    assert all((place / "study" / "report" / link).is_file() for link in links)
    comparison = json.loads(Path("study/report/held-out/seed-0/comparison.json").read_text())
    pairs = {(row["arm"], row["anchor"]) for row in comparison["bd_rates"]}
    assert pairs == {("control", "base"), ("basis", "base"), ("base", "control"), ("basis", "control")}
    loss = next(
        row
        for row in comparison["rd_losses"]
        if (row["arm"], row["anchor"], row["lmbda"]) == ("basis", "control", 0.064)
    )
    assert loss["images"] == 2
    cell = "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**loss["percent"])
    assert f"| basis | control | 0.064 | {cell} |" in report
    # After two steps of training there may be no curve, and then it says why.
    rate = next(row for row in comparison["bd_rates"] if (row["arm"], row["anchor"]) == ("basis", "control"))["of_mean"]
    assert ("| basis | control | PSNR | none |" in report) == (rate["value"] is None)
    assert ("- basis over control, PSNR, seed 0: mean curve, " in report) == (rate["value"] is None)

    before = tree(place / "study")
    assert svdrd(["experiment", "study.toml"]) == 0
    again = capsys.readouterr().out
    assert stages_run(again) == []
    assert again.count(": done\n") == len(commands)
    assert tree(place / "study") == before


def test_arms_differ_in_nothing_but_their_options(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Same start, same crops in the same order, same noise; another seed gives others."""
    write_study(*SHORT, ("seeds = [0]", "seeds = [0, 1]"))
    crops: dict[str, list[torch.Tensor]] = {}
    starts: dict[str, dict[str, torch.Tensor]] = {}
    noises: dict[str, torch.Tensor] = {}
    take = loop.Training.train_step

    def recorded(self: loop.Training, batch: batches.Batch) -> dict[str, float] | None:
        folder = str(Path(self.config.save_dir).relative_to("study"))
        if folder not in starts:
            starts[folder] = {name: value.clone() for name, value in self.state.model.named_parameters()}
            noises[folder] = self.stepper.noise.generator.get_state()
        crops.setdefault(folder, []).append(batch["x"])
        return take(self, batch)

    monkeypatch.setattr(loop.Training, "train_step", recorded)
    assert svdrd(["experiment", "study.toml"]) == 0
    for lmbda in (0.001, 0.016):
        base = weights(checkpoints.load(f"study/base/lambda-{lmbda:g}/checkpoint.pth.tar"))
        for seed in (0, 1):
            control, basis = (f"arms/{arm}/lambda-{lmbda:g}/seed-{seed}" for arm in ("control", "basis"))
            assert len(crops[control]) == len(crops[basis]) == 3
            assert all(map(torch.equal, crops[control], crops[basis]))
            assert torch.equal(noises[control], noises[basis])
            for name, value in starts[control].items():
                assert torch.equal(value, starts[basis][name])
                assert torch.equal(value, base[name])
            trained = [weights(checkpoints.load(f"study/{arm}/checkpoint.pth.tar")) for arm in (control, basis)]
            assert not torch.equal(trained[0]["g_s.6.weight"], trained[1]["g_s.6.weight"])
        assert not torch.equal(crops[f"arms/control/lambda-{lmbda:g}/seed-0"][0], crops[control][0])
    report = Path("study/report/report.md").read_text()
    assert "| arm | anchor | lambda | seed 0 | seed 1 | mean of the seeds |" in report
    assert "(held-out/seed-1/comparison.md)" in report
    assert all(map(torch.equal, crops["arms/basis/lambda-0.001/seed-1"], crops["arms/basis/lambda-0.016/seed-1"]))


def test_seeds_at_some_of_the_rates(place: Path, capsys: pytest.CaptureFixture[str]):
    write_study(*SHORT, ("seeds = [0]", "[seeds]\n1 = [0.016]\n0 = [0.016, 0.001]"))
    Path("study.toml").write_text(top_first(Path("study.toml").read_text()))
    assert svdrd(["experiment", "study.toml"]) == 0
    runs = [name for name in stages_run(capsys.readouterr().out) if name.startswith("arms/basis")]
    order = ["lambda-0.016/seed-1", "lambda-0.001/seed-0", "lambda-0.016/seed-0"]
    assert runs == [f"arms/basis/{name}" for name in order]
    report = Path("study/report/report.md").read_text()
    assert "| arm | anchor | lambda | seed 1 | seed 0 | mean of the seeds |" in report
    # Of seed 1 there is nothing to say about the lower lambda.
    row = next(line for line in report.splitlines() if line.startswith("| basis | control | 0.001 |"))
    assert row.split("|")[4].strip() == ""
    assert row.split("|")[5].split()[0] == row.split("|")[6].strip()


def top_first(text: str) -> str:
    """The table of seeds behind the other keys of the file's top, where TOML wants it."""
    seeds = text[text.index("[seeds]") : text.index("[base]")]
    return text.replace(seeds, "") + seeds


def test_measures_of_the_evaluation(place: Path, capsys: pytest.CaptureFixture[str]):
    one_rate = ("lambdas = [0.001, 0.004, 0.016, 0.064]", "lambdas = [0.016]")
    write_study(one_rate, ("[evaluate]", '[evaluate]\nalso = ["basis"]'))
    assert svdrd(["experiment", "study.toml"]) == 0
    results = json.loads(Path("study/evaluations/held-out/basis/lambda-0.016/seed-0.json").read_text())["results"]
    assert "basis" in results
    assert "gmsd" not in results
    # Fewer measures are there already; more are not.
    write_study(one_rate)
    assert svdrd(["experiment", "study.toml"]) == 0
    capsys.readouterr()
    write_study(one_rate, ("[evaluate]", '[evaluate]\nalso = ["basis", "gmsd"]'))
    changed("evaluations/held-out/base/lambda-0.016: measure gmsd was None, is True", capsys)


def changed(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(Path("study"))
    assert svdrd(["experiment", "study.toml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("svdrd experiment: error: ")
    assert error.count("\n") == 1
    assert said in error
    assert svdrd(["experiment", "study.toml", "--dry-run"]) == 2
    assert said in capsys.readouterr().err
    assert tree(Path("study")) == before


def test_another_configuration_of_what_is_done_is_refused(place: Path, capsys: pytest.CaptureFixture[str]):
    one_rate = ("lambdas = [0.001, 0.004, 0.016, 0.064]", "lambdas = [0.016]")
    write_study(one_rate)
    assert svdrd(["experiment", "study.toml"]) == 0
    capsys.readouterr()

    write_study(one_rate, ("mu = 300", "mu = 200"))
    changed(
        "arms/basis/lambda-0.016/seed-0: mu was 300.0, is 200.0; study/arms/basis/lambda-0.016/seed-0 keeps the result "
        "of before: give another folder (--output), or remove that one",
        capsys,
    )
    write_study(one_rate, ("block_size = 8\n", ""))
    changed("arms/basis/lambda-0.016/seed-0: block-size was 8, is None", capsys)
    write_study(one_rate, ("steps = 3\n", "steps = 4\n"))
    changed("arms/control/lambda-0.016/seed-0: steps was 3, is 4", capsys)
    write_study(one_rate, ("steps = 2\n", "steps = 4\n"))
    changed("base/lambda-0.016: steps was 2, is 4", capsys)
    write_study(one_rate, ("[evaluate]", "[evaluate]\nestimate = true"))
    changed("evaluations/held-out/base/lambda-0.016: rate was coded, is estimated", capsys)

    # What only says where, and how fast, is no other study.
    write_study(one_rate, ("num-workers = 0", "num-workers = 1"))
    assert svdrd(["experiment", "study.toml"]) == 0
    assert stages_run(capsys.readouterr().out) == []
    write_study(one_rate)

    # The record of the stage is that of the study, the run is another.
    shutil.copytree("study/arms/basis/lambda-0.016/seed-0", "kept")
    another_run_in_the_folder_of_the_basis_arm()
    changed("arms/basis/lambda-0.016/seed-0: mu was 1.0, is 300.0", capsys)
    shutil.rmtree("study/arms/basis/lambda-0.016/seed-0")
    Path("kept").rename("study/arms/basis/lambda-0.016/seed-0")

    photograph = synthetic_photograph(176, 192, 7)
    photograph.save("held_out/2.png")
    changed("evaluations/held-out/base/lambda-0.016: the images are others than before", capsys)
    Path("held_out/2.png").unlink()
    Path("photographs").unlink()
    (place / "photographs" / "train").mkdir(parents=True)
    photograph.save("photographs/train/0.png")
    synthetic_photograph(176, 192, 8).save("photographs/train/1.png")
    changed("base/lambda-0.016: the training images are others than before", capsys)


def test_other_weights_of_the_base_are_noticed(place: Path, capsys: pytest.CaptureFixture[str]):
    one_rate = ("lambdas = [0.001, 0.004, 0.016, 0.064]", "lambdas = [0.016]")
    write_study(one_rate)
    assert svdrd(["experiment", "study.toml"]) == 0
    Path("study/base").rename("given")
    # The same weights, given instead of trained: what began with them stays valid.
    given = text_between(STUDY, "[base]", "[finetune]").format(training=TRAINING)
    weights_line = '[base]\nweights = "given/lambda-{lambda}/checkpoint.pth.tar"\n\n'
    write_study(one_rate, (given, weights_line))
    capsys.readouterr()
    assert svdrd(["experiment", "study.toml"]) == 0
    assert stages_run(capsys.readouterr().out) == []

    state = checkpoints.load("given/lambda-0.016/checkpoint.pth.tar")
    weights(state)["g_a.0.weight"] += 1e-3
    checkpoints.save("given/lambda-0.016/checkpoint.pth.tar", state)
    changed("arms/control/lambda-0.016/seed-0: the weights of the start are others than before", capsys)


def text_between(text: str, first: str, last: str) -> str:
    return text[text.index(first) : text.index(last)]


def test_runs_of_svdrd_finetune_are_adopted(place: Path, capsys: pytest.CaptureFixture[str]):
    """Stages that were run by hand, or on another machine, with the commands of the plan."""
    write_study(("lambdas = [0.001, 0.004, 0.016, 0.064]", "lambdas = [0.016]"))
    assert svdrd(["experiment", "study.toml", "--dry-run"]) == 0
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("$ svdrd finetune"):
            assert svdrd(line.split()[2:]) == 0
    capsys.readouterr()
    assert svdrd(["experiment", "study.toml"]) == 0
    assert [
        name for name in stages_run(capsys.readouterr().out) if not name.startswith(("evaluations", "report"))
    ] == []

    another_run_in_the_folder_of_the_basis_arm()
    changed("arms/basis/lambda-0.016/seed-0: mu was 1.0, is 300.0", capsys)


def another_run_in_the_folder_of_the_basis_arm() -> None:
    folder = Path("study/arms/basis/lambda-0.016/seed-0")
    for path in folder.iterdir():
        path.unlink()
    start = ["--lambda", "0.016", "--checkpoint", "study/base/lambda-0.016/checkpoint.pth.tar", "-n", "0", "--mu", "1"]
    options = ["--patch-size", "64", "64", "--batch-size", "2", "--steps", "3", "-lr", "1e-3", "--block-size", "8"]
    assert svdrd(["finetune", *start, *options, "-d", "photographs", "-o", str(folder)]) == 0


def given_weights() -> None:
    """A study of one rate whose base is a random codec that is there, with a checkpoint after every step."""
    torch.manual_seed(0)
    torch.save(
        {"state_dict": load_codec("bmshj2018-hyperprior", init="random", N=8, M=12).state_dict()}, "given.pth.tar"
    )
    trained = text_between(STUDY, "[base]", "[finetune]").format(training=TRAINING)
    write_study(
        ("lambdas = [0.001, 0.004, 0.016, 0.064]", "lambdas = [0.016]"),
        (trained, '[base]\nweights = "given.pth.tar"\n\n'),
        ("steps = 3\n", "epochs = 12\ncheckpoint-minutes = 0\n"),
    )


LAST = Path("study/arms/control/lambda-0.016/seed-0/checkpoint.pth.tar")


def changed_at(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_for_change(path: Path, before: int) -> None:
    limit = time.monotonic() + 300
    while changed_at(path) == before:
        assert time.monotonic() < limit
        time.sleep(0.002)


def run_study(folder: Path, threads: int) -> None:
    os.chdir(folder)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    sys.exit(svdrd(["experiment", "study.toml"]))


def children(process: int) -> list[int]:
    listed = Path(f"/proc/{process}/task/{process}/children")
    if not listed.exists():
        pytest.skip("which processes a process has started is read from /proc, which this system has not")
    return [int(child) for child in listed.read_text().split()]


def test_killed_in_the_middle_and_run_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    # Sums over other numbers of threads are other sums.
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    given_weights()
    assert svdrd(["experiment", "study.toml", "-o", "straight"]) == 0
    capfd.readouterr()

    # Killed so that it cannot end its stage, which goes on alone and keeps the folder.
    study = CONTEXT.Process(target=run_study, args=(place, torch.get_num_threads()))
    study.start()
    wait_for_change(LAST, 0)
    assert study.pid is not None
    (stage,) = children(study.pid)
    study.kill()
    study.join()
    assert svdrd(["experiment", "study.toml"]) == 2
    assert "another svdrd experiment, or a stage of one that was killed, works there" in capfd.readouterr().err
    os.kill(stage, signal.SIGKILL)
    while (Path("/proc") / str(stage)).exists():
        time.sleep(0.002)

    # Asked to end: the stage saves, and the study ends with the signal's number.
    monkeypatch.setattr(study_run, "OwnProcess", IN_A_PROCESS_OF_ITS_OWN)

    def terminate(before: int) -> None:
        wait_for_change(LAST, before)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate, args=(changed_at(LAST),))
    thread.start()
    assert svdrd(["experiment", "study.toml"]) == 128 + signal.SIGTERM
    thread.join()
    out, error = capfd.readouterr()
    assert "[1/6] arms/control/lambda-0.016/seed-0: begun\n" in out
    assert f"go on with --resume {LAST}" in error
    assert error.endswith("interrupted in arms/control/lambda-0.016/seed-0; the same command continues the study\n")
    step = checkpoints.load(LAST)["step"]
    assert 1 < step < 36

    monkeypatch.setattr(study_run, "OwnProcess", lambda _lock: svdrd)
    assert svdrd(["experiment", "study.toml"]) == 0
    out = capfd.readouterr().out
    assert f"[1/6] arms/control/lambda-0.016/seed-0: begun, step {step} of 36\n" in out
    for arm in ("control", "basis"):
        name = f"arms/{arm}/lambda-0.016/seed-0/checkpoint.pth.tar"
        assert differing(checkpoints.load(f"straight/{name}"), checkpoints.load(f"study/{name}")) == []
        results = [
            json.loads(Path(f"{run}/evaluations/held-out/{arm}/lambda-0.016/seed-0.json").read_text())["images"]
            for run in ("straight", "study")
        ]
        for one, other in zip(*results, strict=True):
            assert [one["results"][key] for key in ("bpp", "psnr-rgb")] == [
                other["results"][key] for key in ("bpp", "psnr-rgb")
            ]


def test_a_stage_that_fails_ends_the_study_and_says_so(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    given_weights()
    codes = iter([-signal.SIGKILL, 3])
    monkeypatch.setattr(study_run, "OwnProcess", lambda _lock: lambda _command: next(codes))
    assert svdrd(["experiment", "study.toml"]) == 1
    assert "arms/control/lambda-0.016/seed-0 was killed by signal 9" in capsys.readouterr().err
    assert svdrd(["experiment", "study.toml"]) == 1
    assert "arms/control/lambda-0.016/seed-0 ended with exit code 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("replacement", "said"),
    [
        (("seeds", "seed"), "study.toml: no 'seed'; did you mean seeds?"),
        (('model = "bmshj2018-hyperprior"\n', ""), "study.toml: model: missing"),
        (('"bmshj2018-hyperprior"', '"bmshj2018-hyper"'), "did you mean bmshj2018-hyperprior"),
        (("lambdas = [0.001, 0.004, 0.016, 0.064]\n", ""), "give either lambdas = "),
        (("[0.001, 0.004, 0.016, 0.064]", "[0.001, 0.001]"), "the same one twice"),
        (("[0.001, 0.004, 0.016, 0.064]", "[0]"), "lambdas = [0]: wanted a list of numbers above 0"),
        (("lambdas = [0.001, 0.004, 0.016, 0.064]", "qualities = [1, 2]"), "qualities: these are the zoo's weights"),
        (("seeds = [0]", "seeds = [0, 0]"), "seeds = [0, 0]: wanted a list of different whole numbers"),
        (("seeds = [0]", "seeds = { 0 = [0.002] }"), "[seeds] 0 = [0.002]: wanted a whole number and lambdas of the"),
        (("seeds = [0]", "seeds = { a = [0.001] }"), "[seeds] a = [0.001]: wanted a whole number and lambdas of the"),
        (("seeds = [0]", "seeds = { 0 = [0.001], 00 = [0.004] }"), "[seeds] 00 = [0.004]: wanted a whole number and"),
        (("seeds = [0]", "seeds = {}"), "[seeds]: none; for example seeds = [0]"),
        (("[evaluate]", '[evaluate]\nalso = ["vif"]'), "[evaluate] also = ['vif']: wanted a list of basis, gmsd"),
        (("[arms.basis]", "[arms.base]"), "[arms.base]: not a name for an arm's folder"),
        (("mu = 300", "m = 300"), "[arms.basis]: no option 'm'; did you mean mu?"),
        (("mu = 300", "mu = -1"), "--mu -1.0: wanted a finite value of at least 0"),
        (("mu = 300", 'mu = "many"'), "argument --mu: invalid float value: 'many'"),
        (("mu = 300", "steps = 9"), "[arms.basis]: steps: comes from [finetune]: all arms see the same crops"),
        (("mu = 300", "seed = 9"), "[arms.basis]: seed: comes from seeds at the top of the file"),
        (("[finetune]", "[finetune]\ncheckpoint = 'x'"), "[finetune]: checkpoint: comes from [base]"),
        (("[finetune]", "[finetune]\nlambda = 1"), "[finetune]: lambda: comes from lambdas at the top of the file"),
        (("[base]", "[base]\nweights = 'none-{lambda}'"), "[base] weights: no file none-0.001; leave the line out"),
        (("[base]", "[base]\nweights = 'none'"), "[base] weights = 'none': wanted a path with {lambda} in it"),
        (('"held_out"', '"elsewhere"'), "[evaluate] folders: no folder elsewhere"),
        (("folders =", "folder ="), "[evaluate]: no 'folder'; did you mean folders?"),
        (("[evaluate]", '[report]\nanchors = ["none"]\n[evaluate]'), "[report] anchors: 'none' is none of base, "),
        (('"photographs"', '"missing"'), "dataset 'missing': missing; give a folder of images"),
    ],
)
def test_bad_configurations_are_one_line_and_write_nothing(
    replacement: tuple[str, str], said: str, place: Path, capsys: pytest.CaptureFixture[str]
):
    write_study(replacement)
    before = sorted(place.rglob("*"))
    assert svdrd(["experiment", "study.toml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("svdrd experiment: error: ")
    assert error.count("\n") == 1
    assert said in error
    assert sorted(place.rglob("*")) == before


def test_the_zoo_is_a_base(place: Path, capsys: pytest.CaptureFixture[str]):
    """As in the paper: the zoo's weights at their lambdas. Its files are not here, so the plan is looked at."""
    trained = text_between(STUDY, "[base]", "[finetune]").format(training=TRAINING)
    write_study(("lambdas = [0.001, 0.004, 0.016, 0.064]", "qualities = [1, 3]"), (trained, ""))
    assert svdrd(["experiment", "study.toml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "arms/basis/lambda-0.0067/seed-0: to do\n$ svdrd finetune -m bmshj2018-hyperprior -q 3 --steps=3" in out
    command = "$ svdrd evaluate -m bmshj2018-hyperprior --quality 1 -d held_out -o "
    assert f"{command}study/evaluations/held-out/base/lambda-0.0018.json" in out


@pytest.fixture
def beside_the_documentation(place: Path) -> Path:
    """A working directory that looks like the repository's root, with photographs."""
    for name in ("docs", "demo"):
        (place / name).symlink_to(Path(__file__).resolve().parents[3] / name)
    Path("photographs").unlink()
    for name in ("cid22", "val4", "kodak", "train"):
        (place / "photographs" / name).mkdir(parents=True)
        for seed in range(2):
            synthetic_photograph(256, 272, seed).save(f"photographs/{name}/{seed}.png")
    return place


def test_the_committed_study(beside_the_documentation: Path, capsys: pytest.CaptureFixture[str]):
    assert svdrd(["experiment", "docs/studies/compact_codec/study.toml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "4 rates, 3 arms, " in out
    start = "--checkpoint docs/studies/compact_codec/base/lambda-0.0067"
    assert f"$ svdrd finetune -m bmshj2018-hyperprior --lambda 0.0067 {start}" in out
    text = Path("docs/studies/compact_codec/study.toml").read_text()
    Path("study.toml").write_text(re.sub(r"(?m)^weights.*\n", "", text))
    assert svdrd(["experiment", "study.toml", "--dry-run"]) == 0
    assert (
        "\nbase/lambda-0.013: to do\n"
        "$ svdrd finetune -m bmshj2018-hyperprior --lambda 0.013 "
        "--checkpoint=docs/studies/compact_codec/start/checkpoint.pth.tar --mu=0 --dataset=photographs/cid22 "
        "--val-dataset=photographs/val4 --patch-size 128 128 --batch-size=8 --crops-per-image=20 "
        "--learning-rate=0.0005 --aux-learning-rate=0.01 --lr-schedule=cosine --steps=3500 --num-workers=0 --seed=0 "
        "--precision=bf16 --channels-last --device=cpu -o runs/study/base/lambda-0.013 --resume auto\n"
    ) in capsys.readouterr().out


def test_the_documented_configuration(beside_the_documentation: Path, capsys: pytest.CaptureFixture[str]):
    text = text_between(Path("docs/guide/experiment.md").read_text(), "```toml\n", "\n```\n\nAll arms")
    Path("study.toml").write_text(text.removeprefix("```toml\n"))
    assert svdrd(["experiment", "study.toml", "--dry-run"]) == 0
    assert "4 rates, 3 arms, 2 seeds, 1 folder; into runs/study\n58 stages" in capsys.readouterr().out
