"""The way past the dispatcher, for CPU tensors that nothing but autograd takes an interest in.

The dispatcher's way through Python functions of PyTorch's and of this folder's ends at the same kernel, but costs 8
microseconds without a gradient and 90 with one, as much as torch.linalg.svd takes in all for a small matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from svdrd.backends import cpp, outputs, selection
from svdrd.dispatch import basis_loss as loss_operator
from svdrd.dispatch import polar_factor as polar_operator
from svdrd.dispatch import recompose as recompose_operator
from svdrd.dispatch import routes
from svdrd.dispatch import svd as svd_operator
from svdrd.dispatch.differentiation import differentiated_again, may_be_differentiated
from svdrd.dispatch.registration import ops, without_autocast

# Looked up once: what follows is asked in every call.
_keys, _modes = torch._C._dispatch_keys, torch._C._len_torch_dispatch_stack
_transforms, _tracing = torch._C._functorch.peek_interpreter_stack, torch._C._get_tracing_state
_included, _PRE_DISPATCH = torch._C._dispatch_tls_is_dispatch_key_included, torch._C.DispatchKey.PreDispatch

# The dispatch keys, as bits, of CPU tensors whose memory holds their values as they are: no negative bit, no sparse or
# nested layout, no zero tensor.
_ORDINARY = {_keys(torch.empty(0, device="cpu")).raw_repr()}
with torch.inference_mode():
    _ORDINARY.add(_keys(torch.empty(0, device="cpu")).raw_repr())


def _only_autograd_takes_part(*tensors: Tensor) -> bool:
    """Whether the kernels of ``cpp`` compute, and no compiler, tracer, transform, mode or subclass wants to see it."""
    if torch.compiler.is_compiling():
        return False
    for x in tensors:
        if type(x) is not Tensor or _keys(x).raw_repr() not in _ORDINARY:
            return False
    return (
        _modes() == 0
        and forward_ad._current_level < 0
        and _transforms() is None
        and _tracing() is None
        and not _included(_PRE_DISPATCH)
        and not routes.restricted()
        and selection.on_cpu() == "cpp"
    )


class _BasisLoss(torch.autograd.Function):
    """``ops.basis_loss`` with its derivative; the derivative's own is the operator's."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = cpp.basis_loss(*inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*loss_operator.setup(ctx, inputs, output))
        return output

    backward = staticmethod(loss_operator.grad)


class _PolarFactor(torch.autograd.Function):
    """``ops.polar_factor`` with its derivative; the derivative's own is the operator's."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        output = cpp.polar_factor(*inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*polar_operator.setup(ctx, inputs, output))
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None, None]:
        if grad is None or differentiated_again() or not _only_autograd_takes_part(grad):
            return polar_operator.grad(ctx, grad)
        a, p, u, s, vh = ctx.saved_tensors
        return cpp.polar_factor_backward(grad, a, p, u, s, vh, ctx.rcond, ctx.smooth), None, None, None


class _SVD(torch.autograd.Function):
    """``ops.svd`` with its derivative; the derivative's own is the operator's."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = cpp.svd(a)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensor | None:
        given = [x for x in grads if x is not None]
        if not given or differentiated_again() or not _only_autograd_takes_part(*given):
            return svd_operator.grad(ctx, *grads)
        return cpp.svd_backward(*ctx.saved_tensors, *grads)


class _Recompose(torch.autograd.Function):
    """``ops.recompose`` with its derivative; the derivative's own is the operator's.

    The operator keeps no factors for its backward; here those that it reads are kept, as PyTorch would keep them.
    """

    @staticmethod
    def forward(ctx: Any, x_hat: Tensor, x: Tensor, block_height: int, block_width: int) -> Tensor:
        with without_autocast(x.device):
            output, *factors = cpp.recompose_saving(x_hat, x, block_height, block_width, ctx.needs_input_grad[0])
        ctx.set_materialize_grads(False)
        inputs = x_hat, x, block_height, block_width
        ctx.save_for_backward(*recompose_operator.setup(ctx, inputs, output), *factors)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        if grad is None or differentiated_again() or not _only_autograd_takes_part(grad):
            return recompose_operator.grad(ctx, grad)
        _, _, *factors = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        with without_autocast(grad.device):
            by_x_hat, by_x = cpp.recompose_saved_backward(grad, factors, *ctx.block, *needed)
        return by_x_hat if needed[0] else None, by_x if needed[1] else None, None, None


def svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``ops.svd``."""
    factors: tuple[Tensor, Tensor, Tensor]
    if not _only_autograd_takes_part(a):
        factors = ops.svd(a)
    elif torch.is_grad_enabled() and a.requires_grad:
        factors = _SVD.apply(a)
    else:
        factors = cpp.svd(a)
    return factors


def recompose(x_hat: Tensor, x: Tensor, block_height: int, block_width: int) -> Tensor:
    """``ops.recompose``."""
    recomposed: Tensor
    if not _only_autograd_takes_part(x_hat, x):
        recomposed = ops.recompose(x_hat, x, block_height, block_width)
    elif torch.is_grad_enabled() and (x_hat.requires_grad or x.requires_grad):
        recomposed = _Recompose.apply(x_hat, x, block_height, block_width)
    else:
        with without_autocast(x.device):
            recomposed = cpp.recompose(x_hat, x, block_height, block_width)
    return recomposed


def _captured() -> bool:
    """Whether the call becomes part of a graph that is run later, with other tensors: facts of now are not facts then.

    ``torch.export``, ``torch.jit.trace`` and ``make_fx`` capture so; ``torch.compile`` guards what it saw.
    """
    if torch.compiler.is_exporting():
        return True
    if torch.compiler.is_compiling():
        return False
    return torch._C._get_tracing_state() is not None or get_proxy_mode() is not None


def basis_loss(x_hat: Tensor, x: Tensor, *options: Any) -> Tensor:
    """The first result of ``ops.basis_loss``, whose last two arguments are found here.

    Whether a gradient is needed is known now only if the call is computed now, or compiled with guards. A graph that is
    captured from examples may be trained through later.
    """
    if _only_autograd_takes_part(x_hat, x):
        grad = torch.is_grad_enabled()
        by_x_hat, by_x = grad and x_hat.requires_grad, grad and x.requires_grad
        loss: Tensor = _BasisLoss.apply(x_hat, x, *options, by_x_hat, by_x)[0]
        return loss
    captured = _captured()
    by_x_hat, by_x = captured or may_be_differentiated(x_hat), captured or may_be_differentiated(x)
    loss = ops.basis_loss(x_hat, x, *options, by_x_hat, by_x)[0]
    return loss


def polar_factor(a: Tensor, rcond: float, smooth: float) -> Tensor:
    """The first result of ``ops.polar_factor``, whose last argument is found here."""
    m, n = a.shape[-2:]
    p: Tensor
    if not _only_autograd_takes_part(a):
        save = outputs.NOTHING
        if may_be_differentiated(a):
            save = routes.saved_by_polar_factor(a.device, a.dtype, m, n, smooth)
        p = ops.polar_factor(a, rcond, smooth, save)[0]
    elif torch.is_grad_enabled() and a.requires_grad:
        # As routes.saved_by_polar_factor says in more time: here it is the kernels of cpp that compute.
        save = outputs.ITERATES if cpp.saves_iterates(a.dtype, m, n, smooth) else outputs.FACTORS
        p = _PolarFactor.apply(a, rcond, smooth, save)[0]
    else:
        p = cpp.polar_factor(a, rcond, smooth, outputs.NOTHING)[0]
    return p
