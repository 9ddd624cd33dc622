"""`svdrd recompose`: what a codec's images would gain from the singular vectors of the originals.

For every image and rate, three pictures and their PSNR: LQ, as decoded; in pixel space, U_hq S_lq V_hq^T of each
channel, with the singular values of the decoded image on the bases of the original; in latent space, the same of each
latent channel, the original's being the encoder's output before quantisation, decoded by the synthesis transform. The
matrices are patches, or with --whole whole images. docs/guide/recomposition.md says what the numbers mean.

Rate and PSNR are those of `svdrd evaluate`: real coding, 8-bit images, means over the images. Both recomposed pictures
need the original: they say what is lost by bases, and are no codec.
"""

import argparse
import csv
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import compressai
import torch
import torch.nn.functional as F
from compressai.models import CompressionModel
from torch import Tensor
from torchvision.transforms.functional import center_crop, to_tensor
from tqdm import tqdm

from svdrd.compress.codecs.models import PADDING, add_codec_arguments, input_sides
from svdrd.compress.criterion import METRICS
from svdrd.compress.errors import BadInput, Stopped
from svdrd.compress.evaluation import recomposition_figures as figures
from svdrd.compress.evaluation.coding import (
    DecoderMismatch,
    check_device,
    code,
    codecs_of,
    estimate,
    load_codecs,
    padded,
)
from svdrd.compress.files import write_json
from svdrd.compress.images.folders import ImageFolder
from svdrd.compress.images.metrics import psnr, to_8bit
from svdrd.ops import recompose, svd
from svdrd.reference import definitions

RESULTS = ("bpp", "psnr_lq", "psnr_latent", "psnr_pixel")
FILES = ("recompose.csv", "recompose.json", "psnr_bpp.png", "strip.png", "spectrum.png")
# A patch of the paper's size; in whole images about what a reader can look at.
SHOWN_SIDE = 256


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
        DecoderMismatch: as :func:`svdrd.compress.evaluation.coding.code`.
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-m", "--model", required=True, help="a codec, such as bmshj2018-hyperprior; docs/guide/codecs.md has all")
    add("-d", "--dataset", required=True, help="folder of images, searched recursively")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", nargs="+", help="one checkpoint for each rate")
    source.add_argument("-q", "--quality", nargs="+", type=int, help="one or more qualities of CompressAI's zoo")
    add("--metric", choices=METRICS, default="mse", help="distortion of the zoo's training (default: %(default)s)")
    add_codec_arguments(parser)
    matrices = parser.add_mutually_exclusive_group()
    matrices.add_argument(
        "--patch-size",
        type=int,
        default=256,
        help="side of the patches that are one matrix a channel; images are cut to multiples of it (default: 256)",
    )
    matrices.add_argument("--whole", action="store_true", help="whole images in place of patches")
    add("--estimate", action="store_true", help="estimate the rate instead of coding, for slow autoregressive models")
    add("--show", metavar="NAME", help="the image of the strip, such as kodim05 (default: the first one)")
    add(
        "-o",
        "--output",
        type=Path,
        default=Path("runs/recompose"),
        help="folder for the results (default: %(default)s)",
    )
    add("--device", default="cpu", help="(default: %(default)s)")
    add("--cuda", dest="device", action="store_const", const="cuda", help="the same as --device cuda")


def check(args: argparse.Namespace, images: ImageFolder, models: Sequence[CompressionModel]) -> None:
    """Refuses, before hours of coding, what could not work or be written after them."""
    for model in models:
        if not all(isinstance(getattr(model, name, None), torch.nn.Module) for name in ("g_a", "g_s")):
            raise BadInput(
                f"--model {args.model}: has no transforms g_a and g_s, which recomposition in latent space needs"
            )
        multiple = math.lcm(input_sides(model)[0], PADDING)
        if not args.whole and (args.patch_size % multiple or args.patch_size < 1):
            fits = [size for size in (64, 128, 256, 512) if size % multiple == 0]
            raise BadInput(
                f"--patch-size {args.patch_size}: wanted a multiple of {multiple}, so that a patch is a "
                f"whole block of latents: {', '.join(map(str, fits))}; or --whole"
            )
    if not args.whole:
        for index, (height, width) in enumerate(images.sizes):
            if min(height, width) < args.patch_size:
                raise BadInput(
                    f"--dataset {args.dataset!r}: {images.name(index)} has {height}x{width} pixels, less than a patch "
                    f"of {args.patch_size}; take a smaller --patch-size, or --whole"
                )
    shown_index(args, images)
    folder = args.output
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise BadInput(f"--output {str(folder)!r}: {str(existing)!r} is not a folder that can be written to")


