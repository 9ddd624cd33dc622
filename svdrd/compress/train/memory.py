"""How much memory a training step needs, before it is taken."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from svdrd.compress.train.step import Step


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process: what is there all the time, and what a step holds between forward and backward."""

    weights: int
    gradients: int
    optimizers: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizers + self.activations


def estimate(model: nn.Module, loss: Callable[[Tensor], Tensor], crop: Tensor, crops: int) -> MemoryEstimate:
    """Counts parameters, and what autograd keeps of a forward of one ``crop`` (1, 3, H, W), times ``crops``.

    A step at its peak holds besides the largest intermediate results of one layer, and the libraries their code and
    caches: on a GPU leave a quarter free. ``loss`` goes from a batch to its scalar loss.
    """
    held = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = loss(crop)
    activations = sum(seen.values()) * crops
    del result
    weights = sum(t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers()))
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return MemoryEstimate(weights, gradients, 2 * gradients, activations)


def of_step(step: Step, batch_size: int) -> tuple[int, MemoryEstimate]:
    """How many crops a process computes at once in a step of ``batch_size`` over all processes, and what that needs."""
    largest = step.processes.part(batch_size)[1]
    crops = -(-largest // step.accumulate)

    def loss(x: Tensor) -> Tensor:
        with step.precision.autocast():
            output = step.model(x)
        return step.criterion(output, x)["loss"]

    step.model.train()
    crop = torch.rand(1, 3, *step.patch_size, device=step.processes.device)
    return crops, estimate(step.model, loss, crop, crops)
