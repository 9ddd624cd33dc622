"""What is computed of curves, against numbers worked out here; and the tables, in which no cell is silently empty."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("bjontegaard", reason="svdrd.compress needs pip install 'svdrd[compress]'")

from svdrd.compress import BadInput
from svdrd.compress.comparison.bd_rate import METHODS, bd_rate
from svdrd.compress.comparison.curve import Curve
from svdrd.compress.comparison.curve_figures import draw_curves
from svdrd.compress.comparison.differences import QUALITIES, BDRate, compare
from svdrd.compress.comparison.table_files import write_tables
from svdrd.compress.comparison.tables import markdown, summary

LAMBDAS = (0.0035, 0.0067, 0.013, 0.025)


def curve(arm: str = "base", factor: float = 1.0, images: int = 6, dataset: str = "kodak", seed: int = 0) -> Curve:
    """Images of different difficulty; `factor` is the rate relative to that of another curve of the same seed."""
    generator = np.random.default_rng(seed)
    rate = np.array([0.15, 0.3, 0.55, 0.9])[:, None] * generator.uniform(0.6, 1.6, images)
    quality = np.array([28, 30.5, 33, 35.2])[:, None] + generator.uniform(-3, 3, images)
    names = tuple(f"kodim{k:02d}.png" for k in range(1, images + 1))
    points = tuple(f"{arm}-{lmbda}" for lmbda in LAMBDAS)
    ms_ssim = 1 - 10 ** (-(quality - 17) / 10)
    mu = (10.0 if arm == "basis" else 0.0,) * 4
    return Curve(*(arm, "a-codec", dataset, names, points, rate * factor, quality, ms_ssim, LAMBDAS, ("mse",) * 4, mu))


def only(rows: list[BDRate], quality: str, method: str) -> BDRate:
    (row,) = [row for row in rows if (row.quality, row.method) == (quality, method)]
    return row


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quality", QUALITIES)
def test_a_constant_factor(quality: str, method: str):
    row = only(compare([curve(), curve("basis", 0.95)], count=100).bd_rates, quality, method)
    for estimate in (row.of_mean, row.of_images):
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((-5, -5, -5), abs=1e-9)
    assert list(row.images.values()) == pytest.approx([-5] * 6, abs=1e-9)
    assert (row.anchor, row.arm, row.dataset, row.codec, row.overlap) == ("base", "basis", "kodak", "a-codec", 1)


def test_mean_curve_and_mean_of_images_are_different_numbers_and_both_right():
    base, arm = curve(), curve("basis")
    # Every image has its own saving; those that cost most save most.
    arm = replace(arm, bpp=arm.bpp * (1 - 0.1 * base.bpp[0] / base.bpp[0].max()))
    for quality in QUALITIES:
        row = only(compare([base, arm], count=100).bd_rates, quality, "pchip")
        savings = -10 * base.bpp[0] / base.bpp[0].max()
        assert list(row.images.values()) == pytest.approx(savings)
        assert row.of_images.value == pytest.approx(savings.mean())
        qualities = base.psnr.mean(axis=1)
        if quality == "ms-ssim":
            # dB of the mean, which is not the mean of the dB.
            qualities = -10 * np.log10(1 - base.ms_ssim.mean(axis=1))
            assert not np.allclose(qualities, base.of_image("ms-ssim").mean(axis=1), atol=0.1)
        expected = bd_rate(base.bpp.mean(axis=1), qualities, arm.bpp.mean(axis=1), qualities)
        assert row.of_mean.value == pytest.approx(expected)
        assert expected < savings.mean() - 0.5


def test_intervals_are_those_of_the_resampled_images():
    base, arm = curve(), curve("basis")
    arm = replace(arm, psnr=arm.psnr + np.random.default_rng(1).normal(0, 0.1, arm.psnr.shape))
    comparison = compare([base, arm], count=200, seed=7)
    draws = np.random.default_rng(7).integers(6, size=(200, 6))
    values = [
        bd_rate(base.bpp[:, d].mean(1), base.psnr[:, d].mean(1), arm.bpp[:, d].mean(1), arm.psnr[:, d].mean(1))
        for d in draws
    ]
    row = only(comparison.bd_rates, "psnr", "pchip")
    assert (row.of_mean.low, row.of_mean.high) == pytest.approx(np.quantile(values, [0.025, 0.975]))
    each = np.array(list(row.images.values()))[draws].mean(axis=1)
    assert (row.of_images.low, row.of_images.high) == pytest.approx(np.quantile(each, [0.025, 0.975]))
    assert row.of_mean.low < row.of_mean.value < row.of_mean.high


def test_the_seed_decides_and_nothing_else():
    curves = [curve(), replace(curve("basis"), psnr=curve("basis", seed=1).psnr)]
    first, second, other = (compare(curves, count=100, seed=seed) for seed in (0, 0, 1))
    assert first.bd_rates == second.bd_rates
    assert first.rd_losses == second.rd_losses
    assert [row.of_mean.value for row in first.bd_rates] == [row.of_mean.value for row in other.bd_rates]
    assert [row.of_mean.low for row in first.bd_rates] != [row.of_mean.low for row in other.bd_rates]
    # The order of the points in the files says nothing.
    turned = replace(
        curves[1],
        **{
            name: getattr(curves[1], name)[::-1]
            for name in ("points", "bpp", "psnr", "ms_ssim", "lmbda", "metric", "mu")
        },
    )
    assert compare([curves[0], turned], count=100).bd_rates == first.bd_rates


def test_rd_loss_by_hand():
    base, arm = curve(), curve("basis", 0.97)
    comparison = compare([base, arm], count=300, seed=2)
    *each, mean = comparison.rd_losses
    draws = np.random.default_rng(2).integers(6, size=(300, 6))
    percents = []
    for k, row in enumerate(each):
        mse = 255**2 / 10 ** (base.psnr[k] / 10)
        losses = base.bpp[k] + LAMBDAS[k] * mse
        difference = 0.97 * base.bpp[k] + LAMBDAS[k] * mse - losses
        assert (row.lmbda, row.anchor_loss) == pytest.approx((LAMBDAS[k], losses.mean()))
        assert row.difference.value == pytest.approx(-0.03 * base.bpp[k].mean())
        low, high = np.quantile(difference[draws].mean(axis=1), [0.025, 0.975])
        assert (row.difference.low, row.difference.high) == pytest.approx((low, high))
        ratios = 100 * difference[draws].mean(axis=1) / losses[draws].mean(axis=1)
        percents.append(ratios)
        assert row.percent.value == pytest.approx(100 * difference.mean() / losses.mean())
        assert (row.percent.low, row.percent.high) == pytest.approx(np.quantile(ratios, [0.025, 0.975]))
        assert (row.better, row.images) == (6, 6)
    assert mean.lmbda is None
    assert mean.percent.value == pytest.approx(np.mean([row.percent.value for row in each]))
    assert (mean.percent.low, mean.percent.high) == pytest.approx(np.quantile(np.mean(percents, 0), [0.025, 0.975]))


def test_rd_loss_of_training_for_ms_ssim():
    metric, lambdas = ("ms-ssim",) * 4, (4.58, 8.73, 16.64, 31.73)
    base = replace(curve(), metric=metric, lmbda=lambdas)
    arm = replace(curve("basis", 0.9), metric=metric, lmbda=lambdas)
    row = compare([base, arm], count=100).rd_losses[0]
    assert row.anchor_loss == pytest.approx((base.bpp[0] + 4.58 * (1 - base.ms_ssim[0])).mean())
    assert row.metric == "ms-ssim"
    assert "4.58 (ms-ssim)" in markdown(compare([base, arm], count=100))


@pytest.mark.parametrize(
    ("lambdas", "notes", "left"),
    [
        ((0.0035, None, 0.013, 0.025), ["lambda of basis-0.0067 of basis is unknown", "only base can show"], 3),
        ((0.0035, 0.0035, 0.013, 0.025), ["basis has basis-0.0035, basis-0.0067 of lambda 0.0035", "only base can"], 2),
        ((0.0035, 0.005, 0.013, 0.025), ["only base can show lambda 0.0067", "only basis can show lambda 0.005"], 3),
        ((None,) * 4, ["lambda of basis-0.0035 of basis is unknown"], 0),
    ],
)
def test_points_without_a_partner_of_equal_lambda(lambdas, notes: list[str], left: int):
    comparison = compare([curve(), replace(curve("basis"), lmbda=lambdas)], count=100)
    assert len([row for row in comparison.rd_losses if row.lmbda is not None]) == left
    assert all(any(note in said for said in comparison.notes) for note in notes)
    assert all(note in summary(comparison) for note in comparison.notes)


def test_several_anchors_arms_and_data_sets():
    curves = [
        curve(arm, factor, dataset=dataset)
        for dataset in ("kodak", "clic")
        for arm, factor in (("base", 1), ("control", 0.98), ("basis", 0.95))
    ]
    comparison = compare(curves, ["base", "control"], count=100)
    rows = {(row.dataset, row.anchor, row.arm): row.of_mean.value for row in comparison.bd_rates}
    assert len(rows) == 8
    assert rows["clic", "control", "basis"] == pytest.approx(100 * (0.95 / 0.98 - 1))
    # Table I: a row a codec, arm and anchor, a column a data set.
    table = summary(comparison).split("\n\n")[1].splitlines()
    assert table[0] == "| codec | arm | anchor | kodak | clic |"
    assert table[3] == "| a-codec | basis | base | -5.00 [-5.00, -5.00] | -5.00 [-5.00, -5.00] |"
    assert len(table) == 6


def test_one_image_has_no_interval():
    comparison = compare([curve(images=1), curve("basis", 0.9, images=1)], count=100)
    row = only(comparison.bd_rates, "psnr", "pchip")
    assert row.of_mean.value == pytest.approx(-10)
    assert row.of_mean.low is None
    assert "-10.00 (1)" in summary(comparison)
    assert "(1) a-codec on kodak, PSNR: of one image there is no interval" in summary(comparison)


def faulty(what: str) -> Curve:
    arm = curve("basis", 0.9)
    if what == "three points":
        return replace(
            arm,
            **{name: getattr(arm, name)[:3] for name in ("points", "bpp", "psnr", "ms_ssim", "lmbda", "metric", "mu")},
        )
    psnr = arm.psnr.copy()
    if what == "no overlap":
        return replace(arm, psnr=psnr + 40, ms_ssim=1 - (1 - arm.ms_ssim) / 1e4)
    if what == "not monotone":
        psnr[2] = psnr[1] - 0.1
    if what == "one image not monotone":
        psnr[2, 3] = psnr[1, 3] - 0.1
    if what == "one image lossless":
        psnr[3, 3] = math.inf
    return replace(arm, psnr=psnr)


@pytest.mark.parametrize(
    ("what", "mean", "image"),
    [
        ("three points", "basis: 3 points, wanted 4 or more (0.1", "kodim01.png, basis: 3 points"),
        ("no overlap", "no common quality: base 2", "kodim01.png, no common quality: base 2"),
        ("not monotone", "basis: the quality does not rise with the rate from point 2 to 3 (0.1", "6 of 6 images"),
        (
            "one image not monotone",
            None,
            "1 of 6 images have no BD-rate, one: kodim04.png, basis: the quality does not",
        ),
        ("one image lossless", "basis: a point is not finite", "1 of 6 images have no BD-rate, one: kodim04.png"),
    ],
)
def test_no_number_is_a_message_and_never_nan(what: str, mean: str | None, image: str, tmp_path: Path):
    comparison = compare([curve(), faulty(what)], count=100)
    row = only(comparison.bd_rates, "psnr", "pchip")
    assert row.of_images.value is None
    assert image in row.of_images.reason
    if mean is None:
        assert row.of_mean.value is not None
    else:
        assert row.of_mean.value is None
        assert mean in row.of_mean.reason
        assert mean in summary(comparison)
        assert "none (1)" in summary(comparison)
    assert image in markdown(comparison)
    for path in write_tables(comparison, tmp_path):
        assert "nan" not in path.read_text().lower()
        assert path.stat().st_size > 0
    with (tmp_path / "bd-rate.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for entry in rows:
        for value, note in (("bd_rate", "note"), ("mean_of_images", "images_note")):
            assert bool(entry[value]) or entry[note]
    (table,) = csv.DictReader((tmp_path / "table-psnr.csv").open())
    assert bool(table["kodak"]) == (mean is None)
    assert table["kodak"] or mean in table["kodak note"]
    # And the figure can be drawn of it.
    draw_curves(comparison.curves, "base", comparison.bd_rates, tmp_path / "rd.png")
    assert (tmp_path / "rd.png").stat().st_size > 20_000


def test_resamples_without_a_number_leave_no_interval():
    base, arm = curve(images=2), curve("basis", 0.9, images=2)
    # The mean rises, one of the two images falls: a quarter of the resamples are of that one alone.
    psnr = arm.psnr.copy()
    psnr[2, 1] = psnr[1, 1] - 0.5
    row = only(compare([base, replace(arm, psnr=psnr)], count=100).bd_rates, "psnr", "pchip")
    assert row.of_mean.value is not None
    assert row.of_mean.low is None
    number = int(row.of_mean.reason.split()[0])
    assert 10 < number < 45
    assert f"{number} of 100 resamples have no BD-rate, one: basis: the quality does not rise" in row.of_mean.reason


def test_small_overlap_is_said():
    arm = curve("basis")
    arm = replace(arm, psnr=arm.psnr + 4)
    comparison = compare([curve(), arm], count=100)
    assert only(comparison.bd_rates, "psnr", "pchip").overlap == pytest.approx(3.2 / 11.2)
    assert "less than 75% of their quality in common" in markdown(comparison)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (curve("base"), "--arm base: given twice"),
        (curve("basis", images=5), "of different images (kodim06.png)"),
        (replace(curve("basis"), images=tuple(f"kodim{k:02d}.png" for k in (2, 1, 3, 4, 5, 6))), "(another order)"),
        (replace(curve("basis"), estimated=True), "the rates of one of base and basis are estimates"),
        (
            replace(curve("basis"), psnr=curve("basis").psnr * math.nan),
            "the PSNR of kodim01.png at basis-0.0035 is not",
        ),
        (replace(curve("basis"), bpp=curve("basis").bpp[:3]), "bpp of shape (3, 6), wanted (points, images) = (4, 6)"),
    ],
)
def test_curves_that_are_not_to_be_compared(second: Curve, said: str):
    with pytest.raises(BadInput) as caught:
        compare([curve(), second], count=100)
    assert said in str(caught.value)


def test_unknown_anchor():
    with pytest.raises(BadInput, match="--anchor contrl: a-codec has no such arm; it has base, basis"):
        compare([curve(), curve("basis")], ["contrl"])


def test_estimates_are_labelled_everywhere(tmp_path: Path):
    curves = [replace(curve(arm), estimated=True) for arm in ("base", "basis")]
    comparison = compare(curves, count=100)
    for text in (summary(comparison), markdown(comparison)):
        assert "BD-rate in PSNR" in text
        titles = [line for line in text.splitlines() if line.removeprefix("## ").startswith(("BD-rate in", "RD loss"))]
        assert len(titles) == 3
        assert all("estimated" in title for title in titles)
    assert "**Rates are estimates**" in markdown(comparison)
    assert "| bpp (estimate) |" in markdown(comparison)
    write_tables(comparison, tmp_path)
    assert "bpp (estimate)" in (tmp_path / "points.csv").read_text().splitlines()[0]
    assert json.loads((tmp_path / "comparison.json").read_text())["rate"] == "bpp (estimate)"
    assert "estimate" not in markdown(compare([curve(), curve("basis")], count=100)).lower()


def test_files_hold_what_was_computed(tmp_path: Path):
    comparison = compare([curve(), curve("control", 0.98), curve("basis", 0.95)], count=100)
    paths = write_tables(comparison, tmp_path)
    assert {path.name for path in paths} == {path.name for path in tmp_path.iterdir()}
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["of_mean"]["value"] for row in content["bd_rates"]] == [r.of_mean.value for r in comparison.bd_rates]
    assert len(content["rd_losses"]) == 10
    with (tmp_path / "bd-rate-images.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 3 * 6
    with (tmp_path / "rd-loss.csv").open() as file:
        losses = list(csv.DictReader(file))
    assert float(losses[0]["difference"]) == comparison.rd_losses[0].difference.value
    with (tmp_path / "points.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3 * 4 * 6
    # An earlier comparison's file does not stay behind where this one has none.
    write_tables(compare([curve(), replace(curve("basis"), lmbda=(None,) * 4)], count=100), tmp_path)
    assert not (tmp_path / "rd-loss.csv").exists()
