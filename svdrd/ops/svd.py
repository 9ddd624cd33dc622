"""Batched thin SVD with a derivative that is finite everywhere."""

from typing import NamedTuple

from torch import Tensor

from svdrd.dispatch import direct
from svdrd.ops import arguments


class SVD(NamedTuple):
    """``A = U diag(S) Vh``."""

    U: Tensor
    S: Tensor
    Vh: Tensor


def svd(a: Tensor) -> SVD:
    r"""Thin singular value decomposition ``A = U diag(S) Vh`` of every matrix of a batch.

    Args:
        a: ``(..., m, n)``, real; any strides, any batch dimensions, also empty ones. float16 and bfloat16 are computed
            in float32 and returned in their own dtype.

    Returns:
        ``(U, S, Vh)`` of shapes ``(..., m, k)``, ``(..., k)``, ``(..., k, n)`` with ``k = min(m, n)``. ``S`` is
        descending and nonnegative; ``U`` and ``V`` have orthonormal columns also where singular values vanish. A matrix
        that holds NaN or Inf gives NaN for itself alone.

    The derivative is exact at distinct singular values. At repeated ones single vectors have no derivative. The result
    is finite there. It is exact for functions that give such vectors one and the same weight: ``U V^T``, projections
    onto the span of leading vectors, sums over singular values. ``docs/design/gradients.md`` and
    :func:`svdrd.reference.derivatives.svd_vjp` have the details. For ``U V^T`` itself use
    :func:`svdrd.ops.polar_factor`, whose derivative is exact everywhere.

    Raises:
        TypeError: ``a`` is no dense tensor of a real floating dtype.
        ValueError: ``a`` has fewer than two dimensions.

    Example::

        U, S, Vh = svdrd.ops.svd(a)
        (U * S[..., None, :]) @ Vh  # a, but for rounding
    """
    dtype = arguments.compute_dtype("svd", a=a)
    u, s, vh = direct.svd(arguments.flattened(a, dtype))
    if a.ndim == 3 and a.dtype == dtype:
        return SVD(u, s, vh)
    batch = a.shape[:-2]
    return SVD(*(arguments.restored(x, batch, a.dtype) for x in (u, s, vh)))
