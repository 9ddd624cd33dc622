"""Fine-tunes a CompressAI codec with the SVD basis loss.

The arguments are those of CompressAI's examples/train.py where it has them; the defaults are the paper's. One process
trains on one device; torchrun starts several: torchrun --nproc-per-node gpu -m svdrd finetune ...
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from compressai.models import CompressionModel
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from svdrd.compress.codecs import checkpoints, models
from svdrd.compress.criterion import BasisRateDistortionLoss
from svdrd.compress.errors import BadInput
from svdrd.compress.images.batches import Batch, EqualSizeBatches, TrainingBatches, TrainingCrops, collate
from svdrd.compress.images.folders import ImageFolder, list_images, split_folder
from svdrd.compress.train import memory
from svdrd.compress.train.distributed import Processes, processes
from svdrd.compress.train.interruption import ignore_signals, interrupt_flag
from svdrd.compress.train.loop import Training
from svdrd.compress.train.optimizers import freeze
from svdrd.compress.train.options import add_arguments, as_config, check_arguments, parse, saved
from svdrd.compress.train.precision import likelihoods_in_float32, reproducible_products
from svdrd.compress.train.summary import versions

__all__ = ["add_arguments", "main", "run"]


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the arguments ``argv`` say.

    Returns:
        0, or 128 + the signal's number after SIGINT or SIGTERM, which leave a checkpoint to resume from.

    Raises:
        BadInput: an argument cannot work; nothing has been written then.
        TrainingDiverged: ``--max-skipped`` steps in a row had no finite loss and gradient.
        TrainingStopped: the images have vanished, or the last checkpoint could not be written.
    """
    parser = argparse.ArgumentParser(prog="svdrd finetune", description=__doc__)
    add_arguments(parser)
    return run(parser, argv)


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """:func:`main` with the parser of the caller, which decides what happens on a wrong option."""
    arguments, resumed = parse(parser, argv)
    check_arguments(arguments)
    with processes(arguments.device) as all_processes, reproducible_products(arguments.tf32):
        training = prepare(arguments, all_processes)
        if resumed is not None:
            try:
                training.load_state(resumed)
            except KeyError as error:
                raise BadInput(
                    f"--resume {arguments.resume}: has no {error}, it is of another version of svdrd "
                    f"({resumed.get('versions')}); start a new run from its weights with --checkpoint"
                ) from error
        if arguments.save and all_processes.first:
            check_save_folder(arguments)
        if all_processes.first:
            print(description(training), flush=True)
        if arguments.dry_run:
            if all_processes.first:
                print(plan(training, as_config(parser, arguments)))
            return 0
        if arguments.save and all_processes.first:
            prepare_save_folder(arguments, as_config(parser, arguments))
        with interrupt_flag() as interrupted:
            return training.run(interrupted)


def prepare(arguments: argparse.Namespace, all_processes: Processes) -> Training:
    """Images, model and loss, the same on all processes, and the training made of them."""
    torch.manual_seed(arguments.seed)
    train, validation = open_images(arguments)
    shared = {key: value for key, value in saved(arguments).items() if key not in ("device", "num_workers")}
    all_processes.check_equal("arguments, images or versions", (shared, train.fingerprint(), versions()))
    batches = TrainingBatches(
        len(train), arguments.crops_per_image, arguments.batch_size, arguments.seed, all_processes.part
    )
    with all_processes.one_after_the_other():
        model = load_model(arguments).to(all_processes.device)
    freeze(model, arguments.freeze)
    if arguments.precision != "fp32":
        likelihoods_in_float32(model)
    if arguments.channels_last:
        model.to(memory_format=torch.channels_last)
    criterion = BasisRateDistortionLoss(
        arguments.lmbda, arguments.mu, arguments.metric, block_size=arguments.block_size, smooth=arguments.smooth
    )
    return Training(
        arguments,
        model,
        criterion,
        train,
        train_loader(arguments, train, batches),
        batches,
        validation_loader(arguments, validation, all_processes),
        all_processes,
    )


def load_model(arguments: argparse.Namespace) -> CompressionModel:
    model = models.load_codec(
        arguments.model,
        quality=arguments.quality,
        metric=arguments.metric,
        checkpoint=arguments.resume or arguments.checkpoint,
        init=arguments.init,
        **models.codec_arguments(arguments),
    )
    multiple, smallest = models.input_sides(model)
    for side in arguments.patch_size:
        if side % multiple or side < smallest:
            fits = [size for size in (64, 128, 192, 256) if size % multiple == 0 and size >= smallest] or [smallest]
            raise BadInput(
                f"--patch-size {side}: {arguments.model} takes multiples of {multiple} from {smallest} on; "
                f"{', '.join(map(str, fits))} would do"
            )
    return model


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


