"""Arms of fine-tuning compared with an anchor: BD-rates and RD losses, with intervals over the images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from svdrd.compress.comparison.bd_rate import METHODS, NoBDRate, bd_rate, overlap
from svdrd.compress.comparison.bootstrap import Indices, interval, resamples
from svdrd.compress.comparison.curve import Curve
from svdrd.compress.errors import BadInput

Array = npt.NDArray[np.float64]

QUALITIES = ("psnr", "ms-ssim")
# Under this part of the qualities in common, the BD-rate is about another range than the curves show.
SMALL_OVERLAP = 0.75


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; where one of them is missing, the reason."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class BDRate:
    """The BD-rate of an arm over an anchor by one method, in percent.

    ``of_mean`` is that of the mean curves, ``of_images`` the mean of the single images' ones, which are in ``images``
    by name, as a number or the reason why there is none.
    """

    dataset: str
    codec: str
    anchor: str
    arm: str
    quality: str
    method: str
    overlap: float
    of_mean: Estimate
    of_images: Estimate
    images: dict[str, float | str]


@dataclass(frozen=True)
class RDLoss:
    """The difference in RD loss between points of equal lambda, paired by image.

    ``lmbda`` None is the mean over all lambdas in common, of which only the relative difference means something.

    Args:
        anchor_loss: mean over the images.
        difference: mean over the images, arm minus anchor.
        percent: the same in percent of the anchor's mean loss.
        better: in how many of the images the arm has the lower loss.
    """

    dataset: str
    codec: str
    anchor: str
    arm: str
    lmbda: float | None
    metric: str | None
    anchor_loss: float | None
    difference: Estimate
    percent: Estimate
    better: int | None
    images: int


@dataclass(frozen=True)
class Comparison:
    """All that was computed of a set of curves; ``notes`` are for the reader of the tables."""

    curves: list[Curve]
    resamples: int
    seed: int
    bd_rates: list[BDRate] = field(default_factory=list)
    rd_losses: list[RDLoss] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def groups(curves: Sequence[Curve]) -> Iterator[list[Curve]]:
    """The curves of one data set and codec at a time, in the order in which they come."""
    for key in dict.fromkeys((curve.dataset, curve.codec) for curve in curves):
        yield [curve for curve in curves if (curve.dataset, curve.codec) == key]


def anchors_of(group: Sequence[Curve], names: Sequence[str]) -> list[Curve]:
    """The curves of the arms in ``names``, without names the first one."""
    if not names:
        return [group[0]]
    arms = {curve.arm: curve for curve in group}
    for name in names:
        if name not in arms:
            raise BadInput(f"--anchor {name}: {group[0].codec} has no such arm; it has {', '.join(arms)}")
    return [arms[name] for name in names]


def compare(
    curves: Sequence[Curve], anchors: Sequence[str] = (), count: int = 1000, seed: int = 0, paired: bool = True
) -> Comparison:
    """Every arm against the anchor (the first arm, or those named) of its codec on its data set.

    Args:
        curves: of one or more data sets, codecs and arms.
        anchors: names of arms; several give one comparison each, such as with the base and with the control.
        count: of the resamples of images for the intervals.
        seed: of these.
        paired: whether the RD losses at equal lambda are compared, too.

    Raises:
        BadInput: an arm that appears twice, an anchor that is not there, or curves of one data set and codec that are
            of different images or of differently made rates.
    """
    for group in groups(curves):
        check_comparable(group)
    comparison = Comparison([curve.sorted() for curve in curves], count, seed)
    for group in groups(comparison.curves):
        draws = resamples(len(group[0].images), count, seed)
        for anchor in anchors_of(group, anchors):
            for arm in group:
                if arm is anchor:
                    continue
                for quality in QUALITIES:
                    comparison.bd_rates.extend(compare_bd_rates(anchor, arm, quality, draws))
                if paired:
                    losses, notes = compare_losses(anchor, arm, draws)
                    comparison.rd_losses.extend(losses)
                    comparison.notes.extend(note for note in notes if note not in comparison.notes)
    return comparison


def check_comparable(group: Sequence[Curve]) -> None:
    first = group[0]
    for index, curve in enumerate(group):
        where = f"{curve.codec} on {curve.dataset}"
        if curve.arm in [other.arm for other in group[:index]]:
            raise BadInput(f"--arm {curve.arm}: given twice for {where}; give all its points at once")
        for name, values in (("bpp", curve.bpp), ("PSNR", curve.psnr), ("MS-SSIM", curve.ms_ssim)):
            if values.shape != (len(curve.points), len(curve.images)):
                shape = (len(curve.points), len(curve.images))
                raise BadInput(
                    f"{where}, {curve.arm}: {name} of shape {values.shape}, wanted (points, images) = {shape}"
                )
            if np.isnan(values).any():
                point, image = np.argwhere(np.isnan(values))[0]
                at = f"{curve.images[image]} at {curve.points[point]}"
                raise BadInput(f"{where}, {curve.arm}: the {name} of {at} is not a number; evaluate it again")
        if curve.images != first.images:
            missing = sorted(set(first.images) ^ set(curve.images)) or ["another order"]
            raise BadInput(f"{where}: the arms {first.arm} and {curve.arm} are of different images ({missing[0]})")
        if curve.estimated != first.estimated:
            raise BadInput(f"{where}: the rates of one of {first.arm} and {curve.arm} are estimates, the other's coded")


def compare_bd_rates(anchor: Curve, arm: Curve, quality: str, draws: Indices) -> list[BDRate]:
    names = (anchor.arm, arm.arm)
    anchor_rates, anchor_qualities = anchor.mean(quality)
    rates, qualities = arm.mean(quality)
    rows = []
    for method in METHODS:
        images: dict[str, float | str] = {}
        for index, image in enumerate(arm.images):
            try:
                images[image] = bd_rate(
                    *(anchor.bpp[:, index], anchor.of_image(quality)[:, index]),
                    *(arm.bpp[:, index], arm.of_image(quality)[:, index]),
                    method,
                    names,
                )
            except NoBDRate as error:
                images[image] = str(error)
        try:
            value = bd_rate(anchor_rates, anchor_qualities, rates, qualities, method, names)
            of_mean = with_interval_of_mean(value, anchor, arm, quality, method, draws)
        except NoBDRate as error:
            of_mean = Estimate(reason=f"mean curve, {error}")
        rows.append(
            BDRate(
                *(arm.dataset, arm.codec, anchor.arm, arm.arm, quality, method),
                overlap(anchor_qualities, qualities),
                of_mean,
                mean_of_images(images, draws),
                images,
            )
        )
    return rows


def with_interval_of_mean(
    value: float, anchor: Curve, arm: Curve, quality: str, method: str, draws: Indices
) -> Estimate:
    """``value`` with the interval of the BD-rates that the mean curves of the draws have."""
    if len(arm.images) < 2:
        return Estimate(value, reason="of one image there is no interval")
    means = (*anchor.means(quality, draws), *arm.means(quality, draws))
    values, problems = [], []
    for anchor_bpp, anchor_quality, bpp, db in zip(*(array.T for array in means), strict=True):
        try:
            values.append(bd_rate(anchor_bpp, anchor_quality, bpp, db, method, (anchor.arm, arm.arm)))
        except NoBDRate as error:
            problems.append(str(error))
    if problems:
        return Estimate(value, reason=f"{len(problems)} of {len(draws)} resamples have no BD-rate, one: {problems[0]}")
    return Estimate(value, *interval(np.array(values)))


def mean_of_images(images: dict[str, float | str], draws: Indices) -> Estimate:
    """The mean over the images; none where one of them has no number, since those left out would not be any ones."""
    missing = [f"{image}, {reason}" for image, reason in images.items() if isinstance(reason, str)]
    if missing:
        return Estimate(reason=f"{len(missing)} of {len(images)} images have no BD-rate, one: {missing[0]}")
    values = np.array(list(images.values()), np.float64)
    if len(values) < 2:
        return Estimate(float(values.mean()), reason="of one image there is no interval")
    return Estimate(float(values.mean()), *interval(values[draws].mean(axis=1)))


def compare_losses(anchor: Curve, arm: Curve, draws: Indices) -> tuple[list[RDLoss], list[str]]:
    """The rows of the table, and which points are not in it for what reason."""
    pairs, notes = pairs_of_equal_lambda(anchor, arm)
    rows, relative, relative_draws = [], [], []
    one_image = len(arm.images) < 2
    for k, l in pairs:
        anchor_losses, losses = anchor.losses(k), arm.losses(l)
        difference = losses - anchor_losses
        mean, anchor_mean = float(difference.mean()), float(anchor_losses.mean())
        of_draws = difference[draws].mean(axis=1)
        percent_of_draws = 100 * of_draws / anchor_losses[draws].mean(axis=1)
        relative.append(100 * mean / anchor_mean)
        relative_draws.append(percent_of_draws)
        rows.append(
            RDLoss(
                *(arm.dataset, arm.codec, anchor.arm, arm.arm, arm.lmbda[l], arm.metric[l] or "mse", anchor_mean),
                _estimate(mean, of_draws, one_image),
                _estimate(relative[-1], percent_of_draws, one_image),
                int((difference < 0).sum()),
                len(arm.images),
            )
        )
    if len(pairs) > 1:
        percent = _estimate(float(np.mean(relative)), np.mean(relative_draws, axis=0), one_image)
        names = (arm.dataset, arm.codec, anchor.arm, arm.arm)
        rows.append(RDLoss(*names, None, None, None, Estimate(), percent, None, len(arm.images)))
    return rows, notes


def _estimate(value: float, of_draws: Array, one_image: bool) -> Estimate:
    if one_image:
        return Estimate(value, reason="of one image there is no interval")
    return Estimate(value, *interval(of_draws))


def pairs_of_equal_lambda(anchor: Curve, arm: Curve) -> tuple[list[tuple[int, int]], list[str]]:
    """Indices of the points of both that were trained with the same lambda and metric, and notes about the others."""
    where = f"RD loss, {arm.codec} on {arm.dataset}"
    notes = []
    known: list[dict[tuple[float, str], int]] = []
    for curve in (anchor, arm):
        points: dict[tuple[float, str], list[int]] = {}
        for index, (lmbda, metric) in enumerate(zip(curve.lmbda, curve.metric, strict=True)):
            if lmbda is None:
                notes.append(
                    f"{where}: the lambda of {curve.points[index]} of {curve.arm} is unknown; write it behind the "
                    "file: file.pth.tar@0.013"
                )
            else:
                points.setdefault((lmbda, metric or "mse"), []).append(index)
        for (lmbda, _), indices in points.items():
            if len(indices) > 1:
                names = ", ".join(curve.points[index] for index in indices)
                notes.append(
                    f"{where}: {curve.arm} has {names} of lambda {lmbda:g}; give one of them an arm of its own"
                )
        known.append({key: indices[0] for key, indices in points.items() if len(indices) == 1})
    common = sorted(known[0].keys() & known[1].keys())
    for curve, single in zip((anchor, arm), known, strict=True):
        lonely = sorted(single.keys() - set(common))
        if lonely:
            lambdas = ", ".join(f"{lmbda:g} ({metric})" for lmbda, metric in lonely)
            notes.append(f"{where}, {arm.arm} and {anchor.arm}: only {curve.arm} can show lambda {lambdas}")
    return [(known[0][key], known[1][key]) for key in common], notes
