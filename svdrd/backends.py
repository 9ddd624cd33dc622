"""Which implementation computes: loads the compiled ones, records why one is missing, and selects.

``torch`` is plain PyTorch on any device, ``cpp`` the compiled kernels on the CPU. An automatic choice takes the fastest
that is there; an explicit one (:func:`use_backend`, or ``SVDRD_BACKEND`` in the environment) is taken or raises.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

NAMES = ("torch", "cpp", "triton", "cuda")


class Backend(NamedTuple):
    """One line of ``python -m svdrd``: a backend, whether it can be used here, and how or why not."""

    name: str
    available: bool
    reason: str


def build_record() -> dict[str, object]:
    """What the build wrote down about itself: what it compiled, or why it did not."""
    path = Path(__file__).with_name("_build_info.json")
    if not path.is_file():
        return {"native": False, "reason": f"{path.name} is missing: the package was not installed by pip"}
    record: dict[str, object] = json.loads(path.read_text())
    return record


def _load_native() -> tuple[ModuleType | None, str]:
    try:
        module = importlib.import_module("svdrd._native")
    except ImportError as error:
        record = build_record()
        if record.get("native"):
            return None, f"the compiled module does not load: {error}"
        return None, f"no compiled module: {record.get('reason')}"
    return module, f"C++ kernels, {module.instruction_set()}"


native, _native_reason = _load_native()

# The process's explicit choice. It is one value for all threads, because a backward pass on a GPU runs on autograd's
# own threads and has to follow the choice of the thread that called it.
_chosen: str | None = os.environ.get("SVDRD_BACKEND") or None


def describe() -> list[Backend]:
    """Every backend with whether and how it can be used on this machine."""
    cuda = "this version of svdrd has no {} kernels yet: on CUDA tensors the torch backend computes"
    return [
        Backend("torch", True, f"plain PyTorch {torch.__version__}, any device"),
        Backend("cpp", native is not None, _native_reason),
        Backend("triton", False, cuda.format("Triton")),
        Backend("cuda", False, cuda.format("CUDA")),
    ]


def _require(name: str, source: str) -> None:
    if name not in NAMES:
        raise ValueError(f"{source} names no backend: {name!r}. It has to be one of {', '.join(NAMES)}.")
    backend = next(backend for backend in describe() if backend.name == name)
    if not backend.available:
        usable = ", ".join(repr(backend.name) for backend in describe() if backend.available)
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
    """
    global _chosen
    _require(name, f"use_backend({name!r})")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def select(device: torch.device) -> str:
    """The backend that computes for tensors on ``device`` now."""
    if _chosen is None:
        return "cpp" if device.type == "cpu" and native is not None else "torch"
    _require(_chosen, f"SVDRD_BACKEND={_chosen}" if os.environ.get("SVDRD_BACKEND") == _chosen else "use_backend")
    if _chosen == "cpp" and device.type != "cpu":
        raise RuntimeError(
            f"The backend 'cpp' computes on the CPU, but the tensor is on {device}. Move it with .cpu(), or use the "
            "backend 'torch'."
        )
    return _chosen
