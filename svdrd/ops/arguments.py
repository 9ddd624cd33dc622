"""Checks and conversions that the public functions share."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def compute_dtype(call: str, **tensors: Tensor) -> torch.dtype:
    """float32 for half precision, otherwise the widest dtype among the tensors; raises for what is no real matrix."""
    widest = torch.float32
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{call}: {name} is a {type(tensor).__name__}; it has to be a tensor. Write torch.as_tensor({name})."
            )
        if tensor.dtype not in _DTYPES:
            raise TypeError(
                f"{call}: {name} has dtype {tensor.dtype}; it has to be float16, bfloat16, float32 or float64. "
                f"Write {name}.float()."
            )
        if tensor.ndim < 2:
            raise ValueError(
                f"{call}: {name} has shape {tuple(tensor.shape)}; it has to be (..., m, n). "
                f"Write {name}.reshape(m, n) with the matrix that is meant."
            )
        # The dispatcher would drop the tangent without a word. Outside of every level there is none.
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"{call}: {name} carries a forward-mode tangent, which is not implemented; use reverse mode. The "
                "Jacobian of polar_factor is symmetric: torch.autograd.grad(polar_factor(a), a, tangent) applies it."
            )
        if tensor.dtype == torch.float64:
            widest = torch.float64
    return widest


def flattened(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``(..., m, n)`` as ``(b, m, n)`` in ``dtype``; the batch is counted, as -1 is ambiguous for an empty tensor."""
    x = x if x.dtype == dtype else x.to(dtype)
    return x if x.ndim == 3 else x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def restored(x: Tensor, batch: torch.Size, dtype: torch.dtype) -> Tensor:
    """The inverse of :func:`flattened` for a result ``(b, ...)``; a call that changes nothing costs a microsecond."""
    x = x if len(batch) == 1 else x.reshape(*batch, *x.shape[1:])
    return x if x.dtype == dtype else x.to(dtype)


def check_pair(call: str, x_hat: Tensor, x: Tensor) -> None:
    """Two tensors that are compared matrix by matrix: one shape, one device."""
    if x_hat.shape != x.shape:
        raise ValueError(
            f"{call}: x_hat has shape {tuple(x_hat.shape)} and x {tuple(x.shape)}; they have to be equal, nothing is "
            "broadcast. Crop or expand one of them, for example x.expand_as(x_hat)."
        )
    if x_hat.device != x.device:
        raise ValueError(f"{call}: x_hat is on {x_hat.device} and x on {x.device}; write x.to(x_hat.device).")


def check_rcond(call: str, rcond: float | None, dtype: torch.dtype) -> float:
    """``rcond``, or its default of 4 eps of the dtype that computes."""
    if rcond is None:
        return 4 * torch.finfo(dtype).eps
    if not 0 <= rcond < 1:
        raise ValueError(
            f"{call}: rcond is {rcond}; it has to be in [0, 1), relative to the largest singular value. "
            "rcond=None takes 4 eps."
        )
    return float(rcond)


def check_smooth(call: str, smooth: float) -> float:
    """``smooth``, finite and not negative."""
    if not 0 <= smooth < math.inf:
        raise ValueError(
            f"{call}: smooth is {smooth}; it has to be finite and >= 0, in the units of the matrix. "
            "smooth=0.0 is the exact polar factor."
        )
    return float(smooth)


def block_shape(call: str, x: Tensor, block_size: int | None) -> tuple[int, int]:
    """Height and width of the matrices that ``block_size`` cuts ``x`` into; None takes each ``H x W`` whole.

    Without rows, or without columns, there are no blocks: a block that is never cut is given 1.
    """
    height, width = x.shape[-2:]
    if block_size is None:
        return height or 1, width or 1
    if isinstance(block_size, bool) or not isinstance(block_size, (int, torch.SymInt)) or block_size < 1:
        raise ValueError(
            f"{call}: block_size is {block_size!r}; it has to be a positive int, or None for whole matrices."
        )
    if height % block_size or width % block_size:
        common = math.gcd(height, width)
        fits = ", ".join(str(b) for b in range(1, common + 1) if common % b == 0)
        raise ValueError(
            f"{call}: block_size={block_size} does not divide the size {height} x {width}; what fits is {fits}. "
            f"Or crop to x[..., : {height // block_size * block_size}, : {width // block_size * block_size}]."
        )
    return block_size, block_size
