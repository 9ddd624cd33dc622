"""Recomposition: the singular values of one image with the singular vectors of another."""

from torch import Tensor

from svdrd.dispatch import direct
from svdrd.ops import arguments


def recompose(x_hat: Tensor, x: Tensor, block_size: int | None = None) -> Tensor:
    r"""``U_x diag(S_xhat) V_x^T``: the singular values of ``x_hat`` on the bases of ``x``.

    Args:
        x_hat, x: ``(..., H, W)``, equal in shape and device, real; each ``H x W``, or with ``block_size = b`` each of
            its non-overlapping ``b x b`` blocks, is one matrix. float16 and bfloat16 are computed in float32.
        block_size: divides H and W; None takes each ``H x W`` whole.

    Returns:
        ``(..., H, W)`` in the dtype of ``x_hat``. A matrix that holds NaN or Inf on either side gives NaN for itself
        alone. Differentiable as :func:`svdrd.ops.svd` is.

    Raises:
        TypeError, ValueError: as :func:`svdrd.ops.basis_loss`.

    Example::

        better = svdrd.ops.recompose(x_hat, x, block_size=8)

    Source: Chen, Chen, Wang, Li, "Optimizing Image Compression: Perspectives on SVD-Based Restoration", Sec. II-A.
    """
    dtype = arguments.compute_dtype("recompose", x_hat=x_hat, x=x)
    arguments.check_pair("recompose", x_hat, x)
    block_height, block_width = arguments.block_shape("recompose", x, block_size)
    images = arguments.flattened(x_hat, dtype), arguments.flattened(x, dtype)
    return arguments.restored(direct.recompose(*images, block_height, block_width), x.shape[:-2], x_hat.dtype)
