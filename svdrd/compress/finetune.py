"""Fine-tunes a CompressAI codec with the SVD basis loss.

The arguments are those of CompressAI's examples/train.py where it has them; the defaults are the paper's.
"""

import argparse
import ast
import math
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from compressai.models import CompressionModel
from compressai.models.vbr import ScaleHyperpriorVbr
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from svdrd.compress import checkpoints, metrics, models
from svdrd.compress.criterion import METRICS, BasisRateDistortionLoss
from svdrd.compress.data import EqualSizeBatches, ImageFolder, TrainingBatches, list_images, split_folder
from svdrd.compress.errors import BadInput
from svdrd.compress.training import SCHEDULES, Training, interrupt_flag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    codec = parser.add_argument_group("codec")
    add = codec.add_argument
    add("-m", "--model", default="bmshj2018-hyperprior", help="a CompressAI image codec (default: %(default)s)")
    add("-q", "--quality", type=int, help="quality in CompressAI's zoo: decides the weights and lambda")
    add("--init", choices=("zoo", "random"), default="zoo", help="where the weights come from (default: %(default)s)")
    add("--checkpoint", help="start a new run from the weights of this checkpoint, svdrd's or CompressAI's")
    add("--resume", help="continue the run that wrote this checkpoint; its arguments hold unless given again")
    add("--model-args", nargs="+", default=[], metavar="NAME=VALUE", help="size of a random model: N=64 M=96")

    data = parser.add_argument_group("images")
    add = data.add_argument
    add("-d", "--dataset", help="folder of training images, with or without train/ and test/ inside")
    add("--val-dataset", help="folder of validation images (default: test/ or val/ in the dataset, else every tenth)")
    add("--patch-size", type=int, nargs=2, default=[256, 256], metavar=("H", "W"), help="crop (default: 256 256)")
    add("--crops-per-image", type=int, default=1, help="crops that an epoch takes of each image (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="crops in a step (default: %(default)s)")
    add("--test-batch-size", type=int, default=1, help="validation images of equal size at once (default: %(default)s)")
    add("-n", "--num-workers", type=int, default=min(4, os.cpu_count() or 1), help="loaders (default: %(default)s)")

    loss = parser.add_argument_group("loss")
    add = loss.add_argument
    add("--lambda", dest="lmbda", type=float, help="weight of the distortion (default: the zoo's for the quality)")
    add("--metric", choices=METRICS, default="mse", help="distortion (default: %(default)s)")
    add("--mu", type=float, default=10.0, help="weight of the basis term; 0: the control (default: %(default)s)")
    add("--block-size", type=int, help="side of the blocks of the basis loss (default: the patch is one matrix)")
    add("--smooth", type=float, default=0.0, help="smoothing of the polar factor, images in [0, 1] (default: 0)")

    run = parser.add_argument_group("run")
    add = run.add_argument
    add("-e", "--epochs", type=int, default=100, help="(default: %(default)s)")
    add("--steps", type=int, help="stop after this many steps, if that is before the last epoch")
    add("-lr", "--learning-rate", type=float, default=1e-5, help="(default: %(default)s)")
    add("--aux-learning-rate", type=float, default=1e-3, help="of the entropy model's quantiles (default: %(default)s)")
    add(
        "--lr-schedule",
        choices=SCHEDULES,
        default="plateau",
        help="plateau: to a tenth after more than 10 epochs without a better validation loss, as CompressAI; "
        "cosine: to a hundredth over all steps; step: a tenth for the last fifth of all steps (default: %(default)s)",
    )
    add("--clip-max-norm", "--clip_max_norm", type=float, default=1.0, help="of the gradient; 0: none (default: 1.0)")
    add("--seed", type=int, default=0, help="of weights, order, crops and quantisation noise (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    add("--cuda", dest="device", action="store_const", const="cuda", help="the same as --device cuda")
    add("-o", "--save-dir", default="runs/finetune", help="for checkpoints, metrics.csv, logs (default: %(default)s)")
    add("--save", action=argparse.BooleanOptionalAction, default=True, help="write to that folder (default: yes)")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the arguments ``argv`` say.

    Returns:
        0, or 128 + the signal's number after SIGINT or SIGTERM, which leave a checkpoint to resume from.

    Raises:
        BadInput: an argument cannot work; nothing has been written then.
        TrainingDiverged: 20 steps in a row had no finite loss and gradient.
    """
    parser = argparse.ArgumentParser(prog="svdrd finetune", description=__doc__)
    add_arguments(parser)
    return run(parser, argv)


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """:func:`main` with the parser of the caller, which decides what happens on a wrong option."""
    arguments = parser.parse_args(argv)
    resumed: dict[str, Any] | None = None
    if arguments.resume:
        resumed = checkpoints.load(arguments.resume)
        if "arguments" not in resumed:
            raise BadInput(
                f"--resume {arguments.resume}: not a run of svdrd finetune; use --checkpoint for its weights"
            )
        parser.set_defaults(**{**resumed["arguments"], "save_dir": str(Path(arguments.resume).parent)})
        arguments = parser.parse_args(argv)
    check_arguments(arguments)

    torch.manual_seed(arguments.seed)
    train, validation = open_images(arguments)
    batches = TrainingBatches(len(train), arguments.crops_per_image, arguments.batch_size, arguments.seed)
    model = load_model(arguments)
    criterion = BasisRateDistortionLoss(
        arguments.lmbda, arguments.mu, arguments.metric, block_size=arguments.block_size, smooth=arguments.smooth
    )
    training = Training(
        arguments,
        model,
        criterion,
        train_loader(arguments, train, batches),
        batches,
        validation_loader(arguments, validation),
    )
    if resumed is not None:
        training.load_state(resumed)
    if arguments.save:
        check_save_folder(arguments)

    skipped = train.skipped + validation.skipped
    print(
        f"{arguments.model}, {models.parameter_count(model)} parameters, on {arguments.device}\n"
        f"{len(train)} training images in {train.root}, {len(validation)} validation images in {validation.root}"
        f"{f', {skipped} other files ignored' if skipped else ''}\n"
        f"lambda {arguments.lmbda:g}, mu {arguments.mu:g}, {arguments.metric}; "
        f"steps {training.step} to {training.total_steps}, {training.steps_per_epoch} an epoch",
        flush=True,
    )
    # cuDNN's other backward kernels add in any order, and no two runs would be equal.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True), interrupt_flag() as interrupted:
        return training.run(interrupted)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Everything that can be said without the images; completes ``lmbda``."""
    if issubclass(models.codec_class_of(arguments.model), ScaleHyperpriorVbr):
        raise BadInput(
            f"--model {arguments.model}: a variable-rate codec learns all its rates together, which training with one "
            f"lambda would undo; take {arguments.model.removesuffix('-vbr')}"
        )
    if arguments.dataset is None:
        raise BadInput("--dataset: missing; give a folder of training images, for example --dataset photographs")
    limits: dict[str, tuple[float, bool]] = {
        "epochs": (1, True), "steps": (1, True), "batch_size": (1, True), "test_batch_size": (1, True),
        "crops_per_image": (1, True), "block_size": (1, True), "num_workers": (0, True), "seed": (0, True),
        "mu": (0, True), "smooth": (0, True), "clip_max_norm": (0, True),
        "lmbda": (0, False), "learning_rate": (0, False), "aux_learning_rate": (0, False),
    }  # fmt: skip
    for name, (limit, included) in limits.items():
        value = getattr(arguments, name)
        if value is not None and not (math.isfinite(value) and (value > limit or (included and value == limit))):
            option = "--lambda" if name == "lmbda" else "--" + name.replace("_", "-")
            raise BadInput(f"{option} {value}: wanted a finite value {'of at least' if included else 'above'} {limit}")
    for side in arguments.patch_size:
        if side < 1:
            raise BadInput(f"--patch-size {side}: wanted two sides of at least 1 pixel, for example 256 256")
        if arguments.block_size and side % arguments.block_size:
            fits = [size for size in (8, 16, 32, 64) if all(s % size == 0 for s in arguments.patch_size)]
            raise BadInput(
                f"--block-size {arguments.block_size}: does not divide the side {side} of --patch-size; "
                f"{', '.join(map(str, fits)) or 'a common divisor of its sides'} would"
            )
        if arguments.metric == "ms-ssim" and side < metrics.MS_SSIM_SMALLEST_SIDE:
            smallest = metrics.MS_SSIM_SMALLEST_SIDE
            raise BadInput(f"--patch-size {side}: MS-SSIM needs sides of at least {smallest} pixels: 256 256")
    try:
        torch.empty(0, device=arguments.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"--device {arguments.device}: {reason}; --device cpu works everywhere") from error
    if arguments.quality is not None:
        zoo_lambda = models.lambda_for(arguments.model, arguments.quality, arguments.metric)
        arguments.lmbda = zoo_lambda if arguments.lmbda is None else arguments.lmbda
    elif arguments.lmbda is None:
        raise BadInput("--lambda: missing; give it, or --quality to take the lambda of CompressAI's zoo")


def load_model(arguments: argparse.Namespace) -> CompressionModel:
    options: dict[str, Any] = {}
    for option in arguments.model_args:
        name, _, value = option.partition("=")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise BadInput(f"--model-args {option}: wanted NAME=VALUE with a number, for example N=64 M=96") from error
    return models.load_codec(
        arguments.model,
        quality=arguments.quality,
        metric=arguments.metric,
        checkpoint=arguments.resume or arguments.checkpoint,
        init=arguments.init,
        **options,
    ).to(arguments.device)


def open_images(arguments: argparse.Namespace) -> tuple[ImageFolder, ImageFolder]:
    """Training images as random crops, and validation images cut to the largest multiple of the patch."""
    patch = (arguments.patch_size[0], arguments.patch_size[1])
    train_paths = validation_paths = None
    validation_root = arguments.val_dataset or split_folder(arguments.dataset, "test")
    if validation_root is None:
        validation_root = split_folder(arguments.dataset, "train") or arguments.dataset
        paths, _ = list_images(validation_root)
        if len(paths) < 2:
            raise BadInput(f"--dataset {arguments.dataset}: a single image; add others, or --val-dataset")
        validation_paths = paths[::10]
        train_paths = [path for index, path in enumerate(paths) if index % 10]
    crop = [transforms.RandomCrop(patch), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    train = ImageFolder(arguments.dataset, transforms.Compose(crop), split="train", smallest=patch, paths=train_paths)
    validation = ImageFolder(
        validation_root, cut_to_multiple(patch), split="test", smallest=patch, paths=validation_paths, decode=True
    )
    return train, validation


def cut_to_multiple(patch: tuple[int, int]) -> Callable[[Image.Image], Tensor]:
    def transform(image: Image.Image) -> Tensor:
        height, width = (side // p * p for side, p in zip((image.height, image.width), patch, strict=True))
        return transforms.functional.to_tensor(transforms.functional.center_crop(image, [height, width]))

    return transform


def train_loader(arguments: argparse.Namespace, images: ImageFolder, batches: TrainingBatches) -> DataLoader[Tensor]:
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=arguments.num_workers,
        persistent_workers=arguments.num_workers > 0,
        pin_memory=arguments.device.startswith("cuda"),
        worker_init_fn=ignore_signals,
        # Without a generator of its own a loader draws from the global one, whose state then depends on interruptions.
        generator=torch.Generator(),
    )


def validation_loader(arguments: argparse.Namespace, images: ImageFolder) -> DataLoader[Tensor]:
    h, w = arguments.patch_size
    cut_sizes = [(height // h * h, width // w * w) for height, width in images.sizes]
    return DataLoader(
        images, batch_sampler=EqualSizeBatches(cut_sizes, arguments.test_batch_size), generator=torch.Generator()
    )


def ignore_signals(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; the training process answers it and ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def check_save_folder(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.save_dir)
    last = folder / checkpoints.LAST
    continued = arguments.resume is not None and Path(arguments.resume).resolve().parent == folder.resolve()
    if last.exists() and not continued:
        raise BadInput(f"--save-dir {folder}: holds a run already; continue it with --resume {last}, or choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(f"--save-dir {folder}: not writable ({error.strerror}); choose another, or --no-save") from error
