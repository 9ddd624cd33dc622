"""What the arguments of ``svdrd finetune`` have to keep to."""

import argparse
import math

from compressai.models.vbr import ScaleHyperpriorVbr

from svdrd.compress.codecs import external, models
from svdrd.compress.devices import check_device, default_device
from svdrd.compress.errors import BadInput
from svdrd.compress.images import metrics


def check_arguments(arguments: argparse.Namespace) -> None:
    """Everything that can be said without the images; completes ``lmbda`` and ``device``."""
    if not external.is_external(arguments.model) and issubclass(
        models.codec_class_of(arguments.model), ScaleHyperpriorVbr
    ):
        raise BadInput(
            f"--model {arguments.model}: a variable-rate codec learns all its rates together, which training with one "
            f"lambda would undo; take {arguments.model.removesuffix('-vbr')}"
        )
    if arguments.dataset is None:
        raise BadInput("--dataset: missing; give a folder of training images, for example --dataset photographs")
    limits: dict[str, tuple[float, bool]] = {
        "epochs": (1, True), "steps": (1, True), "batch_size": (1, True), "test_batch_size": (1, True),
        "crops_per_image": (1, True), "block_size": (1, True), "num_workers": (0, True), "seed": (0, True),
        "mu": (0, True), "smooth": (0, True), "clip_max_norm": (0, True), "accumulate": (1, True),
        "max_skipped": (1, True), "checkpoint_minutes": (0, True), "gradient_norms": (0, True), "log_images": (0, True),
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
    arguments.device = arguments.device or default_device()
    check_device(arguments.device)
    if arguments.quality is not None:
        zoo_lambda = models.lambda_for(arguments.model, arguments.quality, arguments.metric)
        arguments.lmbda = zoo_lambda if arguments.lmbda is None else arguments.lmbda
    elif arguments.lmbda is None:
        raise BadInput("--lambda: missing; give it, or --quality to take the lambda of CompressAI's zoo")
