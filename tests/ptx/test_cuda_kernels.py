"""The CUDA kernels of csrc, compiled for sm_80 and sm_90 and executed: host code, and the PTX of nvcc."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from svdrd.backends import availability, cuda
from tests.ptx import cases, cuda_launch
from tests.ptx.cases import Case

TARGETS = (80, 90)
# Teams of 8 and of 32 lanes, of two warps, of eight; the last with its matrix in global memory.
SIZES = ((4, 4), (7, 3), (5, 8), (12, 16), (24, 24), (41, 23), (40, 40), (300, 6))
SHORT = {
    ("svd-5x8-float32", 80), ("polar_factor-7x3-float64", 80), ("polar_factor_backward-4x4-float32", 80),
    ("basis_loss-5x8-float64", 80), ("svd-24x24-float32", 80),
}  # fmt: skip
BUILD = Path(os.environ.get("SVDRD_PTX_BUILD", "build/ptx")).resolve()

pytestmark = pytest.mark.skipif(cuda_launch.toolkit() is None, reason="no nvcc")


def _cases() -> list[Case]:
    found = []
    for (m, n), dtype in product(SIZES, cuda_launch.DTYPES):
        count = 7 if max(m, n) <= 16 else 4
        found += [Case(operation, m, n, dtype, count) for operation in cuda_launch.OPERATIONS]
        if max(m, n) <= 24:
            smoothed = [operation for operation in cuda_launch.OPERATIONS if operation != "svd"]
            found += [Case(operation, m, n, dtype, count, smooth=cases.SMOOTH) for operation in smoothed]
    return found


CASES = _cases()
EMULATED = availability.cuda_module()


@pytest.mark.nightly
def test_each_target_runs_its_own_code() -> None:
    """Also where one process runs both, by turns: the records are kept beside the code that launched."""
    for target in (*TARGETS, *TARGETS):
        with cuda_launch.emulation(target, cases.options(0, perturb=0.0), BUILD / f"cuda_{target}") as records:
            cases.run(cuda, CASES[0])
        assert len(records) == 1


@cases.parametrize(CASES, TARGETS, SHORT)
def test_kernels(number: int, target: int) -> None:
    case = CASES[number]
    with cuda_launch.emulation(target, cases.options(number, perturb=0.0), BUILD / f"cuda_{target}") as records:
        out = cases.run(cuda, case)
    cases.check(case, out, records)
    # The same algorithm on lanes that the CPU plays (make emulation) gives the same bits.
    if EMULATED is not None:
        expected: Any = cases.run(cuda, case)
        for one, other in zip(out or (), expected, strict=True):
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
