"""Evaluation results with a cache on disk.

A point is coded once per (weights by their SHA-256, images by their contents, codec, kind of rate); later calls read
its JSON file.
"""

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from svdrd.compress.codecs.models import load_codec
from svdrd.compress.comparison.arms import Arm, Source
from svdrd.compress.comparison.curve import Curve
from svdrd.compress.compressai import CompressionModel
from svdrd.compress.errors import BadInput, Stopped
from svdrd.compress.evaluation.coding import CodingFailed, document, evaluate, make_ready
from svdrd.compress.evaluation.provenance import origin, settings_of, weights_of
from svdrd.compress.files import read_text, write_json
from svdrd.compress.images.folders import ImageFolder

EVALUATE_AGAIN = "evaluate it with svdrd evaluate -o, or give its checkpoints"
# What two results must have in common to be compared.
COMPARABLE = ("images", "rate", "quality")
# What makes a kept result the one that would come out again.
IDENTITY = ("model", *COMPARABLE)


@dataclass(frozen=True)
class DataSet:
    """A folder of images, and the settings that its results have, but for those of the codec."""

    name: str
    images: ImageFolder
    settings: dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One codec on one data set: `images` as in the JSON file, `origin` as :func:`provenance.origin`."""

    label: str
    settings: dict[str, Any]
    origin: dict[str, Any]
    images: list[dict[str, Any]]


def read(path: str | os.PathLike[str]) -> list[Point]:
    """The points of a JSON file of `svdrd evaluate`, in its order.

    Raises:
        BadInput: not such a file, or of a version that did not write how its numbers came about.
    """
    try:
        content = json.loads(read_text(path))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; {EVALUATE_AGAIN}") from error
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error}); {EVALUATE_AGAIN}") from error
    if not isinstance(content, dict) or not {"results", "images", "settings"} <= content.keys():
        raise BadInput(
            f"{path}: has no results of single images with the settings they were made with, so nobody can tell "
            f"whether they may be compared; {EVALUATE_AGAIN}"
        )
    try:
        settings, origins, images = content["settings"], content["settings"]["points"], content["images"]
        each, remainder = divmod(len(images), len(origins))
        missing = [key for key in IDENTITY if key not in settings]
        if remainder or not each or missing:
            raise ValueError(f"{len(images)} results of {len(origins)} codecs; settings without {missing}")
        points = []
        for k, made in enumerate(origins):
            rows = images[k * each : (k + 1) * each]
            for row in rows:
                for key in ("bpp", "psnr-rgb", "ms-ssim-rgb"):
                    # An image that is equal to the original has an infinite PSNR.
                    value = float(row["results"][key])
                    if math.isnan(value) or (math.isinf(value) and key != "psnr-rgb"):
                        raise ValueError(f"the {key} of {row['source']} is {value}: its weights were not finite")
                str(row["source"])
            points.append(
                Point(Path(path).stem if len(origins) == 1 else f"{Path(path).stem}-{k + 1}", settings, made, rows)
            )
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise BadInput(f"{path}: not as svdrd evaluate writes it ({error}); {EVALUATE_AGAIN}") from error
    return points


class Evaluations:
    """Codes what is not in `folder` yet, and keeps it there, a file a point.

    Args:
        folder: searched for kept results, and written to.
        estimated: estimates the rates instead of coding.
        device: to compute on.
        metric: of the zoo's weights.
        options: of :func:`svdrd.compress.codecs.models.load_codec`, for all codecs alike.
    """

    def __init__(
        self, folder: Path, estimated: bool, device: str, metric: str, options: dict[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.estimated = estimated
        self.device = device
        self.metric = metric
        self.options = options or {}
        self.kept: dict[tuple[str, ...], Point] = {}
        for path in sorted(folder.rglob("*.json")):
            try:
                for point in read(path):
                    self.kept[self._key(point.settings, point.origin["weights"])] = point
            except BadInput as error:
                # Of an older version, or not ours: made again where it is needed.
                print(f"ignored {error}", file=sys.stderr)

    def data_set(self, name: str, images: ImageFolder) -> DataSet:
        return DataSet(name, images, settings_of("", images, self.estimated, self.device))

    def load(self, arm: Arm, source: Source) -> CompressionModel:
        """Raises BadInput where the weights are no such codec."""
        assert arm.model is not None
        return load_codec(arm.model, metric=self.metric, **source.codec, **self.options)

    def find(self, arm: Arm, source: Source, data_set: DataSet) -> Point | None:
        """The kept result of a point, if there is one."""
        settings = data_set.settings | {"model": arm.model}
        point = self.kept.get(self._key(settings, weights_of(self.metric, source.codec)))
        return None if point is None else replace(point, label=source.label)

    def decode(self, arm: Arm, source: Source, data_set: DataSet) -> Path:
        """The folder of the decoded images of a point, coded again where they are not there yet."""
        assert arm.model is not None
        folder = self.folder.parent / "decoded" / data_set.name / file_name(arm.model, arm.name) / source.label
        key = list(self._key(data_set.settings | {"model": arm.model}, weights_of(self.metric, source.codec)))
        # Written last: with it the folder is complete, and of these weights.
        made = folder / "made.json"
        if not (made.is_file() and json.loads(read_text(made)) == key):
            made.unlink(missing_ok=True)
            self.code(arm, source, data_set, decoded=folder)
            write_json(made, key)
        return folder

    def code(self, arm: Arm, source: Source, data_set: DataSet, decoded: Path | None = None) -> Point:
        """Codes the images and keeps the result; with `decoded`, a folder, the decoded images, too.

        Raises:
            Stopped: the codec does not code an image, or its decoder does not reproduce what the encoder saw.
        """
        assert arm.model is not None
        made = origin(arm.model, self.metric, source.codec)
        model = make_ready(self.load(arm, source), source.codec, self.device)
        progress = sys.stderr.isatty()
        try:
            images = evaluate(model, data_set.images, estimated=self.estimated, decoded=decoded, progress=progress)
        except CodingFailed as error:
            raise Stopped(f"{arm.name}, {source.label}: {error}") from error
        settings = data_set.settings | {"model": arm.model, "dataset": data_set.name, "points": [made]}
        content = document(f"{arm.model}-{arm.name}", [(source.codec, images)], settings)
        path = self.folder / data_set.name / file_name(arm.model, arm.name) / f"{source.label}.json"
        write_json(path, content)
        point = Point(source.label, settings, made, content["images"])
        self.kept[self._key(settings, made["weights"])] = point
        return point

    def _key(self, settings: dict[str, Any], weights: str) -> tuple[str, ...]:
        return (*(str(settings[key]) for key in IDENTITY), weights)


def file_name(*names: str) -> str:
    """Of an arm of a codec; the colon of a `package.module:factory` is not allowed everywhere."""
    return "-".join(names).replace(":", ".")


def curve(arm: str, codec: str, dataset: str, points: Sequence[tuple[Source, Point]]) -> Curve:
    """The points of an arm on a data set, as numbers. All have the same images, in the same order."""

    def numbers(key: str) -> Any:
        return np.array([[image["results"][key] for image in point.images] for _, point in points], np.float64)

    return Curve(
        arm,
        codec,
        dataset,
        tuple(image["source"] for image in points[0][1].images),
        tuple(point.label for _, point in points),
        numbers("bpp"),
        numbers("psnr-rgb"),
        numbers("ms-ssim-rgb"),
        tuple(source.lmbda if source.lmbda is not None else point.origin.get("lambda") for source, point in points),
        tuple(point.origin.get("metric") for _, point in points),
        tuple(point.origin.get("mu") for _, point in points),
        points[0][1].settings["rate"] == "estimated",
    ).sorted()


def check_comparable(dataset: str, points: Sequence[tuple[str, Point]]) -> None:
    """Refuses results that were not made in the same way; each comes with what to call it.

    Raises:
        BadInput: names the two and the setting in which they differ.
    """
    (first_name, first), *others = points
    for name, point in others:
        for key in COMPARABLE:
            if point.settings[key] != first.settings[key]:
                values = f"{first.settings[key]} and {point.settings[key]}"
                if key == "images":
                    values = difference(first, point)
                raise BadInput(
                    f"{first_name} and {name} on {dataset}: not to be compared, their {key} differ: {values}; "
                    "evaluate both in the same way"
                )


def difference(first: Point, second: Point) -> str:
    names = [[image["source"] for image in point.images] for point in (first, second)]
    alone = sorted(set(names[0]) ^ set(names[1]))
    if alone:
        return f"{len(names[0])} and {len(names[1])} images, {alone[0]} only in one"
    return f"the same {len(names[0])} names with other contents"
