"""Compares arms of fine-tuning with an anchor: BD-rate, RD loss at equal lambda, curves, crops side by side.

An arm is a codec at several rates: --arm base='base/*.pth.tar' --arm basis='runs/basis-*/checkpoint.pth.tar', or the
JSON files of svdrd evaluate in their place, or zoo:1-4. The first arm is the anchor. Files may be patterns; @0.013
behind one is the lambda of its training where the file does not know it; MODEL:NAME=... is an arm of another codec.
What has been coded is kept in OUTPUT/evaluations and not coded again. docs/guide/comparison.md has the definitions.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from svdrd.compress.codecs.models import add_codec_arguments, codec_arguments
from svdrd.compress.comparison import crops, results
from svdrd.compress.comparison.arms import NAME, Arm, Source, parse_arms
from svdrd.compress.comparison.curve import Curve
from svdrd.compress.comparison.curve_figures import draw_curves, write_plot_json
from svdrd.compress.comparison.differences import Comparison, anchors_of, compare, groups
from svdrd.compress.comparison.results import DataSet, Evaluations, Point, file_name
from svdrd.compress.comparison.table_files import write_tables
from svdrd.compress.comparison.tables import conventions, summary
from svdrd.compress.criterion import METRICS
from svdrd.compress.errors import BadInput
from svdrd.compress.evaluation.coding import average, check_device, check_names, open_images

# The points of each arm, by data set, codec and arm.
Found = dict[tuple[str, str, str], list[tuple[Source, Point]]]


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
    add("--metric", choices=METRICS, default="mse", help="distortion of the zoo's training (default: %(default)s)")
    add_codec_arguments(parser)
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
    add("--device", default="cpu", help="(default: %(default)s)")
    add("--cuda", dest="device", action="store_const", const="cuda", help="the same as --device cuda")


def main(argv: Sequence[str] | None = None) -> int:
    """Compares as the arguments say.

    Returns:
        0, also where some numbers could not be given; the tables say why.

    Raises:
        BadInput: an argument cannot work, or results that must not be compared.
        Stopped: a decoder did not reproduce what the encoder saw.

    """
    parser = argparse.ArgumentParser(prog="svdrd compare", description=__doc__)
    add_arguments(parser)
    return run(parser, argv)


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    args = parser.parse_args(argv)
    check_arguments(args)
    wishes = None if args.visual is None else [crops.parse_wish(text) for text in args.visual]
    arms = parse_arms(args.arm, args.model)
    check_anchors(arms, args.anchor)
    read = [(arm, source, point) for arm in arms for source, point in results_of(arm)]
    to_code = [(arm, source) for arm in arms for source in arm.sources if source.results is None]
    folders = data_folders(args.dataset)
    if to_code and not folders:
        raise BadInput("--dataset: missing; give a folder of images, for example --dataset kodak=photographs/kodak")
    kept = Evaluations(args.output / "evaluations", args.estimate, args.device, args.metric, codec_arguments(args))
    data_sets = [kept.data_set(name, open_images(folder)) for name, folder in folders.items()]
    if wishes is not None:
        check_visual(wishes, args.point, arms, data_sets)

    found: Found = {}
    for dataset, (arm, source, point) in zip(data_sets_of(read, data_sets), read, strict=True):
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
            print(f"{data_set.name}, {arm.model}, {arm.name}, {source.label}: {described(point)} ({how})", flush=True)

    comparison = compare(curves_of(found, arms, data_sets), args.anchor, args.resamples, args.seed)
    written = write(comparison, args.anchor, args.output)
    print(f"\n{conventions(comparison)[0]}\n\n{summary(comparison)}\n")
    print("\n".join(f"wrote {path}" for path in written), flush=True)
    if wishes is not None:
        drawn = draw_visual(args, wishes, kept, arms, data_sets, comparison)
        print("\n".join(f"wrote {path}" for path in drawn))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    for name, limit in (("resamples", 100), ("seed", 0), ("point", 1), ("crops", 1), ("crop_size", 8)):
        value = getattr(args, name)
        if value < limit:
            raise BadInput(f"--{name.replace('_', '-')} {value}: wanted at least {limit}")
    check_device(args.device)
    existing = next(folder for folder in [args.output, *args.output.absolute().parents] if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise BadInput(f"--output {str(args.output)!r}: {str(existing)!r} is not a folder that can be written to")


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


def check_anchors(arms: Sequence[Arm], anchors: Sequence[str]) -> None:
    if len(arms) < 2:
        raise BadInput(f"--arm {arms[0].name}: the only one; give another --arm to compare it with")
    for anchor in anchors:
        if anchor not in [arm.name for arm in arms]:
            raise BadInput(f"--anchor {anchor}: no such arm; there are {', '.join(arm.name for arm in arms)}")


def results_of(arm: Arm) -> list[tuple[Source, Point]]:
    """The points that are in the arm's JSON files."""
    found = []
    for source in arm.sources:
        if source.results is None:
            continue
        points = results.read(source.results)
        for point in points:
            if arm.model not in (None, point.settings["model"]):
                raise BadInput(f"--arm {arm.name}: {source.results} is of {point.settings['model']}, not {arm.model}")
            number = f"-{points.index(point) + 1}" if len(points) > 1 else ""
            found.append((source, replace(point, label=source.label + number)))
        if source.lmbda is not None and len(points) > 1:
            raise BadInput(f"--arm {arm.name}: {source.results}@{source.lmbda:g}: one lambda for {len(points)} points")
    return found


