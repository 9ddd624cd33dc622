"""Options that several commands share, and what they offer to choose from.

Nothing here imports torch: ``--help`` and a wrong option shall not wait for it.
"""

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svdrd.compress.errors import BadInput

METRICS = ("mse", "ms-ssim")
# Of decoded images, beside PSNR and MS-SSIM; images/metrics.py says what they are.
MEASURES = ("basis", "gmsd")
SCHEDULES = ("plateau", "constant", "cosine", "step")
PRECISIONS = ("fp32", "bf16", "fp16")
# Four halvings of an 11-pixel window: pytorch_msssim refuses anything smaller.
MS_SSIM_SMALLEST_SIDE = 161
LIC_TCM_ADDRESS = "https://github.com/jmliu206/LIC_TCM"


def add_metric_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metric", choices=METRICS, default="mse", help="distortion of the zoo's training (default: %(default)s)"
    )


def add_coding_arguments(parser: argparse.ArgumentParser, checkpoints: str) -> None:
    """A codec, its weights at one or more rates, and a folder of images; ``checkpoints`` is a help text."""
    add = parser.add_argument
    add("-m", "--model", required=True, help="a codec, such as bmshj2018-hyperprior; docs/guide/codecs.md has all")
    add("-d", "--dataset", required=True, help="folder of images, searched recursively")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", nargs="+", help=checkpoints)
    source.add_argument("-q", "--quality", nargs="+", type=int, help="one or more qualities of CompressAI's zoo")
    add_metric_argument(parser)
    add_codec_arguments(parser)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--cuda", dest="device", action="store_const", const="cuda", help="the same as --device cuda")


def add_codec_arguments(parser: Any) -> None:
    """``--model-args`` and ``--lic-tcm-repo``, for every command that loads a codec; ``parser`` may be a group."""
    parser.add_argument(
        "--model-args",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="size of a random model, or arguments of a factory: N=64 M=96",
    )
    parser.add_argument(
        "--lic-tcm-repo",
        type=_absolute,
        metavar="DIR",
        help=f"for --model lic-tcm: a checkout of {LIC_TCM_ADDRESS}",
    )


def codec_arguments(model_args: Sequence[str], lic_tcm_repo: str | None) -> dict[str, Any]:
    """What :func:`add_codec_arguments` parsed, for :func:`svdrd.compress.load_codec`."""
    return {**parse_model_args(model_args), "lic_tcm_repo": lic_tcm_repo}


def parse_model_args(words: Sequence[str]) -> dict[str, Any]:
    """``["N=64", "M=96"]`` to ``{"N": 64, "M": 96}``."""
    options: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise BadInput(f"--model-args {word}: wanted NAME=VALUE with a number, for example N=64 M=96") from error
    return options


def _absolute(path: str) -> str:
    """So that a run resumed from another folder finds it."""
    return str(Path(path).resolve())
