"""``torch.ops.svdrd.recompose`` and its backward."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from svdrd.dispatch.differentiation import Formulas, differentiated_again
from svdrd.dispatch.registration import Operator, ops, register, without_autocast, without_derivative
from svdrd.dispatch.routes import Case
from svdrd.reference import definitions, derivatives, devices


def _fake(x_hat: Tensor, x: Tensor, block_height: int, block_width: int) -> Tensor:
    return x.new_empty(x.shape)


def _default(x_hat: Tensor, x: Tensor, block_height: int, block_width: int) -> Tensor:
    """By two decompositions, which the selected backend computes."""
    _, s, _ = ops.svd(definitions.to_blocks(x_hat, block_height, block_width))
    u, _, vh = ops.svd(definitions.to_blocks(x, block_height, block_width))
    return definitions.from_blocks((u * s[:, None, :]) @ vh, *x.shape).contiguous()


def _case(x_hat: Tensor, x: Tensor, block_height: int, block_width: int) -> Case:
    return Case(block_height, block_width, x.dtype, x.device)


def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
    """What the backward pass needs; also for the way past the dispatcher."""
    x_hat, x, *ctx.block = inputs
    return x_hat, x


def grad(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
    """The backward pass of the recomposition."""
    if grad is None:
        return None, None, None, None
    (x_hat, x), (block_height, block_width) = ctx.saved_tensors[:2], ctx.block
    need_grad_x_hat, need_grad_x = ctx.needs_input_grad[:2]
    # Differentiated again, the formula's own operations are, to any order.
    vjp = _vjp if differentiated_again() else ops.recompose_backward
    by_x_hat, by_x = vjp(grad, x_hat, x, block_height, block_width, need_grad_x_hat, need_grad_x)
    return by_x_hat if need_grad_x_hat else None, by_x if need_grad_x else None, None, None


def _vjp(
    grad: Tensor,
    x_hat: Tensor,
    x: Tensor,
    block_height: int,
    block_width: int,
    need_grad_x_hat: bool,
    need_grad_x: bool,
) -> tuple[Tensor, Tensor]:
    """By the derivatives of both decompositions, which are made again: the forward keeps no factors."""
    svd_vjp = devices.anywhere(derivatives.svd_vjp)
    g, x_hat, x = (definitions.to_blocks(image, block_height, block_width) for image in (grad, x_hat, x))
    by_x_hat, by_x = grad.new_empty(0), grad.new_empty(0)
    with without_autocast(grad.device):
        u, s, vh = ops.svd(x)
        u_hat, s_hat, vh_hat = ops.svd(x_hat)
        if need_grad_x_hat:
            by_values = ((u.mT @ g) * vh).sum(-1)
            by_x_hat = svd_vjp(None, by_values, None, u_hat, s_hat, vh_hat)
            by_x_hat = definitions.from_blocks(by_x_hat, *grad.shape)
        if need_grad_x:
            weighted = s_hat[:, :, None]
            by_x = svd_vjp((g @ vh.mT) * weighted.mT, None, weighted * (u.mT @ g), u, s, vh)
            by_x = definitions.from_blocks(by_x, *grad.shape)
    return by_x_hat, by_x


def _jvp(ctx: Any, saved: list[Tensor], by_x_hat: Tensor | None, by_x: Tensor | None, *_: Any) -> Tensor | None:
    """``dU S_hat V^T + U dS_hat V^T + U S_hat dV^T``, each side's part by its own tangent."""
    if by_x_hat is None and by_x is None:
        return None
    x_hat, x = (definitions.to_blocks(image, *ctx.block) for image in saved)
    svd_jvp = devices.anywhere(derivatives.svd_jvp)
    with without_autocast(x.device):
        u, s, vh = ops.svd(x)
        u_hat, s_hat, vh_hat = ops.svd(x_hat)
        tangent = x.new_zeros(x.shape)
        if by_x_hat is not None:
            by_values = svd_jvp(definitions.to_blocks(by_x_hat, *ctx.block), u_hat, s_hat, vh_hat)[1]
            tangent = tangent + (u * by_values[:, None, :]) @ vh
        if by_x is not None:
            by_u, by_vh = svd_jvp(definitions.to_blocks(by_x, *ctx.block), u, s, vh)[::2]
            tangent = tangent + (by_u * s_hat[:, None, :]) @ vh + (u * s_hat[:, None, :]) @ by_vh
        return definitions.from_blocks(tangent, *saved[1].shape)


register(
    Operator(
        "recompose(Tensor x_hat, Tensor x, SymInt block_height, SymInt block_width) -> Tensor",
        fake=_fake,
        default=_default,
        formulas=Formulas(setup, grad, _jvp),
        case=_case,
    )
)


# The backward


def _backward_fake(grad: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    need_grad_x_hat, need_grad_x = rest[-2:]
    return (
        grad.new_empty(grad.shape if need_grad_x_hat else (0,)),
        grad.new_empty(grad.shape if need_grad_x else (0,)),
    )


def _backward(*inputs: Any) -> tuple[Tensor, Tensor]:
    by_x_hat, by_x = _vjp(*inputs)
    return by_x_hat.contiguous(), by_x.contiguous()


def _backward_case(grad: Tensor, x_hat: Tensor, x: Tensor, block_height: int, block_width: int, *_: bool) -> Case:
    return Case(block_height, block_width, grad.dtype, grad.device)


register(
    Operator(
        # What is not asked for is empty.
        "recompose_backward(Tensor grad, Tensor x_hat, Tensor x, SymInt block_height, SymInt block_width,"
        " bool need_grad_x_hat, bool need_grad_x) -> (Tensor by_x_hat, Tensor by_x)",
        fake=_backward_fake,
        default=_backward,
        formulas=without_derivative(
            "recompose_backward has no derivative; with grad enabled its formula is differentiated."
        ),
        case=_backward_case,
    )
)
