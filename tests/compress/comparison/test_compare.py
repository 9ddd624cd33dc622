"""`svdrd compare` from checkpoints to figures, on one real codec whose quantisation step gives it several rates."""

import argparse
import copy
import csv
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("compressai", reason="svdrd.compress needs pip install 'svdrd[compress]'")

from compressai.models import CompressionModel, ScaleHyperprior
from compressai.utils.plot.__main__ import main as compressai_plot
from compressai.utils.plot.__main__ import parse_json_file

from svdrd.__main__ import main as svdrd
from svdrd.compress import load_codec
from svdrd.compress.commands import call, compare
from svdrd.compress.comparison.arms import parse_arms
from svdrd.compress.comparison.results import read
from svdrd.compress.errors import Stopped
from tests.compress.conftest import synthetic_photograph

MODEL = "bmshj2018-hyperprior"
BASE = Path(__file__).resolve().parents[3] / "docs" / "studies" / "dose_response" / "base" / "lambda-0.013.pth.tar"
# The quantisation step relative to the codec's own, and the lambda that its file claims.
STEPS = {0.0035: 2.0, 0.0067: 1.4, 0.013: 1.0, 0.025: 0.7}
IMAGES = {"a.png": (161, 176), "b.png": (170, 165), "below/c.png": (176, 176)}


def with_step(model: CompressionModel, step: float, noise: float = 0.0) -> CompressionModel:
    """The same transforms around coarser latents, entropy model included; `noise` disturbs the decoder a little."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (model.g_a[6], model.h_s[4]):
            layer.weight /= step
            layer.bias /= step
        for layer in (model.g_s[0], model.h_a[0]):
            layer.weight *= step
        torch.manual_seed(0)
        for parameter in model.g_s.parameters():
            parameter += noise * parameter.std() * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    base = load_codec(MODEL, checkpoint=BASE)
    for arm, noise, mu in (("base", 0, 0), ("control", 2e-2, 0), ("basis", 1e-2, 10)):
        for lmbda, step in STEPS.items():
            path = folder / f"{arm}-{lmbda}" / "checkpoint.pth.tar"
            path.parent.mkdir()
            arguments = {"lmbda": lmbda, "mu": mu, "metric": "mse"}
            state = with_step(base, step, noise).state_dict()
            torch.save({"state_dict": state} | ({"arguments": arguments} if arm != "base" else {}), path)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs") / "crops"
    for seed, (name, size) in enumerate(IMAGES.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        synthetic_photograph(*size, seed).save(folder / name)
    return folder


def arms(checkpoints: Path, *names: str) -> list[str]:
    words = []
    for name in names:
        paths = [f"{checkpoints}/{name}-{lmbda}/checkpoint.pth.tar" for lmbda in STEPS]
        # Those of the base do not know their lambda.
        known = [f"{path}@{lmbda}" if name == "base" else path for path, lmbda in zip(paths, STEPS, strict=True)]
        words += ["--arm", f"{name}={','.join(known)}"]
    return words


def called(*arguments: object) -> int:
    return svdrd(["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def compared(checkpoints: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("compare") / "output"
    options = ["-m", MODEL, "-d", folder, "-o", output, "--resamples", 100, "--visual", "--crop-size", 48]
    assert called(*options, *arms(checkpoints, "base", "control", "basis"), "--crops", 2) == 0
    return output


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def colours(path: Path) -> int:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    return len(np.unique(pixels @ np.array([65536, 256, 1])))


def test_points_are_those_of_svdrd_evaluate(compared: Path, checkpoints: Path, folder: Path, tmp_path: Path):
    """Whose numbers are those of CompressAI's eval_model: test_evaluate.py."""
    paths = [checkpoints / f"basis-{lmbda}" / "checkpoint.pth.tar" for lmbda in STEPS]
    output = tmp_path / "basis.json"
    arguments = ["-m", MODEL, "-d", folder, "-o", output, "--checkpoint", *paths]
    assert svdrd(["evaluate", *map(str, arguments)]) == 0
    expected = json.loads(output.read_text())
    points = [row for row in rows_of(compared / "points.csv") if row["arm"] == "basis"]
    assert len(points) == len(expected["images"]) == 12
    for row, image in zip(points, expected["images"], strict=True):
        assert row["image"] == image["source"]
        for column, key in (("bpp", "bpp"), ("psnr", "psnr-rgb"), ("ms-ssim", "ms-ssim-rgb")):
            assert float(row[column]) == image["results"][key]
    assert {row["mu"] for row in points} == {"10"}
    plot = json.loads((compared / "curves" / "crops" / f"{MODEL}-basis.json").read_text())
    assert plot["results"]["bpp"] == pytest.approx(expected["results"]["bpp"])
    assert plot["results"]["bpp"] == sorted(plot["results"]["bpp"])


