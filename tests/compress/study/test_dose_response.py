"""The study of docs/studies/dose_response: its configuration, shrunk, and what its scripts make of the results."""

import csv
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("compressai")

from svdrd.__main__ import main as svdrd
from svdrd.compress.study import run as study_run
from tests.compress.conftest import synthetic_photograph
from tests.scripts import script

ROOT = Path(__file__).resolve().parents[3]
STUDY = ROOT / "docs" / "studies" / "dose_response"
PAGE = ROOT / "docs" / "studies" / "dose_response.md"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that looks like the repository's root, with photographs; the stages in this process."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    for name in ("cid22", "val16", "kodak"):
        (tmp_path / "photographs" / name).mkdir(parents=True)
        for seed in range(2):
            synthetic_photograph(176, 192, seed).save(tmp_path / "photographs" / name / f"{seed}.png")
    monkeypatch.setattr(study_run, "OwnProcess", lambda _lock: svdrd)
    return tmp_path


def shrunk(text: str) -> str:
    """Two rates, three arms, small crops and few steps."""
    for old, new in (
        ("lambdas = [0.0035, 0.0067, 0.013, 0.025]", "lambdas = [0.0067, 0.025]"),
        ("0 = [0.0035, 0.0067, 0.013, 0.025]", "0 = [0.0067, 0.025]"),
        ("1 = [0.0067, 0.025]", "1 = [0.0067]"),
        ("2 = [0.0067, 0.025]", ""),
        ("patch-size = [256, 256]", "patch-size = [64, 64]"),
        ("batch-size = 4", "batch-size = 2"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    text = re.sub(r"(?m)^steps = .*$", "steps = 2", text)
    for arm in ("mu-10", "mu-100", "mu-10-on-255"):
        text, count = re.subn(rf"(?s)\[arms\.{arm}\].*?(?=\n\[|\n#)", "", text)
        assert count == 1
    return text


def test_the_study_shrunk(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("study.toml").write_text(shrunk((STUDY / "study.toml").read_text()))
    assert svdrd(["experiment", "study.toml"]) == 0
    capsys.readouterr()
    assert svdrd(["experiment", "study.toml", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "2 rates, 3 arms, 2 seeds, 1 folder" in plan
    states = re.findall(r"(?m)^(?:arms|evaluations|report)/\S+: (.*)$", plan)
    assert set(states) == {"done"}
    assert len(states) == 3 * 3 + (2 + 3 * 3) + 2
    for folder in ("report/kodak/seed-0", "report/kodak/seed-1"):
        assert (Path("runs/dose_response") / folder / "comparison.json").is_file()

    analyse = script(STUDY / "analyse.py")
    Path("found").mkdir()
    assert analyse.main(["--collect", "runs/dose_response", "--jpeg", "photographs/kodak", "--folder", "found"]) == 0
    printed = capsys.readouterr().out
    assert "| mu = 1000 | " in printed
    assert "The base codecs lie above JPEG at equal rate by " in printed
    for name in ("dose_response.png", "curves.png"):
        assert len(np.unique(np.asarray(Image.open(Path("found") / name).convert("L")))) > 50
    # By hand: one response of one run.
    evaluations = Path("runs/dose_response/evaluations/kodak")
    basis, control = (
        json.loads((evaluations / arm / "lambda-0.0067" / "seed-1.json").read_text())["results"]["basis"][0]
        for arm in ("mu-1000", "control")
    )
    with Path("found/responses.csv").open(newline="") as file:
        row = next(
            row
            for row in csv.DictReader(file)
            if (row["arm"], row["lambda"], row["seed"], row["response"]) == ("mu-1000", "0.0067", "1", "basis")
        )
    assert float(row["value"]) == pytest.approx(100 * (basis / control - 1), rel=1e-3, abs=1e-4)
    assert float(row["low"]) <= float(row["value"]) <= float(row["high"])


@pytest.mark.parametrize("factor", [0.9, 1.1, 1.5, 2.0])
def test_at_equal_rate_an_arm_on_the_controls_curve_has_gained_nothing(factor: float) -> None:
    """Between the control arm's points and beyond them; what an arm has on top is what it gained."""
    analyse = script(STUDY / "analyse.py")
    bpp, psnr = np.random.default_rng(0).uniform([[0.2], [28]], [[0.6], [34]], (2, 24))
    way = np.log(factor) / np.log(1.5)

    def rows(arm: str, lmbda: str, factor: float, **values: np.ndarray | float) -> list[dict[str, str]]:
        row = {"arm": arm, "lambda": lmbda, "seed": "0"}
        columns = {"bpp": bpp * factor, "ms-ssim": 0.9, **values}
        return [
            row
            | {"image": str(index)}
            | {name: str(np.broadcast_to(value, 24)[index]) for name, value in columns.items()}
            for index in range(24)
        ]

    points = analyse.points_of(
        [
            *rows("control", "0.0067", 1, psnr=psnr, gmsd=0.1, basis=0.06),
            *rows("control", "0.013", 1.5, psnr=psnr + 2, gmsd=0.08, basis=0.05),
            *rows("mu-10", "0.0067", factor, psnr=psnr + 2 * way, gmsd=0.1 - 0.02 * way, basis=0.06 - 0.01 * way),
            *rows("mu-100", "0.0067", factor, psnr=psnr + 2 * way + 0.1, gmsd=1.03 * (0.1 - 0.02 * way), basis=0.05),
        ]
    )
    found = {(row["arm"], row["response"]): row for row in analyse.responses(points)}
    for name in analyse.AT_RATE:
        for bound in ("value", "low", "high"):
            assert found["mu-10", name][bound] == pytest.approx(0, abs=1e-9)
    assert found["mu-100", "psnr-at-rate"]["value"] == pytest.approx(0.1)
    assert found["mu-100", "gmsd-at-rate"]["value"] == pytest.approx(3)
    assert found["mu-100", "basis-at-rate"]["value"] == pytest.approx(100 * (0.05 / (0.06 - 0.01 * way) - 1))


def test_responses_of_known_points() -> None:
    analyse = script(STUDY / "analyse.py")
    generator = np.random.default_rng(0)
    bpp, psnr, ms_ssim = (
        generator.uniform(0.2, 0.6, 24),
        generator.uniform(28, 34, 24),
        generator.uniform(0.9, 0.98, 24),
    )

    def rows(arm: str, seed: str, factor: float, more: float) -> list[dict[str, str]]:
        return [
            {
                "arm": arm,
                "lambda": "0.013",
                "seed": seed,
                "image": f"kodim{index:02}",
                "bpp": str(bpp[index] * factor),
                "psnr": str(psnr[index] + more),
                "ms-ssim": str(1 - (1 - ms_ssim[index]) * 10 ** (-more / 10)),
                "gmsd": str(0.1 * factor),
                "basis": str(0.05 * factor),
            }
            for index in range(24)
        ]

    points = analyse.points_of(
        [
            *rows("base", "", 1, 0),
            *rows("control", "0", 1, 0),
            *rows("control", "1", 1.01, 0),
            *rows("mu-100", "0", 0.98, 0.25),
            *rows("mu-100", "1", 1.02, -0.5),
        ]
    )
    found = {(row["arm"], row["seed"], row["response"]): row for row in analyse.responses(points)}
    for (arm, seed), (factor, more) in {
        ("mu-100", 0): (0.98, 0.25),
        ("mu-100", 1): (1.02 / 1.01, -0.5),
        ("control", 1): (1.01, 0.0),
    }.items():
        for name, expected in (("bpp", factor), ("gmsd", factor), ("basis", factor)):
            row = found[arm, seed, name]
            # The same for every image, so that the interval has no width.
            assert [row["value"], row["low"], row["high"]] == pytest.approx([100 * (expected - 1)] * 3, abs=1e-9)
        for name in ("psnr", "ms-ssim"):
            row = found[arm, seed, name]
            assert [row["value"], row["low"], row["high"]] == pytest.approx([more] * 3, abs=1e-9)
    loss = 0.013 * 255**2 * 10 ** (-psnr / 10)
    expected = (0.98 * bpp + loss * 10**-0.025).mean() / (bpp + loss).mean()
    row = found["mu-100", 0, "rd-loss"]
    assert row["value"] == pytest.approx(100 * (expected - 1))
    assert row["low"] < row["value"] < row["high"]
    assert ("control", 0, "bpp") not in found
    lines = "\n".join(analyse.tables(analyse.responses(points), points))
    assert "| mu = 100 | -0.50 (-2.00 to +0.99) |" in lines
    assert "| control, another seed | +1.00 |" in lines
    jpeg_rows = [
        {"quality": str(quality), "bpp": str(rate), "psnr": str(25 + 10 * rate)}
        for quality, rate in enumerate((0.1, 0.5, 1.0))
    ]
    margin = psnr.mean() - (25 + 10 * bpp.mean())
    assert analyse.above_jpeg(points, jpeg_rows) == pytest.approx({0.013: margin})
    with pytest.raises(ValueError, match="23 images, the first point has 24"):
        analyse.points_of([*rows("base", "", 1, 0), *rows("mu-10", "0", 1, 0)[1:]])


@pytest.mark.skipif(not (STUDY / "responses.csv").exists(), reason="the study's arms have not been run yet")
def test_the_committed_numbers_are_those_of_the_committed_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("points.csv", "jpeg.csv"):
        shutil.copy(STUDY / name, tmp_path)
    analyse = script(STUDY / "analyse.py")
    points = analyse.points_of(analyse.read(tmp_path / "points.csv"))
    runs = [(lmbda, 0) for lmbda in (0.0035, 0.0067, 0.013, 0.025)] + [(0.0067, 1), (0.0067, 2), (0.025, 1), (0.025, 2)]
    for arm in ("control", *analyse.ARMS):
        assert sorted(key[1:] for key in points if key[0] == arm) == sorted(runs)
    assert {len(point["bpp"]) for point in points.values()} == {24}
    assert analyse.main(["--folder", str(tmp_path)]) == 0
    assert (tmp_path / "responses.csv").read_text() == (STUDY / "responses.csv").read_text()
    page = PAGE.read_text()
    tables = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line for line in tables if line not in page] == []


def test_the_gradient_of_a_patch_by_singular_index(place: Path) -> None:
    """The shares are those of the entries of U^T G V, and grow to 1."""
    gradients = script(STUDY / "gradients.py")
    from svdrd.compress.images.folders import ImageFolder

    for path in Path("photographs/val16").iterdir():
        synthetic_photograph(256, 272, int(path.stem)).save(path)
    rows = gradients.by_index(0.013, ImageFolder("photographs/val16", decode=True))
    names = [key for key in rows[0] if key.startswith("share")]
    shares = torch.tensor([[row[name] for name in names] for row in rows])
    assert len(names) == 1 + len(gradients.WAYS)
    assert (shares.diff(dim=0) >= 0).all()
    assert shares[-1] == pytest.approx(torch.ones(len(names)))

    ((x_hat, x),) = gradients.decoded(0.013, ImageFolder("photographs/val16", decode=True))
    u, s, vh = torch.linalg.svd(x_hat.double())
    mixed = (u.mT @ (x_hat - x).double() @ vh.mT).square()
    expected = [(mixed[..., :k, :k].sum((-2, -1)) / mixed.sum((-2, -1))).mean().item() for k in (1, 100, 256)]
    found = [rows[k - 1]["share up to it, mse"] for k in (1, 100, 256)]
    assert found == pytest.approx(expected)
    assert math.isclose(rows[9]["singular value over the largest"], (s[..., 9] / s[..., 0]).mean().item())


def test_gradients_by_the_weights_are_drawn(place: Path) -> None:
    gradients = script(STUDY / "gradients.py")
    from svdrd.compress.images.folders import ImageFolder

    rows = gradients.of_weights(0.013, ImageFolder("photographs/val16", decode=True))
    assert [row["way"] for row in rows if row["patches"] == "all"] == list(gradients.WAYS)
    for row in rows:
        assert 0 < row["norm over that of the mse"] < 1
        assert -1 <= row["cosine with the mse"] <= 1
        assert math.isfinite(row["cosine with mse and rate"])


def test_the_committed_gradients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are whole, the figure is drawn from them, and the page has their tables."""
    for name, count in (("gradients.csv", 2 * 4 * 4), ("gradients_by_index.csv", 4 * 256)):
        shutil.copy(STUDY / name, tmp_path)
        lines = (tmp_path / name).read_text().splitlines()
        assert len(lines) == 1 + count
        assert [line for line in lines if "nan" in line] == []
    assert script(STUDY / "gradients.py").main(["--draw", "--output", str(tmp_path)]) == 0
    assert len(np.unique(np.asarray(Image.open(tmp_path / "gradients.png").convert("L")))) > 50
    page = PAGE.read_text().splitlines()
    tables = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(tables) == (2 + 4) + (2 + 4) + (2 + 5)
    assert [line for line in tables if line not in page] == []


def test_the_base_codecs_lie_a_decibel_above_jpeg_on_kodak() -> None:
    """By the committed points, which are those of the codecs' results; the pages say by how much."""
    analyse = script(STUDY / "analyse.py")
    points = analyse.points_of(analyse.read(STUDY / "points.csv"))
    margins = analyse.above_jpeg(points, analyse.read(STUDY / "jpeg.csv"))
    assert list(margins) == [0.0035, 0.0067, 0.013, 0.025]
    assert min(margins.values()) >= 1
    results = json.loads((STUDY / "base" / "kodak.json").read_text())["results"]
    page = (STUDY / "base" / "README.md").read_text()
    for index, (lmbda, margin) in enumerate(margins.items()):
        means = {name: point.mean() for name, point in points["base", lmbda, None].items()}
        for key, name in analyse.KEYS.items():
            assert means[name] == pytest.approx(results[key][index], rel=1e-6)
        row = f" | {means['bpp']:.4f} | {means['psnr']:.3f} | {means['ms-ssim']:.5f} | {margin:+.2f} dB | "
        assert any(line.startswith(f"| {lmbda:g} ") and row in line for line in page.splitlines())
        assert f"{margin:.2f}" in PAGE.read_text()
