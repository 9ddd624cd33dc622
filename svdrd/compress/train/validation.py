"""Validation: means over whole images, shared out over the processes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from svdrd.compress.codecs.models import padding
from svdrd.compress.compressai import CompressionModel
from svdrd.compress.criterion import BasisRateDistortionLoss
from svdrd.compress.images import metrics
from svdrd.compress.images.folders import ImagesVanished
from svdrd.compress.train.distributed import Processes


@dataclass(frozen=True)
class Validation:
    """Means over the images, or why there are none: a signal's number, or what is wrong with the images.

    ``pictures`` are original and reconstruction beside each other, of the first images of this process.
    """

    results: dict[str, float] | None
    signal: int | None
    problem: str
    pictures: list[Tensor]


@torch.no_grad()
def validate(
    model: CompressionModel,
    criterion: BasisRateDistortionLoss,
    loader: DataLoader[Tensor],
    numbers: Sequence[int],
    processes: Processes,
    patch_size: Sequence[int],
    interrupted: Sequence[int],
    pictures: int,
) -> Validation:
    """Means over the validation images of all processes.

    The model sees whole images in float32, padded to its stride, and the criterion their patches, so that the basis
    loss is that of training. The rate is ``forward``'s estimate; ``svdrd evaluate`` does the real coding.

    Args:
        model, criterion: of the training.
        loader: this process's batches.
        numbers: which among the batches of all processes those are; sums are taken in their order, so that the result
            is the same bit for bit whatever the number of processes.
        processes: who else validates.
        patch_size: (height, width).
        interrupted: becomes non-empty when a signal arrives.
        pictures: how many images to return for looking at.
    """
    model.eval()
    criterion.monitor_basis = True
    mine: list[tuple[int, int, dict[str, float]]] = []
    shown: list[Tensor] = []
    problem = ""
    batches = iter(loader)
    for number in numbers:
        if interrupted:
            break
        try:
            x = next(batches).to(processes.device)
        except ImagesVanished as error:
            problem = str(error)
            break
        pad, unpad = padding(model, *x.shape[-2:])
        output = model(F.pad(x, pad))
        x_hat = F.pad(output["x_hat"], unpad)
        x_patches, x_hat_patches = tiles(x, patch_size), tiles(x_hat, patch_size)
        losses = criterion({**output, "x_hat": x_hat_patches}, x_patches)
        values = {key: value.item() for key, value in losses.items()}
        values["psnr"] = metrics.psnr(x_hat, x).mean().item()
        values["ms_ssim"] = metrics.ms_ssim_8bit(x_hat, x).mean().item()
        mine.append((number, len(x), values))
        if len(shown) < pictures:
            shown.append(torch.cat([x_patches[0], x_hat_patches[0]], dim=-1).float().cpu())
    gathered = processes.gather((mine, list(interrupted), problem))
    signal = next((signals[0] for _, signals, _ in gathered if signals), None)
    problem = next((text for _, _, text in gathered if text), "")
    if signal is not None or problem:
        return Validation(None, signal, problem, [])
    sums: dict[str, float] = {}
    images = 0
    for _, count, values in sorted(
        (batch for batches_of_one, _, _ in gathered for batch in batches_of_one), key=_number
    ):
        images += count
        for key, value in values.items():
            sums[key] = sums.get(key, 0.0) + count * value
    return Validation({key: value / images for key, value in sums.items()}, None, "", shown)


def _number(batch: tuple[int, int, dict[str, float]]) -> int:
    return batch[0]


def tiles(x: Tensor, patch_size: Sequence[int]) -> Tensor:
    """(N, C, H, W) to (N * tiles, C, h, w), for H and W that are multiples of ``patch_size = (h, w)``."""
    batch, channels, height, width = x.shape
    h, w = patch_size
    x = x.reshape(batch, channels, height // h, h, width // w, w)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, h, w)
