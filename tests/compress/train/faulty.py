"""A loss with a fault of one's choice, for the crops of one's choice."""

from typing import Any

import pytest
import torch
from torch import Tensor

from svdrd.compress import BasisRateDistortionLoss
from svdrd.compress.train import loop, preparation

KEYS = {"bpp": "bpp_loss", "mse": "mse_loss", "basis": "basis_loss"}
MAGENTA = (255, 0, 255)


class NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.nan


class FaultyLoss(BasisRateDistortionLoss):
    """In training, one term is NaN, or has a NaN gradient, where a crop of the batch is all magenta.

    ``steps``: at these steps of the run any crop will do.
    """

    def __init__(self, *args: Any, term: str, where: str, steps: range, **options: Any) -> None:
        super().__init__(*args, **options)
        self.term, self.where, self.steps = term, where, steps
        self.step = 0

    def forward(self, output: dict[str, Any], target: Tensor) -> dict[str, Tensor]:
        losses = super().forward(output, target)
        magenta = torch.tensor(MAGENTA, dtype=target.dtype).view(1, 3, 1, 1) / 255
        bad = (target == magenta).flatten(1).all(1).any() or self.step in self.steps
        if not (bad and torch.is_grad_enabled()):
            return losses
        key = KEYS[self.term]
        losses[key] = NaNGradient.apply(losses[key]) if self.where == "gradient" else losses[key] * torch.nan
        losses["loss"] = sum(self.terms(losses).values())
        return losses


def make_faulty(patch: pytest.MonkeyPatch, term: str, where: str, steps: range = range(0)) -> None:
    take = loop.Training.train_step

    def train_step(self: loop.Training, batch: Any) -> dict[str, float] | None:
        self.stepper.criterion.step = self.state.step + 1
        return take(self, batch)

    patch.setattr(loop.Training, "train_step", train_step)
    patch.setattr(
        preparation,
        "BasisRateDistortionLoss",
        lambda *args, **options: FaultyLoss(*args, term=term, where=where, steps=steps, **options),
    )
