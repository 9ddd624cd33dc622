"""Devices that cannot compute the definitions, and the CPU in their place.

The definitions need float64 and its SVD. Apple's MPS and some GPUs of Intel have no float64; others have no SVD.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

Result = TypeVar("Result")


def _refusal(kind: str) -> str | None:
    """What a device of that kind says to the SVD of a float64 matrix; None if it computes it."""
    try:
        torch.linalg.svd(torch.ones(1, 2, 2, dtype=torch.float64, device=kind))
    except (TypeError, RuntimeError) as error:
        return str(error)
    return None


@cache
def _computes(kind: str) -> bool:
    """Whether devices of that kind compute the definitions: tried once, and said once where they do not."""
    with _disable_current_modes():
        refusal = _refusal(kind)
    if refusal is not None:
        first_line = refusal.strip().partition("\n")[0]
        warnings.warn(
            f"svdrd: {kind!r} devices cannot decompose float64 matrices ({first_line}), so the CPU computes for them: "
            "tensors are copied there and back. This is said once.",
            stacklevel=2,
        )
    return refusal is None


def elsewhere(device: torch.device) -> bool:
    """Whether the CPU has to compute what is asked of ``device``."""
    return device.type not in ("cpu", "cuda", "meta") and not _computes(device.type)


def on_the_cpu(function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)`` with the tensors among the arguments, and those of the result, moved; differentiable."""
    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))

    def moved(value: Any, to: torch.device) -> Any:
        return value.to(to) if isinstance(value, Tensor) else value

    result: Any = function(*(moved(argument, torch.device("cpu")) for argument in arguments))
    if isinstance(result, tuple):
        return tuple(moved(value, device) for value in result)  # type: ignore[return-value]
    return moved(result, device)


def anywhere(function: Callable[..., Result]) -> Callable[..., Result]:
    """``function``, a definition, for tensors on any device."""

    @wraps(function)
    def computed(*arguments: Any) -> Result:
        device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
        if elsewhere(device):
            return on_the_cpu(function, *arguments)
        try:
            return function(*arguments)
        except (TypeError, RuntimeError):
            if device.type != "cpu" or _refusal("cpu") is None:
                raise
        # Only a mode makes the CPU refuse float64: it plays another device.
        with _disable_current_modes():
            return function(*arguments)

    return computed
