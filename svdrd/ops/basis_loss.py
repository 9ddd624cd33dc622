"""The SVD basis loss ``mean |U1 V1^T - U2 V2^T|`` with its exact derivative."""

import torch
from torch import Tensor

from svdrd.dispatch import direct
from svdrd.ops import arguments


def basis_loss(
    x_hat: Tensor,
    x: Tensor,
    block_size: int | None = None,
    reduction: str = "mean",
    rcond: float | None = None,
    smooth: float = 0.0,
) -> Tensor:
    r"""``mean |P(x_hat) - P(x)|`` over all entries of all matrices. P is :func:`svdrd.ops.polar_factor`.

    Each channel of an ``(N, C, H, W)`` tensor is one ``H x W`` matrix. With ``block_size = b`` each of its
    non-overlapping ``b x b`` blocks is one matrix.

    Args:
        x_hat, x: ``(..., H, W)``, equal in shape and device, real; any strides, any batch dimensions. Either or both
            may require grad, and nothing is computed for a side that does not. float16 and bfloat16 are computed in
            float32.
        block_size: divides H and W; None takes each ``H x W`` whole.
        reduction: ``"mean"`` over all entries, ``"sum"`` over all entries, or ``"none"``: the mean of each matrix.
        rcond: in [0, 1): singular values up to ``rcond * s_1`` are dropped. None: ``4 eps``. Ignored if ``smooth > 0``.
        smooth: ``e >= 0``, in the units of ``x``. With ``e > 0`` smoothed polar factors are compared.

    Returns:
        A scalar, in the wider dtype of the two inputs; with ``reduction="none"`` a tensor of the batch dimensions,
        followed by ``(H / b, W / b)`` where there is a block size. A matrix that holds NaN or Inf gives NaN.
        The mean over no entries at all is NaN, as everywhere in PyTorch.

    In the derivative ``sign(0) = 0``, also for entries of the two polar factors that differ by rounding alone: by no
    more than ``16 eps`` of the dtype that computes. A row that is black in both images gives no noise.

    Second derivatives work and are those of a fixed sign pattern.

    Raises:
        TypeError: an input is no dense tensor of a real floating dtype, or an option is of another type.
        ValueError: shapes or devices differ, fewer than two dimensions, ``block_size`` does not divide the size (the
            message says what would), or an option is out of range.

    Example::

        loss = svdrd.ops.basis_loss(x_hat, x, block_size=8)
        loss.backward()

    Source: Chen, Chen, Wang, Li, "Optimizing Image Compression: Perspectives on SVD-Based Restoration", Eqn. 4.
    """
    dtype = arguments.compute_dtype("basis_loss", x_hat=x_hat, x=x)
    arguments.check_pair("basis_loss", x_hat, x)
    rcond = arguments.check_rcond("basis_loss", rcond, dtype)
    smooth = arguments.check_smooth("basis_loss", smooth)
    block_height, block_width = arguments.block_shape("basis_loss", x, block_size)
    arguments.check_reduction("basis_loss", reduction)

    loss = direct.basis_loss(
        arguments.flattened(x_hat, dtype),
        arguments.flattened(x, dtype),
        block_height,
        block_width,
        rcond,
        smooth,
    )
    if reduction == "mean":
        loss = loss.mean()
    elif reduction == "sum":
        loss = loss.sum() * (block_height * block_width)
    else:
        if block_size is None and 0 in x.shape[-2:]:  # no block where one is meant: NaN, as the mean over nothing
            loss = loss.mean((-2, -1))
        loss = loss.reshape(x.shape[:-2] if block_size is None else (*x.shape[:-2], *loss.shape[-2:]))
    result_dtype = torch.promote_types(x_hat.dtype, x.dtype)
    return loss if loss.dtype == result_dtype else loss.to(result_dtype)
