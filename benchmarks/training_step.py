"""What the basis loss costs in a training step: `svdrd finetune`'s own step with mu = 10 beside mu = 0, per codec.

Both arms take turns with the same weights, crops and noise, so that what else the machine does hits both. The basis
loss is timed by itself, too, forward and backward, on the reconstructions of the same crops: its share of the step.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from svdrd.compress.images.batches import Batch
from svdrd.compress.train.command_line import add_arguments
from svdrd.compress.train.config import TrainConfig
from svdrd.compress.train.distributed import Processes
from svdrd.compress.train.loop import Training
from svdrd.compress.train.preparation import prepare as prepare_training
from svdrd.compress.train.step import Wishes
from svdrd.ops import basis_loss

CODECS = ("bmshj2018-hyperprior", "mbt2018", "cheng2020-anchor")


def photographs(folder: Path, source: Path | None, side: int, batch_size: int) -> None:
    """Crops of the photographs in `source`, or else smooth images with noise: a batch, and a tenth for validation."""
    generator = np.random.default_rng(0)
    files = sorted(source.glob("*.png"))[:batch_size] if source is not None else []
    for index in range(batch_size * 10 // 9 + 2):
        if files:
            image = Image.open(files[index % len(files)]).convert("RGB").crop((0, 0, side, side))
        else:
            small = generator.integers(0, 256, (8, 8, 3), np.uint8)
            pixels = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC), np.float64)
            image = Image.fromarray(
                np.rint(pixels + generator.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8)
            )
        image.save(folder / f"{index:03}.png")


def prepare(codec: str, quality: int, mu: float, folder: Path, args: argparse.Namespace) -> Training:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    argv = ["-m", codec, "-q", str(quality), "--init", "random", "--mu", str(mu), "-d", str(folder), "--no-save"]
    argv += [
        "--batch-size",
        str(args.batch_size),
        "--patch-size",
        str(args.patch_size),
        str(args.patch_size),
        "-n",
        "0",
    ]
    argv += ["--device", args.device, "--precision", args.precision]
    config = TrainConfig.from_arguments(parser.parse_args(argv))
    training = prepare_training(config, Processes(torch.device(args.device)))
    training.state.model.train()
    training.stepper.criterion.monitor_basis = False
    return training


def seconds(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


class StepTimes(NamedTuple):
    """Seconds of each round."""

    without: list[float]  # a step with mu = 0
    with_loss: list[float]  # a step with mu = 10
    loss: list[float]  # the basis loss by itself, forward and backward


def measure(codec: str, quality: int, folder: Path, args: argparse.Namespace) -> StepTimes:
    """Steps of both arms in turns; the first round, which allocates and plans, does not count."""
    arms = {mu: prepare(codec, quality, mu, folder, args) for mu in (0.0, 10.0)}
    batch: Batch = next(iter(arms[0.0].train_loader))
    if len(batch["x"]) != args.batch_size:
        raise RuntimeError(f"the folder gives a batch of {len(batch['x'])} images in place of {args.batch_size}")
    times: dict[float, list[float]] = {mu: [] for mu in arms}
    losses = []
    for number in range(args.rounds + 1):
        for mu, training in arms.items():
            start = seconds(args.device)
            outcome = training.stepper.take(batch, args.batch_size, Wishes())
            elapsed = seconds(args.device) - start
            if not outcome.taken:
                raise RuntimeError(f"{codec}, mu = {mu}: a step without a finite loss is no measurement")
            if number:  # the first one allocates and plans
                times[mu].append(elapsed)
        x = batch["x"].to(args.device)
        with torch.no_grad():
            x_hat = arms[10.0].state.model(x)["x_hat"].float()
        x_hat.requires_grad_()
        start = seconds(args.device)
        basis_loss(x_hat, x).backward()
        if number:
            losses.append(seconds(args.device) - start)
    return StepTimes(times[0.0], times[10.0], losses)


def line(codec: str, quality: int, batch_size: int, times: StepTimes) -> str:
    """One line of the table; every number is a median over the rounds."""
    without, with_loss, loss = map(statistics.median, times)
    return (
        f"| {codec}, quality {quality} | {without:.3g} | {with_loss:.3g} | {batch_size / without:.3g} | "
        f"{batch_size / with_loss:.3g} | {loss * 1000:.3g} | {100 * loss / with_loss:.1f} % |"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--codecs", nargs="+", default=CODECS, help="(default: %(default)s)")
    add("--quality", type=int, default=3, help="of CompressAI's zoo: decides the size (default: %(default)s)")
    add("--batch-size", type=int, default=8, help="(default: %(default)s)")
    add("--patch-size", type=int, default=256, help="(default: %(default)s)")
    add("--rounds", type=int, default=5, help="steps of each arm that count (default: %(default)s)")
    add("--photographs", type=Path, help="folder of PNGs to crop (default: images that are made here)")
    add("--device", default="cpu", help="(default: %(default)s)")
    add("--precision", default="fp32", help="(default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    print(f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.precision}")
    print(f"batch {args.batch_size}, {args.patch_size}x{args.patch_size}, medians of {args.rounds} steps\n")
    print("| codec | s a step, mu = 0 | mu = 10 | images/s, mu = 0 | mu = 10 | basis loss, ms | share of the step |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with TemporaryDirectory() as folder:
        photographs(Path(folder), args.photographs, args.patch_size, args.batch_size)
        for codec in args.codecs:
            times = measure(codec, args.quality, Path(folder), args)
            print(line(codec, args.quality, args.batch_size, times), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
