"""``torch.ops.svdrd.polar_factor``, its backward and its second derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from svdrd.backends import outputs
from svdrd.dispatch.differentiation import Formulas
from svdrd.dispatch.registration import NO_THIRD_DERIVATIVE, Operator, ops, register
from svdrd.dispatch.routes import Case
from svdrd.reference import definitions, derivatives


def _fake(a: Tensor, rcond: float, smooth: float, save_factors: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, m, n = a.shape
    k = torch.sym_min(m, n)
    p = a.new_empty(b, m, n)
    if save_factors == outputs.FACTORS:
        return p, a.new_empty(b, m, k), a.new_empty(b, k), a.new_empty(b, k, n)
    u = a.new_empty(b, outputs.saved_size(m, n)) if save_factors == outputs.ITERATES else a.new_empty(0)
    return p, u, a.new_empty(0), a.new_empty(0)


def _default(a: Tensor, rcond: float, smooth: float, save_factors: int) -> tuple[Tensor, ...]:
    p, *factors = definitions.polar_factor(a, rcond, smooth)
    if save_factors == outputs.FACTORS:
        return p, *factors
    _, m, n = a.shape
    u = a.new_zeros(len(a), outputs.saved_size(m, n)) if save_factors == outputs.ITERATES else a.new_empty(0)
    return p, u, a.new_empty(0), a.new_empty(0)


def _case(a: Tensor, rcond: float, smooth: float, save_factors: int) -> Case:
    if save_factors not in (outputs.NOTHING, outputs.FACTORS, outputs.ITERATES):
        raise ValueError(
            f"save_factors is {save_factors}; it has to be 0 (nothing), 1 (the factors) or 2 (of the CPU kernels)"
        )
    return Case(a.shape[1], a.shape[2], a.dtype, a.device, rcond, save_factors)


def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What the backward pass of the polar factor needs; also for the way past the dispatcher."""
    a, ctx.rcond, ctx.smooth, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    return a, *output


def grad(ctx: Any, grad_p: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None, None]:
    """The backward pass of the polar factor."""
    if grad_p is None:
        return None, None, None, None
    return _along(ctx, ctx.saved_tensors, grad_p), None, None, None


def _jvp(ctx: Any, saved: list[Tensor], tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None, None]:
    """The Jacobian is symmetric."""
    if tangent is None:
        return None, None, None, None
    return _along(ctx, saved, tangent), None, None, None


def _along(ctx: Any, saved: Sequence[Tensor], direction: Tensor) -> Tensor:
    a, p, *factors = saved
    # Detached: the second derivative is that of the whole operation by a, and p must not add its own.
    derivative: Tensor = ops.polar_factor_backward(direction, a, p.detach(), *factors, ctx.rcond, ctx.smooth)
    return derivative


register(
    Operator(
        # u, s, vh are for the backward, as svdrd.backends.outputs says; where they are empty it starts again from a.
        "polar_factor(Tensor a, float rcond, float smooth, int save_factors)"
        " -> (Tensor p, Tensor u, Tensor s, Tensor vh)",
        fake=_fake,
        default=_default,
        formulas=Formulas(setup, grad, _jvp),
        case=_case,
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
    if u.ndim != 3:  # not saved, or for the compiled CPU kernels
        _, u, s, vh = definitions.polar_factor(a, rcond, smooth)
    return derivatives.polar_factor_vjp(grad, u, s, vh, smooth).contiguous()


def _backward_case(
    grad: Tensor, a: Tensor, p: Tensor, u: Tensor, s: Tensor, vh: Tensor, rcond: float, smooth: float
) -> Case:
    save = {1: outputs.NOTHING, 2: outputs.ITERATES, 3: outputs.FACTORS}[u.ndim]
    return Case(a.shape[1], a.shape[2], a.dtype, a.device, rcond, save)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
    *tensors, ctx.rcond, ctx.smooth = inputs
    return tuple(tensors)


def _double_backward(ctx: Any, direction: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, a, p, *factors = ctx.saved_tensors
    rest = (None,) * 6
    if direction is None:
        return None, None, *rest
    # The Jacobian is symmetric: the derivative by grad is the same map again.
    by_grad = ops.polar_factor_backward(direction, a, p, *factors, ctx.rcond, ctx.smooth)
    if not ctx.needs_input_grad[1]:
        return by_grad, None, *rest
    return by_grad, ops.polar_factor_second_derivative(a, grad, direction, ctx.rcond, ctx.smooth), *rest


def _backward_jvp(ctx: Any, saved: list[Tensor], by_grad: Tensor | None, by_a: Tensor | None, *_: Any) -> Tensor | None:
    """Linear in grad; and the second derivative is symmetric in its directions. p and the factors follow from a."""
    grad, a, p, *factors = saved
    tangent = None
    if by_grad is not None:
        tangent = ops.polar_factor_backward(by_grad, a, p.detach(), *factors, ctx.rcond, ctx.smooth)
    if by_a is not None:
        bent = ops.polar_factor_second_derivative(a, grad, by_a, ctx.rcond, ctx.smooth)
        tangent = bent if tangent is None else tangent + bent
    return tangent


register(
    Operator(
        # p = P(a).
        "polar_factor_backward(Tensor grad, Tensor a, Tensor p, Tensor u, Tensor s, Tensor vh, float rcond,"
        " float smooth) -> Tensor",
        fake=_backward_fake,
        default=_backward,
        formulas=Formulas(_backward_setup, _double_backward, _backward_jvp),
        case=_backward_case,
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
        formulas=NO_THIRD_DERIVATIVE,
    )
)
