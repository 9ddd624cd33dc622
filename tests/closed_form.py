"""The smoothed polar factor and its derivatives in the singular basis, in mpmath, whose numbers have no range.

All of it is ``docs/design/gradients.md``, for ``m >= n`` or wide; mpmath comes with torch (by way of sympy).
"""

from __future__ import annotations

import mpmath
import torch
from torch import Tensor


def _numbers(x: Tensor) -> list[mpmath.mpf]:
    return [mpmath.mpf(value) for value in x.tolist()]


def _matrix(x: Tensor) -> mpmath.matrix:
    return mpmath.matrix(x.tolist())


def _tensor(x: mpmath.matrix) -> Tensor:
    return torch.tensor([[float(value) for value in row] for row in x.tolist()], dtype=torch.float64)


@mpmath.workprec(200)
def value(s: Tensor, m: int, n: int, smooth: float) -> Tensor:
    """``P_e(diag(s))``, ``m x n``."""
    weights = torch.tensor([float(x / mpmath.hypot(x, smooth)) for x in _numbers(s)], dtype=torch.float64)
    result = torch.zeros(m, n, dtype=torch.float64)
    result.diagonal().copy_(weights)
    return result


@mpmath.workprec(200)
def derivative(s: Tensor, g: Tensor, smooth: float) -> Tensor:
    """``DP_e(diag(s))[g]``, ``m x n`` as g is."""
    m, n = g.shape
    if m < n:
        return derivative(s, g.mT, smooth).mT
    e, values = mpmath.mpf(smooth), _numbers(s)
    r = [mpmath.hypot(x, e) for x in values]
    result = torch.empty(m, n, dtype=torch.float64)
    for i in range(m):
        for j in range(n):
            w = mpmath.mpf(g[i, j].item())
            if i >= n:
                result[i, j] = float(w / r[j])
                continue
            across, total = mpmath.mpf(g[j, i].item()), values[i] + values[j]
            t = (values[i] * r[j] + values[j] * r[i]) / total if total else e
            result[i, j] = float((w - across) / 2 * t / (r[i] * r[j]) + (w + across) / 2 * e * e / (r[i] * r[j] * t))
    return result


# As it is written here it cancels to the square of s_1 / smooth, which may be 2^1024.
@mpmath.workprec(4096)
def second_derivative(s: Tensor, g: Tensor, h: Tensor, smooth: float) -> Tensor:
    """``D^2P_e(diag(s))[g, h]``, ``m x n``, by the two Sylvester equations."""
    m, n = g.shape
    if m < n:
        return second_derivative(s, g.mT, h.mT, smooth).mT
    values = _numbers(s)
    r = [mpmath.hypot(x, smooth) for x in values]
    a = _matrix(torch.zeros(m, n))
    p = a.copy()
    for j in range(n):
        a[j, j], p[j, j] = values[j], values[j] / r[j]

    def solved(x: mpmath.matrix) -> mpmath.matrix:
        return mpmath.matrix([[x[i, j] / (r[i] + r[j]) for j in range(n)] for i in range(n)])

    def divided(x: mpmath.matrix) -> mpmath.matrix:
        return mpmath.matrix([[x[i, j] / r[j] for j in range(n)] for i in range(m)])

    x, y = _matrix(g), _matrix(h)
    dn_x, dn_y = solved(x.T * a + a.T * x), solved(y.T * a + a.T * y)
    dp_x, dp_y = divided(x - p * dn_x), divided(y - p * dn_y)
    d2n = solved(x.T * y + y.T * x - dn_x * dn_y - dn_y * dn_x)
    return -_tensor(divided(dp_x * dn_y + dp_y * dn_x + p * d2n))


@mpmath.workprec(400)
def value_and_derivative(a: Tensor, g: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    """``P_e(a)`` and ``DP_e(a)[g]`` of any matrix."""
    if a.shape[0] < a.shape[1]:
        p, d = value_and_derivative(a.mT, g.mT, smooth)
        return p.mT, d.mT
    u, s, vt = mpmath.svd_r(_matrix(a.double()), full_matrices=True)
    values = torch.tensor([float(x) for x in s], dtype=torch.float64)
    w = _tensor(u.T * _matrix(g.double()) * vt.T)
    p, d = value(values, *a.shape, smooth), derivative(values, w, smooth)
    return _tensor(u * _matrix(p) * vt), _tensor(u * _matrix(d) * vt)
