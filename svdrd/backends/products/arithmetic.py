"""The products that the iteration needs: the interface, and its implementation by PyTorch.

``svdrd.backends.triton.products`` implements it with Triton. The algorithm works on *tall* matrices, ``(b, rows, n)``
with ``rows >= n``: wide ones are transposed, and there is room for rows that are appended. An implementation may lay
out and pad its tensors as it likes: the algorithm only hands them from one method to the next.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


def per_item(x: Tensor) -> Tensor:
    """``(b,)`` to ``(b, 1, 1)``."""
    return x[:, None, None]


class Products(Protocol):
    """Batched products with what stands before and after them. A product is formed in the precision of its result.

    ``symmetric`` tells that x is: what an implementation made symmetric, it may then read the way that suits it.

    ``matrices`` and ``into`` are batches of ``m x n`` matrices, tensors or what an implementation reads and writes.
    """

    def read(
        self, matrices: Any, dtype: torch.dtype, scale: bool, appended: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The matrices in ``dtype`` and tall, those with NaN or Inf replaced by zero.

        Args:
            scale: times ``2^-exponent``, so that the largest entry, or ``appended`` if larger, is in [1/2, 1).
            appended: ``e``: with ``e I`` (scaled likewise) below; None: with nothing below.

        Returns:
            The matrices, the exponents ``(b,)`` (0 without ``scale``), and ``(b,)`` in float64 1 or, of a matrix with
            NaN or Inf, NaN.
        """
        ...

    def write(self, into: Any, x: Tensor, factor: Tensor, exponent: Tensor | None) -> None:
        """``factor 2^exponent x`` without what was appended, clamped to the finite range; ``factor`` is ``(b,)``."""
        ...

    def gram(
        self,
        x: Tensor,
        dtype: torch.dtype,
        alpha: float = 1.0,
        d: Tensor | None = None,
        beta: float = 0.0,
        symmetric: bool = False,
    ) -> Tensor:
        """``alpha x^T x + beta d``, d symmetric."""
        ...

    def unit_gram(self, x: Tensor, norm: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``x^T x / norm^2``, and its Frobenius norm, 1 for zero. ``norm``: ``(b,)``, then x is symmetric; None: 1."""
        ...

    def cross(
        self,
        x: Tensor,
        y: Tensor,
        sign: float,
        dtype: torch.dtype,
        alpha: float = 1.0,
        d: Tensor | None = None,
        beta: float = 0.0,
        symmetric: bool = False,
    ) -> Tensor:
        """``alpha (x^T y + sign y^T x) + beta d``, exactly symmetric or (``sign = -1``) skew, as d has to be."""
        ...

    def times(self, x: Tensor, y: Tensor, alpha: float = 1.0, d: Tensor | None = None, beta: float = 0.0) -> Tensor:
        """``alpha x y + beta d``, in the dtype of x."""
        ...

    def inner(self, x: Tensor, y: Tensor, alpha: float = 1.0, d: Tensor | None = None, beta: float = 0.0) -> Tensor:
        """``alpha x^T y + beta d``, in the dtype of x."""
        ...

    def distance(
        self, p: Tensor, q: Tensor, bound: Tensor, size: tuple[int, int], signed: bool
    ) -> tuple[Tensor, Tensor | None]:
        """``mean |p - q|`` over the ``m x n`` entries, ``(b,)``.

        If ``signed``, also ``sign(p - q) / (m n)``, 0 where they differ by no more than ``bound``, ``(b,)``.
        """
        ...


def reduced_precision(device: torch.device) -> bool:
    """Whether PyTorch may round float32 operands of products to fewer digits now; a host-side setting."""
    backend: Any = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    # Not torch.get_float32_matmul_precision(), which raises where the newer settings are in use.
    return backend.matmul.fp32_precision in ("tf32", "bf16")


def product(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y`` in at least the precision of its dtype. TF32 would destroy the small singular values, and the setting
    is the process's own, so it is not touched: where it permits TF32, the product is formed in float64.
    """
    if x.dtype == torch.float32 and reduced_precision(x.device):
        return (x.double() @ y.double()).float()
    return x @ y


def times_power_of_two(x: Tensor, exponent: Tensor) -> Tensor:
    """``2^exponent x``, in two halves because ``2^exponent`` alone may overflow."""
    exponent = exponent.to(x.dtype).clamp(-2000, 2000)
    half = torch.trunc(exponent / 2)
    return x * per_item(torch.exp2(half)) * per_item(torch.exp2(exponent - half))


def _tall(x: Tensor) -> Tensor:
    return x.mT if x.shape[-2] < x.shape[-1] else x


def _plus(x: Tensor, alpha: float, d: Tensor | None, beta: float) -> Tensor:
    x = x if alpha == 1 else alpha * x
    return x if d is None else beta * d + x


class TorchProducts:
    """:class:`Products` by PyTorch's own, on any device."""

    def read(
        self, matrices: Tensor, dtype: torch.dtype, scale: bool, appended: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        a = _tall(matrices)
        finite = torch.isfinite(a).all(-1).all(-1)
        x = torch.where(per_item(finite), a, 0.0).double()
        exponent = torch.zeros_like(finite, dtype=torch.int32)
        if scale:
            exponent = torch.frexp(x.abs().amax((-2, -1)).clamp(min=appended or 0.0)).exponent
            x = times_power_of_two(x, -exponent)
        if appended is not None:
            e = times_power_of_two(torch.full_like(x[:, :1, :1], appended), -exponent)
            x = torch.cat([x, e * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)], -2)
        return x.to(dtype), exponent, torch.where(finite, 1.0, torch.nan).double()

    def write(self, into: Tensor, x: Tensor, factor: Tensor, exponent: Tensor | None) -> None:
        into = _tall(into)
        x = x[:, : into.shape[-2]].double() * per_item(factor)
        if exponent is not None:
            x = times_power_of_two(x, exponent)
        largest = torch.finfo(into.dtype).max
        into.copy_(x.clamp(-largest, largest))

    def gram(
        self,
        x: Tensor,
        dtype: torch.dtype,
        alpha: float = 1.0,
        d: Tensor | None = None,
        beta: float = 0.0,
        symmetric: bool = False,
    ) -> Tensor:
        x = x.to(dtype)
        return _plus(product(x.mT, x), alpha, d, beta)

    def unit_gram(self, x: Tensor, norm: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = x.to(dtype)
        g = self.gram(x if norm is None else x / per_item(norm), dtype)
        norm = g.square().sum((-2, -1)).sqrt()
        return g, torch.where(norm > 0, norm, 1.0)

    def cross(
        self,
        x: Tensor,
        y: Tensor,
        sign: float,
        dtype: torch.dtype,
        alpha: float = 1.0,
        d: Tensor | None = None,
        beta: float = 0.0,
        symmetric: bool = False,
    ) -> Tensor:
        half = product(x.to(dtype).mT, y.to(dtype))
        return _plus(half + sign * half.mT, alpha, d, beta)

    def times(self, x: Tensor, y: Tensor, alpha: float = 1.0, d: Tensor | None = None, beta: float = 0.0) -> Tensor:
        return _plus(product(x, y.to(x.dtype)), alpha, d, beta)

    def inner(self, x: Tensor, y: Tensor, alpha: float = 1.0, d: Tensor | None = None, beta: float = 0.0) -> Tensor:
        return _plus(product(x.mT, y.to(x.dtype)), alpha, d, beta)

    def distance(
        self, p: Tensor, q: Tensor, bound: Tensor, size: tuple[int, int], signed: bool
    ) -> tuple[Tensor, Tensor | None]:
        m, n = size
        length = max(m, n)
        difference = p - q
        loss = difference[:, :length].abs().mean((-2, -1))
        if not signed:
            return loss, None
        difference[:, length:] = 0
        return loss, torch.where(difference.abs() <= per_item(bound), 0.0, torch.sign(difference)) / (m * n)


TORCH = TorchProducts()
