"""What is trained and how: frozen parts, the two optimizers, the schedule of the learning rate."""

import math
from collections.abc import Callable, Sequence

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from svdrd.compress.compressai import CompressionModel
from svdrd.compress.errors import BadInput

TRANSFORMS = {"encoder": "g_a", "decoder": "g_s"}


def freeze(model: CompressionModel, parts: Sequence[str]) -> None:
    """Takes parameters out of training.

    Args:
        model: a CompressAI image codec.
        parts: ``"encoder"`` (``g_a``), ``"decoder"`` (``g_s``), ``"entropy"`` (all the rest: hyperprior, context model,
            entropy bottleneck with its quantiles), or the name of a module or parameter, such as ``h_a`` or ``g_s.6``.

    Raises:
        BadInput: no parameter belongs to a part, or none is left to train.
    """
    for part in parts:
        frozen = 0
        for name, parameter in model.named_parameters():
            top = name.split(".")[0]
            if part == "entropy":
                chosen = top not in TRANSFORMS.values()
            else:
                chosen = f"{name}.".startswith(f"{TRANSFORMS.get(part, part)}.")
            if chosen:
                parameter.requires_grad_(False)
                frozen += 1
        if not frozen:
            known = dict.fromkeys(name.split(".")[0] for name, _ in model.named_parameters())
            raise BadInput(f"--freeze {part}: no such part; encoder, decoder, entropy, or one of {', '.join(known)}")
    if not any(p.requires_grad for name, p in model.named_parameters() if not name.endswith(".quantiles")):
        raise BadInput(f"--freeze {' '.join(parts)}: nothing is left to train; leave one part out")


def make_optimizers(
    model: CompressionModel, learning_rate: float, aux_learning_rate: float
) -> tuple[Optimizer, Optimizer]:
    """Adam for the weights and Adam for the quantiles, in the order of CompressAI's ``net_aux_optimizer``.

    That one asserts that every parameter is trained; here frozen ones are left out.
    """
    trained = sorted(((name, p) for name, p in model.named_parameters() if p.requires_grad), key=lambda pair: pair[0])
    weights = [p for name, p in trained if not name.endswith(".quantiles")]
    quantiles = [p for name, p in trained if name.endswith(".quantiles")]
    # An optimizer without parameters is refused, one with an empty group is not.
    return (
        torch.optim.Adam([{"params": weights}], lr=learning_rate),
        torch.optim.Adam([{"params": quantiles}], lr=aux_learning_rate),
    )


def make_schedule(name: str, optimizer: Optimizer, total_steps: int) -> LambdaLR | ReduceLROnPlateau:
    """``plateau`` is stepped after each epoch, the others after each step; those are functions of the step alone."""
    if name == "plateau":
        return ReduceLROnPlateau(optimizer, "min")
    factors: dict[str, Callable[[int], float]] = {
        "constant": lambda step: 1.0,
        "cosine": lambda step: 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / total_steps, 1.0))),
        "step": lambda step: 1.0 if step < 0.8 * total_steps else 0.1,
    }
    return LambdaLR(optimizer, factors[name])
