"""The SVD of float32 matrices by an eigendecomposition of the Gram matrix in float64, on any device.

On CUDA devices PyTorch loops over the SVDs of matrices with more than 32 columns. An ``eigh`` and a QR factorisation
cost a fraction of an SVD. The Gram matrix in float64 resolves singular values down to about ``1e-8 s_1``, below the
rounding of float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdrd.reference import definitions


def svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`svdrd.reference.definitions.svd`, for float32.

    With ``A^T A = V diag(w) V^T``, the columns of ``A V``, longest first, are ``U diag(s)`` but for what squaring has
    lost: ``A V = Q R`` with R diagonal to ``sqrt(eps(float64)) s_1``. So ``U = Q``, with orthonormal columns also where
    ``A V`` has none, and ``s = diag(R)``, which is 0 to rounding where ``A V`` lies in the span of longer columns.
    """
    if a.shape[-2] < a.shape[-1]:
        u, s, vh = svd(a.mT)
        return vh.mT.contiguous(), s, u.mT.contiguous()
    finite, scaled, *halves = definitions.scaled(a)
    _, v = torch.linalg.eigh(scaled.mT @ scaled)
    product = scaled @ v
    longest_first = torch.linalg.vector_norm(product, dim=-2).argsort(dim=-1, descending=True, stable=True)
    u, r = torch.linalg.qr(product.take_along_dim(longest_first[:, None, :], -1))
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    s, order = diagonal.abs().sort(dim=-1, descending=True, stable=True)
    u = (u * torch.where(diagonal < 0, -1.0, 1.0)[:, None, :]).take_along_dim(order[:, None, :], -1)
    v = v.take_along_dim(longest_first.take_along_dim(order, -1)[:, None, :], -1)
    return (
        definitions.nan_where_not_finite(finite, u, a.dtype),
        definitions.nan_where_not_finite(finite, definitions.unscaled(s, *halves), a.dtype),
        definitions.nan_where_not_finite(finite, v.mT, a.dtype),
    )
