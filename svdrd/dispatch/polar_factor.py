"""``torch.ops.svdrd.polar_factor``, its backward and its second derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svdrd.dispatch.registration import Operator, no_third_derivative, nothing_saved, ops, register
from svdrd.dispatch.routes import Case
from svdrd.reference import definitions, derivatives


def _fake(a: Tensor, rcond: float, smooth: float, save_factors: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, m, n = a.shape
    k = torch.sym_min(m, n)
    p = a.new_empty(b, m, n)
    if not save_factors:
        return p, a.new_empty(0), a.new_empty(0), a.new_empty(0)
    return p, a.new_empty(b, m, k), a.new_empty(b, k), a.new_empty(b, k, n)


def _default(a: Tensor, rcond: float, smooth: float, save_factors: bool) -> tuple[Tensor, ...]:
    p, *factors = definitions.polar_factor(a, rcond, smooth)
    return p, *(factors if save_factors else (a.new_empty(0) for _ in range(3)))


def _case(a: Tensor, rcond: float, smooth: float, save_factors: bool) -> Case:
    return Case(a.shape[1], a.shape[2], a.dtype, a.device, rcond, save_factors)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a, ctx.rcond, ctx.smooth, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(a, *output)


def _grad(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None, None]:
    if grad is None:
        return None, None, None, None
    a, p, *factors = ctx.saved_tensors
    # Detached: the second derivative is that of the whole operation by a, and p must not add its own.
    return ops.polar_factor_backward(grad, a, p.detach(), *factors, ctx.rcond, ctx.smooth), None, None, None


register(
    Operator(
        # u, s, vh are for the backward: empty unless save_factors, and the backward then starts again from a.
        "polar_factor(Tensor a, float rcond, float smooth, bool save_factors)"
        " -> (Tensor p, Tensor u, Tensor s, Tensor vh)",
        fake=_fake,
        default=_default,
        case=_case,
        backward=_grad,
        setup_context=_setup,
    )
)


# The backward


def _backward_fake(
    grad: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float
) -> Tensor:
    return grad.new_empty(grad.shape)


def _backward(
    grad: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float
) -> Tensor:
    if u.ndim == 1:  # not saved
        _, u, s, vh = definitions.polar_factor(a, rcond, smooth)
    return derivatives.polar_factor_vjp(grad, u, s, vh, smooth).contiguous()


def _backward_case(
    grad: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float
) -> Case:
    return Case(a.shape[1], a.shape[2], a.dtype, a.device, rcond, u.ndim > 1)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.rcond, ctx.smooth = inputs
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
    grad, a, p, *factors = ctx.saved_tensors
    rest = (None,) * 6
    # The Jacobian is symmetric: the derivative by grad is the same map again.
    by_grad = ops.polar_factor_backward(direction, a, p, *factors, ctx.rcond, ctx.smooth)
    if not ctx.needs_input_grad[1]:
        return by_grad, None, *rest
    return by_grad, ops.polar_factor_second_derivative(a, grad, direction, ctx.rcond, ctx.smooth), *rest


register(
    Operator(
        # p = P(a).
        "polar_factor_backward(Tensor grad, Tensor a, Tensor p, Tensor u, Tensor s, Tensor vh, float rcond,"
        " float smooth) -> Tensor",
        fake=_backward_fake,
        default=_backward,
        case=_backward_case,
        backward=_double_backward,
        setup_context=_backward_setup,
    )
)


# The second derivative


def _second_fake(a: Tensor, g: Tensor, h: Tensor, rcond: float, smooth: float) -> Tensor:
    return a.new_empty(a.shape)


register(
    Operator(
        "polar_factor_second_derivative(Tensor a, Tensor g, Tensor h, float rcond, float smooth) -> Tensor",
        fake=_second_fake,
        default=definitions.polar_factor_second_derivative,
        backward=no_third_derivative,
        setup_context=nothing_saved,
    )
)
