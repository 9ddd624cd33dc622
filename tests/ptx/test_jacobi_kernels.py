"""The Jacobi kernels of svdrd/triton, compiled for sm_80 and sm_90 and executed."""

from __future__ import annotations

from itertools import product
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("triton", reason="no Triton beside this PyTorch")

from svdrd.triton import jacobi  # noqa: E402
from svdrd.triton.configuration import Configuration  # noqa: E402
from tests.ptx import cases, triton_launch  # noqa: E402
from tests.ptx.cases import Case  # noqa: E402

TARGETS = (80, 90)
EDGES = (4, 8, 16, 32, 64)
# How many matrices, by the longer side. With several in a program the last one is not full.
COUNTS = {4: 13, 8: 13, 16: 13, 32: 7, 64: 5}


def _sizes(long: int, narrow: int) -> list[tuple[int, int]]:
    """Of the form of the kernels for ``long x narrow``: exact, and padded, of which one is wide and the other tall."""
    padded = (long - long // 4 + 1, narrow - narrow // 4) if long > 4 else (3, 1)
    exact = (long, narrow)
    return [exact, padded[::-1]] if (long + narrow) // 4 % 2 else [exact[::-1], padded]


def _cases() -> list[Any]:
    found = []
    for long, narrow in product(EDGES, EDGES):
        if narrow > long:
            continue
        for (m, n), dtype in product(_sizes(long, narrow), ("float32", "float64")):
            for operation in cases.OPERATIONS:
                found.append(Case(operation, m, n, dtype, COUNTS[long]))
            if long <= 16:
                for operation in ("polar_factor", "polar_factor_backward", "basis_loss"):
                    found.append(Case(operation, m, n, dtype, COUNTS[long], smooth=cases.SMOOTH))
                found.append(Case("basis_loss", m, n, dtype, COUNTS[long], sides=(False, True)))
    taken = {"svd": lambda m, n, _: jacobi.takes(m, n), "basis_loss": lambda m, n, _: jacobi.takes_loss(m, n)}
    return [
        case
        for case in found
        if taken.get(case.operation, jacobi.takes_polar)(case.m, case.n, getattr(cases.torch, case.dtype))
        and (case.operation != "basis_loss" or jacobi.takes_polar(case.m, case.n, getattr(cases.torch, case.dtype)))
    ]


CASES = _cases()
# One warp and several, exact and padded, both dtypes, each kernel on one target at least.
SHORT = {
    (Case("svd", 7, 4, "float64", 13), 80),
}


def test_every_form_is_executed() -> None:
    """The cases below launch each configuration that a GPU can be given."""
    executed: set[Configuration] = set()
    with mock.patch.object(Configuration, "launch", lambda self, grid, *arguments: executed.add(self)):
        for case in CASES:
            cases.run(jacobi, case)
    assert {one.name for one in jacobi.configurations()} == {one.name for one in executed}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_kernels(number: int, target: int) -> None:
    case = CASES[number]
    with triton_launch.emulation(target, cases.options(number)) as records:
        out = cases.run(jacobi, case)
    assert out is not None
    cases.check(case, out, records)
