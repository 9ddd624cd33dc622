"""What ``svdrd info`` says, as data and as text: versions, build, devices, backends, who computes what, threads."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby

import torch

import svdrd
from svdrd.backends import availability, selection
from svdrd.dispatch import routes

# What torch brings or not, and what svdrd[compress] brings.
OPTIONAL = ("numpy", "triton")
EXTRA = ("bjontegaard", "compressai", "matplotlib", "pytorch-msssim", "tensorboard", "torchvision", "tqdm")
# What from outside changes who computes, with what, and on how many threads.
VARIABLES = (
    "SVDRD_BACKEND",
    "SVDRD_ISA",
    "SVDRD_CUDA_EMULATION",
    "TRITON_INTERPRET",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)
# Sides of typical blocks and patches.
SIZES = (8, 16, 32, 64, 128, 256)
OPERATORS = ("svd", "polar_factor", "basis_loss", "recompose")
THREADS = {"OpenMP": "those of PyTorch's OpenMP", "own": "started for each call"}


@dataclass(frozen=True)
class Device:
    """The CPU, or a CUDA device."""

    name: str
    description: str


@dataclass(frozen=True)
class Routes:
    """Who computes float32 matrices ``n x n`` of one operator on one device now, by n; or why nobody does."""

    operator: str
    device: str
    computers: dict[int, str]
    error: str | None = None


@dataclass(frozen=True)
class Environment:
    """Everything that a report of a fault has to say about where it happened.

    Args:
        versions: by package; None where it is not installed.
        build: ``svdrd/_build_info.json``: what was compiled, with which compiler, or why not; of a module that loads
            also what it says of itself (``native_module``, ``cuda_module``).
        instruction_set: that of the ``cpp`` backend; None where that is missing.
        threads: PyTorch's, and whose threads the ``cpp`` backend uses.
        chosen_backend: what ``SVDRD_BACKEND`` or ``use_backend`` asks for; None: the best that is here.
        variables: those of ``VARIABLES`` that are set.
        denormals_are_zero: whether this process flushes denormal numbers to 0; svdrd does not ask for that.
    """

    versions: dict[str, str | None]
    platform: str
    build: dict[str, object]
    instruction_set: str | None
    threads: dict[str, int | str | None]
    devices: list[Device]
    backends: list[availability.Backend]
    chosen_backend: str | None
    routes: list[Routes]
    variables: dict[str, str]
    denormals_are_zero: bool

    def as_json(self) -> str:
        """What ``svdrd info --json`` prints."""
        data = asdict(self) | {"backends": [backend._asdict() for backend in self.backends]}
        return json.dumps(data, indent=2)

    def as_text(self) -> str:
        """What ``svdrd info`` prints."""
        known = {name: number for name, number in self.versions.items() if number is not None}
        lines = [
            f"svdrd {known['svdrd']}, torch {known['torch']}, Python {known['python']}",
            ", ".join(f"{name} {known[name]}" if name in known else f"no {name}" for name in OPTIONAL),
            *(f"{device.name}: {device.description}" for device in self.devices),
        ]
        if not any(device.name.startswith("cuda") for device in self.devices):
            lines.append("cuda: no device")
        lines.append(f"build: {_build_in_words(self.build)}")
        for name, available, reason in self.backends:
            lines.append(f"backend {name}: {'available' if available else 'missing'}, {reason}")
        if self.chosen_backend is not None:
            lines.append(f"backend asked for: {self.chosen_backend}")
        if self.instruction_set is not None:
            lines.append(f"instruction set of cpp: {self.instruction_set}")
            lines.append(f"threads of cpp: {self.threads['cpp']}")
        lines += [_routes_in_words(route) for route in self.routes]
        lines += [f"{name}={value}" for name, value in self.variables.items()]
        if self.denormals_are_zero:
            lines.append("denormal numbers are flushed to 0 in this process; svdrd does not ask for that")
        lines += [
            f"{name} {known[name]}" if name in known else f"{name}: missing, pip install 'svdrd[compress]'"
            for name in EXTRA
        ]
        return "\n".join(lines)


def environment() -> Environment:
    """That of this process now. Nothing that is missing or wrong in it raises: it is part of the answer."""
    native, cuda = availability.native, availability.cuda_module()
    build = dict(availability.build_record())
    for name, module in (("native_module", native), ("cuda_module", cuda)):
        if module is not None:
            build[name] = module.build_info()
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return Environment(
        versions=_versions(),
        platform=platform.platform(),
        build=build,
        instruction_set=None if native is None else native.instruction_set(),
        threads={
            "torch": torch.get_num_threads(),
            "cpp": None if native is None else THREADS[native.threads_of()],
        },
        devices=[
            Device("cpu", f"{platform.platform()}, {platform.machine()}, {torch.get_num_threads()} threads"),
            *(Device(str(gpu), _gpu_in_words(gpu)) for gpu in gpus),
        ],
        backends=availability.describe(),
        chosen_backend=selection.chosen(),
        routes=[_routes(operator, device) for device in (torch.device("cpu"), *gpus) for operator in OPERATORS],
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
        denormals_are_zero=torch.tensor(1e-310, dtype=torch.float64).mul(1).item() == 0,
    )


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "svdrd": svdrd.__version__,
        "python": platform.python_version(),
        # torch.version knows the CUDA that it was built with, its metadata may not.
        "torch": str(torch.__version__),
        "cuda of torch": torch.version.cuda,
    }
    for name in (*OPTIONAL, *EXTRA):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _gpu_in_words(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, sm_{major}{minor}"


def _routes(operator: str, device: torch.device) -> Routes:
    try:
        return Routes(operator, str(device), {n: routes.route(operator, n, n, device=device) for n in SIZES})
    except (RuntimeError, ValueError) as error:  # SVDRD_BACKEND names one that computes elsewhere, or none
        return Routes(operator, str(device), {}, str(error))


def _routes_in_words(route: Routes) -> str:
    """Neighbouring sizes with one answer share a part."""
    if route.error is not None:
        return f"{route.operator} on {route.device}: {route.error}"
    spans: list[tuple[str, Sequence[int]]] = [
        (computer, list(sizes)) for computer, sizes in groupby(route.computers, key=route.computers.__getitem__)
    ]
    parts = (f"{sizes[0]}{f' to {sizes[-1]}' if len(sizes) > 1 else ''}: {computer}" for computer, sizes in spans)
    return f"{route.operator} on {route.device}, n x n, {', '.join(parts)}"


def _build_in_words(build: dict[str, object]) -> str:
    native = f"C++ kernels by {build.get('compiler')}" if build.get("native") else f"no C++ kernels: {build['reason']}"
    cuda = "CUDA kernels" if build.get("cuda") else f"no CUDA kernels: {build.get('cuda_reason') or build['reason']}"
    return f"SVDRD_BUILD={build.get('mode', 'unknown')}; {native}; {cuda}"
