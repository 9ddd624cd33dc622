"""Fixtures: every backend runs the same tests, and output that a kernel forgot to write is NaN."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Without a GPU the Triton kernels run in Triton's interpreter, which has to be known before they are imported.
# Those of the cuda backend run as make emulation has built them, their threads played by the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    for _emulated in (Path(__file__).resolve().parents[1] / "build" / "emulation").glob("_cuda_emulated*"):
        os.environ.setdefault("SVDRD_CUDA_EMULATION", str(_emulated))

import svdrd
from svdrd import backends

# A further backend joins every test by its name here.
BACKENDS = ["torch", "cpp", "triton", "cuda"]

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data"

torch.set_num_threads(2)

# Compiled graphs that an earlier run left on this machine call operators by the schemas of that run.
torch.compiler.config.force_disable_caches = True


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend in turn; one that is not here is skipped with its recorded reason."""
    record = next(record for record in backends.describe() if record.name == request.param)
    if not record.available:
        pytest.skip(f"{record.name}: {record.reason}")
    with svdrd.use_backend(record.name):
        yield record.name


@pytest.fixture(autouse=True)
def _unwritten_output_is_nan() -> Iterator[None]:
    """``torch.empty`` gives NaN under deterministic algorithms with filling switched on."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def kodak() -> list[Path]:
    """The Kodak photographs, where they lie beside the project."""
    files = sorted((PHOTOGRAPHS / "kodak").glob("*.png"))
    if not files:
        pytest.skip(f"no photographs in {PHOTOGRAPHS / 'kodak'}")
    return files
