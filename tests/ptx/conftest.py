"""Fixtures: kernels are compiled for a GPU that is not here and run in the emulator.

``make ptx`` runs these tests, in a process where Triton compiles its kernels (TRITON_INTERPRET=0). Those that are
marked ``nightly`` are left out by ``make ptx PTX=short``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The operators of torch in between are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
