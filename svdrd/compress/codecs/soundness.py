"""Whether a codec can be coded with: weights and buffers are finite, tables are of a size that the range coder takes.

CompressAI's range coder never ends, or writes any number of bytes, where it is given a latent that is not finite, and
``EntropyBottleneck.update`` makes a table as long as the quantiles are apart, whatever that is. So everything is looked
at before it is used or kept.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from svdrd.compress.compressai import EntropyBottleneck

# How many tensors a message names.
NAMED = 3


def problem_of_codec(model: nn.Module) -> str:
    """What is wrong with the weights, buffers or tables of ``model``, as the middle of a message; "" if nothing is.

    Infinite buffers of layers that are not CompressAI's are allowed: attention masks are made of ``-inf``.
    """
    exact: list[tuple[str, Tensor]] = list(model.named_parameters())
    masks: list[tuple[str, Tensor]] = []
    for name, module in model.named_modules():
        buffers = exact if type(module).__module__.startswith("compressai.") else masks
        buffers.extend(module.named_buffers(name, recurse=False))
    found = [*not_finite(exact), *not_finite(masks, infinite=True)]
    if found:
        return f"weights that are not finite: {some(found)}"
    for name, module in model.named_modules():
        if isinstance(module, EntropyBottleneck) and (problem := problem_of_tables(module)):
            return f"{name}: {problem}"
    return ""


def problem_of_optimizer(model: nn.Module, optimizer: Optimizer, name: str) -> str:
    """The same of the state that ``optimizer`` keeps for the weights of ``model``."""
    state = [
        (f"{key} of {parameter_name}", value)
        for parameter_name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    ]
    found = not_finite(state)
    return f"a state of the {name} that is not finite: {some(found)}" if found else ""


@torch.no_grad()
def problem_of_tables(bottleneck: EntropyBottleneck) -> str:
    """Whether ``bottleneck.update(force=True)`` makes tables that a range coder takes, without making them.

    A table has an entry for each integer between a channel's outer quantiles, and one for the tails. The coder counts
    in units of ``2**-precision`` and gives each entry one at least, so ``2**precision`` of them is the end.
    """
    most = 2**bottleneck.entropy_coder_precision
    low, median, high = bottleneck.quantiles[:, 0, :].double().unbind(-1)
    entries = (median - low).ceil().clamp(min=0) + (high - median).ceil().clamp(min=0) + 2
    longest = int(entries.argmax())
    if entries[longest] > most:
        return (
            f"its quantiles run away: those of channel {longest} are {low[longest]:.4g}, {median[longest]:.4g}, "
            f"{high[longest]:.4g}, which is a table of {entries[longest]:.0f} entries; a range coder of "
            f"{bottleneck.entropy_coder_precision} bits takes {most} at most"
        )
    if type(bottleneck).update is not EntropyBottleneck.update:
        return ""
    start = (median - (median - low).ceil().clamp(min=0)).to(bottleneck.quantiles.dtype)
    samples = torch.arange(int(entries[longest]) - 1, device=start.device) + start[:, None, None]
    finite = torch.isfinite(bottleneck._likelihood(samples, stop_gradient=True)[0]).flatten(1).all(1)
    bad = finite.logical_not().nonzero().flatten().tolist()
    if bad:
        channels = f"channel{'' if len(bad) == 1 else 's'} {some([str(channel) for channel in bad])}"
        return f"its weights are finite, and the likelihoods of {channels} of {len(finite)} are not"
    return ""


def not_finite(tensors: Iterable[tuple[str, Tensor]], infinite: bool = False) -> list[str]:
    """Name and count of each tensor with an entry that is NaN, or infinite unless those are allowed."""
    found = []
    for name, tensor in tensors:
        if tensor.is_floating_point() or tensor.is_complex():
            bad = torch.isnan(tensor) if infinite else torch.isfinite(tensor).logical_not()
            if count := int(bad.sum()):
                found.append(f"{name} ({count} of {tensor.numel()} entries)")
    return found


def some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
