"""Recomputes every number and figure of docs/studies/dose_response.md that its arms gave.

    python docs/studies/dose_response/analyse.py

reads points.csv and jpeg.csv, writes responses.csv (once there are arms) and the figures beside them, and prints the
page's tables.
With --collect RUNS it first makes points.csv anew from the evaluations of `svdrd experiment` below the folder RUNS, and
with --jpeg FOLDER jpeg.csv from the photographs.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from PIL import Image

from svdrd.compress.comparison import jpeg
from svdrd.compress.comparison.bootstrap import interval, resamples
from svdrd.compress.comparison.tables import markdown_table

Array = npt.NDArray[np.float64]

HERE = Path(__file__).parent
BASE, CONTROL = "base", "control"
# Arms of whole patches by their mu, and the one of blocks.
DOSES = {"mu-10": 10, "mu-100": 100, "mu-1000": 1000, "mu-10-on-255": 10 * 255**2}
BLOCKS = {"blocks-mu-100": 100}
ARMS = {**DOSES, **BLOCKS}
NAMES = {
    "mu-10": "mu = 10",
    "mu-100": "mu = 100",
    "mu-1000": "mu = 1000",
    "mu-10-on-255": "mu = 10, on 255",
    "blocks-mu-100": "8x8 blocks, mu = 100",
}
# What is compared with the control arm, and as what: a difference, or a difference in percent of the control's mean.
RESPONSES = {
    "rd-loss": ("RD loss", "%"),
    "bpp": ("rate", "%"),
    "psnr": ("PSNR", "dB"),
    "ms-ssim": ("MS-SSIM", "dB"),
    "gmsd": ("GMSD", "%"),
    "basis": ("basis distance", "%"),
}
# The same at equal rate: beside what the control arm's own curve gives at the arm's rate. More rate makes all of them
# better, so without this an arm that only spends more would seem to gain.
AT_RATE = {
    f"{name}-at-rate": (f"{title} at equal rate", unit)
    for name, (title, unit) in RESPONSES.items()
    if name not in ("rd-loss", "bpp")
}
KEYS = {"bpp": "bpp", "psnr-rgb": "psnr", "ms-ssim-rgb": "ms-ssim", "gmsd": "gmsd", "basis": "basis"}
RESAMPLES = 1000

# Of one arm, lambda and seed: a value for each image, by the name of the measure.
Point = dict[str, Array]
# By arm, lambda and seed; the seed of the base is None.
Points = dict[tuple[str, float, int | None], Point]


def collect(runs: Path) -> list[dict[str, Any]]:
    """A row for each image of each evaluation of the study."""
    rows = []
    for path in sorted((runs / "evaluations" / "kodak").rglob("*.json")):
        arm, lmbda, *seed = path.relative_to(runs / "evaluations" / "kodak").with_suffix("").parts
        for image in json.loads(path.read_text())["images"]:
            row: dict[str, Any] = {
                "arm": arm,
                "lambda": lmbda.removeprefix("lambda-"),
                "seed": seed[0].removeprefix("seed-") if seed else "",
                "image": Path(image["source"]).stem,
            }
            rows.append(row | {name: f"{image['results'][key]:.7g}" for key, name in KEYS.items()})
    return rows


def jpeg_rows_of(folder: Path) -> Iterator[dict[str, Any]]:
    """Pillow's JPEG, optimised, 4:2:0."""
    for quality in (5, 10, 15, 20, 25, 30, 40, 50, 60, 70):
        for path in sorted(folder.iterdir()):
            bpp, psnr = jpeg.code(Image.open(path), quality)
            yield {"quality": quality, "image": path.stem, "bpp": f"{bpp:.7g}", "psnr": f"{psnr:.7g}"}


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def points_of(rows: Sequence[Mapping[str, str]]) -> Points:
    """The rows by what was trained; every point has the same images in the same order."""
    by_point: dict[tuple[str, float, int | None], dict[str, Mapping[str, str]]] = {}
    for row in rows:
        key = (row["arm"], float(row["lambda"]), int(row["seed"]) if row["seed"] else None)
        by_point.setdefault(key, {})[row["image"]] = row
    images = sorted(next(iter(by_point.values())))
    points = {}
    for key, found in by_point.items():
        if sorted(found) != images:
            raise ValueError(f"{key}: has {len(found)} images, the first point has {len(images)}")
        point = {name: np.array([float(found[image][name]) for image in images]) for name in KEYS.values()}
        point["rd-loss"] = point["bpp"] + key[1] * 255**2 * 10 ** (-point["psnr"] / 10)
        points[key] = point
    return points


