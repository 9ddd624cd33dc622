"""The rate-distortion loss with the SVD basis term (Eqn. 4 of the paper)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_msssim import ms_ssim
from torch import Tensor, nn

from svdrd.compress.compressai import register_criterion
from svdrd.compress.errors import BadInput
from svdrd.compress.options import METRICS
from svdrd.losses import BasisLoss

RETURN_TYPES = ("all", "loss", "bpp_loss", "mse_loss", "ms_ssim_loss", "basis_loss")


@register_criterion("BasisRateDistortionLoss")
class BasisRateDistortionLoss(nn.Module):
    r"""CompressAI's ``RateDistortionLoss`` plus the basis term.

    .. math::
        L &= R + \lambda \, (255^2 \, \mathrm{MSE} + \mu \, c \, B)            \quad \text{metric mse} \\
        L &= R + \lambda \, (1 - \text{MS-SSIM} + \mu \, c \, B)               \quad \text{metric ms-ssim}

    ``R`` is the estimated rate in bits per pixel, ``B = basis_loss(x_hat, x)`` compares the polar factors ``U V^T`` of
    the decoded and the original image, one matrix a channel (or a block), and ``c`` is ``basis_scale``. The paper does
    not fix the scale of ``B`` against the squared error: with the defaults (mean over entries, ``c = 1``) the term is a
    regulariser of a few percent of the MSE term; ``basis_scale=255**2`` and ``reduction="sum"`` are the other readings.
    With ``metric="ms-ssim"`` the distortion is below 1, so the same ``mu`` weighs far more than with ``"mse"``.

    Rate and basis term are computed in float32 at least, also under autocast.

    Args:
        lmbda: weight of the distortion against the rate, > 0 (:func:`svdrd.compress.lambda_for` has the zoo's).
        mu: weight of the basis term, >= 0. With ``mu = 0`` the basis loss is still reported, without gradient.
        metric: ``"mse"`` or ``"ms-ssim"``.
        block_size: side of the square blocks that are one matrix each; ``None``: each channel is one matrix.
        smooth: smoothing of the polar factor, in the units of the images, >= 0.
        rcond: relative rank threshold; ``None``: the default of :func:`svdrd.ops.polar_factor`.
        reduction: ``"mean"`` or ``"sum"`` of the entries of all matrices.
        basis_scale: ``c`` above, > 0.
        return_type: ``"all"``, or the key of the one value to return, as in CompressAI.
        monitor_basis: with ``mu = 0``, whether the basis loss is computed to be reported; it never changes ``loss``.

    Raises:
        BadInput: (a ValueError) for a value outside the ranges above.

    Example::

        criterion = svdrd.compress.BasisRateDistortionLoss(lmbda=0.013, mu=10)
        criterion(net(x), x)["loss"].backward()

    Source: Chen, Chen, Wang, Li, "Optimizing Image Compression: Perspectives on SVD-Based Restoration", Eqn. 4.
    """

    def __init__(
        self,
        lmbda: float = 0.01,
        mu: float = 10.0,
        metric: str = "mse",
        block_size: int | None = None,
        smooth: float = 0.0,
        rcond: float | None = None,
        reduction: str = "mean",
        basis_scale: float = 1.0,
        return_type: str = "all",
        monitor_basis: bool = True,
    ) -> None:
        super().__init__()
        if not (math.isfinite(lmbda) and lmbda > 0):
            raise BadInput(f"lmbda={lmbda}: the weight of the distortion is a finite number above 0, for example 0.01")
        if not (math.isfinite(mu) and mu >= 0):
            raise BadInput(f"mu={mu}: the weight of the basis term is finite and at least 0; the paper's is 10")
        if metric not in METRICS:
            raise BadInput(f"metric={metric!r}: the distortion is one of {', '.join(METRICS)}")
        if reduction not in ("mean", "sum"):
            raise BadInput(f"reduction={reduction!r}: a training loss is one number, so 'mean' or 'sum'")
        if not (math.isfinite(basis_scale) and basis_scale > 0):
            raise BadInput(f"basis_scale={basis_scale}: a finite number above 0; mu=0 is what switches the term off")
        if return_type not in RETURN_TYPES or (return_type == "ms_ssim_loss" and metric != "ms-ssim"):
            raise BadInput(f"return_type={return_type!r}: {', '.join(RETURN_TYPES)} (ms_ssim_loss by metric)")
        if return_type == "basis_loss" and mu == 0 and not monitor_basis:
            raise BadInput("return_type='basis_loss': not computed with mu=0 and monitor_basis=False; set one of them")
        self.lmbda = lmbda
        self.mu = mu
        self.metric = metric
        self.basis = BasisLoss(block_size, reduction, rcond, smooth)
        self.basis_scale = basis_scale
        self.return_type = return_type
        self.monitor_basis = monitor_basis

    def forward(self, output: Mapping[str, Any], target: Tensor) -> dict[str, Tensor] | Tensor:
        """The loss and its parts.

        Args:
            output: what a CompressAI model returns: ``x_hat`` of shape (N, C, H, W) and a mapping ``likelihoods``.
            target: the original images, (N, C, H, W), in [0, 1].

        Returns:
            The scalars ``loss``, ``bpp_loss``, ``mse_loss`` (and, by metric, ``ms_ssim_loss``) and ``basis_loss``.
        """
        batch, _, height, width = target.shape
        with torch.autocast(target.device.type, enabled=False):
            x_hat, x = at_least_float32(output["x_hat"]), at_least_float32(target)
            out: dict[str, Tensor] = {}
            rates = [
                torch.log(at_least_float32(likelihoods)).sum() / (-math.log(2) * batch * height * width)
                for likelihoods in output["likelihoods"].values()
            ]
            out["bpp_loss"] = torch.stack(rates).sum()
            if self.metric == "ms-ssim":
                out["ms_ssim_loss"] = ms_ssim(x_hat, x, data_range=1)
                out["mse_loss"] = nn.functional.mse_loss(x_hat.detach(), x)
                distortion = 1 - out["ms_ssim_loss"]
            else:
                out["mse_loss"] = nn.functional.mse_loss(x_hat, x)
                distortion = 255**2 * out["mse_loss"]
            if self.mu > 0:
                out["basis_loss"] = self.basis(x_hat, x)
                distortion = distortion + self.mu * self.basis_scale * out["basis_loss"]
            elif self.monitor_basis:
                with torch.no_grad():
                    out["basis_loss"] = self.basis(x_hat, x)
            out["loss"] = self.lmbda * distortion + out["bpp_loss"]
        return out if self.return_type == "all" else out[self.return_type]

    def terms(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weighted summands of ``losses["loss"]`` that have a gradient: ``bpp``, ``mse`` or ``ms-ssim``, ``basis``.

        ``losses`` is what :meth:`forward` returns with ``return_type="all"``.
        """
        terms = {"bpp": losses["bpp_loss"]}
        if self.metric == "ms-ssim":
            terms["ms-ssim"] = self.lmbda * (1 - losses["ms_ssim_loss"])
        else:
            terms["mse"] = self.lmbda * 255**2 * losses["mse_loss"]
        if self.mu > 0:
            terms["basis"] = self.lmbda * self.mu * self.basis_scale * losses["basis_loss"]
        return terms


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
