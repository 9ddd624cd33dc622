"""Recomposition: a codec's images with the singular vectors of the originals, in pixel space and in latent space.

The matrices are patches of each channel, or whole images. docs/guide/recomposition.md says what the numbers mean.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svdrd.compress.compressai import CompressionModel
from svdrd.compress.errors import BadInput
from svdrd.compress.evaluation.coding import code, estimate, padded
from svdrd.compress.images.metrics import psnr, to_8bit
from svdrd.ops import recompose, svd
from svdrd.reference import definitions


@dataclass(frozen=True)
class Recomposed:
    """The three pictures, (1, 3, H, W) in [0, 1] on the 8-bit grid, and the rate of LQ in bits per pixel."""

    lq: Tensor
    latent: Tensor
    pixel: Tensor
    bpp: float

    def results(self, x: Tensor) -> dict[str, float]:
        pictures = {"psnr_lq": self.lq, "psnr_latent": self.latent, "psnr_pixel": self.pixel}
        return {"bpp": self.bpp, **{name: psnr(picture, x).item() for name, picture in pictures.items()}}


@contextmanager
def captured_latents(model: CompressionModel) -> Iterator[dict[str, Tensor]]:
    """In this context the first output of ``g_a`` is kept as ``y``, and the first input of ``g_s`` as ``y_hat``.

    Around a coding these are the latents of the original, before quantisation, and those that the decoder read.
    """
    latents: dict[str, Tensor] = {}

    def keep_y(module: Any, inputs: Any, output: Tensor) -> None:
        latents.setdefault("y", output.clone())

    def keep_y_hat(module: Any, inputs: tuple[Tensor, ...]) -> None:
        latents.setdefault("y_hat", inputs[0].clone())

    hooks = [model.g_a.register_forward_hook(keep_y), model.g_s.register_forward_pre_hook(keep_y_hat)]
    try:
        yield latents
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def recompose_image(
    model: CompressionModel, x: Tensor, patch_size: int | None = None, estimated: bool = False
) -> Recomposed:
    r"""Codes ``x`` and recomposes it in pixel space and in latent space.

    .. math::
        X_\text{pixel} &= U_x \, \mathrm{diag}(S_{\hat x}) \, V_x^T  \quad \text{of each channel} \\
        X_\text{latent} &= g_s(\hat Y), \quad \hat Y = U_y \, \mathrm{diag}(S_{\hat y}) \, V_y^T
            \quad \text{of each latent channel}

    ``x_hat`` is the decoded 8-bit image, ``y = g_a(x)`` the latents before quantisation and ``y_hat`` those that the
    decoder hands to ``g_s``.

    Args:
        model: in eval mode, with up-to-date tables, with transforms ``g_a`` and ``g_s``.
        x: (1, 3, H, W), in [0, 1].
        patch_size: side of the patches that are one matrix a channel each; divides H and W, and is a multiple of what
            the codec's inputs are (:func:`svdrd.compress.codecs.models.input_sides`) and of 64, so that in latent space
            a patch is a whole block, too. None: the image is one matrix a channel, and its latents with what the codec
            pads.
        estimated: ``forward`` in place of coding, as :func:`svdrd.compress.evaluation.coding.estimate` does.

    Raises:
        CodingFailed: as :func:`svdrd.compress.evaluation.coding.code`.
        BadInput: a codec whose ``g_s`` does not take latents of the shape that ``g_a`` gives.

    Source: Chen, Chen, Wang, Li, "Optimizing Image Compression: Perspectives on SVD-Based Restoration", Sec. II-A.
    """
    with captured_latents(model) as latents:
        coded = (estimate if estimated else code)(model, x)
    y, y_hat = latents.get("y"), latents.get("y_hat")
    if y is None or y_hat is None or y.shape != y_hat.shape:
        raise BadInput(
            f"model {type(model).__name__}: its coding does not go through y = g_a(x) and g_s(y_hat) with latents of "
            "equal shape, which recomposition in latent space needs"
        )
    x_padded, unpad = padded(model, x)
    block = None if patch_size is None else patch_size * y.shape[-1] // x_padded.shape[-1]
    latent = F.pad(model.g_s(recompose(y_hat, y, block_size=block)), unpad)
    pixel = recompose(coded.x_hat, x, block_size=patch_size)
    return Recomposed(coded.x_hat, to_8bit(latent) / 255, to_8bit(pixel) / 255, coded.bpp)


@dataclass
class Spectrum:
    r"""The reconstruction spectrum of the bases, by index ``i``, over all matrices (patches or images, channels).

    With ``x = sum_i s_i u_i v_i^T`` the original and ``x_hat`` the decoded image:

    .. math::
        \text{hq}_i = \text{mean } s_i(x), \quad \text{lq}_i = \text{mean } s_i(\hat x), \quad
        \text{kept}_i = \frac{\sum s_i(x) \, u_i^T \hat x v_i}{\sum s_i(x)^2}

    ``kept`` is the share of the original's i-th basis pair that the decoded image still has along that very pair: 1
    where codec and bases are perfect, 0 where it is lost, however large the singular value of that index came out.
    An index counts the matrices that reach it.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, x_hat: Tensor, x: Tensor, patch_size: int | None) -> None:
        """``x_hat``, ``x``: (1, 3, H, W)."""
        images = [image.flatten(0, -3) for image in (x_hat, x)]
        if patch_size is not None:
            images = [definitions.to_blocks(image, patch_size, patch_size) for image in images]
        lq, hq = images
        U, S, Vh = svd(hq)
        along = ((U.mT @ lq) * Vh).sum(-1)
        values = {"count": torch.ones_like(S), "hq": S, "lq": svd(lq)[1], "along": S * along, "energy": S.square()}
        for name, value in values.items():
            total = value.double().sum(0).cpu()
            before = self.sums.get(name, total.new_zeros(0))
            length = max(len(before), len(total))
            self.sums[name] = F.pad(before, (0, length - len(before))) + F.pad(total, (0, length - len(total)))

    def curves(self) -> dict[str, list[float | None]]:
        """``hq``, ``lq`` and ``kept``, a number for each index; None where no original has anything."""
        sums = self.sums
        kept = torch.where(sums["energy"] > 0, sums["along"] / sums["energy"], torch.nan)
        curves = {"hq": sums["hq"] / sums["count"], "lq": sums["lq"] / sums["count"], "kept": kept}
        return {name: [_rounded(value) for value in curve.tolist()] for name, curve in curves.items()}


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
