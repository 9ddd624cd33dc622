"""A folder of images recomposed at several rates: what can be done, doing it, and the files of the result."""

import csv
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import center_crop, to_tensor
from tqdm import tqdm

from svdrd.compress.codecs.models import PADDING, input_sides
from svdrd.compress.compressai import CompressionModel, get_entropy_coder
from svdrd.compress.errors import BadInput, Stopped
from svdrd.compress.evaluation import recomposition_figures as figures
from svdrd.compress.evaluation.coding import CodingFailed, make_ready
from svdrd.compress.evaluation.progress import InsideAnImage
from svdrd.compress.evaluation.recomposition import Spectrum, recompose_image
from svdrd.compress.files import write_json, write_text
from svdrd.compress.images.folders import ImageFolder

RESULTS = ("bpp", "psnr_lq", "psnr_latent", "psnr_pixel")
FILES = ("recompose.csv", "recompose.json", "psnr_bpp.png", "strip.png", "spectrum.png")
# A patch of the paper's size; in whole images about what a reader can look at.
SHOWN_SIDE = 256


@dataclass(frozen=True)
class RecomposedFolder:
    """What is recomposed, and how.

    Args:
        images: the originals.
        model: the name of the codec.
        metric: of the training of the zoo's weights.
        patch_size: side of the patches that are one matrix a channel each; None: whole images.
        estimated: estimates the rates instead of coding.
        device: to compute on.
        shown: the index of the image of the strip.
    """

    images: ImageFolder
    model: str
    metric: str
    patch_size: int | None
    estimated: bool
    device: str
    shown: int

    @property
    def matrices(self) -> str:
        return "whole images" if self.patch_size is None else f"patches of {self.patch_size}x{self.patch_size}"

    def check(self, models: Sequence[CompressionModel]) -> None:
        """Refuses, before hours of coding, what could not work."""
        for model in models:
            if not all(isinstance(getattr(model, name, None), torch.nn.Module) for name in ("g_a", "g_s")):
                raise BadInput(
                    f"--model {self.model}: has no transforms g_a and g_s, which recomposition in latent space needs"
                )
            multiple = math.lcm(input_sides(model)[0], PADDING)
            if self.patch_size is not None and (self.patch_size % multiple or self.patch_size < 1):
                fits = [size for size in (64, 128, 256, 512) if size % multiple == 0]
                raise BadInput(
                    f"--patch-size {self.patch_size}: wanted a multiple of {multiple}, so that a patch is a "
                    f"whole block of latents: {', '.join(map(str, fits))}; or --whole"
                )
        if self.patch_size is None:
            return
        for index, (height, width) in enumerate(self.images.sizes):
            if min(height, width) < self.patch_size:
                raise BadInput(
                    f"--dataset {str(self.images.root)!r}: {self.images.name(index)} has {height}x{width} pixels, "
                    f"less than a patch of {self.patch_size}; take a smaller --patch-size, or --whole"
                )

    @torch.no_grad()
    def at_rate(self, codec: dict[str, Any], model: CompressionModel) -> dict[str, Any]:
        """All images through one codec: results of each image, their means, the spectrum, and the pictures to show.

        Raises:
            Stopped: the codec does not code an image, or its decoder does not reproduce what the encoder saw.
        """
        make_ready(model, codec, self.device)
        spectrum = Spectrum()
        per_image: list[dict[str, Any]] = []
        pictures: dict[str, Tensor] = {}
        (name,) = map(str, codec.values())
        shown = sys.stderr.isatty()

        def layers_of(model: CompressionModel, x: Tensor) -> None:
            recompose_image(model, x, None, self.estimated)

        inside = InsideAnImage(model, layers_of, shown)
        for index in tqdm(range(len(self.images)), desc=name, disable=not shown):
            x = cut(self.images[index], self.patch_size).to(self.device)
            try:
                with inside.of(self.images.name(index), x):
                    recomposed = recompose_image(model, x, self.patch_size, self.estimated)
            except CodingFailed as error:
                raise Stopped(f"{name}, {self.images.name(index)}: {error}") from error
            per_image.append({"source": self.images.name(index), "results": recomposed.results(x)})
            spectrum.add(recomposed.lq, x, self.patch_size)
            if index == self.shown:
                whole = {"original": x, "lq": recomposed.lq, "latent": recomposed.latent, "pixel": recomposed.pixel}
                pictures = {key: middle(picture, self.patch_size)[0].cpu() for key, picture in whole.items()}
        model.cpu()
        means = {key: fmean(image["results"][key] for image in per_image) for key in RESULTS}
        return {**codec, "results": means, "spectrum": spectrum.curves(), "images": per_image, "pictures": pictures}

    def write(self, rates: Sequence[dict[str, Any]], folder: Path) -> None:
        """The files :data:`FILES` of what :meth:`at_rate` returned, from the lowest rate to the highest."""
        folder.mkdir(parents=True, exist_ok=True)
        table = io.StringIO(newline="")
        rows = csv.writer(table, lineterminator="\n")
        bpp = "bpp_estimated" if self.estimated else "bpp"
        rows.writerow(("model", "codec", "matrices", "image", bpp, *RESULTS[1:]))
        for rate in rates:
            for image in rate["images"]:
                numbers = (f"{image['results'][key]:.6f}" for key in RESULTS)
                rows.writerow((self.model, label(rate), self.matrices, image["source"], *numbers))
        write_text(folder / "recompose.csv", table.getvalue())
        method = "entropy estimation" if self.estimated else get_entropy_coder()
        names: dict[str, str] = {
            "bpp": "bpp",
            "psnr_lq": "psnr-rgb",
            "psnr_latent": "psnr-rgb-latent",
            "psnr_pixel": "psnr-rgb-pixel",
        }
        document = {
            "name": f"{self.model}-{self.metric}",
            "description": f"Recomposition of {self.matrices} ({method})",
            "results": {name: [rate["results"][key] for rate in rates] for key, name in names.items()},
            "rates": [{key: value for key, value in rate.items() if key != "pictures"} for rate in rates],
        }
        write_json(folder / "recompose.json", document)
        title = f"{self.model}, mean of {len(self.images)} images, {self.matrices}"
        figures.psnr_bpp(rates, title, self.estimated, folder)
        figures.strip(rates, self.images.name(self.shown), self.estimated, folder)
        figures.spectrum(rates, f"{self.model}, {len(self.images)} images, {self.matrices}", folder)


