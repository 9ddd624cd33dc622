"""The polar factor ``U V^T`` of every matrix of a batch, with its exact derivative."""

from torch import Tensor

from svdrd.dispatch import direct
from svdrd.ops import arguments


def polar_factor(a: Tensor, rcond: float | None = None, smooth: float = 0.0) -> Tensor:
    r"""The canonical polar factor ``P(A) = sum over s_i > rcond * s_1 of u_i v_i^T``, or its smoothed form.

    The thin SVD is ``A = sum_i s_i u_i v_i^T``. At full rank P is ``U V^T``, the nearest matrix with orthonormal
    columns (or rows). A rank-deficient matrix gives the partial isometry between its row and its column space. That is
    unique, where ``U V^T`` is not. ``P(Q A Z) = Q P(A) Z`` for orthogonal Q and Z, ``P(A^T) = P(A)^T``,
    ``P(c A) = P(A)`` for c > 0, ``P(0) = 0``.

    With ``smooth = e > 0`` it is ``P_e(A) = A (A^T A + e^2 I)^(-1/2)``: ``u_i v_i^T`` is weighted by
    ``s_i / sqrt(s_i^2 + e^2)``. It is infinitely differentiable, and its derivative is bounded by ``1/e``. There is no
    rank decision then, and ``rcond`` is ignored.

    Args:
        a: ``(..., m, n)``, real; any strides, any batch dimensions, also empty ones. float16 and bfloat16 are computed
            in float32 and returned in their own dtype.
        rcond: in [0, 1), relative to the largest singular value of each matrix. None: ``4 eps`` of the dtype that
            computes.
        smooth: ``e >= 0``, in the units of ``a``.

    Returns:
        ``(..., m, n)``. A matrix that holds NaN or Inf gives NaN for itself alone.

    The derivative is exact at repeated and at zero singular values
    (:func:`svdrd.reference.derivatives.polar_factor_vjp`) and finite at every scale; second derivatives work. The
    Jacobian is symmetric, so ``torch.autograd.grad(polar_factor(a), a, t)`` is the Jacobian-vector product along ``t``
    as well.

    Raises:
        TypeError: ``a`` is no dense tensor of a real floating dtype; ``rcond`` or ``smooth`` is no number.
        ValueError: ``a`` has fewer than two dimensions; ``rcond`` or ``smooth`` is out of range.

    Example::

        p = svdrd.ops.polar_factor(a)
        p.mT @ p  # the identity, if a is tall and has full rank

    Source: N. J. Higham, "Functions of Matrices", SIAM 2008, chapter 8 (the canonical polar decomposition).
    """
    dtype = arguments.compute_dtype("polar_factor", a=a)
    rcond = arguments.check_rcond("polar_factor", rcond, dtype)
    smooth = arguments.check_smooth("polar_factor", smooth)
    p = direct.polar_factor(arguments.flattened(a, dtype), rcond, smooth)
    return arguments.restored(p, a.shape[:-2], a.dtype)