def shown_index(args: argparse.Namespace, images: ImageFolder) -> int:
    if args.show is None:
        return 0
    for index, path in enumerate(images.samples):
        if args.show in (images.name(index), path.name, path.stem):
            return index
    raise BadInput(
        f"--show {args.show}: no such image in {args.dataset}; for example {images.samples[len(images) // 2].stem}"
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


def main(argv: Sequence[str] | None = None) -> int:
    """Recomposes as the arguments say; returns 0.

    Raises:
        BadInput: an argument cannot work; nothing has been written then.
        Stopped: a decoder did not reproduce what the encoder saw.
    """
    parser = argparse.ArgumentParser(prog="svdrd recompose", description=__doc__)
    add_arguments(parser)
    return run(parser, argv)


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    args = parser.parse_args(argv)
    check_device(args.device)
    images = ImageFolder(args.dataset, decode=True)
    if images.skipped:
        print(f"skipped {images.skipped} files of {args.dataset} that are no images", file=sys.stderr)
    codecs, models = codecs_of(args), load_codecs(args)
    check(args, images, models)
    rates = [one_rate(args, images, codec, model) for codec, model in zip(codecs, models, strict=True)]
    rates.sort(key=lambda rate: rate["results"]["bpp"])
    write(args, images, rates)
    print(table(args, rates))
    return 0


@torch.no_grad()
def one_rate(
    args: argparse.Namespace, images: ImageFolder, codec: dict[str, Any], model: CompressionModel
) -> dict[str, Any]:
    """All images through one codec: results of each image, their means, the spectrum, and the pictures to show."""
    patch_size = None if args.whole else args.patch_size
    model.to(args.device).eval()
    # The tables of a checkpoint may be older than its weights; those of the zoo belong to them.
    model.update(force=bool(args.checkpoint))
    spectrum = Spectrum()
    per_image: list[dict[str, Any]] = []
    pictures: dict[str, Tensor] = {}
    (name,) = map(str, codec.values())
    for index in tqdm(range(len(images)), desc=name, disable=not sys.stderr.isatty()):
        x = cut(images[index], patch_size).to(args.device)
        try:
            recomposed = recompose_image(model, x, patch_size, args.estimate)
        except DecoderMismatch as error:
            raise Stopped(f"{name}, {images.name(index)}: {error}") from error
        per_image.append({"source": images.name(index), "results": recomposed.results(x)})
        spectrum.add(recomposed.lq, x, patch_size)
        if index == shown_index(args, images):
            shown = {"original": x, "lq": recomposed.lq, "latent": recomposed.latent, "pixel": recomposed.pixel}
            pictures = {key: middle(picture, patch_size)[0].cpu() for key, picture in shown.items()}
    model.cpu()
    means = {key: fmean(image["results"][key] for image in per_image) for key in RESULTS}
    return {**codec, "results": means, "spectrum": spectrum.curves(), "images": per_image, "pictures": pictures}


def write(args: argparse.Namespace, images: ImageFolder, rates: Sequence[dict[str, Any]]) -> None:
    folder = args.output
    folder.mkdir(parents=True, exist_ok=True)
    matrices = "whole images" if args.whole else f"patches of {args.patch_size}x{args.patch_size}"
    with (folder / "recompose.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(
            ("model", "codec", "matrices", "image", "bpp_estimated" if args.estimate else "bpp", *RESULTS[1:])
        )
        for rate in rates:
            for image in rate["images"]:
                numbers = (f"{image['results'][key]:.6f}" for key in RESULTS)
                rows.writerow((args.model, label(rate), matrices, image["source"], *numbers))
    method = "entropy estimation" if args.estimate else compressai.get_entropy_coder()
    names: dict[str, str] = {
        "bpp": "bpp",
        "psnr_lq": "psnr-rgb",
        "psnr_latent": "psnr-rgb-latent",
        "psnr_pixel": "psnr-rgb-pixel",
    }
    document = {
        "name": f"{args.model}-{args.metric}",
        "description": f"Recomposition of {matrices} ({method})",
        "results": {name: [rate["results"][key] for rate in rates] for key, name in names.items()},
        "rates": [{key: value for key, value in rate.items() if key != "pictures"} for rate in rates],
    }
    write_json(folder / "recompose.json", document)
    shown = images.name(shown_index(args, images))
    figures.psnr_bpp(rates, f"{args.model}, mean of {len(images)} images, {matrices}", args.estimate, folder)
    figures.strip(rates, shown, args.estimate, folder)
    figures.spectrum(rates, f"{args.model}, {len(images)} images, {matrices}", folder)


def label(rate: dict[str, Any]) -> str:
    """The name of a codec among others: a quality, or a checkpoint's file without the endings that all have."""
    if "quality" in rate:
        return f"quality {rate['quality']}"
    path = Path(rate["checkpoint"])
    name = path.name.removesuffix(".tar").removesuffix(".pth").removesuffix(".pt")
    return f"{path.parent.name}/{name}" if name.startswith("checkpoint") and path.parent.name else name


def table(args: argparse.Namespace, rates: Sequence[dict[str, Any]]) -> str:
    bpp = "bpp (estimate)" if args.estimate else "bpp"
    width = max(len(label(rate)) for rate in rates)
    lines = [f"{args.model:{width}}  {bpp:>14}  PSNR of LQ (dB)   latent space    pixel space"]
    for rate in rates:
        results = rate["results"]
        line = f"{label(rate):{width}}  {results['bpp']:14.4f}  {results['psnr_lq']:15.3f}"
        for key in ("psnr_latent", "psnr_pixel"):
            line += f"  {results[key]:6.3f} ({results[key] - results['psnr_lq']:+5.2f})"
        lines.append(line)
    return "\n".join([*lines, f"in {args.output}: {', '.join(FILES)}"])
