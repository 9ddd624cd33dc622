"""The Bjontegaard delta rate of one rate-distortion curve over another, by a stated method, or the reason for none.

The interpolations are those of the package ``bjontegaard``; what it answers with a warning, a NaN or a meaningless
number is refused here.
"""

import warnings
from collections.abc import Sequence

import bjontegaard
import numpy as np
import numpy.typing as npt
from bjontegaard.interpolation import interpolate

Array = npt.NDArray[np.float64]
Values = Sequence[float] | Array

METHODS = ("cubic", "pchip", "akima")
# The one of the common test conditions of HEVC and VVC. It never leaves the range of its points, as the other two may.
PRIMARY = "pchip"
# VCEG-M33 defines the measure on four; with fewer the cubic polynomial has no unique solution.
FEWEST_POINTS = 4
# Where a curve of a method that may turn back between monotone points is looked at to see whether it does.
SAMPLES = 257


class NoBDRate(ValueError):
    """Why two curves have no BD-rate: names the curve and its points."""


def bd_rate(
    anchor_bpp: Values,
    anchor_quality: Values,
    bpp: Values,
    quality: Values,
    method: str = PRIMARY,
    names: tuple[str, str] = ("anchor", "test"),
) -> float:
    r"""The mean difference in rate at equal quality, in percent of the anchor's; negative where ``bpp`` is the lower.

    .. math::
        100 \left(\exp \frac{1}{b - a} \int_a^b \ln R(q) - \ln R_\text{anchor}(q) \, dq - 1\right)

    ``ln R(q)`` interpolates the logarithm of the rate over the quality, and ``[a, b]`` is the range of quality that
    both curves have.

    Args:
        anchor_bpp, anchor_quality: the points of the anchor, at least four, in any order. The quality is on a
            logarithmic scale: PSNR in dB, MS-SSIM as ``-10 log10(1 - MS-SSIM)``.
        bpp, quality: those of the curve that is compared with it; there may be more or fewer.
        method: ``"cubic"`` (the least-squares polynomial of degree 3, as in VCEG-M33), ``"pchip"`` (monotone piecewise
            cubic, as in the common test conditions of HEVC and VVC) or ``"akima"``.
        names: what an error calls the two curves.

    Raises:
        NoBDRate: fewer than four points; a value that is not finite; a rate that is not positive; a quality that does
            not rise with the rate, at the points or, with ``"cubic"`` and ``"akima"``, between them; no common range.

    Source: Bjontegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001;
    https://github.com/FAU-LMS/bjontegaard.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: one of {', '.join(METHODS)}")
    anchor_bpp, anchor_quality = checked(names[0], anchor_bpp, anchor_quality)
    bpp, quality = checked(names[1], bpp, quality)
    low, high = common_range(anchor_quality, quality)
    if not low < high:
        spans = [
            f"{name} {q[0]:.4g} to {q[-1]:.4g} dB" for name, q in zip(names, (anchor_quality, quality), strict=True)
        ]
        raise NoBDRate(f"no common quality: {', '.join(spans)}; wanted rates that give both some quality in common")
    with warnings.catch_warnings():
        # That less than three quarters of the range are common; `overlap` tells how much.
        warnings.simplefilter("ignore", UserWarning)
        value, *interpolated = bjontegaard.bd_rate(
            anchor_bpp, anchor_quality, bpp, quality, method, require_matching_points=False, interpolators=True
        )
    if method == "pchip":
        return float(value)
    at = np.linspace(low, high, SAMPLES)
    for name, log_rate in zip(names, interpolated, strict=True):
        falling = np.flatnonzero(np.diff(log_rate(at)) <= 0)
        if falling.size:
            raise NoBDRate(
                f"{name}: between its points the {method} curve is not monotone: near {at[falling[0]]:.4g} dB a lower "
                "rate gives a higher quality; pchip cannot do that"
            )
    return float(value)


def checked(name: str, bpp: Values, quality: Values) -> tuple[Array, Array]:
    """The points in the order of their rate; raises NoBDRate where they are no curve."""
    rates, qualities = np.asarray(bpp, np.float64), np.asarray(quality, np.float64)
    if rates.shape != qualities.shape or rates.ndim != 1:
        raise ValueError(f"{name}: rates {rates.shape} and qualities {qualities.shape}; wanted as many of both, (K,)")
    order = np.argsort(rates, kind="stable")
    rates, qualities = rates[order], qualities[order]
    falling = np.flatnonzero((np.diff(rates) <= 0) | ~(np.diff(qualities) > 0))
    if len(rates) < FEWEST_POINTS:
        problem = f"{len(rates)} point{'' if len(rates) == 1 else 's'}, wanted {FEWEST_POINTS} or more"
    elif not (np.isfinite(rates).all() and np.isfinite(qualities).all()):
        problem = "a point is not finite"
    elif rates[0] <= 0:
        problem = f"a rate of {rates[0]:.5g} bpp has no logarithm"
    elif falling.size:
        problem = f"the quality does not rise with the rate from point {falling[0] + 1} to {falling[0] + 2}"
    else:
        return rates, qualities
    points = ", ".join(f"{rate:.5g} bpp {db:.5g} dB" for rate, db in zip(rates, qualities, strict=True))
    raise NoBDRate(f"{name}: {problem} ({points})")


def rate_at(bpp: Values, quality: Values, at: Values, method: str = PRIMARY) -> Array:
    """The rate of the interpolated curve at the qualities ``at``, inside its range; (K,), (K,), (D,) to (D,).

    Raises:
        NoBDRate: as :func:`bd_rate`, about this curve.
    """
    rates, qualities = checked("the curve", bpp, quality)
    return np.asarray(10 ** interpolate(qualities, np.log10(rates), method)(np.asarray(at)), np.float64)


def common_range(anchor_quality: Values, quality: Values) -> tuple[float, float]:
    """The range of quality that both curves have; the first is above the second where there is none."""
    return max(min(anchor_quality), min(quality)), min(max(anchor_quality), max(quality))


def overlap(anchor_quality: Values, quality: Values) -> float:
    """The common range of quality as a fraction of the range of both together, 0 to 1; 0 where that is not finite."""
    low, high = common_range(anchor_quality, quality)
    whole = max(*anchor_quality, *quality) - min(*anchor_quality, *quality)
    return float(max(high - low, 0) / whole) if 0 < whole < np.inf else 0.0


def ms_ssim_db(ms_ssim: npt.ArrayLike) -> Array:
    """MS-SSIM in dB, ``-10 log10(1 - MS-SSIM)``, any shape; 1 gives infinity."""
    with np.errstate(divide="ignore"):
        return np.asarray(-10 * np.log10(1 - np.asarray(ms_ssim, np.float64)))
