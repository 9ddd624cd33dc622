"""The CUDA kernels of csrc, run by the emulator: their host code is linked to a runtime that hands launches over.

CUDA_HOME is the toolkit; without it, the one that the nvcc on the PATH executes.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from torch import Tensor

from svdrd.backends import availability
from tests.ptx import machine, parser
from tests.ptx.memory import Memory
from tests.ptx.poison import poisoned_allocations
from tests.ptx.translation import Translated

CSRC = Path(__file__).resolve().parents[2] / "csrc"
RUNTIME = Path(__file__).with_name("fake_cudart.cpp")
DTYPES = ("float32", "float64")
OPERATIONS = ("svd", "polar_factor", "polar_factor_backward", "basis_loss")
LAUNCH = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t
)


def toolkit() -> Path | None:
    """The folder of the CUDA toolkit; None if there is none."""
    if home := os.environ.get("CUDA_HOME"):
        return Path(home)
    if (nvcc := shutil.which("nvcc")) is None:
        return None
    # It may be a script that starts another.
    started = re.search(r"^exec (\S+)", Path(nvcc).read_text(errors="ignore"), re.M)
    return Path(started.group(1) if started else nvcc).resolve().parents[1]


def build(folder: Path, arch: int) -> None:
    """Compiles module and PTX into ``folder``, unless they are there from the same sources; one process at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _build(folder, arch)


def _build(folder: Path, arch: int) -> None:
    import pybind11

    home = toolkit()
    if home is None:
        raise FileNotFoundError("no nvcc")
    sources = [path for path in sorted(CSRC.rglob("*")) if path.suffix in (".h", ".cu", ".cuh", ".cpp")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (*sources, RUNTIME, Path(__file__)))).hexdigest()
    stamp = folder / "stamp"
    if stamp.exists() and stamp.read_text() == digest:
        return

    def call(*command: Any) -> None:
        subprocess.run([str(argument) for argument in command], check=True)

    for dtype in DTYPES:
        kept = folder / dtype
        kept.mkdir(exist_ok=True)
        # --fmad=false as in csrc/CMakeLists.txt. With --keep the PTX stays beside the object.
        call(
            home / "bin" / "nvcc", "-std=c++17", "--fmad=false", "-O1", "-Xcompiler", "-fPIC", f"-I{CSRC}",
            "-gencode", f"arch=compute_{arch},code=compute_{arch}", "--keep", "--keep-dir", kept,
            "-c", CSRC / "gpu" / f"{dtype}.cu", "-o", folder / f"{dtype}.o",
        )  # fmt: skip
    call("g++", "-O1", "-c", "-fPIC", "-fvisibility=hidden", RUNTIME, "-o", folder / "fake_cudart.o")
    definitions = {
        "SVDRD_VERSION": '"0"', "SVDRD_CUDA_COMPILER": '"nvcc"', "SVDRD_CUDA_ARCHITECTURES": f'"{arch}"',
        "SVDRD_CUDA_MODULE": module_name(arch), "SVDRD_CUDA_IS_EMULATED": "0",
    }  # fmt: skip
    includes = (CSRC, pybind11.get_include(), sysconfig.get_paths()["include"], home / "include")
    call(
        "g++", "-O1", "-shared", "-fPIC", "-std=c++17", "-fvisibility=hidden", *(f"-I{path}" for path in includes),
        *(f"-D{name}={value}" for name, value in definitions.items()), CSRC / "gpu" / "module.cpp",
        *(folder / f"{name}.o" for name in (*DTYPES, "fake_cudart")), "-Wl,-Bsymbolic", "-o", module_path(folder, arch),
    )  # fmt: skip
    stamp.write_text(digest)


def module_name(arch: int) -> str:
    """Of the extension module. pybind11 gives a process one module of a name, whichever file it is asked to load."""
    return f"_cuda_sm_{arch}"


def module_path(folder: Path, arch: int) -> Path:
    """The extension module that :func:`build` makes."""
    return folder / f"{module_name(arch)}{sysconfig.get_config_var('EXT_SUFFIX')}"


class Launcher:
    """In the place of ``svdrd._cuda``: the same module, whose launches are run here."""

    def __init__(self, module: ModuleType, kernels: dict[str, Translated], options: machine.Options) -> None:
        self.module, self.kernels, self.options = module, kernels, options
        self.records: list[machine.Record] = []
        # Addresses and sizes of what the call that runs now may touch: the storages of tensors whose address was asked
        # for since the last call.
        self.buffers: dict[int, int] = {}
        self.failure: Exception | None = None
        self.callback = LAUNCH(self.launch)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.module, name)
        if name not in OPERATIONS:
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            result = value(*args, **kwargs)
            self.buffers.clear()
            failure, self.failure = self.failure, None
            if failure is not None:
                raise failure
            return result

        return call

    def launch(self, name: bytes, grid: int, block: int, arguments: Any, shared: int) -> None:
        """What the runtime calls. An exception would not pass through it, so it is kept."""
        try:
            translated = self.kernels[name.decode()]
            memory = Memory(self.buffers.items(), translated.global_variables)
            raw = bytearray(translated.kernel.param_bytes)
            for number, (offset, size) in enumerate(translated.kernel.params.values()):
                raw[offset : offset + size] = ctypes.string_at(arguments[number], size)
            # Parameters are structures; their words that point into a buffer are pointers.
            for offset in range(0, len(raw) - 7, 8):
                word = int.from_bytes(raw[offset : offset + 8], "little")
                raw[offset : offset + 8] = (memory.address(word) or word).to_bytes(8, "little")
            record = machine.launch(translated, grid, block, shared, bytes(raw), memory, self.options)
            memory.copy_back()
            parts = re.search(r"(Warp|Block)TeamILi(\d+)EEELb([01])ENS\w*?_\d+([A-Za-z]+Problem)I([fd])E", record.name)
            record.name = " ".join(parts.groups()) if parts else record.name
            self.records.append(record)
        except Exception as error:  # noqa: BLE001  # raised by call()
            self.failure = error


@cache
def _kernels(folder: Path) -> dict[str, Translated]:
    """By name, as nvcc mangles it."""
    texts = [path.read_text() for dtype in DTYPES for path in (folder / dtype).glob("*.ptx")]
    kernels = [kernel for text in texts for kernel in parser.parse(text).values()]
    return {kernel.name: Translated(kernel, split_together=True) for kernel in kernels}


@contextmanager
def emulation(arch: int, options: machine.Options, folder: Path) -> Iterator[list[machine.Record]]:
    """Within it the ``cuda`` backend runs here, compiled in ``folder``; gives the records of the launches."""
    build(folder, arch)
    path = module_path(folder, arch)
    spec = importlib.util.spec_from_file_location(module_name(arch), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.__file__ != str(path):
        raise ImportError(f"{path} was asked for and {module.__file__} loaded")
    launcher = Launcher(module, _kernels(folder), options)
    ctypes.CDLL(str(path)).fake_set_callback(launcher.callback)
    data_ptr = Tensor.data_ptr

    def noted(tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            launcher.buffers[storage.data_ptr()] = storage.nbytes()
        return data_ptr(tensor)

    with (
        mock.patch.object(Tensor, "data_ptr", noted),
        mock.patch.object(availability, "cuda_module", return_value=launcher),
        poisoned_allocations(),
    ):
        yield launcher.records
