"""The settings of one fine-tuning run, made once from the command line and checked there."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from svdrd.compress.errors import BadInput
from svdrd.compress.options import MS_SSIM_SMALLEST_SIDE

# The smallest value of a number, and whether it is allowed itself.
LIMITS: dict[str, tuple[float, bool]] = {
    "epochs": (1, True), "steps": (1, True), "batch_size": (1, True), "test_batch_size": (1, True),
    "crops_per_image": (1, True), "block_size": (1, True), "num_workers": (0, True), "seed": (0, True),
    "mu": (0, True), "smooth": (0, True), "clip_max_norm": (0, True), "accumulate": (1, True),
    "max_skipped": (1, True), "checkpoint_minutes": (0, True), "gradient_norms": (0, True), "log_images": (0, True),
    "lmbda": (0, False), "learning_rate": (0, False), "aux_learning_rate": (0, False),
}  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """What the options of the same names say (``svdrd finetune --help``); :meth:`from_arguments` makes one."""

    model: str
    quality: int | None
    init: str
    checkpoint: str | None
    model_args: tuple[str, ...]
    lic_tcm_repo: str | None
    freeze: tuple[str, ...]

    dataset: str
    val_dataset: str | None
    patch_size: tuple[int, int]
    crops_per_image: int
    batch_size: int
    accumulate: int
    test_batch_size: int
    num_workers: int

    lmbda: float
    metric: str
    mu: float
    block_size: int | None
    smooth: float

    epochs: int
    steps: int | None
    learning_rate: float
    aux_learning_rate: float
    lr_schedule: str
    clip_max_norm: float
    seed: int
    max_skipped: int

    device: str
    precision: str
    tf32: bool
    compile: bool
    channels_last: bool

    save_dir: str
    save: bool
    checkpoint_minutes: float
    gradient_norms: int
    log_images: int

    # The checkpoint that this call goes on from: no property of the run.
    resume: str | None

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> TrainConfig:
        """Checks everything that can be said without the images, and settles ``device`` and ``lmbda``.

        Raises:
            BadInput: a value that cannot work; names the option.
        """
        values: dict[str, Any] = {field.name: getattr(arguments, field.name) for field in fields(cls)}
        _check_numbers(values)
        _check_codec(values["model"])
        values["device"] = _device(values["device"])
        values["lmbda"] = _lmbda(values)
        for name in ("model_args", "freeze", "patch_size"):
            values[name] = tuple(values[name])
        return cls(**values)

    @property
    def folder(self) -> Path | None:
        """Where the run is saved; None: nowhere."""
        return Path(self.save_dir) if self.save else None

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain values, all but ``resume``."""
        values = asdict(self)
        del values["resume"]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _check_numbers(values: dict[str, Any]) -> None:
    """What needs no torch."""
    if values["dataset"] is None:
        raise BadInput("--dataset: missing; give a folder of training images, for example --dataset photographs")
    for name, (limit, included) in LIMITS.items():
        value = values[name]
        if value is not None and not (math.isfinite(value) and (value > limit or (included and value == limit))):
            option = "--lambda" if name == "lmbda" else "--" + name.replace("_", "-")
            raise BadInput(f"{option} {value}: wanted a finite value {'of at least' if included else 'above'} {limit}")
    if values["lmbda"] is None and values["quality"] is None:
        raise BadInput("--lambda: missing; give it, or --quality to take the lambda of CompressAI's zoo")
    block_size, patch_size = values["block_size"], values["patch_size"]
    for side in patch_size:
        if side < 1:
            raise BadInput(f"--patch-size {side}: wanted two sides of at least 1 pixel, for example 256 256")
        if block_size and side % block_size:
            fits = [size for size in (8, 16, 32, 64) if all(s % size == 0 for s in patch_size)]
            raise BadInput(
                f"--block-size {block_size}: does not divide the side {side} of --patch-size; "
                f"{', '.join(map(str, fits)) or 'a common divisor of its sides'} would"
            )
        if values["metric"] == "ms-ssim" and side < MS_SSIM_SMALLEST_SIDE:
            raise BadInput(
                f"--patch-size {side}: MS-SSIM needs sides of at least {MS_SSIM_SMALLEST_SIDE} pixels: 256 256"
            )


def _check_codec(model: str) -> None:
    # Here and below: what needs torch is imported after what does not.
    from svdrd.compress.codecs import external, models
    from svdrd.compress.compressai import ScaleHyperpriorVbr

    if not external.is_external(model) and issubclass(models.codec_class_of(model), ScaleHyperpriorVbr):
        raise BadInput(
            f"--model {model}: a variable-rate codec learns all its rates together, which training with one "
            f"lambda would undo; take {model.removesuffix('-vbr')}"
        )


def _device(device: str | None) -> str:
    from svdrd.compress.devices import check_device, default_device

    device = device or default_device()
    check_device(device)
    return device


def _lmbda(values: dict[str, Any]) -> float:
    """The one given, else the zoo's for the quality; a quality that the zoo does not have is refused in any case."""
    from svdrd.compress.codecs.models import lambda_for

    if values["quality"] is None:
        return float(values["lmbda"])
    zoo_lambda = lambda_for(values["model"], values["quality"], values["metric"])
    return zoo_lambda if values["lmbda"] is None else float(values["lmbda"])
