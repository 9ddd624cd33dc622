"""Fine-tunes one codec with and without the basis loss, and shows what came of it.

All arms start from the same weights. `control` and `basis` have the same seed, too: they see the same crops in the same
order and differ in `--mu` alone. `seed` is the control arm with another seed, to tell what the loss does from what
another seed does. The photographs are scikit-image's; the codec is the one of docs/studies/dose_response/base, or with
--zoo CompressAI's own.
"""

import argparse
import csv
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

# Threads that spin while they wait make a step several times slower where other programs want the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import skimage.data
from PIL import Image
from torchvision.transforms.functional import to_tensor

from svdrd.__main__ import main as svdrd
from svdrd.compress import lambda_for
from svdrd.compress.comparison import jpeg
from svdrd.compress.comparison.crops import window_means
from svdrd.ops import basis_loss

BASE = Path(__file__).resolve().parents[1] / "docs" / "studies" / "dose_response" / "base"
MODEL = "bmshj2018-hyperprior"
# Of CompressAI's zoo; the committed codecs have the same lambdas.
QUALITIES = (2, 3, 4, 5)
FINETUNED = 4
# The colour photographs of everyday things that lie in scikit-image's wheel. The two of the motorcycle are a stereo
# pair, so both are on the same side.
TRAINING = ("astronaut", "motorcycle_left", "motorcycle_right", "rocket")
HELD_OUT = ("chelsea", "coffee")
ARMS = {"control": "mu = 0", "seed": "mu = 0, another seed", "basis": "with the basis loss"}
COLOURS = {"base": "0.35", "control": "tab:blue", "seed": "tab:cyan", "basis": "tab:red"}
MEASURES = {"bpp": "bpp", "psnr-rgb": "PSNR (dB)", "ms-ssim-rgb": "MS-SSIM", "rd-loss": "RD loss", "basis": "distance"}
VALIDATIONS = 6
CROP = 64


def photograph(name: str) -> Image.Image:
    if name.startswith("motorcycle"):
        return Image.fromarray(skimage.data.stereo_motorcycle()[name.endswith("right")])
    return Image.fromarray(getattr(skimage.data, name)())


