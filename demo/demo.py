"""Fine-tunes one codec twice, with and without the basis loss, and shows what came of it.

Both arms start from the same weights, with the same seed: they see the same crops in the same order and differ in
`--mu` alone. The photographs are scikit-image's; the codec is the one in demo/base, or with --zoo CompressAI's own.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any

# Threads that spin while they wait make a step several times slower where other programs want the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from svdrd.__main__ import main as svdrd
from svdrd.compress import lambda_for
from svdrd.ops import basis_loss

BASE = Path(__file__).parent / "base" / "checkpoint.pth.tar"
MODEL = "bmshj2018-hyperprior"
# The colour photographs of everyday things that lie in scikit-image's wheel. The two of the motorcycle are a stereo
# pair, so both are on the same side.
TRAINING = ("astronaut", "motorcycle_left", "motorcycle_right", "rocket")
HELD_OUT = ("chelsea", "coffee")
ARMS = {"base": "before fine-tuning", "control": "fine-tuned, mu = 0", "basis": "fine-tuned, basis loss"}
COLOURS = {"base": "0.35", "control": "tab:blue", "basis": "tab:red"}


def photograph(name: str) -> Image.Image:
    if name.startswith("motorcycle"):
        return Image.fromarray(skimage.data.stereo_motorcycle()[name.endswith("right")])
    return Image.fromarray(getattr(skimage.data, name)())


def command(step: str, *arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    print(f"\n{step}\n$ svdrd {shlex.join(words)}", flush=True)
    if code := svdrd(words):
        sys.exit(code)


def patches(path: Path, side: int) -> torch.Tensor:
    """The non-overlapping `side` x `side` patches of an image, (1, 3, H, W) cut to multiples of `side`."""
    x = to_tensor(Image.open(path)).unsqueeze(0)
    return x[..., : x.shape[-2] // side * side, : x.shape[-1] // side * side]


def basis_distance(decoded: Path, original: Path, side: int) -> float:
    """The basis loss of a decoded file: patches of the size that was trained with, each channel a matrix."""
    return basis_loss(patches(decoded, side), patches(original, side), block_size=side).item()


def measure(run: Path, arm: str, lmbda: float, side: int) -> dict[str, Any]:
    """What `svdrd evaluate` wrote about an arm, with RD loss and basis distance of the decoded 8-bit files added."""
    images = json.loads((run / f"{arm}.json").read_text())["images"]
    for image in images:
        results, name = image["results"], image["source"]
        # The criterion's loss without its basis term: bpp + lambda 255^2 MSE, images in [0, 1].
        results["rd-loss"] = results["bpp"] + lmbda * 255**2 * 10 ** (-results["psnr-rgb"] / 10)
        results["basis"] = basis_distance(run / "decoded" / arm / name, run / "photographs" / "test" / name, side)
    means = {key: fmean(image["results"][key] for image in images) for key in images[0]["results"]}
    return {"images": {Path(image["source"]).stem: image["results"] for image in images}, "mean": means}


def table(measured: dict[str, dict[str, Any]]) -> str:
    rows = {f"{arm} ({description})": measured[arm]["mean"] for arm, description in ARMS.items()}
    basis, control = measured["basis"]["mean"], measured["control"]["mean"]
    rows["basis - control"] = {key: basis[key] - control[key] for key in basis}
    lines = [f"{'':30}       bpp  PSNR (dB)   MS-SSIM   RD loss  basis distance"]
    for name, row in rows.items():
        sign = "+" if name == "basis - control" else ""
        line = f"{name:30}  {row['bpp']:{sign}8.5f}  {row['psnr-rgb']:{sign}9.3f}  {row['ms-ssim-rgb']:{sign}8.5f}  "
        lines.append(line + f"{row['rd-loss']:{sign}8.4f}  {row['basis']:{sign}14.6f}")
    return "\n".join(lines)


def jpeg_curve(files: Sequence[Path]) -> tuple[list[float], list[float]]:
    """Mean bpp and PSNR of Pillow's JPEG over the held-out photographs, to tell where the codec stands."""
    rates, psnrs = [], []
    for quality in (5, 10, 15, 20, 30, 40, 50, 60):
        coded = []
        for file in files:
            original = Image.open(file)
            stream = BytesIO()
            original.save(stream, "JPEG", quality=quality)
            error = np.asarray(original, np.float64) - np.asarray(Image.open(stream), np.float64)
            bits = 8 * len(stream.getvalue())
            coded.append((bits / (original.width * original.height), 10 * math.log10(255**2 / np.mean(error**2))))
        rates.append(fmean(rate for rate, _ in coded))
        psnrs.append(fmean(psnr for _, psnr in coded))
    return rates, psnrs


