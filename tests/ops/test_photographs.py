"""Accuracy on natural images: 256x256 crops of the Kodak photographs, where they are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from svdrd.ops import polar_factor
from svdrd.reference import definitions, derivatives


def crops(files: list[Path], count: int = 24) -> Tensor:
    """``(count, 256, 256)``: one channel of the centre crop of each photograph, float32 in [0, 1]."""
    from PIL import Image
    from torchvision.transforms.functional import center_crop, pil_to_tensor

    images = [center_crop(pil_to_tensor(Image.open(file).convert("RGB")), [256, 256]) for file in files[:count]]
    return torch.stack([image[i % 3] for i, image in enumerate(images)]).float() / 255


def quantiles(error: Tensor) -> tuple[float, float]:
    return error.median().item(), error.quantile(0.9).item()


def relative_error(result: Tensor, expected: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(result.double() - expected) / torch.linalg.matrix_norm(expected)


def by_autograd(function: object, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    a = a.clone().requires_grad_()
    p = function(a)  # type: ignore[operator]
    return p.detach(), torch.autograd.grad(p, a, g)[0]


@pytest.mark.parametrize("dither", [0.0, 0.5 / 255], ids=["original", "dithered"])
@pytest.mark.slow_interpreted
def test_errors_beside_lapack_and_the_bars(backend: str, kodak: list[Path], dither: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a = crops(kodak)
    a = a + dither * (torch.rand(a.shape, generator=generator) - 0.5)
    g = torch.randn(a.shape, generator=generator)

    # The specification, in float64, of the same float32 values.
    rcond = 4 * torch.finfo(torch.float32).eps
    p, *factors = definitions.polar_factor(a.double(), rcond, 0.0)
    derivative = derivatives.polar_factor_vjp(g.double(), *factors)

    def lapack(a: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(a, full_matrices=False)
        return u @ vh

    ours, theirs = by_autograd(polar_factor, a, g), by_autograd(lapack, a, g)
    forward, gradient = (quantiles(relative_error(x, y)) for x, y in zip(ours, (p, derivative), strict=True))
    lapack_forward, lapack_gradient = (
        quantiles(relative_error(x, y).nan_to_num(torch.inf)) for x, y in zip(theirs, (p, derivative), strict=True)
    )
    print(f"{backend}: forward {forward}, gradient {gradient}; LAPACK float32 {lapack_forward}, {lapack_gradient}")
    # By products alone, as on a GPU, the bar is PyTorch's own float32 SVD.
    bars = (1e-6, 1e-5, 1e-3, 1e-2) if backend in ("torch", "cpp", "cuda") else (torch.inf,) * 4
    beside = zip(forward + gradient, bars, lapack_forward + lapack_gradient, strict=True)
    assert all(error <= min(bar, lapack) for error, bar, lapack in beside)