def data_sets_of(read: Sequence[tuple[Arm, Source, Point]], data_sets: Sequence[DataSet]) -> list[str]:
    """For each point of a JSON file the name of its data set: by its images, whatever the folder was called."""
    names = {data_set.settings["images"]: data_set.name for data_set in data_sets}
    for _, source, point in read:
        images, name = point.settings["images"], point.settings["dataset"]
        if images in names:
            continue
        if data_sets:
            raise BadInput(
                f"{source.results}: not of the images of {' or '.join(data_set.name for data_set in data_sets)}: "
                f"{len(point.images)} images, digest {images[:8]}; evaluate it on them"
            )
        if name in names.values():
            other = next(point for _, _, point in read if names.get(point.settings["images"]) == name)
            raise BadInput(
                f"{source.results}: of another {name} than the results before it: "
                f"{results.difference(other, point)}; evaluate all arms on the same images"
            )
        names[images] = name
    return [names[point.settings["images"]] for _, _, point in read]


def curves_of(found: Found, arms: Sequence[Arm], data_sets: Sequence[DataSet]) -> list[Curve]:
    """The curves by data set, codec and arm, in the order of the command line."""
    datasets = [data_set.name for data_set in data_sets] or list(dict.fromkeys(dataset for dataset, _, _ in found))
    curves = []
    for dataset in datasets:
        of_set = [
            (f"{arm} {point.label}", point)
            for (of, _, arm), points in found.items()
            if of == dataset
            for _, point in points
        ]
        results.check_comparable(dataset, of_set)
        for arm in arms:
            keys = [key for key in found if (key[0], key[2]) == (dataset, arm.name) and arm.model in (None, key[1])]
            if len(keys) != 1:
                what = "no results" if not keys else f"results of {' and '.join(key[1] for key in keys)}"
                raise BadInput(f"--arm {arm.name}: {what} for {dataset}; every arm is of one codec on every data set")
            curves.append(results.curve(arm.name, keys[0][1], dataset, found[keys[0]]))
    return curves


def described(point: Point) -> str:
    mean = average(point.images)
    rate = "bpp (estimate)" if point.settings["rate"] == "estimated" else "bpp"
    return f"{mean['bpp']:.5f} {rate}, {mean['psnr-rgb']:.3f} dB, MS-SSIM {mean['ms-ssim-rgb']:.5f}"


