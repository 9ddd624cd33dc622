"""The points of one arm of an experiment on one data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from svdrd.compress.comparison.bd_rate import ms_ssim_db
from svdrd.compress.comparison.bootstrap import Indices

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """What an arm gave on a data set: a row a point, a column an image, (K, I).

    Args:
        arm, codec, dataset: their names.
        images: the names of the I images.
        points: what to call the K points, such as the names of their checkpoints.
        bpp, psnr, ms_ssim: bits per pixel, dB, and MS-SSIM as it is, below 1.
        lmbda: of the training of each point, None where it is unknown.
        metric: of its distortion, ``"mse"`` or ``"ms-ssim"``, or None.
        mu: of its basis term, or None.
        estimated: whether the rate is an estimate instead of a length.
    """

    arm: str
    codec: str
    dataset: str
    images: tuple[str, ...]
    points: tuple[str, ...]
    bpp: Array
    psnr: Array
    ms_ssim: Array
    lmbda: tuple[float | None, ...]
    metric: tuple[str | None, ...]
    mu: tuple[float | None, ...] = ()
    estimated: bool = False

    def sorted(self) -> Curve:
        """The points in the order of their mean rate."""
        order = np.argsort(self.bpp.mean(axis=1), kind="stable")
        listed: dict[str, Any] = {
            name: tuple(getattr(self, name)[k] for k in order)
            for name in ("points", "lmbda", "metric", "mu")
            if getattr(self, name)
        }
        return replace(self, **listed, bpp=self.bpp[order], psnr=self.psnr[order], ms_ssim=self.ms_ssim[order])

    def of_image(self, quality: str) -> Array:
        """PSNR, or each image's MS-SSIM, in dB, (K, I)."""
        return self.psnr if quality == "psnr" else ms_ssim_db(self.ms_ssim)

    def mean(self, quality: str) -> tuple[Array, Array]:
        """Rates and qualities of the mean curve, (K,) each; see :meth:`means`."""
        rates, qualities = self.means(quality, np.arange(len(self.images))[None])
        return rates[:, 0], qualities[:, 0]

    def means(self, quality: str, draws: Indices) -> tuple[Array, Array]:
        """The mean curve of each draw of images (D, I), (K, D): mean rate, and mean PSNR or dB of the mean MS-SSIM.

        That is what CompressAI's plot tool draws of a result file. (The mean of each image's dB would weigh images of
        which little is lost.)
        """
        rates = self.bpp[:, draws].mean(axis=2)
        if quality == "psnr":
            return rates, self.psnr[:, draws].mean(axis=2)
        return rates, ms_ssim_db(self.ms_ssim[:, draws].mean(axis=2))

    def losses(self, point: int) -> Array:
        """The rate-distortion loss of each image at a point whose lambda is known, without the basis term, (I,).

        ``bpp + lambda 255^2 MSE`` with images in [0, 1], or ``bpp + lambda (1 - MS-SSIM)``, by ``metric``.
        """
        lmbda = self.lmbda[point]
        if lmbda is None:
            raise ValueError(f"point {self.points[point]} of {self.arm}: its lambda is unknown")
        if self.metric[point] == "ms-ssim":
            return self.bpp[point] + lmbda * (1 - self.ms_ssim[point])
        return self.bpp[point] + lmbda * 255**2 * 10 ** (-self.psnr[point] / 10)
