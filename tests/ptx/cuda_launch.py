"""Runs the CUDA fallback (csrc/*.cu) from the PTX that nvcc makes: its host code against a runtime that launches here.

    python cuda_launch.py [--sizes 8x8,...] [--build FOLDER]     with PYTHONPATH set to the project's checkout

CUDA_HOME is the toolkit; without it, the one that the nvcc on the PATH executes.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import torch

from tests.ptx import machine
from tests.ptx import parser as ptx
from tests.ptx import cases as suite
from tests.ptx import triton_launch
from tests.ptx.translation import Translated

HERE = Path(__file__).parent
live: dict[int, int] = {}
kernels: dict[str, Any] = {}
options = triton_launch.options
failure: list[BaseException] = []


def toolkit() -> Path:
    if home := os.environ.get("CUDA_HOME"):
        return Path(home)
    nvcc = Path(shutil.which("nvcc") or "nvcc")
    found = re.search(r"^exec (\S+)", nvcc.read_text(errors="ignore"), re.M)
    return Path(found.group(1) if found else nvcc).resolve().parents[1]


def build(source: Path, folder: Path, arch: int) -> None:
    import pybind11

    folder.mkdir(parents=True, exist_ok=True)
    nvcc, include = toolkit() / "bin" / "nvcc", toolkit() / "include"
    stamp = folder / "stamp"
    digest = hashlib.sha256(str(arch).encode())
    for path in sorted(p for p in (*source.iterdir(), HERE / "fake_cudart.cpp") if p.suffix in (".h", ".cu", ".cuh", ".cpp")):
        digest.update(path.read_bytes())
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return

    def call(*command: Any) -> None:
        subprocess.run([str(c) for c in command], check=True)

    common = ["-std=c++17", "--fmad=false"]
    for kind in ("float32", "float64"):
        call(nvcc, *common, f"-arch=sm_{arch}", "-ptx", source / f"cuda_{kind}.cu", "-o", folder / f"{kind}.ptx")
        call(nvcc, *common, "-O1", "-Xcompiler", "-fPIC", "-gencode", f"arch=compute_{arch},code=compute_{arch}", "-c",
             source / f"cuda_{kind}.cu", "-o", folder / f"{kind}.o")  # fmt: skip
    call("g++", "-O1", "-c", "-fPIC", "-fvisibility=hidden", HERE / "fake_cudart.cpp", "-o", folder / "fake_cudart.o")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    flags = ["-O1", "-shared", "-fPIC", "-std=c++17", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}",
             f"-I{include}", '-DSVDRD_VERSION="0"', '-DSVDRD_CUDA_COMPILER="c"', '-DSVDRD_CUDA_ARCHITECTURES="a"', "-fvisibility=hidden"]  # fmt: skip
    call("g++", *flags, "-DSVDRD_CUDA_MODULE=_cuda", "-DSVDRD_CUDA_IS_EMULATED=0", source / "cuda_module.cpp",
         folder / "float32.o", folder / "float64.o", folder / "fake_cudart.o", "-Wl,-Bsymbolic", "-o", folder / f"_cuda{suffix}")  # fmt: skip
    call("g++", *flags, "-O2", "-mfma", "-ffp-contract=off", "-DSVDRD_CUDA_MODULE=_cuda_emulated", "-DSVDRD_CUDA_IS_EMULATED=1",
         source / "cuda_module.cpp", source / "cuda_emulated.cpp", "-pthread", "-o", folder / f"_cuda_emulated{suffix}")  # fmt: skip
    stamp.write_text(digest.hexdigest())


def _load(folder: Path, name: str) -> Any:
    path = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch(name: bytes, grid: int, block: int, arguments: Any, shared: int) -> None:
    try:
        kernel = kernels[name.decode()]
        if not isinstance(kernel, Translated):
            kernel = kernels[name.decode()] = Translated(kernel, split_together=True)
        memory = machine.Memory(list(live.items()), kernel.global_variables)
        raw = bytearray(kernel.kernel.param_bytes)
        for k, (offset, size) in enumerate(kernel.kernel.params.values()):
            raw[offset : offset + size] = ctypes.string_at(arguments[k], size)
        words = memoryview(raw[: len(raw) // 8 * 8]).cast("Q")
        for k, value in enumerate(words):
            if moved := memory.address(value):
                raw[8 * k : 8 * k + 8] = moved.to_bytes(8, "little")
        record = machine.launch(kernel, grid, block, shared, bytes(raw), memory, options)
        short = re.search(r"(Warp|Block)TeamILi(\d+)EEELb([01])ENS\w*?_\d+([A-Za-z]+Problem)I([fd])E", name.decode())
        record.name = " ".join(short.groups()) if short else name.decode()
        record.constants = {}
        memory.copy_back()
        triton_launch.records.append(record)
    except BaseException as error:  # a callback may not raise
        failure.append(error)


CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t)
_callback = CALLBACK(launch)


class _Module:
    """svdrd._cuda whose buffers are those tensors whose address was asked for since the last call."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if name not in ("svd", "polar_factor", "polar_factor_backward", "basis_loss"):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                result = value(*args, **kwargs)
                if failure:
                    raise failure.pop()
                return result
            finally:
                live.clear()

        return call


