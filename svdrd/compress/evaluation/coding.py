"""What a codec really costs and gives, over a folder of full-size images.

The numbers are defined as in CompressAI's `eval_model`: the rate is the length of the range coder's output, PSNR and
MS-SSIM compare 8-bit images, and the averages are means over the images. The JSON file has `eval_model`'s form, with
the results of each image added under `images`, and under `settings` what `svdrd compare` needs to know of how they came
about.
"""

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image, to_tensor
from tqdm import tqdm

from svdrd.compress.codecs.models import check_sound, load_codec, padding
from svdrd.compress.compressai import CompressionModel, EntropyModel, GaussianConditional, get_entropy_coder
from svdrd.compress.errors import BadInput
from svdrd.compress.evaluation.progress import InsideAnImage
from svdrd.compress.images.folders import ImageFolder
from svdrd.compress.images.metrics import MEASURES, ms_ssim_8bit, psnr, to_8bit
from svdrd.compress.options import MS_SSIM_SMALLEST_SIDE

# Real decoding and `forward` quantise the same latents; where the decoder's entropy parameters differ from the
# encoder's it reads other symbols and loses 10 dB and more.
DECODER_TOLERANCE_DB = 1.0


# Beyond it float32 has no odd integers. The coder's escape codes end at 2^27, where its loop over digits begins again.
LARGEST_SYMBOL = 2**24


class CodingFailed(RuntimeError):
    """An image that this codec does not code."""


class DecoderMismatch(CodingFailed):
    """A decoder that did not reproduce what the encoder saw."""


class NotFinite(CodingFailed):
    """Finite weights that make something of this image that is not finite, or too large to be coded."""


@dataclass(frozen=True)
class Coded:
    """A decoded image and what it cost.

    `x_hat` is (1, 3, H, W) in [0, 1], on the 8-bit grid; `bpp` counts the bits over the H * W pixels before padding;
    the times are in seconds, for the padded image.
    """

    x_hat: Tensor
    bpp: float
    encoding_time: float
    decoding_time: float


def codecs_of(checkpoints: Sequence[str] | None, qualities: Sequence[int] | None) -> list[dict[str, Any]]:
    """The weights of each codec, ``{"checkpoint": path}``, or ``{"quality": q}`` of the zoo's in rising order."""
    if checkpoints:
        return [{"checkpoint": checkpoint} for checkpoint in checkpoints]
    return [{"quality": quality} for quality in sorted(qualities or ())]


def load_codecs(
    name: str, metric: str, codecs: Sequence[dict[str, Any]], options: dict[str, Any]
) -> list[CompressionModel]:
    """All of them, on the CPU: a wrong file at the end of the list shows at once."""
    return [load_codec(name, metric=metric, **codec, **options) for codec in codecs]


def make_ready(model: CompressionModel, codec: dict[str, Any], device: str) -> CompressionModel:
    """``model`` with the weights ``codec``, on ``device``, with tables to code with; returns it."""
    check_sound(model, type(model).__name__, codec.get("checkpoint"))
    model.to(device).eval()
    # The tables of a checkpoint may be older than its weights; those of the zoo belong to them.
    model.update(force="checkpoint" in codec)
    return model


