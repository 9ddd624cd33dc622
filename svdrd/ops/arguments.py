"""Checks and conversions that the public functions share."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import torch
from torch import Tensor

# Looked up once: these are asked in every call.
_STRIDED, _SINGLE, _DOUBLE = torch.strided, torch.float32, torch.float64
_DTYPES = (_SINGLE, _DOUBLE, torch.float16, torch.bfloat16)
_DEFAULT_RCOND = {dtype: 4 * torch.finfo(dtype).eps for dtype in (_SINGLE, _DOUBLE)}
_NO_RCOND = "rcond=None takes 4 eps."
_NO_SMOOTH = "smooth=0.0 is the exact polar factor."
REDUCTIONS = ("mean", "sum", "none")


def compute_dtype(call: str, **tensors: Tensor) -> torch.dtype:
    """float32 for half precision, otherwise the widest dtype among the tensors; raises for what is no real matrix."""
    widest = _SINGLE
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout is not _STRIDED or tensor.is_nested:
            raise _refusal(call, name, tensor)
        dtype = tensor.dtype
        if dtype not in _DTYPES or tensor.ndim < 2:
            raise _refusal(call, name, tensor)
        if dtype is _DOUBLE:
            widest = _DOUBLE
    return widest


def _refusal(call: str, name: str, x: object) -> Exception:
    """What to say of ``x``, which is no batch of real matrices."""
    if isinstance(x, torch.fx.Proxy):
        return TypeError(
            f"{call}: {name} is a torch.fx.Proxy, which has no dtype and no shape. Write torch.fx.wrap({call!r}) below "
            f"the imports of the module that calls {call}: the traced graph then holds the call. svdrd.BasisLoss can "
            "be traced as it is, and make_fx and torch.export take everything."
        )
    if not isinstance(x, Tensor):
        return TypeError(
            f"{call}: {name} is a {type(x).__name__}; it has to be a tensor. Write torch.as_tensor({name})."
        )
    if x.is_nested:
        return TypeError(
            f"{call}: {name} is a nested tensor; it has to be a dense one. Call {call} for each of {name}.unbind(), "
            f"or write torch.nested.to_padded_tensor({name}, 0.0): zeros around a matrix change none of its singular "
            "values but for more zeros."
        )
    if x.layout is not _STRIDED:
        return TypeError(
            f"{call}: {name} has the layout {x.layout}; it has to be a dense tensor. Write {name}.to_dense()."
        )
    if x.dtype.is_complex:
        return TypeError(
            f"{call}: {name} has dtype {x.dtype}; it has to be real, complex matrices are not supported. "
            f"torch.linalg.svd({name}) takes them."
        )
    if x.dtype not in _DTYPES:
        return TypeError(
            f"{call}: {name} has dtype {x.dtype}; it has to be float16, bfloat16, float32 or float64. "
            f"Write {name}.{'dequantize' if x.is_quantized else 'float'}()."
        )
    return ValueError(
        f"{call}: {name} has shape {tuple(x.shape)}; it has to be (..., m, n). "
        f"Write {name}.reshape(m, n) with the matrix that is meant."
    )


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


def _number(call: str, name: str, value: object, default: str) -> float:
    """``value`` as a float; what is no number is refused."""
    if isinstance(value, (int, float, numbers.Real, torch.SymInt, torch.SymFloat)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # an int or a fraction beyond float64
            return -math.inf if value < 0 else math.inf
    if hasattr(value, "dtype"):  # a tensor, or an array, which the compiler takes NumPy's numbers for
        raise TypeError(
            f"{call}: {name} is of type {type(value).__name__}; it has to be a number. There is no derivative by it, "
            f"and to read it from a GPU makes the CPU wait. Write {name}=float({name}), outside of what is compiled."
        )
    raise TypeError(f"{call}: {name} is {value!r}, of type {type(value).__name__}; it has to be a number. {default}")


def check_rcond(call: str, rcond: float | None, dtype: torch.dtype) -> float:
    """``rcond``, or its default of 4 eps of the dtype that computes."""
    if rcond is None:
        return _DEFAULT_RCOND[dtype]
    if type(rcond) is not float:
        rcond = _number(call, "rcond", rcond, _NO_RCOND)
    if not 0 <= rcond < 1:
        raise ValueError(
            f"{call}: rcond is {rcond}; it has to be in [0, 1), relative to the largest singular value. {_NO_RCOND}"
        )
    return rcond


def check_smooth(call: str, smooth: float) -> float:
    """``smooth``, finite and not negative."""
    if type(smooth) is not float:
        smooth = _number(call, "smooth", smooth, _NO_SMOOTH)
    if not 0 <= smooth < math.inf:
        raise ValueError(
            f"{call}: smooth is {smooth}; it has to be finite and >= 0, in the units of the matrix. {_NO_SMOOTH}"
        )
    return smooth


def check_reduction(call: str, reduction: str) -> None:
    """One of ``REDUCTIONS``."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"{call}: reduction is {reduction!r}; it has to be 'mean', 'sum' or 'none'.")


def check_block_size(call: str, block_size: int) -> int:
    """``block_size`` as a positive int; whatever Python takes as an index is one, NumPy's integers too."""
    if type(block_size) is not int:
        block_size = _index(call, block_size)
    if block_size < 1:
        raise ValueError(
            f"{call}: block_size is {block_size}; it has to be a positive int, or None for whole matrices."
        )
    return block_size


def _index(call: str, block_size: Any) -> Any:
    if isinstance(block_size, torch.SymInt):
        return block_size
    if isinstance(block_size, Tensor) or (hasattr(block_size, "dtype") and torch.compiler.is_compiling()):
        raise TypeError(
            f"{call}: block_size is of type {type(block_size).__name__}; it has to be an int. Write "
            "block_size=int(block_size), outside of what is compiled."
        )
    if isinstance(block_size, bool) or not hasattr(block_size, "__index__"):
        raise TypeError(
            f"{call}: block_size is {block_size!r}, of type {type(block_size).__name__}; it has to be an int, the side "
            "of square blocks, or None for whole matrices."
        )
    return operator.index(block_size)


def block_shape(call: str, x: Tensor, block_size: int | None) -> tuple[int, int]:
    """Height and width of the matrices that ``block_size`` cuts ``x`` into; None takes each ``H x W`` whole.

    Without rows, or without columns, there are no blocks: a block that is never cut is given 1.
    """
    height, width = x.shape[-2:]
    if block_size is None:
        return height or 1, width or 1
    block_size = check_block_size(call, block_size)
    if height % block_size or width % block_size:
        raise ValueError(_what_would_fit(call, int(height), int(width), int(block_size)))
    return block_size, block_size


def _what_would_fit(call: str, height: int, width: int, block_size: int) -> str:
    fits = ", ".join([str(b) for b in range(1, min(height, width) + 1) if height % b == width % b == 0])
    said = f"{call}: block_size={block_size} does not divide the size {height} x {width}; what fits is {fits}."
    rows, columns = height // block_size * block_size, width // block_size * block_size
    return f"{said} Or crop to x[..., :{rows}, :{columns}]." if rows and columns else said