def install(source: Path, folder: Path, arch: int = 80) -> tuple[Any, Any]:
    build(source, folder, arch)
    module = _load(folder, "_cuda")
    ctypes.CDLL(module.__file__).fake_set_callback(_callback)
    for kind in ("float32", "float64"):
        kernels.update(ptx.parse((folder / f"{kind}.ptx").read_text()))
    module, emulated = _Module(module), _load(folder, "_cuda_emulated")
    original = torch.Tensor.data_ptr

    def data_ptr(self: torch.Tensor) -> int:
        storage = self.untyped_storage()
        if storage.nbytes():
            live[storage.data_ptr()] = storage.nbytes()
        return original(self)

    torch.Tensor.data_ptr = data_ptr
    from svdrd import backends

    backends.cuda_module = lambda: module
    return module, emulated


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="4x4,8x8,7x12,16x16,32x32,41x23,64x64,300x6")
    parser.add_argument("--dtype", choices=["float32", "float64"])
    parser.add_argument("--build", type=Path, default=Path("build-cuda"))
    parser.add_argument("--order", choices=["lockstep", "forward", "reverse", "random"])
    parser.add_argument("--batch", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--limit", type=float, default=300.0)
    o = parser.parse_args()
    if o.order:
        suite.ORDERS = suite.itertools.repeat(o.order)
    suite.only = o.only
    options.limit = o.limit
    import svdrd
    from svdrd import backends, cuda

    source = Path(svdrd.__file__).parents[1] / "csrc"
    module, emulated = install(source, o.build.resolve())
    for f in ("empty", "empty_like"):
        setattr(torch, f, triton_launch._poisoned(getattr(torch, f)))
    torch.Tensor.new_empty = triton_launch._poisoned(torch.Tensor.new_empty)
    start = time.time()

    def host(f: Any) -> Any:
        backends.cuda_module = lambda: emulated
        try:
            return f()
        finally:
            backends.cuda_module = lambda: module
            live.clear()

    def check(name: str, f: Any, judge: Any, limit: float) -> Any:
        def both(out: Any) -> dict[str, float]:
            other = host(f)
            bits = sum(int((a.contiguous().view(torch.uint8) != b.contiguous().view(torch.uint8)).sum()) for a, b in zip(out, other) if a.numel() and not (a.isnan() & b.isnan()).any())
            nans = sum(int(((a != b) & ~(a.isnan() & b.isnan())).sum()) for a, b in zip(out, other) if a.numel())
            return judge(out) | {"bits": float(nans), "bytes": float(bits)}

        return suite.run(name, f, both, limit)

    for size in o.sizes.split(","):
        m, n = map(int, size.split("x"))
        for dtype in [getattr(torch, o.dtype)] if o.dtype else [torch.float32, torch.float64]:
            eps = torch.finfo(dtype).eps
            rcond = 4 * eps
            count = o.batch or (7 if max(m, n) <= 16 else 3)
            limit = 10.0 * max(m, n)
            name = f"{m}x{n} {str(dtype)[6:]} b={count}"
            a = suite.matrices(m, n, count, dtype, m * n)
            check(f"svd {name}", lambda: cuda.svd(a), suite.judge_svd(a), limit)
            for smooth in (0.0, 0.1):
                b = suite.matrices(m, n, count, dtype, m * n, 1.0) if smooth else a
                out = check(f"polar_factor {name} smooth={smooth}", lambda: cuda.polar_factor(b, rcond, smooth, True), suite.judge_polar(b, rcond, smooth), limit)
                grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
                if out is not None:
                    check(f"polar_factor_backward {name} smooth={smooth}",
                          lambda: (cuda.polar_factor_backward(grad, b, *out, rcond, smooth),), suite.judge_backward(b, grad, rcond, smooth), limit)  # fmt: skip
            x_hat, x = suite.image_pair(1, 1, 3, m, n, dtype, m + n)
            check(f"basis_loss {name}", lambda: cuda.basis_loss(x_hat, x, m, n, rcond, 0.0, True, False),
                  suite.judge_loss(x_hat, x, m, n, rcond, 0.0, (True, False)), limit)  # fmt: skip
    print(f"{len(suite.results)} cases, {suite.trouble} with trouble, {time.time() - start:.0f} s")
    if o.json:
        o.json.write_text(suite.json.dumps(suite.results, indent=1))
    return 1 if suite.trouble else 0


if __name__ == "__main__":
    sys.exit(main())
