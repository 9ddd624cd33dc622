"""The points of all arms, from the JSON files that are given and from what has been coded, as curves."""

from collections.abc import Sequence
from dataclasses import replace

from svdrd.compress.comparison import results
from svdrd.compress.comparison.arms import Arm, Source
from svdrd.compress.comparison.curve import Curve
from svdrd.compress.comparison.results import DataSet, Point
from svdrd.compress.errors import BadInput

# The points of each arm, by data set, codec and arm.
Found = dict[tuple[str, str, str], list[tuple[Source, Point]]]


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