def test_the_second_call_codes_nothing(
    compared: Path, checkpoints: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    files = ["comparison.json", "comparison.md", "table-psnr.csv"]
    before = {name: (compared / name).read_text() for name in files}
    monkeypatch.setattr("svdrd.compress.comparison.results.evaluate", None)
    options = ["-m", MODEL, "-d", folder, "-o", compared, "--resamples", 100, "--visual", "--crop-size", 48]
    assert called(*options, "--crops", 2, *arms(checkpoints, "base", "control", "basis")) == 0
    out = capsys.readouterr().out
    assert out.count("(kept)") == 12
    assert "(coded)" not in out
    assert before == {name: (compared / name).read_text() for name in files}


def test_what_it_prints_and_writes(compared: Path, checkpoints: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    options = ["-m", MODEL, "-d", f"few={folder}", "-o", compared, "--resamples", 100]
    shutil.copytree(compared / "evaluations" / "crops", compared / "evaluations" / "few", dirs_exist_ok=True)
    assert called(*options, *arms(checkpoints, "base", "control", "basis"), "--anchor", "base", "control") == 0
    out = capsys.readouterr().out
    assert re.search(rf"\| {MODEL} \| control \| base \| \+\d+\.\d\d \[\+\d+\.\d\d, \+\d+\.\d\d\] \|", out)
    # The noise in the decoder costs: basis has half of that of control.
    rates = {(r["arm"], r["anchor"]): float(r["few"]) for r in rows_of(compared / "table-psnr.csv")}
    assert 0 < rates["basis", "base"] < rates["control", "base"]
    assert rates["basis", "control"] < 0 < rates["control", "base"]
    text = (compared / "comparison.md").read_text()
    for heading in ("BD-rate in PSNR", "BD-rate in MS-SSIM", "RD loss at equal lambda", "By every method", "Points"):
        assert f"## {heading}" in text
    for figure in (f"rd-{MODEL}-few-over-base.png", f"rd-{MODEL}-few-over-control.png"):
        assert f"({figure})" in text
        assert f"wrote {compared / figure}" in out
        assert colours(compared / figure) > 100
    losses = rows_of(compared / "rd-loss.csv")
    assert [row["lambda"] for row in losses[:5]] == [*map(str, STEPS), ""]
    for line in out.splitlines():
        if line.startswith("wrote "):
            assert Path(line.removeprefix("wrote ")).stat().st_size > 0


def test_compressai_draws_the_curves(compared: Path, tmp_path: Path):
    files = sorted((compared / "curves" / "crops").glob("*.json"))
    assert len(files) == 3
    output = tmp_path / "psnr.png"
    compressai_plot(["-f", *map(str, files), "-m", "psnr", "-o", str(output), "--figsize", "3", "2"])
    assert colours(output) > 10
    for file in files:
        name = file.stem.removeprefix(f"{MODEL}-")
        means = [row for row in rows_of(compared / "points.csv") if row["arm"] == name]
        decibel = [
            -10 * np.log10(1 - np.mean([float(r["ms-ssim"]) for r in means[k : k + 3]])) for k in range(0, 12, 3)
        ]
        assert parse_json_file(file, "ms-ssim")["ys"] == pytest.approx(decibel)


def test_crops_are_where_the_arms_differ(compared: Path, checkpoints: Path, folder: Path):
    assert colours(compared / f"visual-{MODEL}-crops.png") > 1000
    decoded = compared / "decoded" / "crops"
    for arm in ("base", "control", "basis"):
        point = decoded / f"{MODEL}-{arm}" / f"{arm}-0.0035-checkpoint"
        assert sorted(p.relative_to(point).as_posix() for p in point.rglob("*.png")) == sorted(IMAGES)
        # What was decoded has the reported PSNR.
        for row in rows_of(compared / "points.csv"):
            if (row["arm"], row["lambda"]) == (arm, "0.0035"):
                x = np.asarray(Image.open(folder / row["image"]), np.float64)
                x_hat = np.asarray(Image.open(point / row["image"]), np.float64)
                psnr = 10 * np.log10(255**2 / np.mean((x - x_hat) ** 2))
                assert float(row["psnr"]) == pytest.approx(psnr, abs=1e-4)


def test_crops_by_name(compared: Path, checkpoints: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    options = ["-m", MODEL, "-d", folder, "-o", compared, "--resamples", 100, *arms(checkpoints, "base", "basis")]
    assert called(*options, "--point", 1, "--visual", "c", "a:10,20,64,80") == 0
    out = capsys.readouterr().out
    assert "below/c.png: 128x128 at " in out
    assert "a.png: 64x80 at 10,20: chosen by hand" in out


def test_crops_at_rates_of_different_lambda_are_refused(
    compared: Path, checkpoints: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "output"
    shutil.copytree(compared / "evaluations", output / "evaluations")
    options = ["-m", MODEL, "-d", folder, "-o", output, "--resamples", 100, "--visual"]
    for arm, lmbda in (("base", 0.0035), ("basis", 0.013)):
        options += ["--arm", f"{arm}={checkpoints / f'{arm}-{lmbda}' / 'checkpoint.pth.tar'}@{lmbda}"]
    assert called(*options) == 2
    assert "error: --point 1: has lambda 0.0035 in base, 0.013 in basis; give every arm" in capsys.readouterr().err
    assert not (output / "decoded").exists()


def test_a_checkpoint_that_has_changed_is_coded_again(
    compared: Path, checkpoints: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = tmp_path / "basis-0.025" / "checkpoint.pth.tar"
    other.parent.mkdir()
    state = torch.load(checkpoints / "basis-0.025" / "checkpoint.pth.tar", weights_only=True)
    torch.save(state | {"arguments": state["arguments"] | {"mu": 3}}, other)
    options = ["-m", MODEL, "-d", folder, "-o", compared, "--resamples", 100, *arms(checkpoints, "base")]
    words = [str(checkpoints / f"basis-{lmbda}/checkpoint.pth.tar") for lmbda in list(STEPS)[:3]]
    assert called(*options, "--arm", "basis", *words, other) == 0
    out = capsys.readouterr().out
    assert (out.count("(kept)"), out.count("(coded)")) == (7, 1)
    assert re.search(r"basis, .*basis-0\.025-checkpoint: .*\(coded\)", out)


def test_results_that_are_there_already(
    compared: Path, checkpoints: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """JSON files in place of checkpoints, without the images, give the same tables."""
    kept = compared / "evaluations" / "crops"
    options = ["-o", tmp_path / "again", "--resamples", 100]
    for arm in ("base", "control", "basis"):
        files = [kept / f"{MODEL}-{arm}" / f"{arm}-{lmbda}-checkpoint.json" for lmbda in STEPS]
        options += ["--arm", f"{arm}={','.join(f'{file}@{lmbda}' for file, lmbda in zip(files, STEPS, strict=True))}"]
    assert called(*options) == 0
    capsys.readouterr()
    again = json.loads((tmp_path / "again" / "comparison.json").read_text())
    whole = ["-m", MODEL, "-d", folder, "-o", compared, "--resamples", 100]
    assert called(*whole, *arms(checkpoints, "base", "control", "basis")) == 0
    assert again["bd_rates"] == json.loads((compared / "comparison.json").read_text())["bd_rates"]
    assert again["rd_losses"]


def test_two_codecs_and_two_data_sets(compared: Path, checkpoints: Path, folder: Path, tmp_path: Path):
    """Each codec has its own anchor. What the tiny random one makes is no curve, and the table says so."""
    output = tmp_path / "output"
    shutil.copytree(compared / "evaluations", output / "evaluations")
    (tmp_path / "one").mkdir()
    synthetic_photograph(161, 161, 9).save(tmp_path / "one" / "x.png")
    for seed in range(2):
        torch.manual_seed(seed)
        tiny = load_codec("mbt2018-mean", init="random", N=8, M=12)
        torch.save({"state_dict": tiny.state_dict()}, tmp_path / f"tiny-{seed}.pth.tar")
    options = ["-m", MODEL, "-d", folder, f"single={tmp_path / 'one'}", "-o", output, "--resamples", 100]
    options += arms(checkpoints, "base", "basis")
    for seed, arm in enumerate(("base", "basis")):
        options += ["--arm", f"mbt2018-mean:{arm}={tmp_path / f'tiny-{seed}.pth.tar'}@0.01"]
    assert called(*options) == 0
    row, of_tiny = rows_of(output / "table-psnr.csv")
    assert (row["codec"], row["arm"], row["anchor"]) == (MODEL, "basis", "base")
    assert row["crops"]
    assert row["crops low"]
    assert row["single"]
    assert row["single note"] == "of one image there is no interval"
    assert (of_tiny["codec"], of_tiny["crops"], of_tiny["single"]) == ("mbt2018-mean", "", "")
    assert "1 point, wanted 4 or more" in of_tiny["crops note"]
    assert len([row for row in rows_of(output / "rd-loss.csv") if row["codec"] == "mbt2018-mean"]) == 2
    for codec in (MODEL, "mbt2018-mean"):
        assert all((output / f"rd-{codec}-{name}.png").exists() for name in ("crops", "single"))


def test_estimates_are_labelled(checkpoints: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["-m", MODEL, "-d", folder, "-o", tmp_path, "--resamples", 100, "--entropy-estimation"]
    assert called(*options, *arms(checkpoints, "base", "basis"), "--visual", "a") == 0
    out = capsys.readouterr().out
    assert out.count("bpp (estimate)") == 8
    assert out.count("(estimated)") == 8
    assert "BD-rate in PSNR, rates estimated" in out
    assert "**Rates are estimates**" in out
    (plot, _) = sorted((tmp_path / "curves" / "crops").glob("*.json"))
    assert "estimated rate" in json.loads(plot.read_text())["name"]
    kept = next((tmp_path / "evaluations").rglob("*.json"))
    assert json.loads(kept.read_text())["settings"]["rate"] == "estimated"


def test_too_few_points_is_a_message_and_no_number(
    compared: Path, checkpoints: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "output"
    shutil.copytree(compared / "evaluations", output / "evaluations")
    words = [str(checkpoints / f"basis-{lmbda}/checkpoint.pth.tar") for lmbda in list(STEPS)[:2]]
    options = ["-m", MODEL, "-d", folder, "-o", output, "--resamples", 100, *arms(checkpoints, "base")]
    assert called(*options, "--arm", "basis", *words) == 0
    out = capsys.readouterr().out
    assert "| basis | base | none (1) |" in out
    assert re.search(r"\(1\) .* on crops, PSNR: mean curve, basis: 2 points, wanted 4 or more \(\d", out)
    assert "nan" not in out.lower()
    # The paired losses need no curve.
    assert len(rows_of(output / "rd-loss.csv")) == 3


def test_a_decoder_that_reads_something_else(
    checkpoints: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    decompress = ScaleHyperprior.decompress
    monkeypatch.setattr(ScaleHyperprior, "decompress", lambda *a: {"x_hat": decompress(*a)["x_hat"].flip(-1)})
    options = ["-m", MODEL, "-d", folder, "-o", tmp_path / "output", *arms(checkpoints, "base", "basis")]
    assert called(*options) == 1
    error = capsys.readouterr().err
    assert "svdrd compare: error: base, base-0.0035-checkpoint: " in error
    assert "a.png: the decoder did not reproduce" in error
    assert not list(tmp_path.rglob("*.json"))
    with pytest.raises(Stopped):
        call("compare", [str(option) for option in options])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--arm": ["base=none/*.pth.tar"]}, r"--arm base: none/\*\.pth\.tar: no such file"),
        ({"--arm": ["one.pth.tar"]}, "--arm one.pth.tar: no file; wanted --arm NAME=FILE"),
        ({"--arm": ["=one.pth.tar"]}, "--arm =one.pth.tar: no name"),
        ({"--arm": ["a/b=one.pth.tar"]}, "--arm a/b=one.pth.tar: no name of letters"),
        ({"--arm": ["base=one.pth.tar@-1"]}, "wanted a finite lambda above 0"),
        ({"--arm": ["base=zoo:x"]}, "base: zoo:x: wanted a quality of the zoo"),
        ({"--arm": ["base=zoo:9"]}, "quality=9"),
        ({"--arm": ["basis=two.pth.tar"]}, "--arm basis: given 2 times"),
        ({"--arm": ["base=no.json"]}, "no.json: no such file"),
        ({"--arm": ["base=text.json"]}, "text.json: not JSON"),
        ({"--arm": ["base=eval_model.json"]}, "eval_model.json: has no results of single images with the settings"),
        ({"--arm": ["base=broken.json"]}, "broken.json: not as svdrd evaluate writes it"),
        ({"--arm": ["base=nan.json"]}, r"nan.json: .*the bpp of .*\.png is nan: its weights were not finite"),
        ({"--arm": ["base=elsewhere.json"]}, "elsewhere.json: not of the images of crops"),
        (
            {"--arm": ["base=float.json"]},
            r"not to be compared, their quality differ: (8-bit and float|float and 8-bit)",
        ),
        ({"--arm": ["base=estimated.json"]}, "not to be compared, their rate differ"),
        ({"--arm": ["mbt2018:base=kept.json"]}, "kept.json is of bmshj2018-hyperprior, not mbt2018"),
        ({"--arm": ["base=kept.json"], "--visual": []}, "--visual: kept.json of base holds numbers and no images"),
        ({"--arm": None}, "--arm basis: the only one"),
        ({"-m": None}, r"of which codec\? give --model"),
        ({"-m": "bmshj2018-hyperprio"}, "did you mean bmshj2018-hyperprior"),
        ({"-m": "mbt2018"}, "not a mbt2018"),
        ({"-d": None}, "--dataset: missing; give a folder"),
        ({"-d": "missing"}, "dataset 'missing': missing"),
        ({"-d": "x y=crops"}, "its name 'x y' is to be letters"),
        ({"--anchor": "contrl"}, "--anchor contrl: no such arm; there are base, basis"),
        ({"--resamples": "10"}, "--resamples 10: wanted at least 100"),
        ({"--point": "2", "--visual": []}, "--point 2: base has 1"),
        ({"--visual": ["kodim07"]}, "--visual kodim07: no such image in crops; for example a"),
        ({"--visual": ["a:1"]}, "--visual a:1: no such image"),
        ({"--visual": ["a:1,2,3"]}, "--visual a:1,2,3: wanted IMAGE:LEFT,TOP"),
        ({"--device": "abacus"}, "--device abacus"),
        ({"-o": "one.pth.tar/below"}, "is not a folder that can be written to"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_writes_nothing(
    change: dict,
    said: str,
    compared: Path,
    checkpoints: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    for name, lmbda in (("one", 0.0035), ("two", 0.013)):
        shutil.copy(checkpoints / f"basis-{lmbda}" / "checkpoint.pth.tar", f"{name}.pth.tar")
    kept = compared / "evaluations" / "crops" / f"{MODEL}-basis" / "basis-0.0035-checkpoint.json"
    result = json.loads(kept.read_text())
    (tmp_path / "kept.json").write_text(json.dumps(result))
    (tmp_path / "text.json").write_text("no JSON")
    variants = {
        "eval_model": {key: result[key] for key in ("name", "description", "results")},
        "broken": result | {"images": result["images"][:0]},
        "nan": result | {"images": [row | {"results": row["results"] | {"bpp": math.nan}} for row in result["images"]]},
        "elsewhere": result | {"settings": result["settings"] | {"images": "0" * 64}},
        "float": result | {"settings": result["settings"] | {"quality": "float"}},
        "estimated": result | {"settings": result["settings"] | {"rate": "estimated"}},
    }
    for name, content in variants.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    # What is asked for is there, so that nothing has to be coded where a refusal comes after that.
    shutil.copytree(kept.parents[2], tmp_path / "out" / "evaluations")
    Path("crops").symlink_to(folder)
    before = sorted(tmp_path.rglob("*"))
    options = {"-m": MODEL, "-d": "crops", "-o": "out", "--arm": ["base=one.pth.tar"]} | change
    words: list[str] = []
    for option, value in options.items():
        if value is not None:
            words += [option, *([value] if isinstance(value, str) else value)]
    assert called(*words, "--arm", "basis=one.pth.tar") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("svdrd compare: error: ")
    assert re.search(said, errors[0])
    assert sorted(tmp_path.rglob("*")) == before


def test_results_with_a_byte_order_mark(compared: Path, tmp_path: Path):
    kept = compared / "evaluations" / "crops" / f"{MODEL}-basis" / "basis-0.0035-checkpoint.json"
    (tmp_path / kept.name).write_bytes(b"\xef\xbb\xbf" + kept.read_bytes())
    assert read(tmp_path / kept.name) == read(kept)


def test_results_of_other_images_of_the_same_names(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    kept = compared / "evaluations" / "crops" / f"{MODEL}-basis" / "basis-0.0035-checkpoint.json"
    result = json.loads(kept.read_text())
    Path("a.json").write_text(json.dumps(result))
    Path("b.json").write_text(json.dumps(result | {"settings": result["settings"] | {"images": "0" * 64}}))
    assert called("-o", "out", "--arm", "one=a.json", "--arm", "two=b.json") == 2
    assert "b.json: of another crops than the results before it: the same 3 names with other" in capsys.readouterr().err


@pytest.mark.parametrize("page", ["docs/guide/comparison.md"])
def test_the_command_of_the_documentation(page: str):
    """It is taken as it stands, but for files that are not here."""
    text = (Path(__file__).resolve().parents[3] / page).read_text()
    (command,) = re.findall(r"^svdrd compare (.*?[^\\])$", text, re.MULTILINE | re.DOTALL)
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    args = parser.parse_args(shlex.split(command.replace("\\\n", " ")))
    assert [words[0].split("=")[0] for words in args.arm] == ["base", "control", "basis"]
    assert args.anchor == ["base", "control"]
    assert args.visual == []
    (base,) = parse_arms(args.arm[:1], args.model)
    assert [source.codec for source in base.sources] == [{"quality": quality} for quality in (1, 2, 3, 4)]
