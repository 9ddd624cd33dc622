"""Everything that a training is made of, from its arguments: images, model, loss."""

import argparse
from collections.abc import Callable, Sequence

import torch
from compressai.models import CompressionModel
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from svdrd.compress.codecs import models
from svdrd.compress.criterion import BasisRateDistortionLoss
from svdrd.compress.errors import BadInput
from svdrd.compress.images.batches import Batch, EqualSizeBatches, TrainingBatches, TrainingCrops, collate
from svdrd.compress.images.folders import ImageFolder, list_images, split_folder
from svdrd.compress.options import codec_arguments
from svdrd.compress.train.distributed import Processes
from svdrd.compress.train.interruption import ignore_signals
from svdrd.compress.train.loop import Training
from svdrd.compress.train.optimizers import freeze
from svdrd.compress.train.options import saved
from svdrd.compress.train.precision import likelihoods_in_float32
from svdrd.compress.versions import versions


def prepare(arguments: argparse.Namespace, all_processes: Processes) -> Training:
    """Images, model and loss, the same on all processes, and the training made of them."""
    torch.manual_seed(arguments.seed)
    train, validation = open_images(arguments.dataset, arguments.val_dataset, arguments.patch_size)
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
        **codec_arguments(arguments.model_args, arguments.lic_tcm_repo),
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


def open_images(dataset: str, val_dataset: str | None, patch_size: Sequence[int]) -> tuple[ImageFolder, ImageFolder]:
    """Training images as random crops, and validation images cut to the largest multiple of the patch.

    Without ``val_dataset`` the validation images are in a folder ``test`` or ``val`` of ``dataset``, or every tenth.
    """
    patch = (patch_size[0], patch_size[1])
    train_paths = validation_paths = None
    validation_root = val_dataset or split_folder(dataset, "test")
    if validation_root is None:
        validation_root = split_folder(dataset, "train") or dataset
        paths, _ = list_images(validation_root)
        if len(paths) < 2:
            raise BadInput(f"--dataset {dataset}: a single image; add others, or --val-dataset")
        validation_paths = paths[::10]
        train_paths = [path for index, path in enumerate(paths) if index % 10]
    crop = [transforms.RandomCrop(patch), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    train = ImageFolder(dataset, transforms.Compose(crop), split="train", smallest=patch, paths=train_paths)
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
