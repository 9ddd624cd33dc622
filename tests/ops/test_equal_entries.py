"""``sign(0) = 0`` in the gradient of the loss, for entries of the two polar factors that are equal in exact arithmetic.

They are computed apart and differ by rounding. Were its sign taken, the gradient of a block that is black in part would
be noise, and another one for the flipped image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from svdrd.dispatch import routes
from svdrd.ops import basis_loss, polar_factor
from svdrd.reference import definitions, derivatives

COUNT = 6
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def pixels(*shape: int) -> Tensor:
    return torch.rand(COUNT, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def black(rows: int, columns: int, m: int, n: int) -> Tensor:
    x = pixels(m, n)
    x[:, :rows] = 0
    x[:, :, n - columns :] = 0
    return x


# Blocks as clamped photographs have them, by m and n.
BLOCKS: dict[str, Callable[[int, int], Tensor]] = {
    "black rows": lambda m, n: black(2, 0, m, n),
    "black columns": lambda m, n: black(0, 2, m, n),
    "black rows and columns": lambda m, n: black(1, 1, m, n),
    "one pixel": lambda m, n: torch.zeros(COUNT, m, n).double().index_fill(1, torch.tensor(1), 0.5).tril(-1).triu(-1),
    "flat": lambda m, n: pixels(1, 1).expand(-1, m, n).clone(),
    "half saturated": lambda m, n: pixels(2, 1).repeat_interleave(m, 1)[:, m // 2 :][:, :m].expand(-1, m, n).clone(),
    "stripes": lambda m, n: pixels(m, 1).expand(-1, m, n).clone(),
    "clamped": lambda m, n: (3 * pixels(m, n) - 1).clamp(0, 1),
}  # fmt: skip


def gradients(x_hat: Tensor, x: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    leaves = [side.clone().requires_grad_() for side in (x_hat, x)]
    basis_loss(*leaves, smooth=smooth, reduction="none").sum().backward()
    return leaves[0].grad, leaves[1].grad  # type: ignore[return-value]


def gradients_of_all(pairs: list[tuple[Tensor, Tensor]], smooth: float) -> list[tuple[Tensor, Tensor]]:
    """Those of several batches, by one call for each shape: in Triton's interpreter it is the calls that cost."""
    found = list(pairs)
    for shape in {x.shape for _, x in pairs}:
        which = [index for index, (_, x) in enumerate(pairs) if x.shape == shape]
        of_both = gradients(*(torch.cat([pairs[index][side] for index in which]) for side in (0, 1)), smooth)
        for index, *of_each in zip(which, *(side.chunk(len(which)) for side in of_both), strict=True):
            found[index] = (of_each[0], of_each[1])
    return found


def assert_equal_to_rounding(found: Tensor, expected: Tensor, x: Tensor, smooth: float) -> None:
    """To the rounding of the factors, which the gradient has times ``1 / s_k``, and the condition once more."""
    s = torch.linalg.svdvals(x.double())
    least = torch.where(s > 4 * torch.finfo(x.dtype).eps * s[:, :1], s, torch.inf).amin(-1)
    s_k = torch.maximum(least, torch.tensor(smooth)) if smooth else least
    # The sign matrix has a norm of at most 1 / sqrt(m n).
    gain = 1 / math.sqrt(x.shape[-2] * x.shape[-1]) / s_k
    bound = 64 * torch.finfo(x.dtype).eps * max(x.shape[-2:]) * gain * (s[:, 0] / s_k).clamp(min=1)
    error = torch.linalg.matrix_norm(found.double() - expected.double())
    assert (error <= bound.nan_to_num(0.0)).all(), (error / bound).max()


