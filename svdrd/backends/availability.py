"""Which backends are here: loads the compiled ones, and records how or why not.

``torch`` is plain PyTorch on any device, ``cpp`` the compiled kernels on the CPU, ``triton`` and ``cuda`` kernels for
CUDA devices.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

NAMES = ("torch", "cpp", "triton", "cuda")
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


# What csrc/cpu/threads.cpp calls of OpenMP: GCC's way to begin a parallel region, and two functions of the standard.
OPENMP_FUNCTIONS = ("GOMP_parallel", "omp_get_thread_num", "omp_pause_resource_all")


def openmp_of_torch() -> list[int] | None:
    """The addresses of ``OPENMP_FUNCTIONS`` in the OpenMP that PyTorch's own operators call; None where it has none.

    PyTorch brings a copy of its own, under a name that differs from one build to the next. ``dlsym`` searches a library
    and then those that it was linked with, so this finds that copy by whatever name, and no other one of the process.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        functions = [ctypes.cast(getattr(library, name), ctypes.c_void_p) for name in OPENMP_FUNCTIONS]
    except (OSError, AttributeError):
        return None
    return [function.value or 0 for function in functions]


def _load_native() -> tuple[ModuleType | None, str]:
    try:
        module = importlib.import_module("svdrd._native")
    except ImportError as error:
        record = build_record()
        if record.get("native"):
            return None, _slow(f"the compiled module does not load: {error}")
        return None, f"no compiled module: {record.get('reason')}"
    if not hasattr(module, "use_openmp"):
        return None, _slow("the compiled module is of an earlier checkout: build it again, e.g. by make install")
    openmp = openmp_of_torch()
    if openmp is not None:
        module.use_openmp(*openmp)
    return module, f"C++ kernels, {module.instruction_set()}"


def _slow(reason: str) -> str:
    """``reason``, and a warning: who has compiled the kernels expects their speed."""
    warnings.warn(f"svdrd computes with plain PyTorch, which is much slower: {reason}", RuntimeWarning, stacklevel=2)
    return reason


native, _native_reason = _load_native()


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on CPU tensors; Triton reads the same variable."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def _no_device() -> str | None:
    """Why no GPU kernel can run; None where there is a GPU for them. PyTorch for ROCm calls AMD's GPUs "cuda", too."""
    if torch.version.hip is not None:
        return "this PyTorch is for ROCm, and the kernels are for NVIDIA's GPUs: on AMD's the torch backend computes"
    return None if torch.version.cuda is not None and torch.cuda.is_available() else "no CUDA device"


@cache
def _load_triton() -> tuple[bool, str]:
    """Whether Triton can launch kernels here. Called when first needed, because importing Triton takes a while."""
    on_cpu = interpreted()
    missing = _no_device()
    if not on_cpu and missing is not None:
        return False, f"{missing} (TRITON_INTERPRET=1 runs the kernels on the CPU: slow, for tests)"
    try:
        triton = importlib.import_module("triton")
        if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
            oldest = ".".join(map(str, OLDEST_TRITON))
            return False, f"Triton {triton.__version__} is too old: {oldest} and later will do"
        if on_cpu:
            return True, f"Triton {triton.__version__}, interpreted on the CPU"
        # Compiles Triton's own bridge to the driver, which takes a C compiler: better to learn of its absence here.
        triton.runtime.driver.active.get_current_target()
    except (ImportError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        return False, f"Triton does not start: {type(error).__name__}: {error}"
    return True, f"Triton {triton.__version__}"


def emulation() -> str:
    """The path of ``_cuda_emulated`` (``make emulation``): the CUDA kernels' algorithms on CPU tensors, for tests."""
    return os.environ.get("SVDRD_CUDA_EMULATION", "")


@cache
def _load_cuda() -> tuple[ModuleType | None, str]:
    """The module with the CUDA kernels, and how or why not. Touches no device."""
    if emulation():
        spec = importlib.util.spec_from_file_location("_cuda_emulated", emulation())
        if spec is None or spec.loader is None:
            return None, f"SVDRD_CUDA_EMULATION is {emulation()!r}, which is no compiled module"
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
def cuda_refusal(index: int) -> str:
    """Why the CUDA kernels cannot run on that device, in the words of the CUDA runtime; empty if they can."""
    module = cuda_module()
    return "is not here" if module is None else module.refusal(index)


def _describe_cuda() -> tuple[bool, str]:
    module, reason = _load_cuda()
    if module is None or emulation():
        return module is not None, reason
    missing = _no_device()
    return missing is None, reason if missing is None else f"{missing} ({reason})"


def refusal(name: str, device: torch.device) -> str | None:
    """Why the backend, though it is here, cannot compute on ``device``; None if it can."""
    if name == "torch":
        return None
    if name == "cpp":
        return None if device.type == "cpu" else "computes on the CPU"
    if name == "triton" and interpreted():
        return None if device.type == "cpu" else "is interpreted on the CPU (TRITON_INTERPRET)"
    if name == "cuda" and emulation():
        return None if device.type == "cpu" else "is emulated on the CPU (SVDRD_CUDA_EMULATION)"
    if device.type != "cuda":
        return "computes on CUDA devices"
    if name == "cuda":
        reason = cuda_refusal(torch.cuda.current_device() if device.index is None else device.index)
        return f"cannot run there: {reason}" if reason else None
    if name == "triton" and torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 for its three-term TF32 products"
    return None


def describe() -> list[Backend]:
    """Every backend with whether and how it can be used on this machine."""
    return [
        Backend("torch", True, f"plain PyTorch {torch.__version__}, any device (by the CPU where it has no float64)"),
        Backend("cpp", native is not None, _native_reason),
        Backend("triton", *_load_triton()),
        Backend("cuda", *_describe_cuda()),
    ]
