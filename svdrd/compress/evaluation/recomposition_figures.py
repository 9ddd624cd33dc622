"""The figures of `svdrd recompose`: PSNR over rate, a strip of pictures, the reconstruction spectrum of the bases."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from svdrd.compress.showing import in_a_figure

DPI = 100
# Smaller pictures are magnified towards it by a whole number.
STRIP_SIDE = 256
PICTURES = {
    "lq": ("LQ: as decoded", "0.35", "o"),
    "latent": ("recomposed in latent space", "tab:blue", "s"),
    "pixel": ("recomposed in pixel space", "tab:red", "^"),
}


def psnr_bpp(rates: Sequence[dict[str, Any]], title: str, estimated: bool, folder: Path) -> None:
    """Means over the images, a point for each rate."""
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    bpp = [rate["results"]["bpp"] for rate in rates]
    for key, (name, colour, marker) in reversed(PICTURES.items()):
        psnr = [rate["results"][f"psnr_{key}"] for rate in rates]
        axes.plot(bpp, psnr, color=colour, marker=marker, label=name)
    axes.set_title(title, fontsize=10)
    axes.set(xlabel=f"rate (bpp{', estimated' if estimated else ''})", ylabel="PSNR (dB)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "psnr_bpp.png", dpi=DPI)


def strip(rates: Sequence[dict[str, Any]], image: str, estimated: bool, folder: Path) -> None:
    """One image: the original and the three pictures beside each other, a row each for the lowest and highest rate."""
    rows = [rates[0], rates[-1]] if len(rates) > 1 else list(rates)
    columns = ("original", *PICTURES)
    height, width = rows[0]["pictures"]["original"].shape[-2:]
    # Everything in pixels, so that one pixel of a picture is a square of pixels of the figure.
    zoom = max(1, STRIP_SIDE // max(height, width))
    height, width = zoom * height, zoom * width
    gap, header, caption = 12, 64, 34
    total_width = len(columns) * (width + gap) + gap
    total_height = header + len(rows) * (height + caption)
    figure = Figure(figsize=(total_width / DPI, total_height / DPI))
    figure.text(
        0.5,
        1 - 14 / total_height,
        f"{in_a_figure(image)}: {width // zoom}x{height // zoom} from its middle; "
        "rate and PSNR are those of the whole image",
        ha="center",
        va="center",
        fontsize=9,
    )
    for row, rate in enumerate(rows):
        results = next(one["results"] for one in rate["images"] if one["source"] == image)
        for column, key in enumerate(columns):
            left = gap + column * (width + gap)
            bottom = total_height - header - row * (height + caption) - height
            box = (left / total_width, bottom / total_height, width / total_width, height / total_height)
            axes = figure.add_axes(box)
            axes.imshow(_pixels(rate["pictures"][key]), interpolation="nearest")
            axes.set_axis_off()
            if key == "original":
                name, below = "original", f"this row: {results['bpp']:.3f} bpp{' (estimated)' if estimated else ''}"
            else:
                name, below = PICTURES[key][0], f"{results[f'psnr_{key}']:.2f} dB"
                if key != "lq":
                    below += f" ({results[f'psnr_{key}'] - results['psnr_lq']:+.2f})"
            axes.text(0.5, -14 / height, below, transform=axes.transAxes, ha="center", va="center", fontsize=9)
            if row == 0:
                axes.text(0.5, 1 + 16 / height, name, transform=axes.transAxes, ha="center", va="center", fontsize=9)
    figure.savefig(folder / "strip.png", dpi=DPI)


def spectrum(rates: Sequence[dict[str, Any]], title: str, folder: Path) -> None:
    """Singular values of the original and the decoded images, and how much of each basis pair was kept."""
    figure = Figure(figsize=(11.4, 4.6), layout="constrained")
    values, kept = figure.subplots(1, 2)
    colours = matplotlib.colormaps["viridis"](np.linspace(0.9, 0.1, len(rates)))
    index = np.arange(1, len(rates[0]["spectrum"]["hq"]) + 1)
    for rate, colour in zip(rates, colours, strict=True):
        name = f"LQ, {rate['results']['bpp']:.3f} bpp"
        values.plot(index, rate["spectrum"]["lq"], color=colour, label=name)
        kept.plot(index, np.array(rate["spectrum"]["kept"], dtype=float), color=colour, label=name)
    values.plot(index, rates[0]["spectrum"]["hq"], color="black", linestyle="--", label="original")
    values.set(xscale="log", yscale="log", xlabel="index i", ylabel="mean singular value, images in [0, 1]")
    values.set_title("singular values")
    kept.set(xscale="log", xlabel="index i", ylabel="share kept along the pair")
    kept.set_title("of the original's i-th basis pair $u_i v_i^T$ in LQ", fontsize=11)
    # The last singular values of an original are hardly there, and shares of them are noise of any size.
    kept.set_ylim(-0.15, 1.15)
    kept.axhline(1, color="black", linestyle="--", linewidth=1)
    for axes in (values, kept):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.savefig(folder / "spectrum.png", dpi=DPI)


def _pixels(picture: Tensor) -> Any:
    return (picture * 255).round().byte().permute(1, 2, 0).numpy()
