"""``torch.ops.svdrd.basis_loss``, its backward and its second derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svdrd.dispatch.registration import Operator, no_third_derivative, nothing_saved, ops, register
from svdrd.dispatch.routes import Case
from svdrd.reference import definitions


def _fake(
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


def _case(
    x_hat: Tensor, x: Tensor, block_height: int, block_width: int, rcond: float, smooth: float,
    need_grad_x_hat: bool, need_grad_x: bool,
) -> Case:  # fmt: skip
    return Case(block_height, block_width, x_hat.dtype, x_hat.device, rcond)


def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """What the backward pass of the loss keeps; also for the way past the dispatcher."""
    x_hat, x, *ctx.options, need_grad_x_hat, need_grad_x = inputs
    ctx.set_materialize_grads(False)
    _, derivative_x_hat, derivative_x = output
    ctx.mark_non_differentiable(derivative_x_hat, derivative_x)
    ctx.needed = need_grad_x_hat, need_grad_x
    ctx.save_for_backward(x_hat, x, derivative_x_hat, derivative_x)


def grad(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """The backward pass of the loss: each derivative times the gradient of its block's loss."""
    x_hat, x, derivative_x_hat, derivative_x = ctx.saved_tensors
    # The operator, which has a derivative of its own, costs some 30 microseconds more than what it computes.
    backward = ops.basis_loss_backward if torch.is_grad_enabled() else _backward
    grad_x_hat = grad_x = None
    if grad_loss is not None:
        if ctx.needed[0] and ctx.needs_input_grad[0]:
            grad_x_hat = backward(grad_loss, derivative_x_hat, x_hat, x, *ctx.options)
        if ctx.needed[1] and ctx.needs_input_grad[1]:  # |P1 - P2| is symmetric: the sides exchanged
            grad_x = backward(grad_loss, derivative_x, x, x_hat, *ctx.options)
    return grad_x_hat, grad_x, *(None,) * 6


register(
    Operator(
        # The derivatives come with the value, because both factors are at hand there: empty where not needed.
        "basis_loss(Tensor x_hat, Tensor x, SymInt block_height, SymInt block_width, float rcond, float smooth,"
        " bool need_grad_x_hat, bool need_grad_x) -> (Tensor loss, Tensor derivative_x_hat, Tensor derivative_x)",
        fake=_fake,
        default=definitions.basis_loss,
        case=_case,
        backward=grad,
        setup_context=setup,
    )
)


# The backward


def _backward_fake(
    grad_loss: Tensor, derivative: Tensor, x_hat: Tensor, x: Tensor, block_height: int, block_width: int,
    rcond: float, smooth: float,
) -> Tensor:  # fmt: skip
    return derivative.new_empty(derivative.shape)


def _backward(
    grad_loss: Tensor, derivative: Tensor, x_hat: Tensor, x: Tensor, block_height: int, block_width: int,
    rcond: float, smooth: float,
) -> Tensor:  # fmt: skip
    b, rows, columns = grad_loss.shape
    if rows == columns == 1:
        return grad_loss * derivative
    blocks = derivative.reshape(b, rows, block_height, columns, block_width)
    return (grad_loss[:, :, None, :, None] * blocks).reshape(derivative.shape)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.block_height, ctx.block_width, ctx.rcond, ctx.smooth = inputs
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
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


register(
    Operator(
        # derivative = d loss / d x_hat as basis_loss gave it; x_hat and the rest are for the double backward.
        "basis_loss_backward(Tensor grad_loss, Tensor derivative, Tensor x_hat, Tensor x, SymInt block_height,"
        " SymInt block_width, float rcond, float smooth) -> Tensor",
        fake=_backward_fake,
        default=_backward,
        backward=_double_backward,
        setup_context=_backward_setup,
    )
)


# The second derivative


def _second_fake(
    x_hat: Tensor, x: Tensor, grad_loss: Tensor, direction: Tensor, block_height: int, block_width: int,
    rcond: float, smooth: float,
) -> Tensor:  # fmt: skip
    return x_hat.new_empty(x_hat.shape)


register(
    Operator(
        "basis_loss_second_derivative(Tensor x_hat, Tensor x, Tensor grad_loss, Tensor direction,"
        " SymInt block_height, SymInt block_width, float rcond, float smooth) -> Tensor",
        fake=_second_fake,
        default=definitions.basis_loss_second_derivative,
        backward=no_third_derivative,
        setup_context=nothing_saved,
    )
)
