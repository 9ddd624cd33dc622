"""The same crop of the original and of what each arm decodes, side by side (the paper's Fig. 3).

Without a wish the crops are taken where two arms differ most: the window, at most one an image, in which the mean
squared errors of two arms, over its pixels and the colours, are furthest apart. These are extremes and no fair sample
of what one sees; the figure says so.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from svdrd.compress.errors import BadInput
from svdrd.compress.images.folders import read_image
from svdrd.compress.showing import in_a_figure

Pixels = npt.NDArray[np.float64]

WISH = re.compile(r"(?P<image>.+?)(?::(?P<box>\d+(?:,\d+)+))?")


@dataclass(frozen=True)
class Wish:
    """An image by name, and where in it: (left, top) or (left, top, width, height), or None for where arms differ."""

    image: str
    box: tuple[int, ...] | None


@dataclass(frozen=True)
class Crop:
    """A window of an image; `reason` is why this one."""

    image: str
    left: int
    top: int
    width: int
    height: int
    reason: str


def parse_wish(text: str) -> Wish:
    """`kodim07`, `kodim07:256,128` (left, top) or `kodim07:256,128,96,96` (and width, height)."""
    match = WISH.fullmatch(text)
    if match is None:
        raise BadInput("--visual: an empty name; wanted IMAGE, IMAGE:LEFT,TOP or IMAGE:LEFT,TOP,WIDTH,HEIGHT")
    if match["box"] is None:
        return Wish(text, None)
    box = tuple(map(int, match["box"].split(",")))
    if len(box) not in (2, 4) or 0 in box[2:]:
        raise BadInput(
            f"--visual {text}: wanted IMAGE:LEFT,TOP or IMAGE:LEFT,TOP,WIDTH,HEIGHT in pixels, sides above 0"
        )
    return Wish(match["image"], box)


def find_image(name: str, images: Sequence[str]) -> str | None:
    """The one of `images` (paths below the data set's folder) that `name` names, with or without folder and suffix."""
    found = [i for i in images if name in (i, Path(i).name, Path(i).stem, Path(i).with_suffix("").as_posix())]
    if len(found) > 1:
        raise BadInput(f"--visual {name}: could be {' or '.join(found)}; give its path below the folder")
    return found[0] if found else None


def pixels(path: Path) -> Pixels:
    """(H, W, 3), 0 to 255."""
    return np.asarray(read_image(path), np.float64)


def squared_error(decoded: Pixels, original: Pixels) -> Pixels:
    """The mean over the colours of each pixel, (H, W)."""
    return np.asarray(np.square(decoded - original).mean(axis=2))


def window_means(values: Pixels, height: int, width: int) -> Pixels:
    """The mean of `values` (H, W) over every window of that size: (H - height + 1, W - width + 1)."""
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    windows = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    return np.asarray(windows / (height * width))


def largest_difference(errors: Mapping[str, Pixels], side: int) -> tuple[float, Crop]:
    """Of one image, the window in which two arms' errors (H, W) are furthest apart, and by how much; image left empty.

    The side is cut to the image where that is smaller. Of equal windows the first is taken, row by row.
    """
    shape = next(iter(errors.values())).shape
    height, width = min(side, shape[0]), min(side, shape[1])
    best, crop = -1.0, Crop("", 0, 0, width, height, "all arms are equal")
    for (one, one_error), (other, other_error) in itertools.combinations(errors.items(), 2):
        means = window_means(one_error - other_error, height, width)
        top, left = np.unravel_index(int(np.abs(means).argmax()), means.shape)
        difference = float(means[top, left])
        if abs(difference) > best:
            best = abs(difference)
            worse, better = (one, other) if difference > 0 else (other, one)
            reason = f"MSE here: {better} {best:.3g} below {worse}" if best else "all arms are equal"
            crop = Crop("", int(left), int(top), width, height, reason)
    return best, crop


def choose(
    wishes: Sequence[Wish],
    originals: Mapping[str, Path],
    decoded: Mapping[str, Mapping[str, Path]],
    side: int,
    count: int,
) -> list[Crop]:
    """The crops to show.

    Args:
        wishes: by name; without any, the `count` images in which the arms differ most.
        originals: the file of every image, by its name.
        decoded: the same of every arm.
        side: of the crops, in pixels, where the wish does not say.
        count: of crops without wishes.

    Raises:
        BadInput: a box outside of its image.
    """
    crops = []
    for wish in wishes:
        image = find_image(wish.image, list(originals))
        if image is None:
            continue
        if wish.box is None:
            crops.append(_where_arms_differ(image, originals, decoded, side)[1])
            continue
        left, top, width, height = (*wish.box, side, side)[:4]
        rows, columns = pixels(originals[image]).shape[:2]
        if left + width > columns or top + height > rows:
            raise BadInput(
                f"--visual {wish.image}:{','.join(map(str, wish.box))}: {width}x{height} pixels from there leave the "
                f"image of {columns}x{rows}; the last that fits is at {max(columns - width, 0)},{max(rows - height, 0)}"
            )
        crops.append(Crop(image, left, top, width, height, "chosen by hand"))
    if wishes:
        return crops
    found = [_where_arms_differ(image, originals, decoded, side) for image in originals]
    return [crop for _, crop in sorted(found, key=lambda item: -item[0])[:count]]


def _where_arms_differ(
    image: str, originals: Mapping[str, Path], decoded: Mapping[str, Mapping[str, Path]], side: int
) -> tuple[float, Crop]:
    original = pixels(originals[image])
    errors = {arm: squared_error(pixels(files[image]), original) for arm, files in decoded.items()}
    best, crop = largest_difference(errors, side)
    return best, Crop(image, crop.left, crop.top, crop.width, crop.height, crop.reason)


def draw_crops(
    crops: Sequence[Crop],
    originals: Mapping[str, Path],
    decoded: Mapping[str, Mapping[str, Path]],
    captions: Mapping[str, Mapping[str, str]],
    title: str,
    path: Path,
) -> None:
    """A row a crop: where it is, the original, and every arm with its caption (by arm and image), as PNG.

    Pixels are shown as squares, none in between; below an arm's caption stands the PSNR of the crop alone.
    """
    columns = ["", "original", *decoded]
    figure = Figure(figsize=(2.9 * len(columns), 3.5 * len(crops) + 0.5), layout="constrained")
    grid = figure.subplots(len(crops), len(columns), squeeze=False)
    for row, crop in zip(grid, crops, strict=True):
        original = pixels(originals[crop.image])
        window = np.s_[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        for axes in row:
            axes.set(xticks=[], yticks=[])
        row[0].imshow(original.astype(np.uint8))
        row[0].add_patch(_frame(crop))
        row[0].set_title(in_a_figure(Path(crop.image).stem), fontsize=11)
        row[0].set_xlabel(f"{crop.width}x{crop.height} at {crop.left},{crop.top}\n{crop.reason}", fontsize=9)
        row[1].imshow(original[window].astype(np.uint8), interpolation="nearest")
        row[1].set_title("original", fontsize=11)
        for axes, (arm, files) in zip(row[2:], decoded.items(), strict=True):
            part = pixels(files[crop.image])[window]
            mse = float(np.square(part - original[window]).mean())
            psnr = "equal to the original" if mse == 0 else f"crop: {10 * np.log10(255**2 / mse):.2f} dB"
            axes.imshow(part.astype(np.uint8), interpolation="nearest")
            axes.set_title(arm, fontsize=11)
            axes.set_xlabel(f"{captions[arm][crop.image]}\n{psnr}", fontsize=9)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def _frame(crop: Crop) -> Rectangle:
    return Rectangle((crop.left, crop.top), crop.width, crop.height, fill=False, edgecolor="yellow", linewidth=1.5)
