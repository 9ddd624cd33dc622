"""A training and its parts, made from its configuration."""

import sys
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from svdrd.compress.codecs import models
from svdrd.compress.compressai import CompressionModel
from svdrd.compress.criterion import BasisRateDistortionLoss
from svdrd.compress.errors import BadInput
from svdrd.compress.images.batches import Batch, EqualSizeBatches, TrainingBatches, TrainingCrops, collate
from svdrd.compress.images.folders import ImageFolder, list_images, split_folder
from svdrd.compress.options import codec_arguments
from svdrd.compress.train.config import TrainConfig
from svdrd.compress.train.distributed import Processes
from svdrd.compress.train.interruption import ignore_signals
from svdrd.compress.train.loop import Training
from svdrd.compress.train.noise import BatchNoise
from svdrd.compress.train.optimizers import freeze, make_optimizers, make_schedule
from svdrd.compress.train.precision import Precision, likelihoods_in_float32
from svdrd.compress.train.state import RunState
from svdrd.compress.train.step import Step
from svdrd.compress.versions import versions


def prepare(config: TrainConfig, processes: Processes) -> Training:
    """The training that ``config`` describes, the same on all processes.

    Raises:
        BadInput: images or weights that cannot be had, or do not go together.
        TrainingStopped: other processes have other images, versions or arguments.
    """
    # Random weights are drawn first, and the noise goes on where they end.
    torch.manual_seed(config.seed)
    images, validation_images = open_images(config.dataset, config.val_dataset, config.patch_size)
    check_same_everywhere(config, images, processes)
    batches = TrainingBatches(len(images), config.crops_per_image, config.batch_size, config.seed, processes.part)
    total_steps = min(config.epochs * len(batches), config.steps or sys.maxsize)

    model = make_model(config, processes)
    criterion = make_criterion(config)
    optimizer, aux_optimizer = make_optimizers(model, config.learning_rate, config.aux_learning_rate)
    lr_scheduler = make_schedule(config.lr_schedule, optimizer, total_steps)
    precision = Precision(config.precision, processes.device)
    noise = BatchNoise(processes.device)

    return Training(
        RunState(
            config=config,
            processes=processes,
            images=images,
            steps_per_epoch=len(batches),
            model=model,
            optimizer=optimizer,
            aux_optimizer=aux_optimizer,
            lr_scheduler=lr_scheduler,
            scaler=precision.scaler,
            noise=noise,
        ),
        Step(
            model,
            criterion,
            (optimizer, aux_optimizer),
            processes,
            precision,
            noise,
            config.patch_size,
            clip_max_norm=config.clip_max_norm,
            accumulate=config.accumulate,
            compiled=config.compile,
            channels_last=config.channels_last,
        ),
        batches,
        total_steps,
        train_loader=make_train_loader(config, images, batches),
        validation_loader=make_validation_loader(config, validation_images, processes),
    )


def check_same_everywhere(config: TrainConfig, images: ImageFolder, processes: Processes) -> None:
    """Raises TrainingStopped where the processes would not train the same model on the same images."""
    shared = {key: value for key, value in config.saved().items() if key not in ("device", "num_workers")}
    processes.check_equal("arguments, images or versions", (shared, images.fingerprint(), versions()))


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


def make_model(config: TrainConfig, processes: Processes) -> CompressionModel:
    """The codec on its device, with the weights that the run begins with or goes on from, and frozen parts."""
    with processes.one_after_the_other():
        model = models.load_codec(
            config.model,
            quality=config.quality,
            metric=config.metric,
            checkpoint=config.resume or config.checkpoint,
            init=config.init,
            **codec_arguments(config.model_args, config.lic_tcm_repo),
        )
        check_patch_size(config, model)
        model.to(processes.device)
    freeze(model, config.freeze)
    if config.precision != "fp32":
        likelihoods_in_float32(model)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def check_patch_size(config: TrainConfig, model: CompressionModel) -> None:
    """Raises BadInput where the codec does not take crops of that size."""
    multiple, smallest = models.input_sides(model)
    for side in config.patch_size:
        if side % multiple or side < smallest:
            fits = [size for size in (64, 128, 192, 256) if size % multiple == 0 and size >= smallest] or [smallest]
            raise BadInput(
                f"--patch-size {side}: {config.model} takes multiples of {multiple} from {smallest} on; "
                f"{', '.join(map(str, fits))} would do"
            )


def make_criterion(config: TrainConfig) -> BasisRateDistortionLoss:
    return BasisRateDistortionLoss(
        config.lmbda, config.mu, config.metric, block_size=config.block_size, smooth=config.smooth
    )


def make_train_loader(config: TrainConfig, images: ImageFolder, batches: TrainingBatches) -> DataLoader[Batch]:
    return DataLoader(
        TrainingCrops(images),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=config.num_workers,
        persistent_workers=config.num_workers > 0,
        pin_memory=config.device.startswith("cuda"),
        worker_init_fn=ignore_signals,
        # Without a generator of its own a loader draws from the global one, whose state then depends on interruptions.
        generator=torch.Generator(),
    )


def make_validation_loader(config: TrainConfig, images: ImageFolder, processes: Processes) -> DataLoader[Tensor]:
    h, w = config.patch_size
    cut_sizes = [(height // h * h, width // w * w) for height, width in images.sizes]
    batches = EqualSizeBatches(cut_sizes, config.test_batch_size, processes.rank, processes.size)
    return DataLoader(images, batch_sampler=batches, generator=torch.Generator())