def train_loader(arguments: argparse.Namespace, images: ImageFolder, batches: TrainingBatches) -> DataLoader[Batch]:
    return DataLoader(
        TrainingCrops(images),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=arguments.num_workers,
        persistent_workers=arguments.num_workers > 0,
        pin_memory=arguments.device.startswith("cuda"),
        worker_init_fn=ignore_signals,
        # Without a generator of its own a loader draws from the global one, whose state then depends on interruptions.
        generator=torch.Generator(),
    )


def validation_loader(
    arguments: argparse.Namespace, images: ImageFolder, all_processes: Processes
) -> DataLoader[Tensor]:
    h, w = arguments.patch_size
    cut_sizes = [(height // h * h, width // w * w) for height, width in images.sizes]
    batches = EqualSizeBatches(cut_sizes, arguments.test_batch_size, all_processes.rank, all_processes.size)
    return DataLoader(images, batch_sampler=batches, generator=torch.Generator())


def check_save_folder(arguments: argparse.Namespace) -> None:
    """Whether a run may begin in the folder, leaving nothing there if it may not."""
    folder = Path(arguments.save_dir)
    last = folder / checkpoints.LAST
    continued = arguments.resume is not None and Path(arguments.resume).resolve().parent == folder.resolve()
    if last.exists() and not continued:
        raise BadInput(f"--save-dir {folder}: holds a run already; continue it with --resume {last}, or choose another")
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise BadInput(f"--save-dir {folder}: not writable ({error.strerror}); choose another, or --no-save") from error


def prepare_save_folder(arguments: argparse.Namespace, config: dict[str, Any]) -> None:
    """The folder with the effective configuration in it, and without what a killed process left half written."""
    folder = Path(arguments.save_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.remove_leftovers(folder)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise BadInput(f"--save-dir {folder}: not writable ({error.strerror}); choose another, or --no-save") from error


def description(training: Training) -> str:
    """What is trained, on what, from where to where: three lines."""
    arguments, train, size = training.arguments, training.images, training.processes.size
    validation: Any = training.validation_loader.dataset
    skipped = train.skipped + validation.skipped
    frozen = sum(p.numel() for p in training.model.parameters() if not p.requires_grad)
    return (
        f"{arguments.model}, {models.parameter_count(training.model)} parameters"
        f"{f' ({frozen} frozen)' if frozen else ''}, on {arguments.device}{f', {size} processes' if size > 1 else ''}\n"
        f"{len(train)} training images in {train.root}, {len(validation)} validation images in {validation.root}"
        f"{f', {skipped} other files ignored' if skipped else ''}\n"
        f"lambda {arguments.lmbda:g}, mu {arguments.mu:g}, {arguments.metric}; "
        f"steps {training.step} to {training.total_steps}, {training.steps_per_epoch} an epoch"
    )


def plan(training: Training, config: dict[str, Any]) -> str:
    """What --dry-run prints: the effective configuration, memory, files."""
    arguments, stepper = training.arguments, training.stepper
    largest = training.processes.part(arguments.batch_size)[1]
    crops = -(-largest // arguments.accumulate)

    def loss(x: Tensor) -> Tensor:
        with stepper.precision.autocast():
            output = training.model(x)
        return training.criterion(output, x)["loss"]

    training.model.train()
    crop = torch.rand(1, 3, *arguments.patch_size, device=training.processes.device)
    need = memory.estimate(training.model, loss, crop, crops)
    checkpoint = need.weights + need.optimizers
    lines = [
        "",
        "configuration, as --config takes it:",
        json.dumps(config, indent=2),
        f"\nmemory of a process, {crops} crops of {arguments.patch_size[0]}x{arguments.patch_size[1]} at once:",
        *(f"  {name:12} {getattr(need, name) / 2**20:9.1f} MiB" for name in memory.MemoryEstimate.__annotations__),
        f"  {'total':12} {need.total / 2**20:9.1f} MiB, and what one layer and the libraries need besides",
    ]
    if training.folder is not None:
        existing = next(path for path in (training.folder, *training.folder.absolute().parents) if path.exists())
        lines.append(
            f"\nfiles in {training.folder}: {checkpoints.LAST} and {checkpoints.BEST}, {checkpoint / 2**20:.1f} MiB "
            f"each, one more while saving; metrics.csv, TensorBoard events, config.json, summary.json; "
            f"{shutil.disk_usage(existing).free / 2**20:.0f} MiB are free"
        )
    return "\n".join([*lines, "\nnothing was trained or written (--dry-run)"])
