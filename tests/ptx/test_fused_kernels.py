"""The fused products of svdrd/triton, compiled for sm_80 and sm_90 and executed."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="no Triton beside this PyTorch")

from svdrd.triton import fused
from tests.ptx import cases, triton_launch
from tests.ptx.cases import Case

TARGETS = (80, 90)
CASES = [
    Case(operation, m, n, count=7)
    for m, n in ((16, 16), (13, 9), (32, 32), (20, 40))
    for operation in ("polar_factor", "polar_factor_backward", "basis_loss")
]


@cases.parametrize(CASES, TARGETS, set())
def test_kernels(number: int, target: int) -> None:
    case = CASES[number]
    with triton_launch.emulation(target, cases.options(number)) as records:
        out = cases.run(fused, case)
    cases.check(case, out, records)
