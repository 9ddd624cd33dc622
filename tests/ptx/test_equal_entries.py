"""``sign(0) = 0`` in the gradient of the compiled kernels: see tests/ops/test_equal_entries.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="no Triton beside this PyTorch")

import torch
from torch import Tensor

from svdrd.backends import cuda
from svdrd.backends.triton import jacobi, products
from tests.ops.test_equal_entries import BLOCKS, DTYPES, assert_equal_to_rounding
from tests.ptx import cases, cuda_launch, triton_launch

TARGETS = (80, 90)
BUILD = Path(os.environ.get("SVDRD_PTX_BUILD", "build/ptx")).resolve()
Emulation = Callable[[int], AbstractContextManager[Any]]


def by_triton(target: int) -> AbstractContextManager[Any]:
    return triton_launch.emulation(target, cases.options(target))


def by_cuda(target: int) -> AbstractContextManager[Any]:
    return cuda_launch.emulation(target, cases.options(target, perturb=0.0), BUILD / f"cuda_{target}")


def derivatives(module: Any, emulation: AbstractContextManager[Any], x_hat: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    rcond = 4 * torch.finfo(x.dtype).eps
    with emulation as records:
        _, by_x_hat, by_x = module.basis_loss(x_hat, x, *x.shape[1:], rcond, 0.0, True, True)
    assert records
    return by_x_hat, by_x


@pytest.mark.nightly
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("module", "emulation", "m", "n", "name"),
    [
        pytest.param(jacobi, by_triton, 8, 8, "float32", id="jacobi-8x8-float32"),
        pytest.param(jacobi, by_triton, 5, 8, "float64", id="jacobi-5x8-float64"),
        pytest.param(jacobi, by_triton, 12, 16, "float32", id="jacobi-12x16-float32"),
        pytest.param(products, by_triton, 24, 20, "float32", id="products-24x20-float32"),
        *(
            pytest.param(
                cuda, by_cuda, m, n, name, id=f"cuda-{m}x{n}-{name}",
                marks=pytest.mark.skipif(cuda_launch.toolkit() is None, reason="no nvcc"),
            )
            for m, n, name in ((8, 8, "float32"), (5, 8, "float64"), (12, 16, "float32"))
        ),
    ],
)  # fmt: skip
def test_a_flipped_image_has_the_flipped_gradient(
    module: Any, emulation: Emulation, m: int, n: int, name: str, target: int
) -> None:
    x_hat = torch.cat([block(m, n)[:1] for block in BLOCKS.values()]).to(DTYPES[name])
    x = torch.cat([block(m, n)[:1].roll(1, 0) * 0.75 for block in BLOCKS.values()]).to(DTYPES[name])
    expected = derivatives(module, emulation(target), x_hat, x)
    for dims in ((1,), (2,)):
        found = derivatives(module, emulation(target), x_hat.flip(dims), x.flip(dims))
        assert_equal_to_rounding(found[0].flip(dims), expected[0], x_hat, 0.0)
        assert_equal_to_rounding(found[1].flip(dims), expected[1], x, 0.0)
    exchanged = derivatives(module, emulation(target), x, x_hat)
    assert_equal_to_rounding(exchanged[1], expected[0], x_hat, 0.0)
    assert_equal_to_rounding(exchanged[0], expected[1], x, 0.0)

    equal = torch.cat([BLOCKS[block](m, n)[:1] for block in ("flat", "half saturated", "stripes")]).to(DTYPES[name])
    assert all(not by.any() for by in derivatives(module, emulation(target), equal * 0.37, equal))
