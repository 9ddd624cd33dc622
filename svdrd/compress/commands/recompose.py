"""Recomposes: what a codec's images would gain from the singular vectors of the originals.

For every image and rate, three pictures and their PSNR: LQ, as decoded; in pixel space, U_hq S_lq V_hq^T of each
channel, with the singular values of the decoded image on the bases of the original; in latent space, the same of each
latent channel, the original's being the encoder's output before quantisation, decoded by the synthesis transform. The
matrices are patches, or with --whole whole images. docs/guide/recomposition.md says what the numbers mean.

Rate and PSNR are those of svdrd evaluate: real coding, 8-bit images, means over the images. Both recomposed pictures
need the original: they say what is lost by bases, and are no codec.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svdrd.compress import options
from svdrd.compress.files import check_writable
from svdrd.compress.showing import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    options.add_coding_arguments(parser, "one checkpoint for each rate")
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
    options.add_device_arguments(parser)


def run(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    args = parser.parse_args(argv)
    codec_options = options.codec_arguments(args.model_args, args.lic_tcm_repo)
    check_writable("--output", args.output)

    from svdrd.compress.devices import check_device
    from svdrd.compress.evaluation import recomposed_folder
    from svdrd.compress.evaluation.coding import codecs_of, load_codecs
    from svdrd.compress.images.folders import ImageFolder

    check_device(args.device)
    images = ImageFolder(args.dataset, decode=True)
    if images.skipped:
        print(f"skipped {images.skipped} files of {args.dataset} that are no images", file=sys.stderr)
    codecs = codecs_of(args.checkpoint, args.quality)
    models = load_codecs(args.model, args.metric, codecs, codec_options)
    folder = recomposed_folder.RecomposedFolder(
        images,
        args.model,
        args.metric,
        None if args.whole else args.patch_size,
        args.estimate,
        args.device,
        recomposed_folder.index_of(images, args.show),
    )
    folder.check(models)
    rates = [folder.at_rate(codec, model) for codec, model in zip(codecs, models, strict=True)]
    rates.sort(key=lambda rate: rate["results"]["bpp"])
    folder.write(rates, args.output)
    show(table(args.model, rates, [recomposed_folder.label(rate) for rate in rates], args.estimate))
    show(f"in {args.output}: {', '.join(recomposed_folder.FILES)}")
    return 0


def table(model: str, rates: Sequence[dict[str, Any]], labels: Sequence[str], estimated: bool) -> str:
    """A line a rate: the PSNR of the three pictures."""
    bpp = "bpp (estimate)" if estimated else "bpp"
    width = max(map(len, labels))
    lines = [f"{model:{width}}  {bpp:>14}  PSNR of LQ (dB)   latent space    pixel space"]
    for rate, label in zip(rates, labels, strict=True):
        results = rate["results"]
        line = f"{label:{width}}  {results['bpp']:14.4f}  {results['psnr_lq']:15.3f}"
        for key in ("psnr_latent", "psnr_pixel"):
            line += f"  {results[key]:6.3f} ({results[key] - results['psnr_lq']:+5.2f})"
        lines.append(line)
    return "\n".join(lines)