def plot_rd(measured: dict[str, dict[str, Any]], files: Sequence[Path], path: Path) -> None:
    """Where the codec stands beside JPEG and, as its points are close together there, how far each arm moved."""
    figure, (context, zoom) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    context.plot(*jpeg_curve(files), color="0.7", marker=".", label="JPEG (Pillow)", zorder=1)
    start = measured["base"]["mean"]
    # Where both arms end almost at one point, the later one is drawn smaller and shows the other around it.
    for arm, size in zip(ARMS, (70, 110, 35), strict=True):
        mean = measured[arm]["mean"]
        label = f"{arm}: {ARMS[arm]}"
        context.scatter(mean["bpp"], mean["psnr-rgb"], s=size / 2, color=COLOURS[arm], label=label, zorder=3)
        zoom.scatter(
            1000 * (mean["bpp"] - start["bpp"]),
            mean["psnr-rgb"] - start["psnr-rgb"],
            s=size,
            color=COLOURS[arm],
            label=f"{arm}: RD loss {mean['rd-loss']:.4f}",
            zorder=3,
        )
    context.set(title=f"mean of {len(files)} held-out photographs, coded", xlabel="rate (bpp)", ylabel="PSNR (dB)")
    zoom.set(title="the same three points", xlabel="rate - base (0.001 bpp)", ylabel="PSNR - base (dB)")
    zoom.margins(0.3)
    zoom.axhline(0, color="0.7", linewidth=0.8)
    zoom.axvline(0, color="0.7", linewidth=0.8)
    context.legend()
    # Below the axes: the three points can be anywhere inside.
    zoom.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize=8, columnspacing=1)
    for axes in (context, zoom):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def plot_side_by_side(run: Path, measured: dict[str, dict[str, Any]], side: int, path: Path) -> None:
    """The centre of every held-out photograph, so that nobody chose what is shown."""
    columns = ["original", *ARMS]
    figure, grid = plt.subplots(len(HELD_OUT), len(columns), figsize=(12.4, 3.6 * len(HELD_OUT)), layout="constrained")
    for row, name in zip(grid, HELD_OUT, strict=True):
        for axes, column in zip(row, columns, strict=True):
            original = column == "original"
            folder = run / "photographs" / "test" if original else run / "decoded" / column
            image = Image.open(folder / f"{name}.png")
            left, top = (image.width - side) // 2, (image.height - side) // 2
            axes.imshow(image.crop((left, top, left + side, top + side)), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_title(name if original else f"{column}: {ARMS[column]}", fontsize=11)
            if original:
                below = "original, 24 bpp"
            else:
                results = measured[column]["images"][name]
                below = f"{results['bpp']:.4f} bpp, {results['psnr-rgb']:.3f} dB"
            axes.set_xlabel(below, fontsize=11)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--zoo", action="store_true", help="start from CompressAI's weights of quality 3 (fetched from the internet)")
    add("--output", type=Path, default=Path(__file__).parent, help="folder for the PNGs and for run/ (default: demo)")
    add("--steps", type=int, default=150, help="of each arm (default: %(default)s)")
    add("--batch-size", type=int, default=8, help="(default: %(default)s)")
    add("--patch-size", type=int, default=128, help="side of the crops (default: %(default)s)")
    add(
        "--learning-rate",
        type=float,
        default=2e-4,
        help="20 times the paper's, for so few steps (default: %(default)s)",
    )
    add("--mu", type=float, default=10.0, help="weight of the basis loss (default: %(default)s, the paper's)")
    add("--seed", type=int, default=0, help="of both arms (default: %(default)s)")
    args = parser.parse_args(argv)

    run = args.output / "run"
    for name in ("photographs", "decoded", "control", "basis"):
        shutil.rmtree(run / name, ignore_errors=True)
    # PPM for training: decoding PNG again for every crop would take a quarter of a step.
    for split, names, suffix in (("train", TRAINING, ".ppm"), ("test", HELD_OUT, ".png")):
        (run / "photographs" / split).mkdir(parents=True)
        for name in names:
            photograph(name).save(run / "photographs" / split / f"{name}{suffix}")

    start = ["-q", 3] if args.zoo else ["--checkpoint", BASE]
    lmbda = lambda_for(MODEL, 3 if args.zoo else 4)
    print(f"{MODEL}, lambda {lmbda:g}; trained on {', '.join(TRAINING)}; held out: {', '.join(HELD_OUT)}")
    for number, (arm, mu) in enumerate((("control", 0), ("basis", args.mu)), start=1):
        command(
            f"[{number}/5] {args.steps} steps of training, {arm}: {ARMS[arm]}",
            *("finetune", "-m", MODEL, *start, "--lambda", lmbda, "--mu", mu, "-d", run / "photographs"),
            *("--patch-size", args.patch_size, args.patch_size, "--batch-size", args.batch_size),
            # One epoch, so that validation, whose images the training never sees, comes once, at the end.
            *("--crops-per-image", math.ceil(args.steps * args.batch_size / len(TRAINING)), "--steps", args.steps),
            *("-lr", args.learning_rate, "--lr-schedule", "cosine", "--seed", args.seed, "-n", 0, "-o", run / arm),
        )
    for number, arm in enumerate(ARMS, start=3):
        source = start if arm == "base" else ["--checkpoint", run / arm / "checkpoint.pth.tar"]
        command(
            f"[{number}/5] coding and decoding the held-out photographs, {arm}: {ARMS[arm]}",
            *("evaluate", "-m", MODEL, *source, "-d", run / "photographs" / "test"),
            *("-o", run / f"{arm}.json", "--decoded", run / "decoded" / arm),
        )

    measured = {arm: measure(run, arm, lmbda, args.patch_size) for arm in ARMS}
    files = [run / "photographs" / "test" / f"{name}.png" for name in HELD_OUT]
    plot_rd(measured, files, args.output / "rd.png")
    plot_side_by_side(run, measured, 160, args.output / "side_by_side.png")
    print(f"\nMeans over {' and '.join(HELD_OUT)}, coded and decoded. RD loss: bpp + {lmbda:g} * 255^2 MSE.")
    print("Basis distance: the basis loss of the decoded 8-bit images, over patches of the training's size.")
    print(f"\n{table(measured)}\n")
    print(f"Figures: {args.output / 'rd.png'}, {args.output / 'side_by_side.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
