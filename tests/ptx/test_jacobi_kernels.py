"""The Jacobi kernels of svdrd/backends/triton, compiled for sm_80, sm_90 and sm_100 and executed."""

from __future__ import annotations

from itertools import product
from unittest import mock

import pytest

pytest.importorskip("triton", reason="no Triton beside this PyTorch")

from svdrd.backends import limits
from svdrd.backends.triton import jacobi
from svdrd.backends.triton.configuration import Configuration
from tests.ptx import cases, triton_launch
from tests.ptx.cases import Case

TARGETS = (80, 90, 100)
EDGES = (4, 8, 16, 32, 64)
# How many matrices, by the longer side. With several in a program the last one is not full.
COUNTS = {4: 13, 8: 13, 16: 13, 32: 7, 64: 5}
# Each kernel, with one warp and with several, exact and padded, wide and tall: what make ptx PTX=short runs.
SHORT = {
    ("svd-8x4-float64", 80), ("svd-16x16-float32", 90), ("polar_factor-8x8-float32", 80),
    ("polar_factor-13x12-float64", 90), ("polar_factor_backward-16x16-float32", 80),
    ("polar_factor_backward-smoothed-8x8-float64", 90), ("basis_loss-3x7-float32", 80), ("basis_loss-8x8-float64", 90),
    ("basis_loss-16x16-float32", 90), ("recompose-8x8-float32", 90), ("recompose-8x4-float64", 80),
    ("recompose-3x1-float32", 80), ("svd-3x1-float32", 100),
}  # fmt: skip


def _sizes(long: int, narrow: int) -> list[tuple[int, int]]:
    """Of the form of the kernels for ``long x narrow``: exact, and padded, of which one is wide or square."""
    padded = (long - long // 4 + 1, narrow - narrow // 4) if long > 4 else (3, 1)
    return [(long, narrow), padded[::-1]] if (long + narrow) // 4 % 2 else [(narrow, long), padded]


def _cases() -> list[Case]:
    found = []
    for (long, narrow), dtype in product(product(EDGES, EDGES), ("float32", "float64")):
        if narrow > long:
            continue
        polar = dtype == "float32" or narrow <= limits.JACOBI_DOUBLE
        for m, n in _sizes(long, narrow):
            taken = [operation for operation in cases.OPERATIONS if polar or operation == "svd"]
            found += [Case(operation, m, n, dtype, COUNTS[long]) for operation in taken]
            if long <= 16:
                smoothed = ("polar_factor", "polar_factor_backward", "basis_loss")
                found += [Case(operation, m, n, dtype, COUNTS[long], smooth=cases.SMOOTH) for operation in smoothed]
                found.append(Case("basis_loss", m, n, dtype, COUNTS[long], sides=(False, True)))
    return found


CASES = _cases()


def test_every_form_is_executed() -> None:
    """The cases below launch each configuration that a GPU can be given."""
    executed: set[Configuration] = set()
    with mock.patch.object(Configuration, "launch", lambda self, grid, *arguments: executed.add(self)):
        for case in CASES:
            cases.run(jacobi, case)
    assert {one.name for one in jacobi.configurations()} == {one.name for one in executed}


@cases.parametrize(CASES, TARGETS, SHORT)
def test_kernels(number: int, target: int) -> None:
    case = CASES[number]
    with triton_launch.emulation(target, cases.options(number)) as records:
        out = cases.run(jacobi, case)
    cases.check(case, out, records)
