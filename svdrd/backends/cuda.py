"""Launchers of the CUDA kernels: contiguous tensors in, raw pointers to ``svdrd._cuda``, new tensors out.

They take matrices whose smaller side is at most ``limits.JACOBI``. The kernels run on torch's current stream of the
tensors' device, whatever the current device is. Nothing here waits for the device, so a CUDA graph can capture all of
it. Before that an operation has to have run once, as with torch's own kernels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from svdrd.backends import availability, outputs


def _module() -> ModuleType:
    module = availability.cuda_module()
    assert module is not None
    return module


def takes(m: int, n: int) -> bool:
    """Whether the kernels are for ``m x n`` matrices."""
    module = _module()
    return 0 < min(m, n) <= module.most_columns and max(m, n) <= module.most_rows


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes ``device`` current, for the allocations too; the emulated kernels have none."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _where(x: Tensor, operation: str, batch: int, m: int, n: int) -> tuple[Tensor, tuple[int, int, int]]:
    """The workspace, to be kept until the launch, and the arguments workspace, device and stream of every launch."""
    index, stream = 0, 0
    if x.is_cuda:
        index, stream = x.get_device(), torch.cuda.current_stream(x.device).cuda_stream
    size = _module().workspace_bytes(operation, _name(x.dtype), batch, m, n, index)
    # Allocated on the stream that the kernel runs on: the allocator gives it to nobody else before the kernel is done.
    workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    return workspace, (workspace.data_ptr() if size else 0, index, stream)


def svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`svdrd.reference.definitions.svd`."""
    b, m, n = a.shape
    with _on(a.device):
        a = a.contiguous()
        u, s, vh = outputs.of_svd(a)
        workspace, where = _where(a, "svd", b, m, n)
        _module().svd(_name(a.dtype), a.data_ptr(), b, m, n, u.data_ptr(), s.data_ptr(), vh.data_ptr(), *where)
        del workspace
    return u, s, vh


def polar_factor(a: Tensor, rcond: float, smooth: float, save_factors: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`svdrd.reference.definitions.polar_factor`; the factors are empty unless ``save_factors``."""
    b, m, n = a.shape
    with _on(a.device):
        a = a.contiguous()
        p, u, s, vh = outputs.of_polar_factor(a, save_factors)
        factors = (u.data_ptr(), s.data_ptr(), vh.data_ptr()) if save_factors else (0, 0, 0)
        workspace, where = _where(a, "polar_factor", b, m, n)
        _module().polar_factor(
            _name(a.dtype), a.data_ptr(), b, m, n, rcond, smooth, p.data_ptr(), *factors, *where
        )  # fmt: skip
        del workspace
    return p, u, s, vh


def polar_factor_backward(
    grad: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float
) -> Tensor:
    """As :func:`svdrd.reference.derivatives.polar_factor_vjp`; empty factors are formed again from ``a``."""
    b, m, n = grad.shape
    if a.numel() and not u.numel():
        _, u, s, vh = polar_factor(a, rcond, smooth, outputs.FACTORS)
    with _on(grad.device):
        grad, u, s, vh = grad.contiguous(), u.contiguous(), s.contiguous(), vh.contiguous()
        derivative = torch.empty_like(grad)
        workspace, where = _where(grad, "polar_factor_backward", b, m, n)
        _module().polar_factor_backward(
            _name(grad.dtype), grad.data_ptr(), u.data_ptr(), s.data_ptr(), vh.data_ptr(), b, m, n, smooth,
            derivative.data_ptr(), *where,
        )  # fmt: skip
        del workspace
    return derivative


def basis_loss(
    x_hat: Tensor,
    x: Tensor,
    block_height: int,
    block_width: int,
    rcond: float,
    smooth: float,
    need_grad_x_hat: bool,
    need_grad_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`svdrd.reference.definitions.basis_loss`.

    One launch computes the loss and the derivative by ``x_hat``. The derivative by ``x``, which a training step does
    not ask for, is that of a second one with the sides exchanged.
    """
    b, h, w = x_hat.shape
    with _on(x_hat.device):
        x_hat, x = x_hat.contiguous(), x.contiguous()
        loss, by_x_hat, by_x = outputs.of_basis_loss(x_hat, block_height, block_width, need_grad_x_hat, need_grad_x)
        workspace, where = _where(x_hat, "basis_loss", loss.numel(), block_height, block_width)

        def launch(one: Tensor, other: Tensor, loss_address: int, derivative: Tensor) -> None:
            _module().basis_loss(
                _name(one.dtype), one.data_ptr(), other.data_ptr(), b, h, w, block_height, block_width, rcond, smooth,
                loss_address, derivative.data_ptr() if derivative.numel() else 0, *where,
            )  # fmt: skip

        launch(x_hat, x, loss.data_ptr(), by_x_hat)
        if need_grad_x:
            launch(x, x_hat, 0, by_x)
        del workspace
    return loss, by_x_hat, by_x