def levels(name: str, point: Point, draws: npt.NDArray[np.intp]) -> Array:
    """The mean over the images of each draw, (draws,); of MS-SSIM in dB, -10 log10(1 - mean)."""
    mean = point[name][draws].mean(axis=-1)
    return np.asarray(-10 * np.log10(1 - mean) if name == "ms-ssim" else mean)


def difference(name: str, after: Array, before: Array) -> Array:
    return after - before if name in ("psnr", "ms-ssim") else 100 * (after / before - 1)


def along(rates: Array, values: Array, rate: Array) -> Array:
    """The curves' values at `rate`, linear in log rate and beyond their ends; rates and values are (draws, points)."""
    rates, rate = np.log(rates), np.log(rate)
    segment = (rate[:, None] > rates[:, 1:-1]).sum(axis=-1)
    draw = np.arange(len(rate))
    (r0, r1), (v0, v1) = ((each[draw, segment], each[draw, segment + 1]) for each in (rates, values))
    return np.asarray(v0 + (v1 - v0) * (rate - r0) / (r1 - r0))


def changes(point: Point, control: Point, curve: Sequence[Point], draws: npt.NDArray[np.intp]) -> dict[str, Array]:
    """What a point differs by from its control, over the images of each draw, (draws,), by response.

    The curve is the control arm's points by rate. At equal rate the control's value is moved along it, from the
    control's rate to the point's.
    """
    found = {name: difference(name, levels(name, point, draws), levels(name, control, draws)) for name in RESPONSES}
    if len(curve) < 2:
        return found
    rates = np.stack([levels("bpp", each, draws) for each in curve], axis=-1)
    for name in RESPONSES:
        if f"{name}-at-rate" in AT_RATE:
            values = np.stack([levels(name, each, draws) for each in curve], axis=-1)
            here, there = (along(rates, values, levels("bpp", each, draws)) for each in (control, point))
            moved = levels(name, control, draws) + there - here
            found[f"{name}-at-rate"] = difference(name, levels(name, point, draws), moved)
    return found


def rate_of(point: Point) -> float:
    return float(point["bpp"].mean())


def responses(points: Points) -> list[dict[str, Any]]:
    """Every arm against the control arm of the same lambda and seed, and control arms against that of seed 0.

    The second are what another seed moves: between runs that had nothing different but order, crops and noise.
    """
    images = len(next(iter(points.values()))["bpp"])
    every_image, draws = np.arange(images)[None], resamples(images, RESAMPLES, seed=0)
    curve = sorted((point for (arm, _, seed), point in points.items() if (arm, seed) == (CONTROL, 0)), key=rate_of)
    rows = []
    for (arm, lmbda, seed), point in points.items():
        if seed is None or (arm == CONTROL and seed == 0):
            continue
        control = points[CONTROL, lmbda, 0 if arm == CONTROL else seed]
        resampled, of_all = (changes(point, control, curve, images) for images in (draws, every_image))
        for name, values in resampled.items():
            low, high = interval(values)
            value = float(of_all[name][0])
            rows.append(
                {"arm": arm, "lambda": lmbda, "seed": seed, "response": name, "value": value, "low": low, "high": high}
            )
    return rows


def mean_of_seeds(rows: Sequence[Mapping[str, Any]], arm: str, lmbda: float, name: str) -> tuple[float, float, float]:
    """Mean, smallest and largest over the seeds."""
    values = [
        row["value"] for row in rows if (row["arm"], row["lambda"], row["response"]) == (arm, lmbda, name)
    ]  # fmt: skip
    return float(np.mean(values)), min(values), max(values)


# What the first table shows of each arm.
SUMMARY = ("bpp", "rd-loss", "psnr-at-rate", "ms-ssim-at-rate", "gmsd-at-rate", "basis", "basis-at-rate")


def summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first table: a line an arm, the mean over its runs and, in brackets, the smallest and the largest."""
    names = [name for name in SUMMARY if any(row["response"] == name for row in rows)]
    lines = []
    for arm in (*ARMS, CONTROL):
        values = [[row["value"] for row in rows if (row["arm"], row["response"]) == (arm, name)] for name in names]
        if all(values):
            cells = [f"{np.mean(each):+.2f} ({min(each):+.2f} to {max(each):+.2f})" for each in values]
            lines.append([NAMES.get(arm, "control, another seed"), *cells])
    titles = [f"{title} ({unit})" for title, unit in map((RESPONSES | AT_RATE).__getitem__, names)]
    return [*markdown_table(["arm", *titles], lines, 1), ""] if lines else []


def tables(rows: Sequence[Mapping[str, Any]], points: Points) -> list[str]:
    """The page's tables: the summary, responses by dose and rate, and the points of base and control."""
    lambdas = sorted({lmbda for _, lmbda, _ in points})
    lines = summary(rows)
    for name, (title, unit) in (RESPONSES | AT_RATE).items():
        if not any(row["response"] == name for row in rows):
            continue
        cells = []
        for arm in (*(arm for arm in ARMS if any(row["arm"] == arm for row in rows)), CONTROL):
            line = [NAMES.get(arm, "control, another seed")]
            for lmbda in lambdas:
                seeds = sum(key[:2] == (arm, lmbda) for key in points) - (arm == CONTROL)
                if seeds < 1:
                    line.append("")
                    continue
                mean, smallest, largest = mean_of_seeds(rows, arm, lmbda, name)
                line.append(f"{mean:+.2f}" + (f" ({smallest:+.2f} to {largest:+.2f})" if seeds > 1 else ""))
            cells.append(line)
        lines += [f"{title}, change in {unit}:", ""]
        lines += [*markdown_table(["arm", *(f"lambda {lmbda:g}" for lmbda in lambdas)], cells, 1), ""]
    cells = []
    for (arm, lmbda, seed), point in points.items():
        if arm in (BASE, CONTROL) and seed in (None, 0):
            means = [f"{point[name].mean():.4f}" for name in ("bpp", "psnr", "ms-ssim", "gmsd", "basis", "rd-loss")]
            cells.append([arm, f"{lmbda:g}", *means])
    head = ["arm", "lambda", "bpp", "PSNR (dB)", "MS-SSIM", "GMSD", "basis distance", "RD loss"]
    return [*lines, *markdown_table(head, cells, 2)]


