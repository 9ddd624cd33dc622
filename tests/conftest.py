"""Fixtures: every backend runs the same tests, and output that a kernel forgot to write is NaN."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Threads that spin while they wait make tests many times slower where two processes share two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

# Without a GPU the Triton kernels run in Triton's interpreter, which has to be known before they are imported.
# Those of the cuda backend run as make emulation has built them, their threads played by the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    for _emulated in (Path(__file__).resolve().parents[1] / "build" / "emulation").glob("_cuda_emulated*"):
        os.environ.setdefault("SVDRD_CUDA_EMULATION", str(_emulated))

import svdrd
from svdrd.backends import availability, selection
from svdrd.dispatch import registration
from tests.interpreted import prepare_once
from tests.warm import Warm

# A process interprets Triton's kernels or compiles them. tests/ptx runs compiled ones: `make ptx`.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "0" else ["ptx"]

# A further backend joins every test by its name here.
BACKENDS = ["torch", "cpp", "triton", "cuda"]

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data"

torch.set_num_threads(2)

# Compiled graphs that an earlier run left on this machine call operators by the schemas of that run.
torch.compiler.config.force_disable_caches = True

# The interpreter takes milliseconds for what a GPU does in microseconds. There, matrices beyond this size and the tests
# marked slow_interpreted are left to tests/backends/test_jacobi.py, which looks at each larger size once, and to
# tests/backends/test_triton_products.py, which takes photographs; on a GPU everything runs.
INTERPRETED_LARGEST = 8


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backends", default=",".join(BACKENDS), help="which of them to run, separated by commas")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what Triton's interpreter cannot do in reasonable time, and backends that are not asked for."""
    wanted = config.getoption("--backends").split(",")
    if unknown := set(wanted) - set(BACKENDS):
        raise pytest.UsageError(f"--backends: {', '.join(sorted(unknown))}; there are {', '.join(BACKENDS)}")
    others = [item for item in items if hasattr(item, "callspec") and item.callspec.params.get("backend") in BACKENDS]
    others = [item for item in others if item.callspec.params["backend"] not in wanted]  # type: ignore[attr-defined]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in set(others)]
    if torch.cuda.is_available():
        return
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        sizes = [value for value in parameters.values() if type(value) is int]
        if parameters.get("backend") == "triton" and (
            max(sizes, default=0) > INTERPRETED_LARGEST or item.get_closest_marker("slow_interpreted")
        ):
            item.add_marker(pytest.mark.skip(reason="too slow in Triton's interpreter; it runs on a GPU"))


def on_device(kernel: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """An operator's implementation that takes and returns CPU tensors, and computes on ``device``."""

    def moved(value: Any, to: torch.device) -> Any:
        return value.to(to) if isinstance(value, torch.Tensor) else value

    def compute(*arguments: Any) -> Any:
        result = kernel(*(moved(argument, device) for argument in arguments))
        if isinstance(result, tuple):
            return tuple(moved(value, torch.device("cpu")) for value in result)
        return moved(result, torch.device("cpu"))

    return compute


def compute_on(device: torch.device, patch: pytest.MonkeyPatch) -> None:
    """Lets every operator compute CPU tensors on ``device``: tests make their matrices on the CPU.

    Autograd, dtypes, shapes and strides are then the CPU's; what is special to tensors of a GPU is in
    ``tests/backends/test_gpu.py``.
    """
    patch.setattr(registration, "compute", on_device(registration.compute, device))


@functools.cache
def lapack_bits_depend_on_the_place() -> bool:
    """Whether a matrix has other bits in another place of the batch: MKL's do so on AMD's processors.

    There they depend on where in a line of 64 bytes the matrix begins.
    """
    a = torch.randn(16, 7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return not torch.equal(torch.linalg.svd(a.flip(0)).U, torch.linalg.svd(a).U.flip(0))


@contextlib.contextmanager
def threads_of_pytorch(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend in turn; one that is not here is skipped with its recorded reason."""
    record = next(record for record in availability.describe() if record.name == request.param)
    if not record.available:
        pytest.skip(f"{record.name}: {record.reason}")
    # Two test processes share two cores, where a thread waits for another one that is not running. Of the backends,
    # cpp alone has threads of its own; what PyTorch does with two threads is not ours to test.
    threads = torch.get_num_threads() if record.name == "cpp" else 1
    with svdrd.use_backend(record.name), threads_of_pytorch(threads), pytest.MonkeyPatch.context() as patch:
        if torch.cuda.is_available() and record.name in selection.ON_CUDA:
            compute_on(torch.device("cuda", torch.cuda.current_device()), patch)
        yield record.name


@pytest.fixture(scope="session", autouse=True)
def _quick_interpreter() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        prepare_once()


@pytest.fixture(autouse=True)
def _unwritten_output_is_nan() -> Iterator[None]:
    """``torch.empty`` gives NaN under deterministic algorithms with filling switched on."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread, for tests that say why."""
    with threads_of_pytorch(1):
        yield


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Runs programs in a Python that has imported PyTorch and CompressAI."""
    python = Warm()
    yield python
    python.close()


@pytest.fixture
def kodak() -> list[Path]:
    """The Kodak photographs, where they lie beside the project."""
    files = sorted((PHOTOGRAPHS / "kodak").glob("*.png"))
    if not files:
        pytest.skip(f"no photographs in {PHOTOGRAPHS / 'kodak'}")
    return files
