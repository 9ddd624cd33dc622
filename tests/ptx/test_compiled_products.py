"""``tl.dot`` as Triton compiles it for sm_90: descriptors, swizzles and pipelines of its own making."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="no Triton beside this PyTorch")

import triton
import triton.language as tl

from tests.ptx import triton_launch, warpgroup
from tests.ptx.machine import ORDERS, Options

ROWS, WIDTH = 64, 128


@triton.jit
def dot_kernel(a, b, out, transposed: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr):
    """out = a b for a of 64 rows and 128 columns; ``b`` is stored transposed if so named."""
    row, column, inner = tl.arange(0, 64), tl.arange(0, columns), tl.arange(0, depth)
    total = tl.zeros([64, columns], tl.float32)
    for start in range(0, 128, depth):
        left = tl.load(a + row[:, None] * 128 + (start + inner)[None, :])
        if transposed:
            right = tl.load(b + column[None, :] * 128 + (start + inner)[:, None])
        else:
            right = tl.load(b + (start + inner)[:, None] * columns + column[None, :])
        total = tl.dot(left, right, total, input_precision="tf32")
    tl.store(out + row[:, None] * columns + column[None, :], total)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("columns", "depth", "stages"), [(64, 8, 1), (16, 16, 2), (32, 32, 3), (128, 32, 2)])
def test_products(transposed: bool, columns: int, depth: int, stages: int, order: str) -> None:
    """Small integers: each order of the sums is exact, in TF32, too."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-9, 10, (ROWS, WIDTH), generator=generator).float()
    b = torch.randint(-9, 10, (WIDTH, columns), generator=generator).float()
    with triton_launch.emulation(90, Options(order=order)) as records:
        out = torch.empty(ROWS, columns)
        dot_kernel[(1,)](a, b.T.contiguous() if transposed else b, out, transposed, columns, depth, num_stages=stages)
    (record,) = records
    assert not record.errors, record.examples
    products = [c for c in record.classes() if c.startswith("wgmma tf32")]
    assert products == [f"wgmma tf32 m64n{columns}k8"]
    assert torch.equal(out, a @ b)


def test_pipelined_products_are_waited_for() -> None:
    """Triton lets the last product go on while it copies the next operands; a wait that allows more is found."""
    a, b, out = torch.ones(ROWS, WIDTH), torch.ones(64, WIDTH), torch.empty(ROWS, 64)
    with triton_launch.emulation(90, Options()) as records:
        dot_kernel[(1,)](a, b, out, True, 64, 32, num_stages=3)
    kernel, blocks = records[0].translated.kernel, records[0].translated.blocks
    waits = [i for i in kernel.instructions if i.op.startswith("wgmma.wait_group")]
    assert warpgroup.register_faults(kernel, blocks) == []
    assert [int(i.args[0]) for i in waits] == [1, 0]
    waits[-1].args[0] = "1"
    assert {fault for fault, _ in warpgroup.register_faults(kernel, blocks)} == {warpgroup.ACCESSED}
