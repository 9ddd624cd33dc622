"""The operators' registration with PyTorch's dispatcher: schemas, implementations, fakes, autograd, autocast.

The only file that knows ``torch.library``. Operators take flat batches, ``(b, m, n)`` or ``(b, h, w)``, of float32 or
float64; ``svdrd.ops`` has the public functions. Each operator's default is the plain-torch reference; the kernels of
the backend that ``svdrd.backends.selection`` selects take its place in the cases that they take.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from svdrd.backends import cpp, cuda, selection
from svdrd.backends.products import gram, iteration
from svdrd.reference import definitions, derivatives

_library = torch.library.Library("svdrd", "DEF")

_SCHEMAS = {
    "svd": "(Tensor a) -> (Tensor u, Tensor s, Tensor vh)",
    "svd_backward": "(Tensor u, Tensor s, Tensor vh, Tensor? grad_u, Tensor? grad_s, Tensor? grad_vh) -> Tensor",
    # u, s, vh are for the backward: empty unless save_factors, and the backward then starts again from a.
    "polar_factor": "(Tensor a, float rcond, float smooth, bool save_factors)"
    " -> (Tensor p, Tensor u, Tensor s, Tensor vh)",
    # p = P(a).
    "polar_factor_backward": "(Tensor grad, Tensor a, Tensor p, Tensor u, Tensor s, Tensor vh, float rcond,"
    " float smooth) -> Tensor",
    "polar_factor_second_derivative": "(Tensor a, Tensor g, Tensor h, float rcond, float smooth) -> Tensor",
    # The derivatives come with the value, because both factors are at hand there: empty where not needed.
    "basis_loss": "(Tensor x_hat, Tensor x, SymInt block_height, SymInt block_width, float rcond, float smooth,"
    " bool need_grad_x_hat, bool need_grad_x) -> (Tensor loss, Tensor derivative_x_hat, Tensor derivative_x)",
    # derivative = d loss / d x_hat as basis_loss gave it; x_hat and the rest are for the double backward.
    "basis_loss_backward": "(Tensor grad_loss, Tensor derivative, Tensor x_hat, Tensor x, SymInt block_height,"
    " SymInt block_width, float rcond, float smooth) -> Tensor",
    "basis_loss_second_derivative": "(Tensor x_hat, Tensor x, Tensor grad_loss, Tensor direction, SymInt block_height,"
    " SymInt block_width, float rcond, float smooth) -> Tensor",
    "recompose": "(Tensor x_hat, Tensor x, SymInt block_height, SymInt block_width) -> Tensor",
}
for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))

ops = torch.ops.svdrd


# Implementations


def _svd_backward(
    u: Tensor, s: Tensor, vh: Tensor, grad_u: Tensor | None, grad_s: Tensor | None, grad_vh: Tensor | None
) -> Tensor:
    return derivatives.svd_vjp(grad_u, grad_s, grad_vh, u, s, vh).contiguous()


def _polar_factor(a: Tensor, rcond: float, smooth: float, save_factors: bool) -> tuple[Tensor, ...]:
    p, *factors = definitions.polar_factor(a, rcond, smooth)
    return p, *(factors if save_factors else (a.new_empty(0) for _ in range(3)))


def _polar_factor_backward(
    grad: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float
) -> Tensor:
    if a.numel() and not u.numel():
        _, u, s, vh = definitions.polar_factor(a, rcond, smooth)
    return derivatives.polar_factor_vjp(grad, u, s, vh, smooth).contiguous()


def _polar_factor_backward_cpp(
    grad: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float
) -> Tensor:
    if a.numel() and not u.numel():
        _, u, s, vh = cpp.polar_factor(a, rcond, smooth, save_factors=True)
    return cpp.polar_factor_backward(grad, u, s, vh, smooth)


def _basis_loss_backward(
    grad_loss: Tensor, derivative: Tensor, x_hat: Tensor, x: Tensor, block_height: int, block_width: int,
    rcond: float, smooth: float,
) -> Tensor:  # fmt: skip
    b, rows, columns = grad_loss.shape
    if rows == columns == 1:
        return grad_loss * derivative
    blocks = derivative.reshape(b, rows, block_height, columns, block_width)
    return (grad_loss[:, :, None, :, None] * blocks).reshape(derivative.shape)


def _recompose(x_hat: Tensor, x: Tensor, block_height: int, block_width: int) -> Tensor:
    """By two decompositions, which the selected backend computes."""
    _, s, _ = ops.svd(definitions.to_blocks(x_hat, block_height, block_width))
    u, _, vh = ops.svd(definitions.to_blocks(x, block_height, block_width))
    return definitions.from_blocks((u * s[:, None, :]) @ vh, *x.shape).contiguous()


_DEFAULTS: dict[str, Callable[..., Any]] = {
    "svd": definitions.svd,
    "svd_backward": _svd_backward,
    "polar_factor": _polar_factor,
    "polar_factor_backward": _polar_factor_backward,
    "polar_factor_second_derivative": definitions.polar_factor_second_derivative,
    "basis_loss": definitions.basis_loss,
    "basis_loss_backward": _basis_loss_backward,
    "basis_loss_second_derivative": definitions.basis_loss_second_derivative,
    "recompose": _recompose,
}
_CPP: dict[str, Callable[..., Any]] = {
    "svd": cpp.svd,
    "svd_backward": cpp.svd_backward,
    "polar_factor": cpp.polar_factor,
    "polar_factor_backward": _polar_factor_backward_cpp,
    "basis_loss": cpp.basis_loss,
    "recompose": cpp.recompose,
}

# In the order in which they are asked, as below. svd's backward is the default's: a few batched products.
_CUDA: dict[str, tuple[Callable[..., Any], ...]] = {
    "svd": (cuda.svd,),
    "polar_factor": (cuda.polar_factor,),
    "polar_factor_backward": (cuda.polar_factor_backward,),
    "basis_loss": (cuda.basis_loss,),
}

# Launchers below svdrd.backends.triton, in the order in which they are asked: one that does not take a case (its
# docstring says which it takes) returns NotImplemented, and in the end the default computes. Only their names are here,
# because Triton is imported with them.
_TRITON: dict[str, tuple[str, ...]] = {
    "svd": ("jacobi.svd",),
    "polar_factor": ("jacobi.polar_factor", "products.polar_factor"),
    "polar_factor_backward": ("jacobi.polar_factor_backward", "products.polar_factor_backward"),
    "basis_loss": ("jacobi.basis_loss", "products.basis_loss"),
    "recompose": ("jacobi.recompose",),
}


@cache
def _triton_launcher(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(".")
    return getattr(importlib.import_module(f"svdrd.backends.triton.{module}"), function)


# By matrix products alone, for CUDA tensors that no kernel takes. The choice looks at device, dtype, shape and rcond.


def _products_serve(a: Tensor, m: int, n: int, rcond: float) -> bool:
    """Whether products replace the float64 SVD, which torch batches on CUDA only up to 32 x 32."""
    return a.device.type == "cuda" and a.dtype == torch.float32 and min(m, n) > 32 and rcond <= iteration.LARGEST_RCOND


def _polar_factor_matmul(a: Tensor, rcond: float, smooth: float, save_factors: bool) -> tuple[Tensor, ...]:
    if save_factors or not _products_serve(a, a.shape[-2], a.shape[-1], rcond):
        return NotImplemented
    return iteration.polar_factor(a, rcond, smooth).contiguous(), *(a.new_empty(0) for _ in range(3))


def _polar_factor_backward_matmul(
    grad: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float
) -> Tensor:
    if u.numel() or not _products_serve(a, a.shape[-2], a.shape[-1], rcond):
        return NotImplemented
    return iteration.polar_factor_vjp(grad, a, p, rcond, smooth).contiguous()


def _basis_loss_matmul(
    x_hat: Tensor, x: Tensor, block_height: int, block_width: int, rcond: float, smooth: float,
    need_grad_x_hat: bool, need_grad_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if not _products_serve(x_hat, block_height, block_width, rcond):
        return NotImplemented
    return iteration.basis_loss(x_hat, x, block_height, block_width, rcond, smooth, need_grad_x_hat, need_grad_x)


# On a CUDA device, for the torch backend and after the kernels of any other; on a CPU LAPACK is the faster.
_MATMUL: dict[str, Callable[..., Any]] = {
    "polar_factor": _polar_factor_matmul,
    "polar_factor_backward": _polar_factor_backward_matmul,
    "basis_loss": _basis_loss_matmul,
}


def _gram_serves(a: Tensor) -> bool:
    """Whether ``eigh`` and QR replace the float64 SVD, for the same reason."""
    return a.device.type == "cuda" and a.dtype == torch.float32 and min(a.shape[-2:]) > 32


def _svd_gram(a: Tensor) -> tuple[Tensor, ...]:
    return gram.svd(a) if _gram_serves(a) else NotImplemented


def _kernels(backend: str, name: str) -> list[Callable[..., Any]]:
    """What ``backend`` has for the operator ``name``, in the order in which it is to be asked."""
    if backend == "cpp":
        return [_CPP[name]] if name in _CPP else []
    kernels: list[Callable[..., Any]] = []
    if backend == "triton":
        kernels += [_triton_launcher(launcher) for launcher in _TRITON.get(name, ())]
    if backend == "cuda":
        kernels += _CUDA.get(name, ())
    if name in _MATMUL:
        kernels.append(_MATMUL[name])
    if name == "svd":
        kernels.append(_svd_gram)
    return kernels


def _implementation(name: str) -> Callable[..., Any]:
    def compute(first: Tensor, *rest: Any) -> Any:
        for kernel in _kernels(selection.select(first.device), name):
            result = kernel(first, *rest)
            if result is not NotImplemented:
                return result
        return _DEFAULTS[name](first, *rest)

    return compute


for _name in _SCHEMAS:
    _library.impl(_name, _implementation(_name), "CompositeExplicitAutograd")


# Fakes


@torch.library.register_fake("svdrd::svd", lib=_library)
def _(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, m, n = a.shape
    k = torch.sym_min(m, n)
    return a.new_empty(b, m, k), a.new_empty(b, k), a.new_empty(b, k, n)


@torch.library.register_fake("svdrd::svd_backward", lib=_library)
def _(u: Tensor, s: Tensor, vh: Tensor, grad_u: Tensor | None, grad_s: Tensor | None, grad_vh: Tensor | None) -> Tensor:
    return u.new_empty(u.shape[0], u.shape[1], vh.shape[2])


@torch.library.register_fake("svdrd::polar_factor", lib=_library)
def _(a: Tensor, rcond: float, smooth: float, save_factors: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, m, n = a.shape
    k = torch.sym_min(m, n)
    p = a.new_empty(b, m, n)
    if not save_factors:
        return p, a.new_empty(0), a.new_empty(0), a.new_empty(0)
    return p, a.new_empty(b, m, k), a.new_empty(b, k), a.new_empty(b, k, n)


@torch.library.register_fake("svdrd::polar_factor_backward", lib=_library)
def _(grad: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float) -> Tensor:
    return grad.new_empty(grad.shape)


@torch.library.register_fake("svdrd::polar_factor_second_derivative", lib=_library)
def _(a: Tensor, g: Tensor, h: Tensor, rcond: float, smooth: float) -> Tensor:
    return a.new_empty(a.shape)


@torch.library.register_fake("svdrd::basis_loss", lib=_library)
def _(
    x_hat: Tensor, x: Tensor, block_height: int, block_width: int, rcond: float, smooth: float,
    need_grad_x_hat: bool, need_grad_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    b, h, w = x_hat.shape
    loss = x_hat.new_empty(b, h // block_height, w // block_width)
    return (
        loss,
        x_hat.new_empty(x_hat.shape if need_grad_x_hat else (0,)),
        x_hat.new_empty(x_hat.shape if need_grad_x else (0,)),
    )


@torch.library.register_fake("svdrd::basis_loss_backward", lib=_library)
def _(
    grad_loss: Tensor, derivative: Tensor, x_hat: Tensor, x: Tensor, block_height: int, block_width: int,
    rcond: float, smooth: float,
) -> Tensor:  # fmt: skip
    return derivative.new_empty(derivative.shape)


@torch.library.register_fake("svdrd::basis_loss_second_derivative", lib=_library)
def _(
    x_hat: Tensor, x: Tensor, grad_loss: Tensor, direction: Tensor, block_height: int, block_width: int,
    rcond: float, smooth: float,
) -> Tensor:  # fmt: skip
    return x_hat.new_empty(x_hat.shape)


@torch.library.register_fake("svdrd::recompose", lib=_library)
def _(x_hat: Tensor, x: Tensor, block_height: int, block_width: int) -> Tensor:
    return x.new_empty(x.shape)


# Autograd


def _svd_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output)


def _svd_grad(ctx: Any, grad_u: Tensor | None, grad_s: Tensor | None, grad_vh: Tensor | None) -> Tensor | None:
    u, s, vh = ctx.saved_tensors
    if grad_u is None and grad_s is None and grad_vh is None:
        return None
    if not torch.is_grad_enabled():
        return ops.svd_backward(u, s, vh, grad_u, grad_s, grad_vh)
    # create_graph=True: the formula's own operations are differentiated, to any order.
    with torch.autocast(u.device.type, enabled=False):
        return derivatives.svd_vjp(grad_u, grad_s, grad_vh, u, s, vh)


def _polar_factor_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a, ctx.rcond, ctx.smooth, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(a, *output)


def _polar_factor_grad(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None, None]:
    if grad is None:
        return None, None, None, None
    a, p, *factors = ctx.saved_tensors
    # Detached: the second derivative is that of the whole operation by a, and p must not add its own.
    return ops.polar_factor_backward(grad, a, p.detach(), *factors, ctx.rcond, ctx.smooth), None, None, None


def _polar_factor_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.rcond, ctx.smooth = inputs
    ctx.save_for_backward(*tensors)


def _polar_factor_double_backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
    grad, a, p, *factors = ctx.saved_tensors
    rest = (None,) * 6
    # The Jacobian is symmetric: the derivative by grad is the same map again.
    by_grad = ops.polar_factor_backward(direction, a, p, *factors, ctx.rcond, ctx.smooth)
    if not ctx.needs_input_grad[1]:
        return by_grad, None, *rest
    return by_grad, ops.polar_factor_second_derivative(a, grad, direction, ctx.rcond, ctx.smooth), *rest


def _basis_loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x_hat, x, *ctx.options, need_grad_x_hat, need_grad_x = inputs
    ctx.set_materialize_grads(False)
    _, derivative_x_hat, derivative_x = output
    ctx.mark_non_differentiable(derivative_x_hat, derivative_x)
    ctx.needed = need_grad_x_hat, need_grad_x
    ctx.save_for_backward(x_hat, x, derivative_x_hat, derivative_x)


def _basis_loss_grad(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    x_hat, x, derivative_x_hat, derivative_x = ctx.saved_tensors
    # The operator, which has a derivative of its own, costs some 30 microseconds more than what it computes.
    backward = ops.basis_loss_backward if torch.is_grad_enabled() else _basis_loss_backward
    grad_x_hat = grad_x = None
    if grad_loss is not None:
        if ctx.needed[0] and ctx.needs_input_grad[0]:
            grad_x_hat = backward(grad_loss, derivative_x_hat, x_hat, x, *ctx.options)
        if ctx.needed[1] and ctx.needs_input_grad[1]:  # |P1 - P2| is symmetric: the sides exchanged
            grad_x = backward(grad_loss, derivative_x, x, x_hat, *ctx.options)
    return grad_x_hat, grad_x, *(None,) * 6


def _basis_loss_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.block_height, ctx.block_width, ctx.rcond, ctx.smooth = inputs
    ctx.save_for_backward(*tensors)


def _basis_loss_double_backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
    grad_loss, derivative, x_hat, x = ctx.saved_tensors
    options = ctx.block_height, ctx.block_width, ctx.rcond, ctx.smooth
    by_grad_loss = by_x_hat = None
    if ctx.needs_input_grad[0]:
        blocks = definitions.to_blocks(direction * derivative, ctx.block_height, ctx.block_width)
        by_grad_loss = blocks.sum((-2, -1)).reshape(grad_loss.shape)
    if ctx.needs_input_grad[2]:
        by_x_hat = ops.basis_loss_second_derivative(x_hat, x, grad_loss, direction, *options)
    # Not by x: the loss is piecewise linear in the two polar factors, so the mixed derivative is 0 almost everywhere.
    return by_grad_loss, None, by_x_hat, *(None,) * 5


def _recompose_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_hat, x, *ctx.block = inputs
    ctx.save_for_backward(x_hat, x)


def _recompose_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    """By the derivatives of both decompositions, which are made again: the forward keeps no factors."""
    by_x_hat = by_x = None
    g, x_hat, x = (definitions.to_blocks(image, *ctx.block) for image in (grad, *ctx.saved_tensors))
    with torch.autocast(grad.device.type, enabled=False):
        u, s, vh = ops.svd(x)
        u_hat, s_hat, vh_hat = ops.svd(x_hat)
        if ctx.needs_input_grad[0]:
            by_values = ((u.mT @ g) * vh).sum(-1)
            by_x_hat = derivatives.svd_vjp(None, by_values, None, u_hat, s_hat, vh_hat)
            by_x_hat = definitions.from_blocks(by_x_hat, *grad.shape)
        if ctx.needs_input_grad[1]:
            weighted = s_hat[:, :, None]
            by_x = derivatives.svd_vjp((g @ vh.mT) * weighted.mT, None, weighted * (u.mT @ g), u, s, vh)
            by_x = definitions.from_blocks(by_x, *grad.shape)
    return by_x_hat, by_x, None, None


def _nothing_saved(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    return None


def _no_third_derivative(ctx: Any, direction: Tensor) -> None:
    raise NotImplementedError(
        "svdrd: third derivatives of polar_factor and basis_loss are not implemented; first and second ones are. "
        "Do not pass create_graph=True to the second backward."
    )


for _name, _backward, _setup in (
    ("svd", _svd_grad, _svd_setup),
    ("polar_factor", _polar_factor_grad, _polar_factor_setup),
    ("polar_factor_backward", _polar_factor_double_backward, _polar_factor_backward_setup),
    ("basis_loss", _basis_loss_grad, _basis_loss_setup),
    ("basis_loss_backward", _basis_loss_double_backward, _basis_loss_backward_setup),
    ("recompose", _recompose_grad, _recompose_setup),
    ("polar_factor_second_derivative", _no_third_derivative, _nothing_saved),
    ("basis_loss_second_derivative", _no_third_derivative, _nothing_saved),
):
    torch.library.register_autograd(f"svdrd::{_name}", _backward, setup_context=_setup, lib=_library)


# Autocast: these are float32 operators; in bfloat16 the products U V^T alone would lose all but two digits.

for _name in _SCHEMAS:
    for _device in ("cpu", "cuda"):
        torch.library.register_autocast(f"svdrd::{_name}", _device, torch.float32, lib=_library)


# Past the dispatcher. For a CPU tensor that nothing but autograd takes an interest in, the dispatcher's way through
# Python functions of PyTorch's and this file's ends at the same kernel, but costs 8 microseconds without a gradient and
# 90 with one, as much as torch.linalg.svd takes in all for a small matrix.


def _only_autograd_takes_part(*tensors: Tensor) -> bool:
    """Whether the kernels of ``cpp`` compute, and no compiler, tracer, transform, mode or subclass wants to see it."""
    for x in tensors:
        if type(x) is not Tensor or not x.is_cpu:
            return False
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and selection.select(tensors[0].device) == "cpp"
    )


class _BasisLoss(torch.autograd.Function):
    """``ops.basis_loss`` with its derivative; the derivative's own is the operator's."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = cpp.basis_loss(*inputs)
        _basis_loss_setup(ctx, inputs, output)
        return output

    backward = staticmethod(_basis_loss_grad)


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
