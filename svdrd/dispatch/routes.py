"""Who computes: one table for all operators, read from the top for every call. :func:`route` answers from it.

What a row needs to know of a call is a :class:`Case`. Where no row takes it, the operator's default computes, which is
the reference in plain PyTorch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch

from svdrd.backends import availability, cpp, limits, outputs, selection
from svdrd.reference import devices

DEFAULT = "reference"


class Case(NamedTuple):
    """What of a call decides who computes it.

    Args:
        m, n: rows and columns of one matrix, or of one block.
        rcond: as the operator is given it; 0 where it takes none.
        save: what is asked for (``polar_factor``), or is there (its backward), as in :mod:`svdrd.backends.outputs`.
    """

    m: int
    n: int
    dtype: torch.dtype
    device: torch.device
    rcond: float = 0.0
    save: int = outputs.NOTHING


def _all(case: Case) -> bool:
    return True


def _jacobi(case: Case) -> bool:
    return min(case.m, case.n) > 0 and max(case.m, case.n) <= limits.JACOBI


def _jacobi_polar(case: Case) -> bool:
    return (
        _jacobi(case)
        and case.save != outputs.ITERATES
        and (case.dtype == torch.float32 or min(case.m, case.n) <= limits.JACOBI_DOUBLE)
    )


def _cuda(case: Case) -> bool:
    from svdrd.backends import cuda

    return case.save != outputs.ITERATES and cuda.takes(case.m, case.n)


def _products(case: Case) -> bool:
    """All sizes; but float64 has nothing wider for the products that decide, and the polynomials end at some rcond."""
    from svdrd.backends.products import iteration

    return (
        min(case.m, case.n) > 0
        and case.dtype == torch.float32
        and case.rcond <= iteration.LARGEST_RCOND
        and case.save == outputs.NOTHING
    )


def _single(case: Case) -> bool:
    return case.dtype == torch.float32


def _larger_on_cuda(case: Case) -> bool:
    """Of what PyTorch's SVD, the default, would take one at a time. On a CPU LAPACK is the faster."""
    return case.device.type == "cuda" and min(case.m, case.n) > limits.BATCHED_SVD


@dataclass(frozen=True)
class Route:
    """A row of the table.

    Args:
        computer: the module below ``svdrd.backends`` that has a function of the operator's name and signature. It is
            imported when it is first needed, because Triton is imported with some.
        backends: the selected backends under which it is asked.
        takes: the cases that it can compute.
        when: the cases among them for which it is the better choice.
    """

    computer: str
    backends: tuple[str, ...]
    takes: Callable[[Case], bool] = _all
    when: Callable[[Case], bool] = _all


_CPP = Route("cpp", ("cpp",))
_CUDA = Route("cuda", ("cuda",), _cuda)
_JACOBI = Route("triton.jacobi", ("triton",), _jacobi_polar)
_TILES = Route("triton.products", ("triton",), _products)
_PRODUCTS = Route("products", ("triton", "cuda", "torch"), _products, _larger_on_cuda)

# In the order in which they are asked. What is not here is the default's on every backend.
ROUTES: dict[str, tuple[Route, ...]] = {
    "svd": (
        _CPP,
        Route("triton.jacobi", ("triton",), _jacobi),
        _CUDA,
        Route("products", ("triton", "cuda", "torch"), _single, _larger_on_cuda),
    ),
    "svd_backward": (_CPP,),  # elsewhere a few batched products, which are the default
    "polar_factor": (_CPP, _JACOBI, _TILES, _CUDA, _PRODUCTS),
    "polar_factor_backward": (_CPP, _JACOBI, _TILES, _CUDA, _PRODUCTS),
    "basis_loss": (_CPP, _JACOBI, _TILES, _CUDA, _PRODUCTS),
    "recompose": (_CPP, _JACOBI),
    "recompose_backward": (_CPP,),
}


class NotTaken(Exception):
    """The computer that alone is to compute (:func:`only`) does not take the case."""


_only: str | None = None


def restricted() -> bool:
    """Whether :func:`only` holds."""
    return _only is not None


