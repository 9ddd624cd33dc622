"""The figures of `svdrd recompose`: PSNR over rate, a strip of pictures, the reconstruction spectrum of the bases."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

PICTURES = {
    "lq": ("LQ: as decoded", "0.35", "o"),
    "latent": ("recomposed in latent space", "tab:blue", "s"),
    "pixel": ("recomposed in pixel space", "tab:red", "^"),
}


def psnr_bpp(rates: Sequence[dict[str, Any]], title: str, estimated: bool, folder: Path) -> None:
    """Means over the images, a point for each rate."""
    figure, axes = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    bpp = [rate["results"]["bpp"] for rate in rates]
    for key, (name, colour, marker) in reversed(PICTURES.items()):
        psnr = [rate["results"][f"psnr_{key}"] for rate in rates]
        axes.plot(bpp, psnr, color=colour, marker=marker, label=name)
    axes.set_title(title, fontsize=10)
    axes.set(xlabel=f"rate (bpp{', estimated' if estimated else ''})", ylabel="PSNR (dB)")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, folder / "psnr_bpp.png")


def strip(rates: Sequence[dict[str, Any]], image: str, side: int, estimated: bool, folder: Path) -> None:
    """The original and the three pictures of one image beside each other, a row for each rate."""
    columns = ("original", *PICTURES)
    figure, grid = plt.subplots(
        len(rates), len(columns), figsize=(12.4, 3.5 * len(rates) + 0.4), layout="constrained", squeeze=False
    )
    figure.suptitle(f"{image}: {side}x{side} from its middle; rate and PSNR are the whole image's", fontsize=12)
    for row, rate in zip(grid, rates, strict=True):
        results = next(one["results"] for one in rate["images"] if one["source"] == image)
        for axes, column in zip(row, columns, strict=True):
            axes.imshow(_pixels(rate["pictures"][column]), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if column == "original":
                name, below = "original", f"{results['bpp']:.3f} bpp{' (estimated)' if estimated else ''} in this row"
            else:
                name = PICTURES[column][0]
                below = f"{results[f'psnr_{column}']:.2f} dB"
                if column != "lq":
                    below += f" ({results[f'psnr_{column}'] - results['psnr_lq']:+.2f})"
            axes.set_xlabel(below, fontsize=11)
            if axes.get_subplotspec().is_first_row():
                axes.set_title(name, fontsize=11)
    _save(figure, folder / "strip.png")


def spectrum(rates: Sequence[dict[str, Any]], title: str, folder: Path) -> None:
    """Singular values of the original and the decoded images, and how much of each basis pair was kept."""
    figure, (values, kept) = plt.subplots(1, 2, figsize=(11.4, 4.6), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0.9, 0.1, len(rates)))
    index = np.arange(1, len(rates[0]["spectrum"]["hq"]) + 1)
    for rate, colour in zip(rates, colours, strict=True):
        name = f"LQ, {rate['results']['bpp']:.3f} bpp"
        values.plot(index, rate["spectrum"]["lq"], color=colour, label=name)
        kept.plot(index, rate["spectrum"]["kept"], color=colour, label=name)
    values.plot(index, rates[0]["spectrum"]["hq"], color="black", linestyle="--", label="original")
    values.set(xscale="log", yscale="log", xlabel="index i", ylabel="mean singular value, images in [0, 1]")
    values.set_title("singular values")
    kept.set(xscale="log", xlabel="index i", ylabel="share kept along the pair")
    kept.set_title("of the original's i-th basis pair $u_i v_i^T$ in LQ", fontsize=11)
    kept.axhline(1, color="black", linestyle="--", linewidth=1)
    for axes in (values, kept):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    figure.suptitle(title, fontsize=11)
    _save(figure, folder / "spectrum.png")


def _pixels(picture: Tensor) -> Any:
    return (picture * 255).round().byte().permute(1, 2, 0).numpy()


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