def draw_doses(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Dose on the x axis, each response on y: every run with its interval over the images, lines through the means.

    Below each measure stands the same at equal rate.
    """
    lambdas = sorted({row["lambda"] for row in rows})
    colours = dict(zip(lambdas, plt.get_cmap("viridis")(np.linspace(0, 0.85, len(lambdas))), strict=True))
    figure, grid = plt.subplots(2, 5, figsize=(21, 7.6), layout="constrained")
    above = ["rd-loss", "psnr", "ms-ssim", "gmsd", "basis"]
    below = ["bpp", *AT_RATE]
    for axes, name in zip(grid.flat, [*above, *below], strict=True):
        title, unit = (RESPONSES | AT_RATE)[name]
        of_name = [row for row in rows if row["response"] == name]
        seeds = [abs(row["value"]) for row in of_name if row["arm"] == CONTROL]
        if seeds:
            axes.axhspan(-max(seeds), max(seeds), color="0.9", zorder=0, label="what another seed moved")
        axes.axhline(0, color="0.5", linewidth=0.8)
        for number, lmbda in enumerate(lambdas):
            shift = 1.08 ** (number - (len(lambdas) - 1) / 2)
            of_lambda = [row for row in of_name if row["lambda"] == lmbda]
            for arms, marker in ((DOSES, "o"), (BLOCKS, "s")):
                found = [row for row in of_lambda if row["arm"] in arms]
                if not found:
                    continue
                x = [arms[row["arm"]] * shift * 1.03 ** row["seed"] for row in found]
                values, lows, highs = ([row[key] for row in found] for key in ("value", "low", "high"))
                label = f"lambda {lmbda:g}{', 8x8 blocks' if arms is BLOCKS else ''}"
                style = {"color": colours[lmbda], "markersize": 4, "linewidth": 1, "label": label}
                bars = [np.subtract(values, lows).tolist(), np.subtract(highs, values).tolist()]
                hollow = {"markerfacecolor": "white"} if arms is BLOCKS else {}
                axes.errorbar(x, values, yerr=bars, fmt=marker, **style, **hollow)
            means = [
                (dose * shift, np.mean([row["value"] for row in of_lambda if row["arm"] == arm]))
                for arm, dose in DOSES.items()
                if any(row["arm"] == arm for row in of_lambda)
            ]
            axes.plot(*zip(*means, strict=True), color=colours[lmbda], linewidth=0.8)
        axes.set(xscale="log", title=title, ylabel=f"change over the control arm ({unit})")
        axes.set_yscale("symlog", linthresh=max([0.05, *(2 * seed for seed in seeds)]))
        axes.grid(alpha=0.3)
    for axes in grid[1]:
        axes.set_xlabel("mu")
    grid[1, 0].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_curves(points: Points, jpeg_rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Where the codec stands: base and arms of seed 0 beside JPEG."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    qualities = sorted({int(row["quality"]) for row in jpeg_rows})
    means = [
        [np.mean([float(row[name]) for row in jpeg_rows if int(row["quality"]) == quality]) for quality in qualities]
        for name in ("bpp", "psnr")
    ]
    axes.plot(*means, color="0.6", marker=".", label="JPEG (Pillow, optimised, 4:2:0)")
    for arm in (BASE, CONTROL, *ARMS):
        seed = None if arm == BASE else 0
        lambdas = sorted(lmbda for found, lmbda, its_seed in points if (found, its_seed) == (arm, seed))
        if lambdas:
            curve = [[points[arm, lmbda, seed][name].mean() for lmbda in lambdas] for name in ("bpp", "psnr")]
            axes.plot(*curve, marker="o", markersize=4, linewidth=1, label=NAMES.get(arm, arm))
    axes.set(xlabel="rate (bpp)", ylabel="PSNR (dB)", title="Kodak, coded; means over 24 images")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def above_jpeg(points: Points, jpeg_rows: Sequence[Mapping[str, str]]) -> dict[float, float]:
    """By lambda: how many dB the base codec's mean lies above JPEG's mean curve at its rate, linear in between."""
    by_quality: dict[str, list[tuple[float, float]]] = {}
    for row in jpeg_rows:
        by_quality.setdefault(row["quality"], []).append((float(row["bpp"]), float(row["psnr"])))
    rates, psnrs = np.array(sorted(tuple(np.mean(of_one, axis=0)) for of_one in by_quality.values())).T
    return {
        lmbda: float(point["psnr"].mean() - np.interp(point["bpp"].mean(), rates, psnrs))
        for (arm, lmbda, _), point in points.items()
        if arm == BASE
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=Path, metavar="RUNS", help="make points.csv from the study's evaluations")
    parser.add_argument("--jpeg", type=Path, metavar="FOLDER", help="make jpeg.csv from these photographs")
    parser.add_argument("--folder", type=Path, default=HERE, help="of the files (default: that of this script)")
    arguments = parser.parse_args(argv)
    folder: Path = arguments.folder
    if arguments.collect:
        write(folder / "points.csv", collect(arguments.collect))
    if arguments.jpeg:
        write(folder / "jpeg.csv", list(jpeg_rows_of(arguments.jpeg)))
    points, jpeg_rows = points_of(read(folder / "points.csv")), read(folder / "jpeg.csv")
    rows = responses(points)
    if rows:
        rounded = [{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
        write(folder / "responses.csv", rounded)
        draw_doses(rows, folder / "dose_response.png")
    draw_curves(points, jpeg_rows, folder / "curves.png")
    print("\n".join(tables(rows, points)))
    margins = ", ".join(
        f"{margin:+.2f} dB at lambda {lmbda:g}" for lmbda, margin in above_jpeg(points, jpeg_rows).items()
    )
    print(f"\nThe base codecs lie above JPEG at equal rate by {margins}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
