"""PSNR and MS-SSIM of 8-bit images, as CompressAI's ``eval_model`` computes them."""

import math

import torch
from pytorch_msssim import ms_ssim
from torch import Tensor

from svdrd.compress.options import MS_SSIM_SMALLEST_SIDE


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
