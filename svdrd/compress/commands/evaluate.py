"""Evaluates a codec: what it really costs and gives, over a folder of full-size images.

The numbers are defined as in CompressAI's eval_model: the rate is the length of the range coder's output, PSNR and
MS-SSIM compare 8-bit images, and the averages are means over the images. The JSON file has eval_model's form, with
the results of each image added under "images", and under "settings" what svdrd compare needs to know of how they came
about.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svdrd.compress import options
from svdrd.compress.errors import BadInput, Stopped
from svdrd.compress.files import check_writable, write_json
from svdrd.compress.showing import show

COLUMNS = ("bpp", "psnr-rgb", "ms-ssim-rgb", "encoding_time", "decoding_time")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    options.add_coding_arguments(parser, "one or more checkpoints of svdrd finetune or CompressAI")
    add("--estimate", action="store_true", help="estimate the rate instead of coding, for slow autoregressive models")
    add(
        "--also",
        nargs="+",
        choices=options.MEASURES,
        default=[],
        metavar="MEASURE",
        help=f"measures of the decoded images beside PSNR and MS-SSIM: {', '.join(options.MEASURES)}",
    )
    add("-o", "--output", type=Path, help="JSON file, in the form of CompressAI's eval_model")
    add("--decoded", type=Path, help="folder for the decoded images (PNG)")
    options.add_device_arguments(parser)


def run(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    args = parser.parse_args(argv)
    codec_options = options.codec_arguments(args.model_args, args.lic_tcm_repo)
    check_output(args.output, args.decoded, len(args.checkpoint or args.quality))

    from svdrd.compress.devices import check_device
    from svdrd.compress.evaluation import coding, provenance

    check_device(args.device)
    images = coding.open_images(args.dataset)
    if args.decoded is not None:
        coding.check_names(images, "--decoded")
    codecs = coding.codecs_of(args.checkpoint, args.quality)
    models = coding.load_codecs(args.model, args.metric, codecs, codec_options)
    points = []
    for codec, model in zip(codecs, models, strict=True):
        coding.make_ready(model, codec, args.device)
        try:
            coded = coding.evaluate(
                model,
                images,
                estimated=args.estimate,
                decoded=args.decoded,
                progress=sys.stderr.isatty(),
                measures=args.also,
            )
        except coding.CodingFailed as error:
            raise Stopped(str(error)) from error
        points.append((codec, coded))
        if args.output is not None and len(points) == len(codecs):
            made = provenance.settings_of(args.model, images, args.estimate, args.device)
            made["points"] = [provenance.origin(args.model, args.metric, codec) for codec in codecs]
            # Whole or not at all: who finds the file takes it for all of the images.
            write_json(args.output, coding.document(f"{args.model}-{args.metric}", points, made))
        show(f"{args.model} {' '.join(f'{key} {value}' for key, value in codec.items())}")
        show(table(coded, coding.average(coded), args.estimate, args.also))
    return 0


def check_output(output: Path | None, decoded: Path | None, codecs: int) -> None:
    """Refuses, before hours of coding, what could not be written after them."""
    if output is not None:
        if output.is_dir():
            raise BadInput(f"--output {str(output)!r}: a folder; give the path of a JSON file")
        if not output.parent.is_dir():
            raise BadInput(f"--output {str(output)!r}: no folder {str(output.parent)!r}; make it first")
        check_writable("--output", output.parent, "choose another folder")
    if decoded is not None:
        if codecs > 1:
            raise BadInput("--decoded: the images of several codecs would overwrite each other; give one codec a call")
        check_writable("--decoded", decoded)


def table(
    per_image: Sequence[dict[str, Any]], mean: dict[str, float], estimated: bool, measures: Sequence[str] = ()
) -> str:
    """The results as text, a line an image and one for the mean."""
    bpp = "bpp (estimate)" if estimated else "bpp"
    width = max(len(image["source"]) for image in [*per_image, {"source": "image"}])
    heading = f"{'image':{width}}  {bpp:>14}  PSNR (dB)  MS-SSIM  encode (s)  decode (s)"
    lines = [heading + "".join(f"  {name:>8}" for name in measures)]
    for image in [*per_image, {"source": "mean", "results": mean}]:
        rate, psnr_rgb, ms_ssim_rgb, *times = (image["results"][key] for key in COLUMNS)
        line = f"{image['source']:{width}}  {rate:14.4f}  {psnr_rgb:9.3f}  {ms_ssim_rgb:7.5f}"
        line += "".join(f"  {seconds:10.3f}" for seconds in times)
        lines.append(line + "".join(f"  {image['results'][name]:8.6f}" for name in measures))
    return "\n".join(lines)
