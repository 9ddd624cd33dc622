"""A short run of every kernel of the ``cuda`` backend, for compute-sanitizer: ``make cuda-check``.

Every operation at a size for each team of threads, over the zoo and with a tail in the last block, against float64 and,
where Triton is, against the ``triton`` backend. Prints the largest errors; exits 1 where one is too large.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import svdrd
from svdrd import backends
from svdrd.ops import basis_loss, polar_factor, svd
from tests.zoo import ZOO

# One for each team of csrc/cuda.h: 8, 32, 64, 256 threads, and a workspace.
SIZES = [(8, 8), (5, 7), (16, 16), (32, 24), (64, 40), (64, 600)]
# Conditions near 1, so that errors can be compared without knowing each matrix.
NAMES = ("random", "identity", "orthogonal", "equal pairs", "arithmetic", "zero", "constant image")


def everything(a: Tensor, b: Tensor) -> list[Tensor]:
    """What does not depend on a choice of singular vectors."""
    u, s, vh = svd(a.detach())
    leaf = a.detach().requires_grad_()
    p = polar_factor(leaf)
    (by_p,) = torch.autograd.grad(p, leaf, torch.cos(torch.arange(p.numel(), device=p.device)).reshape(p.shape).to(p))
    loss = basis_loss(leaf, b, reduction="none")
    (by_loss,) = torch.autograd.grad(loss.sum(), leaf)
    smoothed = polar_factor(a.detach(), smooth=0.1)
    return [s, (u * s[..., None, :]) @ vh, p.detach(), by_p, loss.detach(), by_loss, smoothed]


def main() -> int:
    """1 if a backend is off."""
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    others = [name for name in ("triton",) if backends._usable(name) and backends._refusal(name, device) is None]
    worst = 0.0
    for dtype, bound in ((torch.float32, 3e-4), (torch.float64, 1e-11)):
        for m, n in SIZES:
            a = torch.stack([ZOO[name](m, n) for name in NAMES]).to(dtype)
            b = a.flip(0)
            with svdrd.use_backend("torch"):
                expected = everything(a.double(), b.double())
            for backend in ("cuda", *others):
                with svdrd.use_backend(backend):
                    results = everything(a.to(device), b.to(device))
                for index, (result, other) in enumerate(zip(results, expected, strict=True)):
                    # The gradient of the loss jumps where two entries are equal but for rounding.
                    if index == 5:
                        assert torch.isfinite(result).all()
                        continue
                    scale = other.abs().amax().clamp(min=1)
                    error = ((result.cpu().double() - other).abs().amax() / scale).item()
                    worst = max(worst, error / bound)
                    if not error < bound:
                        print(f"{backend}, {dtype}, {m} x {n}, result {index}: error {error:.1e}, bound {bound:.0e}")
    print(f"cuda{''.join(', ' + name for name in others)}: the largest error is {worst:.2f} of its bound")
    return 0 if worst < 1 else 1


if __name__ == "__main__":
    sys.exit(main())
