"""Steps whose loss or gradient is not finite: which term and images did it, and the evidence of a run given up."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svdrd.compress.codecs import checkpoints

Forward = Callable[[Tensor], Mapping[str, Any]]


@dataclass(frozen=True)
class Culprit:
    """A term of the loss that is not finite, in its value or only in its gradient, and the images it comes from.

    ``term`` is ``"bpp"``, ``"mse"`` (or ``"ms-ssim"``) or ``"basis"``; ``"aux"``, the loss of the quantiles;
    ``"weights"`` where the model itself is not finite any more, whatever the image; ``"sum"`` where every part is
    finite and only their sum overflows.
    """

    term: str
    where: str
    images: tuple[str, ...]

    def __str__(self) -> str:
        images = f" of {', '.join(self.images)}" if self.images else ""
        return f"{self.where} of the {self.term} term{images}" if self.term != "weights" else "weights of the model"


def diagnose(model: nn.Module, forward: Forward, criterion: Any, x: Tensor, images: Sequence[str]) -> list[Culprit]:
    """Computes the crops ``x`` once more, term by term and image by image.

    Args:
        model: its parameters are those whose gradient is looked at.
        forward: the model's forward in the state of the faulty step: precision and quantisation noise.
        criterion: a :class:`~svdrd.compress.criterion.BasisRateDistortionLoss`.
        x: (N, C, H, W).
        images: the N names of the images that the crops are from.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        return [Culprit("weights", "value", ())]
    output = forward(x)
    found: dict[tuple[str, str], list[str]] = {}
    for index, image in enumerate(images):
        one = slice(index, index + 1)
        likelihoods = {key: value[one] for key, value in output["likelihoods"].items()}
        losses = criterion({"x_hat": output["x_hat"][one], "likelihoods": likelihoods}, x[one])
        for term, value in criterion.terms(losses).items():
            if not math.isfinite(value.item()):
                found.setdefault((term, "value"), []).append(image)
                continue
            gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            if not all(bool(torch.isfinite(g).all()) for g in gradients if g is not None):
                found.setdefault((term, "gradient"), []).append(image)
    return [Culprit(term, where, tuple(dict.fromkeys(names))) for (term, where), names in found.items()]


@dataclass
class Faults:
    """The account of skipped steps: how many, how many in a row, and how often each term was at fault."""

    steps: int = 0
    in_a_row: int = 0
    terms: dict[str, int] | None = None

    def add(self, culprits: Sequence[Culprit]) -> None:
        self.steps += 1
        self.in_a_row += 1
        self.terms = self.terms or {}
        for term in {culprit.term for culprit in culprits} or {"sum"}:
            self.terms[term] = self.terms.get(term, 0) + 1

    def state(self) -> dict[str, Any]:
        return asdict(self)


def record(step: int, loss: float, norm: float, culprits: Sequence[Culprit]) -> dict[str, Any]:
    """A fault as one line of ``faults.jsonl``; numbers that are not finite are strings there, as JSON has none."""
    return {
        "step": step,
        "loss": loss if math.isfinite(loss) else str(loss),
        "gradient_norm": norm if math.isfinite(norm) else str(norm),
        "culprits": [asdict(culprit) for culprit in culprits],
    }


def save_evidence(path: Path, evidence: Mapping[str, Any]) -> str:
    """Writes what it takes to look into a fault, and says where it is, or why it is not."""
    try:
        checkpoints.save(path, evidence)
    except OSError as error:
        return f"the evidence could not be saved to {path}: {error.strerror}"
    return f"crops, weights and noise of the last one: {path}"
