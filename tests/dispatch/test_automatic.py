"""Where no backend is named: the machine's own choice computes what the backend that it chooses computes, bit for bit.

The other tests name a backend. By these, what they prove holds for calls that name none, with and without the native
module: ``.ci/run`` runs what is marked ``automatic`` both ways.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import svdrd
from svdrd.backends import availability, selection
from svdrd.ops import basis_loss, polar_factor, recompose, svd
from tests.zoo import ZOO, animals

pytestmark = pytest.mark.automatic

SIZES = [(1, 1), (4, 4), (8, 5), (5, 8), (17, 16), (32, 32)]


def results(a: Tensor) -> Iterator[Tensor]:
    """What every operator gives for a matrix, derivatives included."""
    yield from svd(a)
    yield recompose(a, a.flip(-1))
    for function in (
        polar_factor,
        lambda x: polar_factor(x, smooth=0.5),
        lambda x: basis_loss(x, a.flip(-1)),
        lambda x: svd(x).S,
    ):
        x = a.clone().requires_grad_()
        value = function(x)
        yield value.detach()
        yield torch.autograd.grad(value.sum(), x)[0]


def test_the_choice_on_the_cpu() -> None:
    assert selection.select(torch.device("cpu")) == ("torch" if availability.native is None else "cpp")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("m", "n"), SIZES)
def test_the_bits_of_the_chosen_backend(m: int, n: int, dtype: torch.dtype) -> None:
    for name, *_ in animals([(m, n)]):
        a = ZOO[name](m, n).to(dtype)
        automatic = list(results(a))
        with svdrd.use_backend(selection.select(torch.device("cpu"))):
            named = list(results(a))
        for one, other in zip(automatic, named, strict=True):
            assert torch.equal(one.nan_to_num(nan=7.0), other.nan_to_num(nan=7.0)), name
