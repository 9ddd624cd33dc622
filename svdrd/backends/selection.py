"""Which backend computes: the fastest that is here, or the one that was chosen.

An explicit choice (:func:`use_backend`, or ``SVDRD_BACKEND`` in the environment) is taken or raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from svdrd.backends import availability
from svdrd.backends.availability import NAMES

# What an automatic choice asks on a CUDA device, in this order, before plain PyTorch.
ON_CUDA = ("triton", "cuda")

# The process's explicit choice. It is one value for all threads, because a backward pass on a GPU runs on autograd's
# own threads and has to follow the choice of the thread that called it.
_chosen: str | None = os.environ.get("SVDRD_BACKEND") or None


def chosen() -> str | None:
    """The explicit choice, if there is one."""
    return _chosen


def _require(name: str, source: str) -> None:
    if name not in NAMES:
        raise ValueError(f"{source} names no backend: {name!r}. It has to be one of {', '.join(NAMES)}.")
    backend = next(backend for backend in availability.describe() if backend.name == name)
    if not backend.available:
        usable = ", ".join(repr(backend.name) for backend in availability.describe() if backend.available)
        raise RuntimeError(
            f"{source} asks for the backend {name!r}, which is not here: {backend.reason}. Here: {usable}."
        )


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute with the backend ``name`` inside the ``with`` block, or raise; never falls back.

    The choice holds for the whole process, all threads included, as ``SVDRD_BACKEND`` does from outside, and for a
    backward pass as far as it runs inside the block.

    Args:
        name: ``"torch"``, ``"cpp"``, ``"triton"`` or ``"cuda"``.

    Raises:
        ValueError: ``name`` is none of these.
        RuntimeError: the backend is not there (with the recorded reason), or, on use, cannot take a tensor's device.

    Example::

        with svdrd.use_backend("torch"):
            loss = svdrd.ops.basis_loss(x_hat, x)
    """
    global _chosen
    _require(name, f"use_backend({name!r})")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def usable(name: str) -> bool:
    """Whether the backend is here."""
    return next(backend.available for backend in availability.describe() if backend.name == name)


def _automatic(device: torch.device) -> str:
    if device.type == "cpu":
        return on_cpu()
    if device.type == "cuda":
        for name in ON_CUDA:
            if usable(name) and availability.refusal(name, device) is None:
                return name
    return "torch"


def on_cpu() -> str:
    """:func:`select` for the CPU, in less time."""
    if _chosen is None:
        return "torch" if availability.native is None else "cpp"
    return select(torch.device("cpu"))


def select(device: torch.device) -> str:
    """The backend that computes for tensors on ``device`` now."""
    if _chosen is None:
        return _automatic(device)
    _require(_chosen, f"SVDRD_BACKEND={_chosen}" if os.environ.get("SVDRD_BACKEND") == _chosen else "use_backend")
    refusal = availability.refusal(_chosen, device)
    if refusal is not None:
        where = ".cpu()" if "on the CPU" in refusal else ".cuda()"
        raise RuntimeError(
            f"The backend {_chosen!r} {refusal}, but the tensor is on {device}. Move it with {where}, or use the "
            "backend 'torch'."
        )
    return _chosen
