"""Fixtures: kernels are compiled for a GPU that is not here and run in the emulator.

``make ptx`` runs these tests, in a process where Triton compiles its kernels (TRITON_INTERPRET=0). Those that are
marked ``nightly`` are left out by ``make ptx PTX=short``.
"""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _small_operators(one_thread: None) -> None:
    """Those of torch in between are too small for several threads."""
