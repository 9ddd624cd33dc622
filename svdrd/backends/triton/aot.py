"""``make aot``: compiles every kernel configuration that a launcher can choose, for GPUs that are not here.

It prints registers, spilled bytes and shared memory of each, and fails where one spills or exceeds the device's limit.
A new module with kernels goes into ``MODULES`` and lists its configurations in a function ``configurations()``.

    python -m svdrd.backends.triton.aot [--target sm_90] [--only WORD]

``--target gfx942`` asks what Triton makes of them for an AMD GPU (MI300). It is compiled only when asked for: there the
torch backend computes (:mod:`svdrd.backends.availability`).
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from svdrd.backends.triton.configuration import Configuration

MODULES: tuple[str, ...] = ("jacobi", "products")
# Shared memory that one block may have, in bytes: CUDA C++ Programming Guide, "Technical Specifications per Compute
# Capability"; of AMD's, the local data share in the "CDNA3 ISA Reference Guide".
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
TARGETS = tuple(target for target in SHARED_MEMORY if target.startswith("sm_"))


class Resources(NamedTuple):
    """What one configuration takes on one target."""

    name: str
    target: str
    registers: int
    spilled: int
    shared: int

    def problem(self) -> str | None:
        """Why a device would refuse it or run it slowly; None if all is well."""
        if self.spilled:
            return f"{self.spilled} bytes of stack"
        if self.shared > SHARED_MEMORY[self.target]:
            return f"{self.shared} bytes of shared memory, the device has {SHARED_MEMORY[self.target]}"
        return None


def configurations() -> Iterator[Configuration]:
    """Every configuration of every module."""
    for module in MODULES:
        yield from importlib.import_module(f"svdrd.backends.triton.{module}").configurations()


def signature(configuration: Configuration) -> tuple[dict[str, str], dict[tuple[int, ...], list[list[object]]]]:
    """The argument types, and which pointers are known to be aligned, as Triton's launcher would find them."""
    others = dict(configuration.others)
    types: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for index, parameter in enumerate(configuration.kernel.params):
        if parameter.is_constexpr:
            types[parameter.name] = "constexpr"
            continue
        types[parameter.name] = parameter.annotation_type or f"*{others.get(parameter.name, configuration.dtype)}"
        if types[parameter.name].startswith("*"):
            if not parameter.do_not_specialize_on_alignment:
                attributes[(index,)] = [["tt.divisibility", 16]]
        elif not parameter.do_not_specialize:
            raise TypeError(
                f"{configuration.kernel.__name__}: {parameter.name} has to be in do_not_specialize, or what is "
                "compiled at run time depends on its value."
            )
    return types, attributes


def compile_ahead(configuration: Configuration, target: str) -> Resources:
    """Compiles for ``target`` and reads what the machine code needs."""
    import triton
    from triton.backends.compiler import GPUTarget

    types, attributes = signature(configuration)
    source = triton.compiler.ASTSource(
        configuration.kernel, types, constexprs=dict(configuration.constants), attrs=attributes
    )
    nvidia = target.startswith("sm_")
    gpu = GPUTarget("cuda", int(target.removeprefix("sm_")), 32) if nvidia else GPUTarget("hip", target, 64)
    compiled = triton.compile(source, target=gpu, options=configuration.options)
    usage = resource_usage(compiled.asm["cubin"]) if nvidia else parse_metadata(compiled.asm["amdgcn"])
    registers, spilled = usage
    return Resources(configuration.name, target, registers, spilled, compiled.metadata.shared)


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and bytes of stack, as ``cuobjdump`` reads them from the machine code."""
    import triton

    cuobjdump = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        output = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return parse_resource_usage(output)


def parse_resource_usage(output: str) -> tuple[int, int]:
    """The numbers in ``REG:96 STACK:0 SHARED:0 LOCAL:0 ...``: registers; stack and local memory together."""
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", output)
    if found is None:
        raise ValueError(f"cuobjdump printed no resource usage: {output!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def parse_metadata(assembly: str) -> tuple[int, int]:
    """Vector registers a thread and bytes of stack, from the metadata in an AMD GPU's assembly."""
    registers, stack = (
        re.search(rf"\.{name}:\s+(\d+)", assembly) for name in ("vgpr_count", "private_segment_fixed_size")
    )
    if registers is None or stack is None:
        raise ValueError(f"the assembly has no metadata: {assembly[-200:]!r}")
    return int(registers.group(1)), int(stack.group(1))


def _compile_numbered(index: int, target: str) -> Resources:
    return compile_ahead(list(configurations())[index], target)


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles, prints the table, and returns 1 where a configuration is not fit for its target."""
    parser = argparse.ArgumentParser(prog="python -m svdrd.backends.triton.aot", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--target", action="append", choices=list(SHARED_MEMORY))
    parser.add_argument("--only", default="", help="configurations with this word in their name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args(argv)
    os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled
    targets = arguments.target or TARGETS
    chosen = [index for index, one in enumerate(configurations()) if arguments.only in one.name]
    work = [(index, target) for target in targets for index in chosen]
    failures = 0
    # Fresh processes: MLIR's threads do not survive a fork.
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        for resources in pool.map(_compile_numbered, *zip(*work, strict=True)) if work else ():
            problem = resources.problem()
            failures += problem is not None
            print(
                f"{resources.target:<7} {resources.registers:4} registers {resources.spilled:5} spilled "
                f"{resources.shared:7} shared  {resources.name}{f'  FAILS: {problem}' if problem else ''}",
                flush=True,
            )
    print(f"{len(work)} compiled, {failures} unfit")
    return 1 if failures or not work else 0


if __name__ == "__main__":
    sys.exit(main())
