"""Measures of decoded 8-bit images: PSNR and MS-SSIM as CompressAI's ``eval_model`` computes them, and others."""

import math
from collections.abc import Callable

import piq
import torch
from pytorch_msssim import ms_ssim
from torch import Tensor

from svdrd.compress.options import MS_SSIM_SMALLEST_SIDE
from svdrd.ops import basis_loss

# The side of the patches of basis_distance: that of the paper's training.
BASIS_SIDE = 256


def to_8bit(x: Tensor) -> Tensor:
    """Values in [0, 1] clamped and rounded to the 256 levels of a file, still in floating point: 0, 1, ..., 255."""
    return (x.float() * 255).clamp(0, 255).round()


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """PSNR in dB of each image, ``10 log10(255^2 / MSE)`` on 8-bit values; (N, C, H, W) in [0, 1] to (N,).

    Equal images give infinity.
    """
    mse = (to_8bit(x_hat) - to_8bit(x)).pow(2).mean(dim=(1, 2, 3))
    return 20 * math.log10(255) - 10 * torch.log10(mse)


def ms_ssim_8bit(x_hat: Tensor, x: Tensor) -> Tensor:
    """MS-SSIM of each image on 8-bit values; (N, C, H, W) in [0, 1] to (N,). NaN where a side is below 161 pixels."""
    if min(x.shape[-2:]) < MS_SSIM_SMALLEST_SIDE:
        return torch.full((x.shape[0],), math.nan, device=x.device)
    # Channel by channel, of which it is the mean: a third of the memory, which is that of the codec's first layers.
    channels = [
        ms_ssim(to_8bit(x_hat[:, c, None]), to_8bit(x[:, c, None]), data_range=255, size_average=False)
        for c in range(x.shape[1])
    ]
    return torch.stack(channels).mean(0)


def basis_distance(x_hat: Tensor, x: Tensor) -> Tensor:
    """The basis loss of each image on 8-bit values; (N, C, H, W) in [0, 1] to (N,).

    Its matrices are the channels of the patches of 256 x 256 pixels that lie side by side around the centre; of an
    image that is smaller, of one patch as large as the image allows.
    """
    height, width = (min(size, BASIS_SIDE) for size in x.shape[-2:])
    rows, columns = _central(x.shape[-2], height), _central(x.shape[-1], width)

    def patches(image: Tensor) -> Tensor:
        return (to_8bit(image) / 255)[..., rows, columns].unfold(-2, height, height).unfold(-2, width, width)

    return basis_loss(patches(x_hat), patches(x), reduction="none").flatten(1).mean(1)


def _central(size: int, side: int) -> slice:
    """As many whole sides as ``size`` has, from its middle."""
    start = size % side // 2
    return slice(start, start + size // side * side)


def gmsd_8bit(x_hat: Tensor, x: Tensor) -> Tensor:
    """Gradient magnitude similarity deviation of the luma of each image on 8-bit values, by ``piq``: 0 is equal.

    (N, 3, H, W) in [0, 1] to (N,). Source: Xue, Zhang, Mou, Bovik, "Gradient Magnitude Similarity Deviation", 2014.
    """
    deviation: Tensor = piq.gmsd(to_8bit(x_hat), to_8bit(x), reduction="none", data_range=255)
    return deviation


# Those of svdrd.compress.options.MEASURES, by the keys of their results.
MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"basis": basis_distance, "gmsd": gmsd_8bit}
