"""Compares arms of fine-tuning with an anchor: BD-rate, RD loss at equal lambda, curves, crops side by side.

An arm is a codec at several rates: --arm base='base/*.pth.tar' --arm basis='runs/basis-*/checkpoint.pth.tar', or the
JSON files of svdrd evaluate in their place, or zoo:1-4. The first arm is the anchor. Files may be patterns; @0.013
behind one is the lambda of its training where the file does not know it; MODEL:NAME=... is an arm of another codec.
What has been coded is kept in OUTPUT/evaluations and not coded again. docs/guide/comparison.md has the definitions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from svdrd.compress import options
from svdrd.compress.comparison.arms import NAME, check_anchors, parse_arms
from svdrd.compress.errors import BadInput
from svdrd.compress.files import check_writable
from svdrd.compress.showing import show

if TYPE_CHECKING:
    from svdrd.compress.comparison.collection import Found
    from svdrd.compress.comparison.results import Point


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-m", "--model", help="the codec of arms that do not name theirs, such as bmshj2018-hyperprior")
    add(
        "-d",
        "--dataset",
        nargs="+",
        default=[],
        metavar="[NAME=]FOLDER",
        help="one or more folders of images, each a column of the table; not needed where all arms are JSON files",
    )
    add("-o", "--output", type=Path, required=True, help="folder for results, tables and figures")
    add(
        "--arm",
        nargs="+",
        action="append",
        required=True,
        metavar=("[MODEL:]NAME", "FILE"),
        help="an arm and its points, also as NAME=FILE,FILE: checkpoints, JSON files of svdrd evaluate, or zoo:1-4; "
        "once for each arm",
    )
    add("--anchor", nargs="+", default=[], help="arms to compare with (default: the first of each codec)")
    options.add_metric_argument(parser)
    options.add_codec_arguments(parser)
    add(
        "--estimate",
        "--entropy-estimation",
        action="store_true",
        help="estimate the rates instead of coding, for slow autoregressive models; said wherever a rate is shown",
    )
    add("--resamples", type=int, default=1000, help="of the images, for the intervals (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the resamples (default: %(default)s)")
    add(
        "--visual",
        nargs="*",
        metavar="IMAGE[:LEFT,TOP[,WIDTH,HEIGHT]]",
        help="draw crops side by side: of these images, or without any where the arms differ most",
    )
    add("--point", type=int, default=1, help="for --visual: which rate of each arm, 1 the lowest (default: 1)")
    add("--crops", type=int, default=3, help="for --visual without names: how many (default: %(default)s)")
    add("--crop-size", type=int, default=128, help="for --visual: side in pixels (default: %(default)s)")
    options.add_device_arguments(parser)


def run(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    args = parser.parse_args(argv)
    check_numbers(args.resamples, args.seed, args.point, args.crops, args.crop_size)
    codec_options = options.codec_arguments(args.model_args, args.lic_tcm_repo)
    check_writable("--output", args.output)
    arms = parse_arms(args.arm, args.model)
    check_anchors(arms, args.anchor)
    folders = data_folders(args.dataset)

    from svdrd.compress.comparison import collection, crops, results, side_by_side, tables, writing
    from svdrd.compress.comparison.differences import compare
    from svdrd.compress.devices import check_device
    from svdrd.compress.evaluation.coding import open_images

    check_device(args.device)
    to_draw = None
    if args.visual is not None:
        wishes = [crops.parse_wish(text) for text in args.visual]
        to_draw = side_by_side.Wanted(wishes, args.point, args.crop_size, args.crops)
    read = [(arm, source, point) for arm in arms for source, point in collection.results_of(arm)]
    to_code = [(arm, source) for arm in arms for source in arm.sources if source.results is None]
    if to_code and not folders:
        raise BadInput("--dataset: missing; give a folder of images, for example --dataset kodak=photographs/kodak")
    kept = results.Evaluations(args.output / "evaluations", args.estimate, args.device, args.metric, codec_options)
    data_sets = [kept.data_set(name, open_images(folder)) for name, folder in folders.items()]
    if to_draw is not None:
        side_by_side.check(to_draw, arms, data_sets)

    found: Found = {}
    for dataset, (arm, source, point) in zip(collection.data_sets_of(read, data_sets), read, strict=True):
        found.setdefault((dataset, point.settings["model"], arm.name), []).append((source, point))
    # A wrong file at the end of the list shows before hours of coding.
    for arm, source in to_code:
        if any(kept.find(arm, source, data_set) is None for data_set in data_sets):
            kept.load(arm, source)
    for arm, source in to_code:
        for data_set in data_sets:
            known = kept.find(arm, source, data_set)
            point = known or kept.code(arm, source, data_set)
            how = "kept" if known else "estimated" if args.estimate else "coded"
            found.setdefault((data_set.name, str(arm.model), arm.name), []).append((source, point))
            show(f"{data_set.name}, {arm.model}, {arm.name}, {source.label}: {described(point)} ({how})")

    curves = collection.curves_of(found, arms, data_sets)
    comparison = compare(curves, args.anchor, args.resamples, args.seed)
    written = writing.write_comparison(comparison, args.anchor, args.output)
    show(f"\n{tables.conventions(comparison)[0]}\n\n{tables.summary(comparison)}\n")
    show("\n".join(f"wrote {path}" for path in written))
    if to_draw is not None:
        drawn = side_by_side.draw(to_draw, kept, arms, data_sets, comparison, args.output)
        for crop in (crop for figure in drawn for crop in figure.crops):
            show(f"{crop.image}: {crop.width}x{crop.height} at {crop.left},{crop.top}: {crop.reason}")
        show("\n".join(f"wrote {figure.path}" for figure in drawn))
    return 0


def check_numbers(resamples: int, seed: int, point: int, crops: int, crop_size: int) -> None:
    limits = (
        ("--resamples", resamples, 100),
        ("--seed", seed, 0),
        ("--point", point, 1),
        ("--crops", crops, 1),
        ("--crop-size", crop_size, 8),
    )
    for option, value, limit in limits:
        if value < limit:
            raise BadInput(f"{option} {value}: wanted at least {limit}")


def data_folders(values: Sequence[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not equals or Path(value).is_dir():
            name, folder = Path(value).resolve().name, value
        if not NAME.fullmatch(name):
            raise BadInput(f"--dataset {value}: its name {name!r} is to be letters, digits, and . _ + - : NAME=FOLDER")
        if name in folders:
            raise BadInput(f"--dataset {value}: a second one of the name {name}; name them: NAME=FOLDER")
        folders[name] = Path(folder)
    return folders


def described(point: Point) -> str:
    """Rate and quality, means over the images."""
    bpp, psnr, ms_ssim = (
        fmean(image["results"][key] for image in point.images) for key in ("bpp", "psnr-rgb", "ms-ssim-rgb")
    )
    rate = "bpp (estimate)" if point.settings["rate"] == "estimated" else "bpp"
    return f"{bpp:.5f} {rate}, {psnr:.3f} dB, MS-SSIM {ms_ssim:.5f}"