@pytest.mark.parametrize("smooth", [0.0, 0.1])
@pytest.mark.parametrize(("m", "n"), [(8, 8), (5, 8), (9, 4)])
@pytest.mark.parametrize("name", DTYPES)
def test_a_symmetry_of_the_images_is_one_of_the_gradient(
    backend: str, name: str, m: int, n: int, smooth: float
) -> None:
    x_hat = torch.cat([block(m, n) for block in BLOCKS.values()]).to(DTYPES[name])
    x = torch.cat([block(m, n).roll(1, 0) * 0.75 for block in BLOCKS.values()]).to(DTYPES[name])
    rows, columns = (torch.randperm(size, generator=torch.Generator().manual_seed(1)) for size in (m, n))
    symmetries: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
        "flip": (lambda a: a.flip(-1), lambda a: a.flip(-1)),
        "upside down": (lambda a: a.flip(-2), lambda a: a.flip(-2)),
        "transpose": (lambda a: a.mT.contiguous(), lambda a: a.mT),
        "permutation": (lambda a: a[:, rows][:, :, columns], lambda a: a[:, rows.argsort()][:, :, columns.argsort()]),
    }
    pairs = [(x_hat, x), (x, x_hat), *((there(x_hat), there(x)) for there, _ in symmetries.values())]
    expected, exchanged, *of_symmetries = gradients_of_all(pairs, smooth)
    for (_, back), found in zip(symmetries.values(), of_symmetries, strict=True):
        assert_equal_to_rounding(back(found[0]), expected[0], x_hat, smooth)
        assert_equal_to_rounding(back(found[1]), expected[1], x, smooth)
    assert_equal_to_rounding(exchanged[1], expected[0], x_hat, smooth)
    assert_equal_to_rounding(exchanged[0], expected[1], x, smooth)


@pytest.mark.parametrize("name", DTYPES)
def test_the_gradient_is_that_of_exact_signs(backend: str, name: str) -> None:
    """The oracle knows where both factors are zero, and has the sign of all other entries from float64."""
    blocks = [BLOCKS[block](8, 8).to(DTYPES[name]) for block in BLOCKS if block.startswith("black")]
    x_hat, x = torch.cat(blocks), torch.cat([block.roll(1, 0) for block in blocks])
    p_hat, *factors = definitions.polar_factor(x_hat.double(), 4 * torch.finfo(x.dtype).eps, 0.0)
    p = definitions.polar_factor(x.double(), 4 * torch.finfo(x.dtype).eps, 0.0)[0]
    filled = (x != 0).any(-1, keepdim=True) & (x != 0).any(-2, keepdim=True)
    sign = torch.where(filled, torch.sign(p_hat - p), 0.0)
    expected = derivatives.polar_factor_vjp(sign / 64, *factors)
    assert_equal_to_rounding(gradients(x_hat, x, 0.0)[0], expected, x_hat, 0.0)


def test_two_black_rows_of_eight(backend: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(8, 8)
    x[:2] = 0
    turned = torch.stack([x, x.flip(0), x.flip(1), x.mT])
    norms = gradients(turned, torch.zeros(4, 8, 8), 0.0)[0].flatten(1).norm(dim=1).tolist()
    assert norms == pytest.approx([norms[0]] * 4, rel=1e-4)


@pytest.mark.parametrize("name", DTYPES)
def test_equal_factors_have_no_gradient(backend: str, name: str) -> None:
    """A multiple of a block has its polar factor, computed with another rounding."""
    x = torch.cat([BLOCKS[block](8, 8) for block in ("flat", "half saturated", "stripes")]).to(DTYPES[name])
    for smooth, factor in ((0.0, 0.37), (0.1, 1.0)):
        assert all(not gradient.any() for gradient in gradients(x * factor, x, smooth))
    near, far = polar_factor(torch.cat([x * 0.37, x])).chunk(2)
    assert (near - far).abs().max() <= definitions.EQUAL_WITHIN / 2 * torch.finfo(x.dtype).eps


def test_equal_factors_have_no_gradient_by_products() -> None:
    for block in ("flat", "half saturated", "stripes"):
        x = BLOCKS[block](40, 40).float()
        with routes.only("products"):
            assert all(not gradient.any() for gradient in gradients(x * 0.37, x, 0.0))


def test_a_difference_that_float32_resolves_has_a_sign(backend: str) -> None:
    """The bound is far below it; and it shrinks with smoothed factors, which may be far below 1."""
    x = torch.rand(COUNT, 8, 8, generator=torch.Generator().manual_seed(0)) + torch.eye(8)
    x_hat = x.clone()
    x_hat[:, 2, 3] += 1e-4
    assert (gradients(x_hat, x, 0.0)[0].flatten(1).norm(dim=1) > 0.01).all()
    assert (gradients(x_hat, x, 1e5)[0].flatten(1).norm(dim=1) > 0).all()
