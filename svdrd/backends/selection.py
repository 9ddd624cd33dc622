"""Which implementation computes: loads the compiled ones, records why one is missing, and selects.

``torch`` is plain PyTorch on any device, ``cpp`` the compiled kernels on the CPU, ``triton`` and ``cuda`` kernels for
CUDA devices. An automatic choice takes the fastest that is there; an explicit one (:func:`use_backend`, or
``SVDRD_BACKEND`` in the environment) is taken or raises.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

NAMES = ("torch", "cpp", "triton", "cuda")
# What an automatic choice asks on a CUDA device, in this order, before plain PyTorch.
ON_CUDA = ("triton", "cuda")
OLDEST_TRITON = (3, 6)


class Backend(NamedTuple):
    """One line of ``python -m svdrd``: a backend, whether it can be used here, and how or why not."""

    name: str
    available: bool
    reason: str


def build_record() -> dict[str, object]:
    """What the build wrote down about itself: what it compiled, or why it did not."""
    path = Path(__file__).parents[1] / "_build_info.json"
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


def _interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on CPU tensors; Triton reads the same variable."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@cache
def _load_triton() -> tuple[bool, str]:
    """Whether Triton can launch kernels here. Called when first needed, because importing Triton takes a while."""
    interpreted = _interpreted()
    if not interpreted and (torch.version.cuda is None or not torch.cuda.is_available()):
        return False, "no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU: slow, for tests)"
    try:
        triton = importlib.import_module("triton")
        if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
            oldest = ".".join(map(str, OLDEST_TRITON))
            return False, f"Triton {triton.__version__} is too old: {oldest} and later will do"
        if interpreted:
            return True, f"Triton {triton.__version__}, interpreted on the CPU"
        # Compiles Triton's own bridge to the driver, which takes a C compiler: better to learn of its absence here.
        triton.runtime.driver.active.get_current_target()
    except (ImportError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        return False, f"Triton does not start: {type(error).__name__}: {error}"
    return True, f"Triton {triton.__version__}"


def _emulation() -> str:
    """The path of ``_cuda_emulated`` (``make emulation``): the CUDA kernels' algorithms on CPU tensors, for tests."""
    return os.environ.get("SVDRD_CUDA_EMULATION", "")


@cache
def _load_cuda() -> tuple[ModuleType | None, str]:
    """The module with the CUDA kernels, and how or why not. Touches no device."""
    if _emulation():
        spec = importlib.util.spec_from_file_location("_cuda_emulated", _emulation())
        if spec is None or spec.loader is None:
            return None, f"SVDRD_CUDA_EMULATION is {_emulation()!r}, which is no compiled module"
        try:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        except ImportError as error:
            return None, f"SVDRD_CUDA_EMULATION does not load: {error}"
        return module, "CUDA kernels, emulated on the CPU (SVDRD_CUDA_EMULATION)"
    try:
        module = importlib.import_module("svdrd._cuda")
    except ImportError as error:
        record = build_record()
        if record.get("cuda"):
            return None, f"the compiled CUDA module does not load: {error}"
        return None, f"no CUDA kernels were built: {record.get('cuda_reason') or record.get('reason')}"
    info = module.build_info()
    return module, f"CUDA kernels, {info['compiler']}, for {info['architectures']}"


def cuda_module() -> ModuleType | None:
    """``svdrd._cuda``, or its emulation; None where neither is."""
    return _load_cuda()[0]


@cache
def _cuda_refusal(index: int) -> str:
    """Why the CUDA kernels cannot run on that device, in the words of the CUDA runtime; empty if they can."""
    module = cuda_module()
    return "is not here" if module is None else module.refusal(index)


def _describe_cuda() -> tuple[bool, str]:
    module, reason = _load_cuda()
    if module is None or _emulation():
        return module is not None, reason
    if torch.version.cuda is None or not torch.cuda.is_available():
        return False, f"no CUDA device ({reason})"
    return True, reason


def _refusal(name: str, device: torch.device) -> str | None:
    """Why the backend, though it is here, cannot compute on ``device``; None if it can."""
    if name == "torch":
        return None
    if name == "cpp":
        return None if device.type == "cpu" else "computes on the CPU"
    if name == "triton" and _interpreted():
        return None if device.type == "cpu" else "is interpreted on the CPU (TRITON_INTERPRET)"
    if name == "cuda" and _emulation():
        return None if device.type == "cpu" else "is emulated on the CPU (SVDRD_CUDA_EMULATION)"
    if device.type != "cuda":
        return "computes on CUDA devices"
    if name == "cuda":
        refusal = _cuda_refusal(torch.cuda.current_device() if device.index is None else device.index)
        return f"cannot run there: {refusal}" if refusal else None
    if name == "triton" and torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 for its three-term TF32 products"
    return None


# The process's explicit choice. It is one value for all threads, because a backward pass on a GPU runs on autograd's
# own threads and has to follow the choice of the thread that called it.
_chosen: str | None = os.environ.get("SVDRD_BACKEND") or None


def describe() -> list[Backend]:
    """Every backend with whether and how it can be used on this machine."""
    return [
        Backend("torch", True, f"plain PyTorch {torch.__version__}, any device"),
        Backend("cpp", native is not None, _native_reason),
        Backend("triton", *_load_triton()),
        Backend("cuda", *_describe_cuda()),
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


def _usable(name: str) -> bool:
    return next(backend.available for backend in describe() if backend.name == name)


def _automatic(device: torch.device) -> str:
    if device.type == "cpu":
        return "cpp" if native is not None else "torch"
    if device.type == "cuda":
        for name in ON_CUDA:
            if _usable(name) and _refusal(name, device) is None:
                return name
    return "torch"


def select(device: torch.device) -> str:
    """The backend that computes for tensors on ``device`` now."""
    if _chosen is None:
        return _automatic(device)
    _require(_chosen, f"SVDRD_BACKEND={_chosen}" if os.environ.get("SVDRD_BACKEND") == _chosen else "use_backend")
    refusal = _refusal(_chosen, device)
    if refusal is not None:
        where = ".cpu()" if "on the CPU" in refusal else ".cuda()"
        raise RuntimeError(
            f"The backend {_chosen!r} {refusal}, but the tensor is on {device}. Move it with {where}, or use the "
            "backend 'torch'."
        )
    return _chosen


def saves_factors(device: torch.device, dtype: torch.dtype, m: int, n: int) -> bool:
    """Whether the SVD's factors, kept from the forward, are of use to the backward pass of the polar factor.

    A hint that costs or saves time and never a result; it reads so little that TorchDynamo can trace it.
    """
    if dtype == torch.float64 or (device.type != "cuda" and _chosen != "triton"):
        return True
    # Larger float32 matrices go through products, which form no factors: PyTorch's where there are no kernels and after
    # those of the cuda backend, and else Triton's.
    if _chosen in ("torch", "cuda"):
        return min(m, n) <= (32 if _chosen == "torch" else 64)
    return max(m, n) <= 64
