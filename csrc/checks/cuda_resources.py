"""Compiles the CUDA kernels and checks what ptxas says that they take: ``make cuda-resources``.

Prints a table of registers and spills for each kernel and GPU generation, and of threads and shared memory for each
size of matrix. Fails on a spill, and if the module does not load on this machine, with or without a GPU.
With ``--log`` and ``--module`` it judges what ``pip install -v`` has compiled from nothing; ``.ci/run`` does so.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pybind11

ROOT = Path(__file__).resolve().parents[2]
GENERATIONS = ("75", "80", "90", "100")
OPERATIONS = {
    "SvdProblem": "svd",
    "PolarProblem": "polar_factor",
    "PolarBackwardProblem": "polar_factor_backward",
    "LossProblem": "basis_loss",
}
SIZES = [(4, 4), (8, 8), (8, 32), (16, 16), (32, 32), (64, 64), (64, 256), (4096, 8)]
# Bytes that a block may ask for (CUDA programming guide, compute capabilities); above, the kernels use a workspace.
SHARED_MEMORY = {"75": 64 << 10, "80": 163 << 10, "90": 227 << 10, "100": 227 << 10}


class Kernel(NamedTuple):
    """One kernel compiled for one generation of GPUs."""

    operation: str
    dtype: str
    team: str
    generation: str
    registers: int
    stack: int
    spilled: int


def parse(log: str) -> list[Kernel]:
    """The kernels in the output of ``nvcc -Xptxas=-v``."""
    kernels = []
    pattern = re.compile(
        r"Compiling entry function '(\S+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    for name, generation, stack, stores, loads, registers in pattern.findall(log):
        parsed = re.search(r"(Warp|Block)TeamILi(\d+)EEELb([01])ENS\w*?_\d+([A-Za-z]+Problem)I([fd])E", name)
        if parsed is None:
            raise SystemExit(f"cuda_resources: the kernel {name} has an unknown name")
        kind, threads, in_workspace, problem, element = parsed.groups()
        team = f"{kind.lower()} {threads}" + (", workspace" if in_workspace == "1" else "")
        kernels.append(
            Kernel(
                OPERATIONS[problem],
                {"f": "float32", "d": "float64"}[element],
                team,
                generation,
                int(registers),
                int(stack),
                int(stores) + int(loads),
            )
        )
    return kernels


def run(command: list[str]) -> str:
    """Its output; where it fails, that is shown and the program ends."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise SystemExit(f"{result.stdout}\ncuda_resources: {Path(command[0]).name} failed")
    return result.stdout


def compile_afresh(nvcc: str, generations: list[str], folder: Path) -> tuple[str, Path]:
    """What the compilers printed, and the module."""
    cmake, ninja = (str(Path(sys.executable).with_name(name)) for name in ("cmake", "ninja"))
    settings = {
        "CMAKE_MAKE_PROGRAM": ninja,
        "CMAKE_CUDA_COMPILER": nvcc,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "SVDRD_PYTHON_MODULE": "OFF",
        "SVDRD_CUDA": "ON",
        "SVDRD_CUDA_ARCHITECTURES": ";".join(f"{name}-real" for name in generations),
    }
    definitions = [f"-D{key}={value}" for key, value in settings.items()]
    run([cmake, "-S", str(ROOT / "csrc"), "-B", str(folder), "-G", "Ninja", *definitions])
    log = run([cmake, "--build", str(folder), "--target", "_cuda"])
    (module,) = folder.glob("_cuda*.so")
    return log, module


def load(path: Path) -> ModuleType:
    """The module from its file."""
    spec = importlib.util.spec_from_file_location("_cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_nvcc() -> str:
    """As setup.py looks for it: CUDA_HOME, CUDA_PATH, the PATH."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=str(Path(home, "bin")) if home else None)
    if nvcc is None:
        raise SystemExit("cuda_resources: no nvcc; set CUDA_HOME to a toolkit of CUDA 12 or 13")
    return nvcc


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables; 1 if a kernel spills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", nargs="+", default=list(GENERATIONS), help="compute capabilities, e.g. 80 90")
    parser.add_argument("--log", type=Path, help="what that build printed, judged in place of one made here")
    parser.add_argument("--module", type=Path, help="and the module that it made")
    arguments = parser.parse_args(argv)
    wanted = arguments.generations
    if (arguments.log is None) != (arguments.module is None):
        parser.error("--log and --module belong to one build: give both, or neither")
    nvcc = find_nvcc()
    known = re.findall(r"compute_(\d+)", run([nvcc, "--list-gpu-arch"]))
    generations = [name for name in wanted if name in known]
    for name in set(wanted) - set(generations):
        print(f"sm_{name}: not known to this nvcc, not compiled")

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        if arguments.log is None:
            log, path = compile_afresh(nvcc, generations, Path(folder))
            taken = f"{time.perf_counter() - start:.0f} s"
        else:
            log, path, taken = arguments.log.read_text(errors="replace"), arguments.module, str(arguments.log)
        module = load(path)
        print(f"{module.build_info()['compiler']}: compiled for {len(generations)} generations in {taken}")
        print(f"the module loads here; its first device: {module.refusal(0) or 'can run the kernels'}\n")
        kernels = parse(log)
        rows: dict[tuple[str, str, str], dict[str, Kernel]] = {}
        for kernel in kernels:
            rows.setdefault((kernel.operation, kernel.dtype, kernel.team), {})[kernel.generation] = kernel
        print("registers of a thread (spilled bytes in brackets)")
        print(f"{'kernel':22} {'dtype':8} {'team':21} " + " ".join(f"{'sm_' + name:>8}" for name in generations))
        for (operation, dtype, team), found in sorted(rows.items()):
            cells = [
                f"{found[name].registers}" + (f" ({found[name].spilled})" if found[name].spilled else "")
                for name in generations
            ]
            print(f"{operation:22} {dtype:8} {team:21} " + " ".join(f"{cell:>8}" for cell in cells))
        if len(kernels) != len(rows) * len(generations) or not rows:
            raise SystemExit("cuda_resources: ptxas did not report every kernel for every generation")

        print(
            "\nthreads and shared memory of one matrix; w: more than a block of that generation has, so in a workspace"
        )
        print(
            f"{'operation':22} {'dtype':8} {'size':>9} {'threads':>8} {'bytes':>9} "
            + " ".join(f"sm_{g}" for g in generations)
        )
        for operation in OPERATIONS.values():
            for dtype in ("float32", "float64"):
                for m, n in SIZES:
                    threads, size = module.team(operation, dtype, m, n)
                    fits = [" ok" if size <= SHARED_MEMORY.get(name, 48 << 10) else "  w" for name in generations]
                    print(f"{operation:22} {dtype:8} {f'{m}x{n}':>9} {threads:>8} {size:>9} " + "   ".join(fits))

    spilled = [kernel for kernel in kernels if kernel.spilled]
    print(
        f"\n{len(kernels)} kernels, {len(spilled)} with spills, at most {max(k.registers for k in kernels)} registers"
    )
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
