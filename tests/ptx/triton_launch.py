"""Triton's launches of CPU tensors: compiled for a GPU as Triton's JIT would, and run by the emulator."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from tests.ptx import machine, parser
from tests.ptx.memory import Memory
from tests.ptx.poison import poisoned_allocations
from tests.ptx.translation import Translated

# How a parameter of each of Triton's types lies in memory.
FORMATS = {
    "i1": "<b", "i8": "<b", "i16": "<h", "i32": "<i", "i64": "<q", "u32": "<I", "u64": "<Q", "fp32": "<f", "fp64": "<d",
}  # fmt: skip


class Bound(NamedTuple):
    """The arguments of a launch, and what Triton compiles for them."""

    arguments: dict[str, Any]
    types: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: Any


class Launcher:
    """Compiles and runs kernels for compute capability ``arch``; keeps what was compiled and the record of each launch.

    Args:
        assembled: whether ptxas is to make machine code, too, for the registers that it takes.
    """

    def __init__(self, arch: int, options: machine.Options, assembled: bool) -> None:
        self.target = GPUTarget("cuda", arch, 32)
        self.backend = make_backend(self.target)
        self.options, self.assembled = options, assembled
        self.records: list[machine.Record] = []

    def bind(self, kernel: JITFunction[Any], *args: Any, **kwargs: Any) -> Bound:
        """What Triton's JIT makes of the arguments."""
        kwargs |= {"debug": False, "instrumentation_mode": ""}
        binder = create_function_from_signature(kernel.signature, kernel.params, self.backend)
        arguments, specialization, options = binder(*args, **kwargs)
        packed = kernel._pack_args(self.backend, kwargs, arguments, specialization, options)
        parsed, types, constants, attributes = packed
        return Bound(arguments, types, constants, attributes, parsed)

    def compile(self, kernel: JITFunction[Any], bound: Bound) -> tuple[Any, Translated]:
        """Triton's compiled kernel, and its translation."""
        key = (kernel, self.target.arch, self.assembled, repr(bound[1:]))
        if key not in _compiled:
            source = ASTSource(kernel, bound.types, bound.constants, bound.attributes)
            hook = None if self.assembled else _without_assembler
            with mock.patch.object(knobs.runtime, "add_stages_inspection_hook", hook):
                compiled = triton.compile(source, target=self.target, options=bound.options.__dict__)
            (parsed,) = parser.parse(compiled.asm["ptx"]).values()
            _compiled[key] = compiled, Translated(parsed)
        return _compiled[key]

    def run(self, kernel: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        """In the place of ``JITFunction.run``."""
        if warmup:
            raise NotImplementedError("a compilation without a launch")
        bound = self.bind(kernel, *args, **kwargs)
        compiled, translated = self.compile(kernel, bound)
        programs, *others = grid(bound.arguments) if callable(grid) else grid
        if any(size != 1 for size in others):
            raise NotImplementedError("a grid of more dimensions")
        tensors = [value for value in bound.arguments.values() if isinstance(value, torch.Tensor)]
        storages = [tensor.untyped_storage() for tensor in tensors]
        buffers = [(storage.data_ptr(), storage.nbytes()) for storage in storages]
        memory = Memory(buffers, translated.global_variables)
        record = machine.launch(
            translated, programs, 32 * compiled.metadata.num_warps, compiled.metadata.shared,
            _parameters(translated, bound, memory), memory, self.options,
        )  # fmt: skip
        memory.copy_back()
        record.name, record.compiled = kernel.__name__, compiled
        record.constants = {name: value for name, value in kwargs.items() if name in kernel.arg_names}
        self.records.append(record)
        return compiled


# Compilation takes seconds, so what is compiled is kept for the launchers to come.
_compiled: dict[Any, tuple[Any, Translated]] = {}


def _without_assembler(*arguments: Any) -> Any:
    """Triton's hook to change the stages of its compiler; without arguments it is asked for a key for the cache."""
    if not arguments:
        return "without ptxas", "without ptxas"
    stages = arguments[1]
    stages["cubin"] = lambda source, metadata: b""
    return None


def _parameters(translated: Translated, bound: Bound, memory: Memory) -> bytes:
    values = [(bound.types[name], value) for name, value in bound.arguments.items() if bound.types[name] != "constexpr"]
    places = translated.kernel.params.values()
    # Triton adds two pointers, to scratch memory that the kernels here do not ask for.
    if len(places) != len(values) + 2:
        raise ValueError(f"{translated.kernel.name} has {len(places)} parameters, its launch {len(values)}")
    raw = bytearray(translated.kernel.param_bytes)
    for (kind, value), (offset, size) in zip(values, places, strict=False):
        if isinstance(value, torch.Tensor):
            packed = struct.pack("<Q", memory.address(value.data_ptr()))
        else:
            packed = struct.pack(FORMATS[kind], value)
        if len(packed) != size:
            raise ValueError(f"{translated.kernel.name}: {kind} is not of {size} bytes")
        raw[offset : offset + size] = packed
    return bytes(raw)


@contextmanager
def emulation(arch: int, options: machine.Options, assembled: bool = False) -> Iterator[list[machine.Record]]:
    """Within it kernels are launched here, and what is allocated holds poison; gives the records of the launches."""
    launcher = Launcher(arch, options, assembled)
    run: Callable[..., Any] = lambda kernel, *args, **kwargs: launcher.run(kernel, *args, **kwargs)  # noqa: E731
    with mock.patch.object(JITFunction, "run", run), poisoned_allocations():
        yield launcher.records