@contextmanager
def only(computer: str) -> Iterator[None]:
    """Within, ``computer`` alone computes the operators that it has; a case it does not take raises :class:`NotTaken`.

    For benchmarks and tests of one implementation. It holds for all threads, and does not look at the backend.
    """
    global _only
    before, _only = _only, computer
    try:
        yield
    finally:
        _only = before


def takes(computer: str, operator: str, case: Case) -> bool:
    """Whether ``computer`` can compute the operator for ``case``, wherever it is."""
    return any(route.computer == computer and route.takes(case) for route in ROUTES.get(operator, ()))


def computer(operator: str, case: Case) -> str:
    """The name of who computes ``case``: a module below ``svdrd.backends``, or ``reference``."""
    routes = ROUTES.get(operator, ())
    if _only is not None and (_only == DEFAULT or any(route.computer == _only for route in routes)):
        if _only != DEFAULT and not takes(_only, operator, case):
            raise NotTaken(f"{_only} does not compute {operator} of {case.m} x {case.n} matrices of {case.dtype}")
        return _only
    backend = selection.select(case.device)
    for route in routes:
        if backend in route.backends and route.takes(case) and route.when(case):
            return route.computer
    return DEFAULT


@cache
def kernel(computer: str, operator: str) -> Callable[..., Any]:
    """The function with which ``computer``, which is not the default, computes ``operator``."""
    return getattr(importlib.import_module(f"svdrd.backends.{computer}"), operator)


def route(
    operator: str,
    m: int,
    n: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    rcond: float | None = None,
    factors: bool = False,
) -> str:
    """The name of who computes ``m x n`` matrices here and now: ``"cpp"``, ``"cuda"``, ``"triton.jacobi"``,
    ``"triton.products"``, ``"products"`` or ``"reference"``.

    Args:
        operator: ``"svd"``, ``"polar_factor"``, ``"basis_loss"``, ``"recompose"``, or the name of a backward under
            ``torch.ops.svdrd``.
        m, n: for the loss and for ``recompose`` the sides of a block.
        dtype: float32 or float64, in which half precision is computed, too.
        rcond: as the public function takes it.
        factors: of ``polar_factor``: whether singular vectors are wanted.

    Raises:
        RuntimeError: the backend that was chosen cannot compute on ``device``.

    For a device that the CPU computes for (:func:`svdrd.reference.devices.elsewhere`) it is who does it there.
    """
    rcond = 4 * torch.finfo(dtype).eps if rcond is None else rcond
    case = Case(m, n, dtype, torch.device(device), rcond, outputs.FACTORS if factors else outputs.NOTHING)
    found = computer(operator, case)
    if found == DEFAULT and devices.elsewhere(case.device):
        found = computer(operator, case._replace(device=torch.device("cpu")))
    return found


def saved_by_polar_factor(device: torch.device, dtype: torch.dtype, m: int, n: int, smooth: float) -> int:
    """What the polar factor should keep for its backward, as :mod:`svdrd.backends.outputs` names it.

    A hint that costs or saves time and never a result; it reads so little that TorchDynamo can trace it.
    """
    # A program that is exported for a range of sizes may not ask for them here.
    if (
        not torch.compiler.is_exporting()
        and _only in (None, "cpp")
        and device.type == "cpu"
        and selection.chosen() in (None, "cpp")
        and availability.native is not None
        and cpp.saves_iterates(dtype, m, n, smooth)
    ):
        return outputs.ITERATES
    return outputs.FACTORS if saves_factors(device, dtype, m, n) else outputs.NOTHING


def saves_factors(device: torch.device, dtype: torch.dtype, m: int, n: int) -> bool:
    """Whether the SVD's factors, kept from the forward, are of use to the backward pass of the polar factor.

    Larger float32 matrices go through products, which form no factors: PyTorch's where there are no kernels and after
    those of the cuda backend, and else Triton's.
    """
    if _only is not None and _only.endswith("products"):
        return False
    chosen = selection.chosen()
    if dtype == torch.float64 or (device.type != "cuda" and chosen != "triton"):
        return True
    if chosen == "torch":
        return min(m, n) <= limits.BATCHED_SVD
    if chosen == "cuda":
        return min(m, n) <= limits.JACOBI
    return max(m, n) <= limits.JACOBI
