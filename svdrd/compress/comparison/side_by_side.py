"""Crops of the arms side by side: what can be drawn, and drawing it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from svdrd.compress.comparison import crops
from svdrd.compress.comparison.arms import Arm
from svdrd.compress.comparison.curve import Curve
from svdrd.compress.comparison.differences import Comparison, groups
from svdrd.compress.comparison.results import DataSet, Evaluations, file_name
from svdrd.compress.errors import BadInput
from svdrd.compress.evaluation.coding import check_names


@dataclass(frozen=True)
class Wanted:
    """What to draw: the crops of ``wishes``, or without any the ``count`` crops of ``size`` where the arms differ most.

    ``point`` is the rate of each arm, 1 the lowest.
    """

    wishes: Sequence[crops.Wish]
    point: int
    size: int
    count: int


@dataclass(frozen=True)
class Drawn:
    """A figure and the crops in it."""

    path: Path
    crops: Sequence[crops.Crop]


def check(wanted: Wanted, arms: Sequence[Arm], data_sets: Sequence[DataSet]) -> None:
    """Refuses, before hours of coding, crops that could not be drawn after them."""
    for arm in arms:
        for source in arm.sources:
            if source.results is not None:
                raise BadInput(
                    f"--visual: {source.results} of {arm.name} holds numbers and no images; give the checkpoints of "
                    "that arm in its place"
                )
        if wanted.point > len(arm.sources):
            raise BadInput(f"--point {wanted.point}: {arm.name} has {len(arm.sources)}")
    for data_set in data_sets:
        check_names(data_set.images, "--visual")
    for wish in wanted.wishes:
        names = [[data_set.images.name(index) for index in range(len(data_set.images))] for data_set in data_sets]
        if all(crops.find_image(wish.image, images) is None for images in names):
            where = " or ".join(data_set.name for data_set in data_sets)
            raise BadInput(f"--visual {wish.image}: no such image in {where}; for example {Path(names[0][0]).stem}")


def draw(
    wanted: Wanted,
    kept: Evaluations,
    arms: Sequence[Arm],
    data_sets: Sequence[DataSet],
    comparison: Comparison,
    output: Path,
) -> list[Drawn]:
    """A figure in ``output`` for each data set and codec."""
    drawn = []
    point = wanted.point
    by_name = {(arm.model, arm.name): arm for arm in arms}
    for group in groups(comparison.curves):
        data_set = next(data_set for data_set in data_sets if data_set.name == group[0].dataset)
        check_same_lambda(group, point)
        images = group[0].images
        originals = {image: data_set.images.root / image for image in images}
        decoded, captions = {}, {}
        for curve in group:
            arm = by_name[curve.codec, curve.arm]
            label = curve.points[point - 1]
            source = next(source for source in arm.sources if source.label == label)
            folder = kept.decode(arm, source, data_set)
            decoded[curve.arm] = {image: folder / Path(image).with_suffix(".png") for image in images}
            rate = "bpp (estimate)" if curve.estimated else "bpp"
            captions[curve.arm] = {
                image: f"{bpp:.4f} {rate}, {psnr:.2f} dB"
                for image, bpp, psnr in zip(images, curve.bpp[point - 1], curve.psnr[point - 1], strict=True)
            }
        chosen = crops.choose(wanted.wishes, originals, decoded, wanted.size, wanted.count)
        if not chosen:
            continue
        how = "crops chosen by name" if wanted.wishes else "crops where the squared errors of two arms differ most"
        lmbda = group[0].lmbda[point - 1]
        at = f"rate {point} of {len(group[0].points)}" if lmbda is None else f"lambda {lmbda:g}"
        path = output / f"{file_name('visual', group[0].codec, data_set.name)}.png"
        title = f"{group[0].codec} on {data_set.name}, {at}: {how}"
        crops.draw_crops(chosen, originals, decoded, captions, title, path)
        drawn.append(Drawn(path, chosen))
    return drawn


def check_same_lambda(group: Sequence[Curve], point: int) -> None:
    known = {curve.arm: curve.lmbda[point - 1] for curve in group if curve.lmbda[point - 1] is not None}
    if len(set(known.values())) > 1:
        values = ", ".join(f"{lmbda:g} in {arm}" for arm, lmbda in known.items())
        raise BadInput(f"--point {point}: has lambda {values}; give every arm the same lambdas, or another point")
