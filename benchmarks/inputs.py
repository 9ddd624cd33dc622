"""What the operations are timed on: blocks of photographs with their JPEG as the decoded side, and random matrices."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

KODAK = Path(__file__).resolve().parents[2] / "shared" / "data" / "kodak"
# scikit-image's colour photographs that lie in its wheel, for machines without Kodak.
SKIMAGE = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina")

JPEG_QUALITY = 50
# A decoder puts out floats where a JPEG file holds integers: half a grey level, uniform, stands in for that.
DITHER = 0.5 / 255
# "natural" leaves out blocks where a singular value lies below this many eps s_1: float32 LAPACK leaves noise of
# up to 25 eps s_1 at an exact zero, so U V^T is arbitrary there unless ranks are decided. "patches" has them all.
MARGIN = 32

CHANNELS = 3


class Inputs(NamedTuple):
    """``x_hat`` and ``x``, ``(b, m, n)``, or ``(N, 3, H, W)`` with a block size; ``source`` is the CSV's ``input``."""

    x_hat: Tensor
    x: Tensor
    block_size: int | None
    source: str


@functools.lru_cache(maxsize=1)
def photographs() -> tuple[str, list[tuple[Tensor, Tensor]]]:
    """The name of the set, and of each image the decoded and the original side, float32 ``(3, H, W)`` in [0, 1]."""
    files = sorted(KODAK.glob("*.png"))
    if files:
        return "kodak", [_pair(Image.open(file)) for file in files]
    try:
        import skimage.data
    except ImportError as error:
        raise ImportError(
            f"no photographs in {KODAK} and no scikit-image, whose own would do: pip install scikit-image"
        ) from error
    return "scikit-image", [_pair(Image.fromarray(getattr(skimage.data, name)())) for name in SKIMAGE]


def _pair(image: Image.Image) -> tuple[Tensor, Tensor]:
    file = BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY)
    original, decoded = (
        torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255
        for picture in (image, Image.open(file))
    )
    noise = torch.rand(decoded.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    return decoded + 2 * DITHER * noise, original


def _blocks(m: int, n: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The ``m x n`` blocks of one photograph after the other, shuffled: ``(2, c, m, n)``, decoded and original."""
    _, pairs = photographs()
    for i in torch.randperm(len(pairs), generator=generator).tolist():
        pair = torch.stack(pairs[i])
        height, width = pair.shape[-2] // m * m, pair.shape[-1] // n * n
        grid = pair[..., :height, :width].reshape(2, CHANNELS, height // m, m, width // n, n)
        blocks = grid.transpose(3, 4).reshape(2, -1, m, n)
        yield blocks[:, torch.randperm(blocks.shape[1], generator=generator)]


def _full_rank(blocks: Tensor) -> Tensor:
    s = torch.linalg.svdvals(blocks.double())
    return (s[..., -1] > MARGIN * torch.finfo(torch.float32).eps * s[..., 0]).all(0)


def _natural(batch: int, m: int, n: int) -> tuple[Tensor, Tensor]:
    """``batch`` blocks of full rank, spread over the photographs; where fewer are found, they come again."""
    chosen: list[Tensor] = []
    missing = batch
    share = -(-batch // len(photographs()[1]))
    for blocks in _blocks(m, n, torch.Generator().manual_seed(1)):
        candidates = blocks[:, : 8 * share]
        kept = candidates[:, _full_rank(candidates)][:, : min(2 * share, missing)]
        chosen.append(kept)
        missing -= kept.shape[1]
        if not missing:
            break
    x_hat, x = torch.cat(chosen, 1)
    if not len(x):
        raise ValueError(f"the photographs hold no {m} x {n} block of full rank; take the input 'random' for that size")
    again = torch.arange(batch) % len(x)
    return x_hat[again], x[again]


def _patches(batch: int, m: int, n: int, side: int = 256) -> tuple[Tensor, Tensor]:
    """Whole RGB patches, ``(N, 3, side, side)``, with ``batch`` blocks of ``m x n`` in them, singular ones and all."""
    count, rest = divmod(batch, CHANNELS * (side // m) * (side // n))
    if rest or side % m or side % n:
        raise ValueError(
            f"{batch} blocks of {m} x {n} are no whole number of {CHANNELS} x {side} x {side} patches; "
            f"one patch holds {CHANNELS * (side // m) * (side // n)} of them."
        )
    tiles = []
    for decoded, original in photographs()[1]:
        pair = torch.stack([decoded, original])
        tiles += [
            pair[..., top : top + side, left : left + side]
            for top in range(0, pair.shape[-2] - side + 1, side)
            for left in range(0, pair.shape[-1] - side + 1, side)
        ]
    order = torch.randperm(len(tiles), generator=torch.Generator().manual_seed(2))
    x_hat, x = torch.stack([tiles[i] for i in order.repeat(-(-count // len(tiles)))[:count].tolist()], 1)
    return x_hat, x


@functools.lru_cache(maxsize=8)
def make(kind: str, batch: int, m: int, n: int, dtype: torch.dtype) -> Inputs:
    """The inputs of a case.

    Args:
        kind: ``"random"``, independent normal entries; ``"natural"``, blocks of photographs of full rank (see
            ``MARGIN``), their JPEG as ``x_hat``; ``"patches"``, all ``m x m`` blocks of RGB patches of 256 x 256, as
            images with a block size.
    """
    if kind == "random":
        generator = torch.Generator().manual_seed(3)
        x_hat, x = torch.randn(2, batch, m, n, dtype=dtype, generator=generator)
        return Inputs(x_hat, x, None, "random")
    make_images = {"natural": _natural, "patches": _patches}[kind]
    x_hat, x = make_images(batch, m, n)
    source = f"{kind} ({photographs()[0]})"
    return Inputs(x_hat.to(dtype), x.to(dtype), m if kind == "patches" else None, source)