def write(comparison: Comparison, anchors: Sequence[str], folder: Path) -> list[Path]:
    """Tables, figures and plot files; what was written."""
    figures = []
    for group in groups(comparison.curves):
        for anchor in anchors_of(group, anchors):
            behind = [] if len(anchors) < 2 else [f"over-{anchor.arm}"]
            figures.append(folder / f"{file_name('rd', group[0].codec, group[0].dataset, *behind)}.png")
            draw_curves(group, anchor.arm, comparison.bd_rates, figures[-1])
    plots = []
    for curve in comparison.curves:
        plots.append(folder / "curves" / curve.dataset / f"{file_name(curve.codec, curve.arm)}.json")
        write_plot_json(curve, plots[-1])
    return [*write_tables(comparison, folder, [figure.name for figure in figures]), *figures, *plots]


def check_visual(wishes: Sequence[crops.Wish], point: int, arms: Sequence[Arm], data_sets: Sequence[DataSet]) -> None:
    for arm in arms:
        for source in arm.sources:
            if source.results is not None:
                raise BadInput(
                    f"--visual: {source.results} of {arm.name} holds numbers and no images; give the checkpoints of "
                    "that arm in its place"
                )
        if point > len(arm.sources):
            raise BadInput(f"--point {point}: {arm.name} has {len(arm.sources)}")
    for data_set in data_sets:
        check_names(data_set.images, "--visual")
    for wish in wishes:
        names = [[data_set.images.name(index) for index in range(len(data_set.images))] for data_set in data_sets]
        if all(crops.find_image(wish.image, images) is None for images in names):
            where = " or ".join(data_set.name for data_set in data_sets)
            raise BadInput(f"--visual {wish.image}: no such image in {where}; for example {Path(names[0][0]).stem}")


def draw_visual(
    args: argparse.Namespace,
    wishes: Sequence[crops.Wish],
    kept: Evaluations,
    arms: Sequence[Arm],
    data_sets: Sequence[DataSet],
    comparison: Comparison,
) -> list[Path]:
    """A figure for each data set and codec; what was written."""
    written = []
    by_name = {(arm.model, arm.name): arm for arm in arms}
    for group in groups(comparison.curves):
        data_set = next(data_set for data_set in data_sets if data_set.name == group[0].dataset)
        check_same_lambda(group, args.point)
        images = group[0].images
        originals = {image: data_set.images.root / image for image in images}
        decoded, captions = {}, {}
        for curve in group:
            arm = by_name[curve.codec, curve.arm]
            label = curve.points[args.point - 1]
            source = next(source for source in arm.sources if source.label == label)
            folder = kept.decode(arm, source, data_set)
            decoded[curve.arm] = {image: folder / Path(image).with_suffix(".png") for image in images}
            rate = "bpp (estimate)" if curve.estimated else "bpp"
            captions[curve.arm] = {
                image: f"{bpp:.4f} {rate}, {psnr:.2f} dB"
                for image, bpp, psnr in zip(images, curve.bpp[args.point - 1], curve.psnr[args.point - 1], strict=True)
            }
        chosen = crops.choose(wishes, originals, decoded, args.crop_size, args.crops)
        if not chosen:
            continue
        how = "crops chosen by name" if wishes else "crops where the squared errors of two arms differ most"
        lmbda = group[0].lmbda[args.point - 1]
        at = f"rate {args.point} of {len(group[0].points)}" if lmbda is None else f"lambda {lmbda:g}"
        written.append(args.output / f"{file_name('visual', group[0].codec, data_set.name)}.png")
        title = f"{group[0].codec} on {data_set.name}, {at}: {how}"
        crops.draw_crops(chosen, originals, decoded, captions, title, written[-1])
        for crop in chosen:
            print(f"{crop.image}: {crop.width}x{crop.height} at {crop.left},{crop.top}: {crop.reason}")
    return written


def check_same_lambda(group: Sequence[Curve], point: int) -> None:
    known = {curve.arm: curve.lmbda[point - 1] for curve in group if curve.lmbda[point - 1] is not None}
    if len(set(known.values())) > 1:
        values = ", ".join(f"{lmbda:g} in {arm}" for arm, lmbda in known.items())
        raise BadInput(f"--point {point}: has lambda {values}; give every arm the same lambdas, or another point")
