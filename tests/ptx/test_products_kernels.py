"""The tiled products of svdrd/backends/triton, compiled for sm_80, sm_90 and sm_100 and executed."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

pytest.importorskip("triton", reason="no Triton beside this PyTorch")

from svdrd.backends.triton import products
from svdrd.backends.triton.configuration import Configuration
from tests.ptx import cases, triton_launch
from tests.ptx.cases import Case

TARGETS = (80, 90, 100)
# Larger products of float32 are tcgen05 on sm_100, which the emulator does not have.
LARGEST_TILE = {80: 64, 90: 64, 100: 32}
# Each edge of the tiles, exact and padded, wide and tall; more than one tile; with and without an appended square.
SIZES = ((16, 16), (9, 20), (32, 32), (50, 30), (64, 64), (40, 70), (90, 70), (100, 130))
SHORT = {("polar_factor-16x16-float32", 80), ("basis_loss-16x16-float32", 90)}


def _cases() -> list[Case]:
    found = []
    for m, n in SIZES:
        # Four matrices: an image, zero, one with a NaN, rank 1.
        for operation in ("polar_factor", "polar_factor_backward", "basis_loss"):
            found += [Case(operation, m, n, count=4), Case(operation, m, n, count=4, smooth=cases.SMOOTH)]
        found.append(Case("basis_loss", m, n, count=4, sides=(True, True)))
    return found


CASES = _cases()


def test_every_form_is_executed() -> None:
    """The cases below launch each configuration that a GPU can be given."""
    executed: set[Configuration] = set()
    with mock.patch.object(Configuration, "launch", lambda self, grid, *arguments: executed.add(self)):
        for case in CASES:
            cases.run(products, case)
    assert {one.name for one in products.configurations()} == {one.name for one in executed}


@cases.parametrize(CASES, TARGETS, SHORT)
def test_kernels(number: int, target: int) -> None:
    case = CASES[number]
    if products.tile_edge(min(case.m, case.n), torch.device("cpu")) > LARGEST_TILE[target]:
        pytest.skip("tcgen05 is not emulated")
    with triton_launch.emulation(target, cases.options(number)) as records:
        out = cases.run(products, case)
    cases.check(case, out, records)
