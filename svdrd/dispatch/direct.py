"""The way past the dispatcher, for CPU tensors that nothing but autograd takes an interest in.

The dispatcher's way through Python functions of PyTorch's and of this folder's ends at the same kernel, but costs 8
microseconds without a gradient and 90 with one, as much as torch.linalg.svd takes in all for a small matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svdrd.backends import cpp, selection
from svdrd.dispatch import basis_loss as operator
from svdrd.dispatch import routes
from svdrd.dispatch.registration import ops


def _keys(x: Tensor) -> int:
    """The dispatch keys of a tensor, as bits."""
    return torch._C._dispatch_keys(x).raw_repr()


# Of tensors whose memory holds their values as they are: no negative bit, no sparse or nested layout, no zero tensor.
with torch.inference_mode():
    _ORDINARY = {_keys(torch.empty(0, device="cpu"))}
_ORDINARY.add(_keys(torch.empty(0, device="cpu")))


def _only_autograd_takes_part(*tensors: Tensor) -> bool:
    """Whether the kernels of ``cpp`` compute, and no compiler, tracer, transform, mode or subclass wants to see it."""
    if torch.compiler.is_compiling():
        return False
    for x in tensors:
        if type(x) is not Tensor or _keys(x) not in _ORDINARY:
            return False
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and not routes.restricted()
        and selection.select(tensors[0].device) == "cpp"
    )


class _BasisLoss(torch.autograd.Function):
    """``ops.basis_loss`` with its derivative; the derivative's own is the operator's."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = cpp.basis_loss(*inputs)
        operator.setup(ctx, inputs, output)
        return output

    backward = staticmethod(operator.grad)


def svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``ops.svd``."""
    if _only_autograd_takes_part(a) and not (a.requires_grad and torch.is_grad_enabled()):
        return cpp.svd(a)
    factors: tuple[Tensor, Tensor, Tensor] = ops.svd(a)
    return factors


def basis_loss(x_hat: Tensor, x: Tensor, *options: Any) -> Tensor:
    """The first result of ``ops.basis_loss``."""
    implementation = _BasisLoss.apply if _only_autograd_takes_part(x_hat, x) else ops.basis_loss
    loss: Tensor = implementation(x_hat, x, *options)[0]
    return loss