def command(step: str, *arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    print(f"\n{step}\n$ svdrd {shlex.join(words)}", flush=True)
    if code := svdrd(words):
        sys.exit(code)


class Demo:
    """One call: what was asked for, and the files of its run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.run: Path = args.output / "run"
        self.lmbda = lambda_for(MODEL, FINETUNED)
        self.held_out = [self.run / "photographs" / "test" / f"{name}.png" for name in HELD_OUT]
        # What the loss compares: whole patches of the training, or their blocks.
        self.side: int = args.block_size or args.patch_size

    def prepare(self) -> None:
        for name in ("photographs", "decoded", *ARMS):
            shutil.rmtree(self.run / name, ignore_errors=True)
        # PPM for training: decoding PNG again for every crop would take a quarter of a step.
        for split, names, suffix in (("train", TRAINING, ".ppm"), ("test", HELD_OUT, ".png")):
            (self.run / "photographs" / split).mkdir(parents=True)
            for name in names:
                photograph(name).save(self.run / "photographs" / split / f"{name}{suffix}")

    def start(self, quality: int) -> list[object]:
        if self.args.zoo:
            return ["-q", quality]
        return ["--checkpoint", BASE / f"lambda-{lambda_for(MODEL, quality):g}.pth.tar"]

    def finetune(self, arm: str, step: str) -> None:
        args = self.args
        epoch = math.ceil(args.steps / VALIDATIONS)
        blocks = [] if args.block_size is None else ["--block-size", args.block_size]
        command(
            f"{step} {args.steps} steps of training, {arm}: {ARMS[arm]}",
            *("finetune", "-m", MODEL, *self.start(FINETUNED), "--lambda", self.lmbda),
            *("--mu", args.mu if arm == "basis" else 0.0, *blocks, "--smooth", args.smooth),
            *("-d", self.run / "photographs", "--patch-size", args.patch_size, args.patch_size),
            # An epoch is what lies between two validations, whose images the training never sees.
            *("--batch-size", args.batch_size, "--crops-per-image", math.ceil(epoch * args.batch_size / len(TRAINING))),
            *("--steps", args.steps, "-lr", args.learning_rate, "--lr-schedule", "cosine"),
            *("--seed", args.seed + (arm == "seed"), "-n", 0, "-o", self.run / arm),
        )

    def evaluate(self, name: str, source: Sequence[object], step: str) -> None:
        command(
            f"{step} coding and decoding the held-out photographs, {name}",
            *("evaluate", "-m", MODEL, *source, "-d", self.run / "photographs" / "test"),
            *("-o", self.run / f"{name}.json", "--decoded", self.run / "decoded" / name),
        )

    def measured(self, name: str) -> dict[str, float]:
        """Means of what `svdrd evaluate` wrote, with RD loss and basis distance of the decoded 8-bit files."""
        images = json.loads((self.run / f"{name}.json").read_text())["images"]
        for image in images:
            results = image["results"]
            # The criterion's loss without its basis term: bpp + lambda 255^2 MSE, images in [0, 1].
            results["rd-loss"] = results["bpp"] + self.lmbda * 255**2 * 10 ** (-results["psnr-rgb"] / 10)
            files = [self.run / folder / image["source"] for folder in (f"decoded/{name}", "photographs/test")]
            results["basis"] = self.basis_distance(*files)
        return {key: fmean(image["results"][key] for image in images) for key in MEASURES}

    def basis_distance(self, decoded: Path, original: Path) -> float:
        """The basis loss of a decoded file, over the patches or blocks that were trained with."""
        x_hat, x = (to_tensor(Image.open(path)) for path in (decoded, original))
        height, width = (size // self.args.patch_size * self.args.patch_size for size in x.shape[-2:])
        x_hat, x = x_hat[:, :height, :width], x[:, :height, :width]
        return basis_loss(x_hat, x, block_size=self.side, smooth=self.args.smooth).item()


def table(measured: dict[str, dict[str, float]]) -> str:
    rows = {f"{name}{f' ({ARMS[name]})' if name in ARMS else ''}": values for name, values in measured.items()}
    for arm in ("seed", "basis"):
        rows[f"{arm} - control"] = {key: measured[arm][key] - measured["control"][key] for key in MEASURES}
    lines = [" " * 30 + "".join(f"{heading:>12}" for heading in MEASURES.values())]
    for name, row in rows.items():
        sign = "+" if " - " in name else ""
        lines.append(f"{name:30}" + "".join(f"{row[key]:{sign}12.5f}" for key in MEASURES))
    return "\n".join(lines)


def verdict(measured: dict[str, dict[str, float]]) -> str:
    """What the loss moved, and what another seed moved, in percent of the control arm."""
    lines = []
    for key, what in (("basis", "basis distance"), ("rd-loss", "RD loss"), ("psnr-rgb", "PSNR")):
        unit, scale = ("dB", 1.0) if key == "psnr-rgb" else ("%", 100 / measured["control"][key])
        loss, seed = (scale * (measured[arm][key] - measured["control"][key]) for arm in ("basis", "seed"))
        lines.append(f"{what:15} the loss moved it by {loss:+.3f} {unit}, another seed by {seed:+.3f} {unit}")
    return "\n".join(lines)


def jpeg_curve(files: Sequence[Path]) -> tuple[list[float], list[float]]:
    """Mean bpp and PSNR of Pillow's JPEG (optimised, 4:2:0), to tell where the codec stands."""
    rates, psnrs = [], []
    for quality in (5, 10, 15, 20, 30, 40, 50, 60):
        coded = [jpeg.code(Image.open(file), quality) for file in files]
        rates.append(fmean(rate for rate, _ in coded))
        psnrs.append(fmean(psnr for _, psnr in coded))
    return rates, psnrs


def plot_rd(demo: Demo, measured: dict[str, dict[str, float]], curve: Sequence[dict[str, float]], path: Path) -> None:
    """Where the codec stands beside JPEG and, as their points are close together there, how far each arm moved."""
    figure, (context, zoom) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    context.plot(*jpeg_curve(demo.held_out), color="0.7", marker=".", label="JPEG (Pillow)", zorder=1)
    rates, psnrs = ([point[key] for point in curve] for key in ("bpp", "psnr-rgb"))
    context.plot(rates, psnrs, color=COLOURS["base"], marker="o", label="base codec, four rates", zorder=2)
    start = measured["base"]
    # Where arms end almost at one point, the later one is drawn smaller and shows the other around it.
    for name, size in zip(measured, (70, 150, 90, 35), strict=True):
        mean = measured[name]
        label = f"{name}{f': {ARMS[name]}' if name in ARMS else ''}"
        if name in ARMS:
            context.scatter(mean["bpp"], mean["psnr-rgb"], s=size / 3, color=COLOURS[name], label=label, zorder=3)
        zoom.scatter(
            1000 * (mean["bpp"] - start["bpp"]),
            mean["psnr-rgb"] - start["psnr-rgb"],
            s=size,
            color=COLOURS[name],
            label=f"{label}\nRD loss {mean['rd-loss']:.4f}",
            zorder=3,
        )
    title = f"mean of {len(demo.held_out)} held-out photographs, coded"
    context.set(title=title, xlabel="rate (bpp)", ylabel="PSNR (dB)")
    zoom.set(title="base and arms", xlabel="rate - base (0.001 bpp)", ylabel="PSNR - base (dB)")
    zoom.margins(0.3)
    zoom.axhline(0, color="0.7", linewidth=0.8)
    zoom.axvline(0, color="0.7", linewidth=0.8)
    context.legend()
    # Below the axes: the points can be anywhere inside.
    zoom.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize=8)
    for axes in (context, zoom):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def plot_basis_distance(demo: Demo, path: Path) -> None:
    """The quantity that is trained, on photographs that the training never sees."""
    figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for arm, description in ARMS.items():
        with (demo.run / arm / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        steps, values = ([float(row[key]) for row in rows] for key in ("step", "val_basis_loss"))
        axes.plot(steps, values, color=COLOURS[arm], marker="o", label=f"{arm}: {description}")
    what = f"{demo.side} x {demo.side} {'blocks' if demo.args.block_size else 'patches'}"
    smooth = f", smoothed by {demo.args.smooth:.2g}" if demo.args.smooth else ""
    axes.set(title="held-out photographs, before rounding to 8 bits", xlabel="step")
    axes.set_ylabel(f"basis distance ({what}{smooth})")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=140)
    plt.close(figure)


