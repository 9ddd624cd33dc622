"""Makes Triton's launches of CPU tensors compile for a GPU and run here: ``install(target)``."""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from tests.ptx import machine
from tests.ptx import parser as ptx
from tests.ptx.translation import Translated

records: list[machine.Record] = []
options = machine.Options()
target = GPUTarget("cuda", 80, 32)
_binders: dict[Any, Any] = {}
_kernels: dict[Any, Any] = {}
FORMATS = {"i1": "<b", "i8": "<b", "i16": "<h", "i32": "<i", "i64": "<q", "u32": "<I", "u64": "<Q", "fp32": "<f", "fp64": "<d"}
# Called with each record.
on_record: list[Any] = []


def _run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
    kwargs["debug"] = False
    kwargs["instrumentation_mode"] = ""
    backend = make_backend(target)
    key = (self, target.arch)
    if key not in _binders:
        _binders[key] = create_function_from_signature(self.signature, self.params, backend)
    bound, specialization, chosen = _binders[key](*args, **kwargs)
    parsed, signature, constexprs, attrs = self._pack_args(backend, kwargs, bound, specialization, chosen)
    full = (self, target.arch, str(specialization), str(chosen))
    if full not in _kernels:
        compiled = triton.compile(ASTSource(self, signature, constexprs, attrs), target=target, options=parsed.__dict__)
        (kernel,) = ptx.parse(compiled.asm["ptx"]).values()
        _kernels[full] = compiled, Translated(kernel)
    compiled, translated = _kernels[full]
    buffers, values = [], []
    for name, value in bound.items():
        kind = signature[name]
        if kind == "constexpr":
            continue
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            buffers.append((storage.data_ptr(), storage.nbytes()))
            values.append(("p", value.data_ptr()))
        else:
            values.append((kind, value))
    memory = machine.Memory(buffers, translated.global_variables)
    params = translated.kernel.params
    raw = bytearray(translated.kernel.param_bytes)
    if len(params) != len(values) + 2:
        raise AssertionError(f"{self.__name__} has {len(params)} parameters, its launch {len(values)}")
    for (kind, value), (offset, size) in zip(values, params.values()):
        packed = struct.pack("<Q", memory.address(value)) if kind == "p" else struct.pack(FORMATS[kind], value)
        if len(packed) != size:
            raise AssertionError(f"{self.__name__}: {kind} is not of {size} bytes")
        raw[offset : offset + size] = packed
    if callable(grid):
        grid = grid(bound)
    count = int(np.prod(grid))
    if any(g != 1 for g in grid[1:]):
        raise NotImplementedError("a grid of more dimensions")
    threads = compiled.metadata.num_warps * 32
    if translated.kernel.threads and translated.kernel.threads != threads:
        raise AssertionError("reqntid")
    record = machine.launch(translated, count, threads, compiled.metadata.shared, bytes(raw), memory, options)
    record.name = self.__name__
    record.constants = {k: v for k, v in kwargs.items() if k in self.arg_names}
    record.compiled = compiled
    memory.copy_back()
    records.append(record)
    for f in on_record:
        f(record)
    return compiled


def _poisoned(f: Any) -> Any:
    def made(*args: Any, **kwargs: Any) -> Any:
        t = f(*args, **kwargs)
        if t.device.type == "cpu" and t.numel() and t.is_contiguous():
            storage = t.untyped_storage()
            n = storage.nbytes() // 4 * 4
            if n:
                machine.ctypes.memmove(storage.data_ptr(), machine.POISON.tobytes() * (n // 4), n)
        return t

    return made


def install(arch: int = 80) -> None:
    """Launches run here from now on, and what is allocated holds poison."""
    global target
    target = GPUTarget("cuda", arch, 32)
    JITFunction.run = _run
    torch.empty_like = _poisoned(torch.empty_like)
    torch.empty = _poisoned(torch.empty)
    torch.Tensor.new_empty = _poisoned(torch.Tensor.new_empty)
    from svdrd.triton import jacobi, products

    jacobi.INTERPRETED_ROWS = 0
    products._interpreted = lambda device: False
