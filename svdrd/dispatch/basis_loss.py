"""``torch.ops.svdrd.basis_loss``, its backward and its second derivative."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from svdrd.dispatch.differentiation import Formulas, differentiated_again
from svdrd.dispatch.registration import NO_THIRD_DERIVATIVE, Operator, ops, register
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


def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """What the backward pass of the loss needs; also for the way past the dispatcher."""
    x_hat, x, *ctx.options, need_grad_x_hat, need_grad_x = inputs
    _, derivative_x_hat, derivative_x = output
    ctx.mark_non_differentiable(derivative_x_hat, derivative_x)
    ctx.needed = need_grad_x_hat, need_grad_x
    return x_hat, x, derivative_x_hat, derivative_x


def grad(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """The backward pass of the loss: each derivative times the gradient of its block's loss."""
    x_hat, x, derivative_x_hat, derivative_x = ctx.saved_tensors
    # The operator, which has a derivative of its own, costs some 30 microseconds more than what it computes.
    backward = ops.basis_loss_backward if differentiated_again() else _backward
    grad_x_hat = grad_x = None
    if grad_loss is not None:
        if ctx.needed[0] and ctx.needs_input_grad[0]:
            grad_x_hat = backward(grad_loss, derivative_x_hat, x_hat, x, *ctx.options)
        if ctx.needed[1] and ctx.needs_input_grad[1]:  # |P1 - P2| is symmetric: the sides exchanged
            grad_x = backward(grad_loss, derivative_x, x, x_hat, *ctx.options)
    return grad_x_hat, grad_x, *(None,) * 6


def _jvp(
    ctx: Any, saved: list[Tensor], by_x_hat: Tensor | None, by_x: Tensor | None, *_: Any
) -> tuple[Tensor | None, None, None]:
    """Of each block's loss: its derivatives times the tangents, summed over the block."""
    x_hat, x, *derivatives = saved
    b, h, w = x.shape
    ones = x.new_ones(b, h // ctx.options[0], w // ctx.options[1])
    tangent = None
    for direction, needed, derivative, sides in (
        (by_x_hat, ctx.needed[0], derivatives[0], (x_hat, x)),
        (by_x, ctx.needed[1], derivatives[1], (x, x_hat)),
    ):
        if direction is not None:
            if not needed:
                derivative = ops.basis_loss(*sides, *ctx.options, True, False)[1]
            # Through the operator, for what comes by x_hat and x is in its own derivative.
            derivative = ops.basis_loss_backward(ones, derivative, *sides, *ctx.options)
            part = _sums_of_blocks(direction * derivative, *ctx.options[:2])
            tangent = part if tangent is None else tangent + part
    return tangent, None, None


def _sums_of_blocks(image: Tensor, block_height: int, block_width: int) -> Tensor:
    b, h, w = image.shape
    blocks = image.reshape(b, h // block_height, block_height, w // block_width, block_width)
    return blocks.sum((2, 4))


register(
    Operator(
        # The derivatives come with the value, because both factors are at hand there: empty where not needed.
        "basis_loss(Tensor x_hat, Tensor x, SymInt block_height, SymInt block_width, float rcond, float smooth,"
        " bool need_grad_x_hat, bool need_grad_x) -> (Tensor loss, Tensor derivative_x_hat, Tensor derivative_x)",
        fake=_fake,
        default=definitions.basis_loss,
        formulas=Formulas(setup, grad, _jvp),
        case=_case,
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


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
    *tensors, ctx.block_height, ctx.block_width, ctx.rcond, ctx.smooth = inputs
    return tuple(tensors)


def _double_backward(ctx: Any, direction: Tensor | None) -> tuple[Tensor | None, ...]:
    if direction is None:
        return (None,) * 8
    grad_loss, derivative, x_hat, x = ctx.saved_tensors
    options = ctx.block_height, ctx.block_width, ctx.rcond, ctx.smooth
    by_grad_loss = by_x_hat = None
    if ctx.needs_input_grad[0]:
        by_grad_loss = _sums_of_blocks(direction * derivative, ctx.block_height, ctx.block_width)
    if ctx.needs_input_grad[2]:
        by_x_hat = ops.basis_loss_second_derivative(x_hat, x, grad_loss, direction, *options)
    # Not by x: the loss is piecewise linear in the two polar factors, so the mixed derivative is 0 almost everywhere.
    return by_grad_loss, None, by_x_hat, *(None,) * 5


def _backward_jvp(
    ctx: Any,
    saved: list[Tensor],
    by_grad_loss: Tensor | None,
    by_derivative: Tensor | None,
    by_x_hat: Tensor | None,
    *_: Any,
) -> Tensor | None:
    """Linear in grad_loss; and the second derivative by x_hat is symmetric. The derivative follows from x_hat."""
    grad_loss, derivative, x_hat, x = saved
    options = ctx.block_height, ctx.block_width, ctx.rcond, ctx.smooth
    tangent = None
    if by_grad_loss is not None:
        tangent = ops.basis_loss_backward(by_grad_loss, derivative, x_hat, x, *options)
    if by_x_hat is not None:
        bent = ops.basis_loss_second_derivative(x_hat, x, grad_loss, by_x_hat, *options)
        tangent = bent if tangent is None else tangent + bent
    return tangent


register(
    Operator(
        # derivative = d loss / d x_hat as basis_loss gave it; x_hat and the rest are for the double backward.
        "basis_loss_backward(Tensor grad_loss, Tensor derivative, Tensor x_hat, Tensor x, SymInt block_height,"
        " SymInt block_width, float rcond, float smooth) -> Tensor",
        fake=_backward_fake,
        default=_backward,
        formulas=Formulas(_backward_setup, _double_backward, _backward_jvp),
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
        formulas=NO_THIRD_DERIVATIVE,
    )
)