def padded(model: CompressionModel, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """`x` (1, 3, H, W), padded with zeros around it to multiples of what the model needs, and the pads that undo it."""
    pad, unpad = padding(model, *x.shape[-2:])
    return F.pad(x, pad), unpad


def synchronized_time(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def remembered_transforms(model: CompressionModel) -> Iterator[None]:
    """In this context ``g_a`` and ``g_s`` do not compute twice what they have just computed.

    ``forward``, behind coding, calls ``g_a`` with the image that was encoded, and, where the decoder read what the
    encoder wrote, ``g_s`` with the latents that were decoded. That is half of the time.
    """
    changed = []
    for transform in (getattr(model, "g_a", None), getattr(model, "g_s", None)):
        if isinstance(transform, nn.Module) and "forward" not in vars(transform):
            transform.forward = _remembering(transform.forward)
            changed.append(transform)
    try:
        yield
    finally:
        for transform in changed:
            del transform.forward


def _remembering(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``forward`` that keeps the result of its last call."""
    last: tuple[Tensor, int, Tensor] | None = None

    def remembering(x: Tensor) -> Tensor:
        nonlocal last
        if last is None or last[0]._version != last[1] or not torch.equal(x, last[0]):
            last = x, x._version, forward(x)
        # CompressAI clamps the decoded image in place.
        return last[2].clone()

    return remembering


@contextmanager
def checked_latents() -> Iterator[None]:
    """In this context CompressAI's entropy models raise NotFinite on latents and scales that cannot be coded."""
    quantize, likelihood = EntropyModel.quantize, GaussianConditional._likelihood

    def checked_quantize(module: EntropyModel | None, inputs: Tensor, mode: str, means: Tensor | None = None) -> Tensor:
        _refuse("latents are", f" or beyond {LARGEST_SYMBOL}", inputs if means is None else inputs - means)
        return quantize(module, inputs, mode, means)

    def checked_likelihood(
        module: GaussianConditional, inputs: Tensor, scales: Tensor, means: Tensor | None = None
    ) -> Tensor:
        _refuse("scales of latents are", "", scales, math.inf)
        return likelihood(module, inputs, scales, means)

    # The classes, not their instances: the checkerboard codec calls `EntropyModel.quantize(None, y, mode)`.
    EntropyModel.quantize, GaussianConditional._likelihood = checked_quantize, checked_likelihood
    try:
        yield
    finally:
        EntropyModel.quantize, GaussianConditional._likelihood = quantize, likelihood


def _refuse(what: str, or_else: str, values: Tensor, end: float = LARGEST_SYMBOL + 1) -> None:
    """Raises NotFinite where a value is NaN, or its magnitude is ``end`` or more."""
    # Written so that a NaN fails too; one number first, because sound codecs are what this is called with.
    if values.numel() and not values.abs().max() < end:
        bad = int((values.abs() < end).logical_not().sum())
        raise NotFinite(
            f"its weights are finite, and {bad} of {values.numel()} {what} not{or_else}: the codec has diverged; take "
            "an earlier checkpoint"
        )


def check_output(output: Mapping[str, Any]) -> None:
    """Raises NotFinite where an image or likelihoods that ``forward`` gave are not finite."""
    _refuse("values of the decoded image are", "", output["x_hat"], math.inf)
    for name, likelihoods in output.get("likelihoods", {}).items():
        _refuse(f"likelihoods of {name} are", "", likelihoods, math.inf)


@torch.no_grad()
def code(model: CompressionModel, x: Tensor) -> Coded:
    """Compress `x` (1, 3, H, W), in [0, 1], to strings with the model's range coder, and decompress the strings.

    The model is in eval mode. Raises ValueError where its CDF tables were never made (`model.update()`), NotFinite
    where latents, likelihoods or image are not finite, and DecoderMismatch where only the decoded image is not, or is
    more than 1 dB worse than that of `model.forward`.
    """
    x_padded, unpad = padded(model, x)
    # Encoder and decoder must compute bitwise the same entropy parameters; cuDNN's choices may differ between calls.
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        checked_latents(),
        remembered_transforms(model),
    ):
        start = synchronized_time(x.device)
        encoded = model.compress(x_padded)
        middle = synchronized_time(x.device)
        decoded = model.decompress(encoded["strings"], encoded["shape"])["x_hat"]
        end = synchronized_time(x.device)
        output = model(x_padded)
    check_output(output)
    x_hat, expected = F.pad(decoded, unpad), F.pad(output["x_hat"], unpad)
    decoded_psnr, expected_psnr = psnr(x_hat, x).item(), psnr(expected, x).item()
    # Clamping to 8 bits makes a number of an infinite pixel.
    if not torch.isfinite(decoded).all() or decoded_psnr < expected_psnr - DECODER_TOLERANCE_DB:
        raise DecoderMismatch(
            f"the decoder did not reproduce what the encoder saw: PSNR {decoded_psnr:.2f} dB, without entropy coding "
            f"{expected_psnr:.2f} dB; code on the CPU (--device cpu)"
        )
    bits = 8 * sum(len(strings[0]) for strings in encoded["strings"])
    return Coded(to_8bit(x_hat) / 255, bits / (x.shape[-2] * x.shape[-1]), middle - start, end - middle)


@torch.no_grad()
def estimate(model: CompressionModel, x: Tensor) -> Coded:
    """`model.forward` in place of coding: the rate is `-sum(log2(likelihoods))`, an estimate, and no string is written.

    For autoregressive models, whose decoding takes seconds to minutes an image. Their `forward` is not the codec: it
    does not predict from decoded latents. As in `eval_model`, half the time counts as encoding and half as decoding.
    The model is in eval mode; `x` is (1, 3, H, W), in [0, 1]. Raises NotFinite as :func:`code`.
    """
    x_padded, unpad = padded(model, x)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True), checked_latents():
        start = synchronized_time(x.device)
        output = model(x_padded)
        elapsed = synchronized_time(x.device) - start
    check_output(output)
    bits = -sum(float(likelihoods.double().log2().sum()) for likelihoods in output["likelihoods"].values())
    x_hat = to_8bit(F.pad(output["x_hat"], unpad)) / 255
    return Coded(x_hat, bits / (x.shape[-2] * x.shape[-1]), elapsed / 2, elapsed / 2)


def evaluate(
    model: CompressionModel,
    images: ImageFolder,
    *,
    estimated: bool = False,
    decoded: str | os.PathLike[str] | None = None,
    progress: bool = False,
    measures: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Code each image (or estimate its rate) and return, for each, `{"source": name, "results": {...}}`.

    `results` holds `psnr-rgb` (dB), `ms-ssim-rgb`, `bpp`, `encoding_time` and `decoding_time` (s), as in `eval_model`.
    Those of `measures`, names of `metrics.MEASURES`, follow. With `decoded`, a folder, the decoded images are written
    there as PNG, in the subfolders they had. The model is left in eval mode. Raises CodingFailed, with the name of the
    image.
    """
    model.eval()
    device = next(model.parameters()).device
    coder = estimate if estimated else code
    inside = InsideAnImage(model, coder, progress)
    per_image = []
    for index, path in enumerate(tqdm(images.samples, disable=not progress)):
        x = to_tensor(images[index]).unsqueeze(0).to(device)
        try:
            with inside.of(path.name, x):
                coded = coder(model, x)
        except CodingFailed as error:
            raise type(error)(f"{path}: {error}") from error
        results = {
            "psnr-rgb": psnr(coded.x_hat, x).item(),
            "ms-ssim-rgb": ms_ssim_8bit(coded.x_hat, x).item(),
            "bpp": coded.bpp,
            "encoding_time": coded.encoding_time,
            "decoding_time": coded.decoding_time,
            **{name: MEASURES[name](coded.x_hat, x).item() for name in measures},
        }
        source = path.relative_to(images.root)
        per_image.append({"source": source.as_posix(), "results": results})
        if decoded is not None:
            target = Path(decoded) / source.with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image(to_8bit(coded.x_hat[0]).byte().cpu()).save(target)
    return per_image


def average(per_image: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean of every result over the images; each image counts the same, whatever its size."""
    return {key: fmean(image["results"][key] for image in per_image) for key in per_image[0]["results"]}


def open_images(dataset: str | os.PathLike[str]) -> ImageFolder:
    """The images of a folder, all of which can be decoded and are large enough for MS-SSIM.

    Raises:
        BadInput: no folder, no image in it, or one that is too small.
    """
    images = ImageFolder(dataset, decode=True)
    if images.skipped:
        print(f"skipped {images.skipped} files of {dataset} that are no images", file=sys.stderr)
    for path, (height, width) in zip(images.samples, images.sizes, strict=True):
        if min(height, width) < MS_SSIM_SMALLEST_SIDE:
            raise BadInput(
                f"--dataset {str(dataset)!r}: {path.name} has {height}x{width} pixels, and MS-SSIM needs "
                f"{MS_SSIM_SMALLEST_SIDE} on each side; take that image out"
            )
    return images


def document(
    name: str, points: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]], settings: dict[str, Any]
) -> dict[str, Any]:
    """The content of the JSON file: `points` are codecs, as `{"checkpoint": path}`, and their results of each image."""
    results: dict[str, list[float]] = {}
    for _, per_image in points:
        for key, value in average(per_image).items():
            results.setdefault(key, []).append(value)
    method = "entropy estimation" if settings["rate"] == "estimated" else get_entropy_coder()
    return {
        "name": name,
        "description": f"Inference ({method})",
        "results": results,
        "images": [codec | image for codec, per_image in points for image in per_image],
        "settings": settings,
    }


def check_names(images: ImageFolder, option: str) -> None:
    """Refuse images whose decoded files would overwrite each other."""
    names = Counter(path.relative_to(images.root).with_suffix("") for path in images.samples)
    name, count = names.most_common(1)[0]
    if count > 1:
        raise BadInput(f"{option}: {count} images are called {str(name)!r}; rename them to be told apart")
