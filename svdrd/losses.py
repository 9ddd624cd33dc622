"""The basis loss as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from svdrd.ops import arguments
from svdrd.ops.basis_loss import basis_loss

# Kept whole in the graphs of torch.fx.symbolic_trace, whose symbols have no shapes.
torch.fx.wrap("basis_loss")


class BasisLoss(nn.Module):
    r"""``mean |P(x_hat) - P(x)|`` as a module: :func:`svdrd.ops.basis_loss` with its options fixed.

    Args:
        block_size, reduction, rcond, smooth: as of :func:`svdrd.ops.basis_loss`.

    Example::

        criterion = svdrd.BasisLoss(block_size=16)
        criterion(x_hat, x).backward()
    """

    def __init__(
        self,
        block_size: int | None = None,
        reduction: str = "mean",
        rcond: float | None = None,
        smooth: float = 0.0,
    ) -> None:
        super().__init__()
        arguments.check_reduction("BasisLoss", reduction)
        self.block_size = None if block_size is None else arguments.check_block_size("BasisLoss", block_size)
        self.reduction = reduction
        self.rcond = None if rcond is None else arguments.check_rcond("BasisLoss", rcond, torch.float32)
        self.smooth = arguments.check_smooth("BasisLoss", smooth)

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """``x_hat``, ``x``: ``(..., H, W)``."""
        return basis_loss(x_hat, x, self.block_size, self.reduction, self.rcond, self.smooth)

    def extra_repr(self) -> str:
        """The options, as ``print(module)`` shows them."""
        return f"block_size={self.block_size}, reduction={self.reduction!r}, rcond={self.rcond}, smooth={self.smooth}"
