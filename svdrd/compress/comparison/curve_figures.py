"""Rate-distortion curves: the figure (the paper's Fig. 2), and the JSON files that CompressAI's plot tool reads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from svdrd.compress.comparison.bd_rate import PRIMARY, NoBDRate, checked, common_range, rate_at
from svdrd.compress.comparison.curve import Curve
from svdrd.compress.comparison.differences import QUALITIES, BDRate
from svdrd.compress.files import write_json

AXIS_NAMES = {"psnr": "PSNR (dB)", "ms-ssim": "MS-SSIM (dB)"}
# The anchor is grey. Curves that lie on each other show through: the later the smaller and thinner.
COLOURS = ("0.45", "tab:blue", "tab:red", "tab:green", "tab:purple", "tab:orange", "tab:brown", "tab:pink")
MARKERS = "osD^vP*X"
SAMPLES = 200


def draw_curves(curves: Sequence[Curve], anchor: str, bd_rates: Sequence[BDRate], path: Path) -> None:
    """The mean curves of one codec on one data set, above what each arm needs more or less than the anchor, as PNG.

    The lower row is the rate of an arm relative to the anchor's at equal quality, whose mean (of the logarithm) is the
    BD-rate: it shows curves that are too close together to be told apart above. ``bd_rates`` are for the legend.
    """
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    grid = figure.subplots(2, 2, height_ratios=(3, 2))
    first = next(curve for curve in curves if curve.arm == anchor)
    others = [curve for curve in curves if curve.arm != anchor]
    for column, quality in enumerate(QUALITIES):
        above, below = grid[0, column], grid[1, column]
        for index, curve in enumerate([first, *others]):
            _draw_curve(above, curve, quality, index, _label(curve, anchor, quality, bd_rates))
            if index:
                _draw_difference(below, first, curve, quality, index)
        rate = "estimated rate (bpp)" if first.estimated else "rate (bpp)"
        above.set(xlabel=rate, ylabel=AXIS_NAMES[quality])
        below.set(xlabel=AXIS_NAMES[quality], ylabel=f"rate relative to {anchor} (%)")
        below.axhline(0, color=COLOURS[0], linewidth=1, zorder=1)
        below.margins(y=0.15)
        if max(len(curve.points) for curve in curves) == 1:
            # Points above each other leave the legend no other place.
            above.margins(y=0.6)
        for axes in (above, below):
            axes.grid(alpha=0.3)
            axes.ticklabel_format(useOffset=False)
        above.legend(fontsize=9)
        if len(below.lines) == 1:
            below.set(xticks=[], yticks=[])
            below.text(0.5, 0.6, "no curves to compare", ha="center", transform=below.transAxes)
    images = f"{len(first.images)} images" if len(first.images) > 1 else first.images[0]
    how = "rates estimated" if first.estimated else "coded"
    figure.suptitle(f"{first.codec} on {first.dataset}: mean of {images}, {how}; curves: {PRIMARY}", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def _label(curve: Curve, anchor: str, quality: str, bd_rates: Sequence[BDRate]) -> str:
    if curve.arm == anchor:
        return curve.arm
    wanted = (curve.dataset, curve.codec, anchor, curve.arm, quality, PRIMARY)
    for row in bd_rates:
        if (row.dataset, row.codec, row.anchor, row.arm, row.quality, row.method) == wanted:
            estimate = row.of_mean
            if estimate.value is None:
                return f"{curve.arm}: no BD-rate, comparison.md says why"
            interval = "" if estimate.low is None else f" [{estimate.low:+.2f}, {estimate.high:+.2f}]"
            return f"{curve.arm}: BD-rate {estimate.value:+.2f} %{interval}"
    return curve.arm


def _draw_curve(axes: Axes, curve: Curve, quality: str, index: int, label: str) -> None:
    rates, qualities = curve.mean(quality)
    style = index % len(COLOURS)
    colour, width, size = COLOURS[style], max(2.6 - 0.7 * index, 0.8), max(8 - 1.6 * index, 3)
    axes.plot(rates, qualities, MARKERS[style], color=colour, markersize=size, label=label, zorder=2 + index)
    try:
        checked(curve.arm, rates, qualities)
        at = np.linspace(qualities.min(), qualities.max(), SAMPLES)
        axes.plot(rate_at(rates, qualities, at), at, color=colour, linewidth=width, zorder=2 + index)
    except NoBDRate:
        # Too few points, or not monotone: what is there, joined by lines.
        axes.plot(rates, qualities, "--", color=colour, linewidth=width, zorder=2 + index)


def _draw_difference(axes: Axes, anchor: Curve, curve: Curve, quality: str, index: int) -> None:
    style = index % len(COLOURS)
    (anchor_rates, anchor_qualities), (rates, qualities) = anchor.mean(quality), curve.mean(quality)
    low, high = common_range(anchor_qualities, qualities)
    try:
        for one in (anchor, curve):
            checked(one.arm, *one.mean(quality))
        if not low < high:
            raise NoBDRate("no common quality")
        at = np.linspace(low, high, SAMPLES)
        percent = 100 * (rate_at(rates, qualities, at) / rate_at(anchor_rates, anchor_qualities, at) - 1)
    except NoBDRate:
        # The legend says so.
        return
    axes.plot(at, percent, color=COLOURS[style], linewidth=1.4, zorder=2 + index)
    inside = (qualities >= low) & (qualities <= high)
    marked = 100 * (rates[inside] / rate_at(anchor_rates, anchor_qualities, qualities[inside]) - 1)
    axes.plot(qualities[inside], marked, MARKERS[style], color=COLOURS[style], markersize=4, zorder=2 + index)


def write_plot_json(curve: Curve, path: Path) -> None:
    """For ``python -m compressai.utils.plot -f FILE...``, which turns the mean MS-SSIM into dB itself."""
    how = "entropy estimation" if curve.estimated else "coded"
    write_json(
        path,
        {
            "name": f"{curve.codec} {curve.arm}{' (estimated rate)' if curve.estimated else ''}",
            "description": f"mean of {len(curve.images)} images of {curve.dataset}, {how}",
            "results": {
                "bpp": curve.bpp.mean(axis=1).tolist(),
                "psnr-rgb": curve.psnr.mean(axis=1).tolist(),
                "ms-ssim-rgb": curve.ms_ssim.mean(axis=1).tolist(),
            },
        },
    )