def plot_side_by_side(demo: Demo, path: Path) -> None:
    """Of every held-out photograph the window in which the two arms differ most, enlarged."""
    columns = ["original", "control", "basis"]
    figure, grid = plt.subplots(len(HELD_OUT), 4, figsize=(12.4, 3.5 * len(HELD_OUT)), layout="constrained")
    for row, name in zip(grid, HELD_OUT, strict=True):
        folders = ["photographs/test", "decoded/control", "decoded/basis"]
        images = [np.asarray(Image.open(demo.run / folder / f"{name}.png"), np.float64) for folder in folders]
        difference = np.abs(images[2] - images[1]).mean(axis=2)
        means = window_means(difference, CROP, CROP)
        top, left = np.unravel_index(means.argmax(), means.shape)
        window = (slice(top, top + CROP), slice(left, left + CROP))
        for axes, column, image in zip(row, columns, images, strict=False):
            axes.imshow(image[window].astype(np.uint8), interpolation="nearest")
            title = f"{name}, {CROP} x {CROP} at {left}, {top}" if column == "original" else f"{column}: {ARMS[column]}"
            axes.set_title(title, fontsize=11)
            error = np.square(image[window] - images[0][window]).mean()
            axes.set_xlabel("original" if column == "original" else f"here {10 * np.log10(255**2 / error):.2f} dB")
        # Sixteen levels are white: the arms differ by one or two in most places.
        row[3].imshow(difference[window], cmap="gray", vmin=0, vmax=16, interpolation="nearest")
        row[3].set_title("|basis - control|", fontsize=11)
        row[3].set_xlabel(f"0 to 16 of 255; mean {difference[window].mean():.1f}, whole {difference.mean():.1f}")
        for axes in row:
            axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--zoo", action="store_true", help="start from CompressAI's own weights (fetched from the internet)")
    add("--output", type=Path, default=Path(__file__).parent, help="folder for the PNGs and for run/ (default: demo)")
    add("--steps", type=int, default=120, help="of each arm (default: %(default)s)")
    add("--batch-size", type=int, default=4, help="(default: %(default)s)")
    add("--patch-size", type=int, default=128, help="side of the crops (default: %(default)s)")
    add(
        "--learning-rate",
        type=float,
        default=2e-4,
        help="20 times the paper's, for so few steps (default: %(default)s)",
    )
    add("--mu", type=float, default=1000.0, help="weight of the basis loss (default: %(default)s; the paper's: 10)")
    add("--block-size", type=int, help="side of the blocks of the basis loss (default: the patch is one matrix)")
    add("--smooth", type=float, default=0.0, help="smoothing of the polar factor, images in [0, 1] (default: 0)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args(argv)

    demo = Demo(args)
    demo.prepare()
    print(f"{MODEL}, lambda {demo.lmbda:g}; trained on {', '.join(TRAINING)}; held out: {', '.join(HELD_OUT)}")
    stages = 2 * len(ARMS) + len(QUALITIES)
    for number, arm in enumerate(ARMS, start=1):
        demo.finetune(arm, f"[{number}/{stages}]")
    bases = {f"base-{quality}": demo.start(quality) for quality in QUALITIES}
    trained = {arm: ["--checkpoint", demo.run / arm / "checkpoint.pth.tar"] for arm in ARMS}
    for number, (name, source) in enumerate((bases | trained).items(), start=len(ARMS) + 1):
        demo.evaluate(name, source, f"[{number}/{stages}]")

    curve = [demo.measured(name) for name in bases]
    measured = {"base": curve[QUALITIES.index(FINETUNED)], **{arm: demo.measured(arm) for arm in ARMS}}
    plot_rd(demo, measured, curve, args.output / "rd.png")
    plot_basis_distance(demo, args.output / "basis_distance.png")
    plot_side_by_side(demo, args.output / "side_by_side.png")
    print(f"\nMeans over {' and '.join(HELD_OUT)}, coded and decoded. RD loss: bpp + {demo.lmbda:g} * 255^2 MSE.")
    print("Distance: the basis loss of the decoded 8-bit images, as it was trained.")
    print(f"\n{table(measured)}\n\n{verdict(measured)}\n")
    print(
        f"Figures: {', '.join(str(args.output / f'{name}.png') for name in ('rd', 'basis_distance', 'side_by_side'))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
