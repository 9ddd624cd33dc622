"""Confidence intervals over images: what would other photographs have given?"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

LEVEL = 0.95


def resamples(images: int, count: int, seed: int) -> Indices:
    """``count`` draws of ``images`` images with replacement, (count, images), a function of the arguments alone.

    Every arm, metric and method uses the same draws, so that they are compared on the same images.
    """
    return np.random.default_rng(seed).integers(images, size=(count, images))


def interval(values: Array) -> tuple[float, float]:
    """The percentile interval of the values of the resamples, (count,), of level 95 %."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
