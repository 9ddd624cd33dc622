"""A short run of every kernel of a GPU's backends, for compute-sanitizer: ``make gpu-check PIECES=sanitizer``.

Every operation at a size for each team of threads, over the zoo and with a tail in the last block, against float64.
Prints the largest errors; exits 1 where one is too large.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

import svdrd
from svdrd.backends import availability, selection
from svdrd.ops import basis_loss, polar_factor, recompose, svd
from tests.zoo import ZOO

# One for each team of csrc/gpu/kernels.h: 8, 32, 64, 256 threads, and a workspace; and one that is larger than any.
SIZES = [(8, 8), (5, 7), (16, 16), (32, 24), (64, 40), (64, 600), (96, 80)]
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
    # With itself: other bases would turn where singular values are equal.
    same = recompose(a.detach(), a.detach())
    return [s, (u * s[..., None, :]) @ vh, p.detach(), by_p, loss.detach(), by_loss, smoothed, same]


def worst_of(backend: str, device: torch.device) -> float:
    """The largest error over its bound."""
    worst = 0.0
    for dtype, bound in ((torch.float32, 3e-4), (torch.float64, 1e-11)):
        for m, n in SIZES:
            a = torch.stack([ZOO[name](m, n) for name in NAMES]).to(dtype)
            b = a.flip(0)
            with svdrd.use_backend("torch"):
                expected = everything(a.double(), b.double())
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
    return worst


def main(argv: Sequence[str] | None = None) -> int:
    """1 if a backend is off."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--backend", action="append", choices=selection.ON_CUDA, help="default: all that are here")
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    chosen = parser.parse_args(argv).backend or [
        name for name in selection.ON_CUDA if selection.usable(name) and availability.refusal(name, device) is None
    ]
    worst = {backend: worst_of(backend, device) for backend in chosen}
    for backend, error in worst.items():
        print(f"{backend}: the largest error is {error:.2f} of its bound")
    return 0 if worst and max(worst.values()) < 1 else 1


if __name__ == "__main__":
    sys.exit(main())