def index_of(images: ImageFolder, shown: str | None) -> int:
    """The index of the image that is called ``shown``; of the first one where that is None."""
    if shown is None:
        return 0
    for index, path in enumerate(images.samples):
        if shown in (images.name(index), path.name, path.stem):
            return index
    raise BadInput(
        f"--show {shown}: no such image in {images.root}; for example {images.samples[len(images) // 2].stem}"
    )


def cut(image: Any, patch_size: int | None) -> Tensor:
    """(1, 3, H, W) in [0, 1]: the middle of the image, its sides the largest multiples of ``patch_size``."""
    if patch_size is not None:
        image = center_crop(image, [side // patch_size * patch_size for side in (image.height, image.width)])
    return to_tensor(image).unsqueeze(0)


def middle(x: Tensor, patch_size: int | None) -> Tensor:
    """What the strip shows of ``x`` (1, 3, H, W): the patch in the middle, or of a whole image the middle itself."""
    height, width = x.shape[-2:]
    if patch_size is None:
        return center_crop(x, [min(SHOWN_SIDE, height), min(SHOWN_SIDE, width)])
    top, left = (side // patch_size // 2 * patch_size for side in (height, width))
    return x[..., top : top + patch_size, left : left + patch_size]


def label(rate: dict[str, Any]) -> str:
    """The name of a codec among others: a quality, or a checkpoint's file without the endings that all have."""
    if "quality" in rate:
        return f"quality {rate['quality']}"
    path = Path(rate["checkpoint"])
    name = path.name.removesuffix(".tar").removesuffix(".pth").removesuffix(".pt")
    return f"{path.parent.name}/{name}" if name.startswith("checkpoint") and path.parent.name else name
