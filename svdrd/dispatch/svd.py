"""``torch.ops.svdrd.svd``, the thin SVD, and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svdrd.dispatch.differentiation import Formulas, differentiated_again
from svdrd.dispatch.registration import Operator, ops, register, without_autocast, without_derivative
from svdrd.dispatch.routes import Case
from svdrd.reference import definitions, derivatives, devices


def _fake(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, m, n = a.shape
    k = torch.sym_min(m, n)
    return a.new_empty(b, m, k), a.new_empty(b, k), a.new_empty(b, k, n)


def _case(a: Tensor) -> Case:
    return Case(a.shape[1], a.shape[2], a.dtype, a.device)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    return output


def grad(ctx: Any, grad_u: Tensor | None, grad_s: Tensor | None, grad_vh: Tensor | None) -> Tensor | None:
    """The backward pass of the SVD; also for the way past the dispatcher."""
    u, s, vh = ctx.saved_tensors
    if grad_u is None and grad_s is None and grad_vh is None:
        return None
    if not differentiated_again():
        return ops.svd_backward(u, s, vh, grad_u, grad_s, grad_vh)
    # The formula's own operations are differentiated, to any order.
    with without_autocast(u.device):
        return devices.anywhere(derivatives.svd_vjp)(grad_u, grad_s, grad_vh, u, s, vh)


def _jvp(ctx: Any, saved: list[Tensor], tangent: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if tangent is None:
        return None, None, None
    u, s, vh = saved
    with without_autocast(u.device):
        return devices.anywhere(derivatives.svd_jvp)(tangent, u, s, vh)


register(
    Operator(
        "svd(Tensor a) -> (Tensor u, Tensor s, Tensor vh)",
        fake=_fake,
        default=definitions.svd,
        formulas=Formulas(_setup, grad, _jvp),
        case=_case,
    )
)


# The backward


def _backward_fake(
    u: Tensor, s: Tensor, vh: Tensor, grad_u: Tensor | None, grad_s: Tensor | None, grad_vh: Tensor | None
) -> Tensor:
    return u.new_empty(u.shape[0], u.shape[1], vh.shape[2])


def _backward(
    u: Tensor, s: Tensor, vh: Tensor, grad_u: Tensor | None, grad_s: Tensor | None, grad_vh: Tensor | None
) -> Tensor:
    return derivatives.svd_vjp(grad_u, grad_s, grad_vh, u, s, vh).contiguous()


def _backward_case(u: Tensor, s: Tensor, vh: Tensor, *grads: Tensor | None) -> Case:
    return Case(u.shape[1], vh.shape[2], u.dtype, u.device)


register(
    Operator(
        "svd_backward(Tensor u, Tensor s, Tensor vh, Tensor? grad_u, Tensor? grad_s, Tensor? grad_vh) -> Tensor",
        fake=_backward_fake,
        default=_backward,
        formulas=without_derivative("svd_backward has no derivative; with grad enabled its formula is differentiated."),
        case=_backward_case,
    )
)
