"""recompose against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svdrd.backends import availability
from svdrd.ops import recompose, svd
from tests.zoo import with_spectrum


def images(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(*shape, dtype=torch.float64, generator=generator)
    return x + 0.1 * torch.randn(*shape, dtype=torch.float64, generator=generator), x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("height", "width", "block"), [(16, 24, 8), (16, 24, None), (40, 20, 4), (64, 64, 32)])
def test_against_float64(backend: str, height: int, width: int, block: int | None, dtype: torch.dtype) -> None:
    x_hat, x = (side.to(dtype) for side in images(2, 3, height, width))
    result = recompose(x_hat, x, block_size=block)
    assert result.shape == x.shape
    assert result.dtype == dtype
    rows, columns = (block, block) if block else (height, width)
    for i in range(0, height, rows):
        for j in range(0, width, columns):
            window = (..., slice(i, i + rows), slice(j, j + columns))
            u, _, vh = torch.linalg.svd(x[window].double(), full_matrices=False)
            s = torch.linalg.svdvals(x_hat[window].double())
            expected = (u * s[..., None, :]) @ vh
            # The bases of close singular values turn by eps / gap: compared in norm with room for that.
            error = torch.linalg.matrix_norm(result[window].double() - expected) / torch.linalg.matrix_norm(expected)
            assert error.max() < (1e-3 if dtype == torch.float32 else 1e-11)


def test_recomposing_with_itself_is_the_identity(backend: str) -> None:
    x = images(3, 32, 32)[1]
    torch.testing.assert_close(recompose(x, x, 8), x, atol=1e-13, rtol=0)


def test_the_bases_of_the_original_bring_the_picture_closer(backend: str) -> None:
    """The observation the loss rests on (Sec. II-A): x_hat's spectrum on x's bases is nearer to x than x_hat is."""
    x_hat, x = images(3, 32, 32)
    assert (recompose(x_hat, x, 8) - x).square().mean() < 0.5 * (x_hat - x).square().mean()


@pytest.mark.slow_interpreted
def test_gradcheck(backend: str) -> None:
    x = with_spectrum(4, 3, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)).requires_grad_()
    x_hat = with_spectrum(4, 3, torch.tensor([2.5, 1.2, 0.3], dtype=torch.float64), seed=7).requires_grad_()
    assert torch.autograd.gradcheck(recompose, (x_hat, x))


def test_second_derivative() -> None:
    x = with_spectrum(3, 2, torch.tensor([3.0, 1.0], dtype=torch.float64)).requires_grad_()
    x_hat = with_spectrum(3, 2, torch.tensor([2.0, 0.5], dtype=torch.float64), seed=7).requires_grad_()
    assert torch.autograd.gradgradcheck(recompose, (x_hat, x))


@pytest.mark.parametrize("side", [0, 1])
def test_the_derivative_by_one_side_alone(side: int) -> None:
    pair = [image.requires_grad_(index == side) for index, image in enumerate(images(2, 8, 6))]
    grad = torch.cos(torch.arange(96.0, dtype=torch.float64)).reshape(2, 8, 6)
    (alone,) = torch.autograd.grad(recompose(*pair, block_size=2), pair[side], grad)
    both = [image.detach().requires_grad_() for image in pair]
    assert torch.equal(torch.autograd.grad(recompose(*both, block_size=2), both, grad)[side], alone)


def test_a_non_finite_matrix_stays_alone(backend: str) -> None:
    x_hat, x = images(3, 8, 8)
    x_hat[1, 2, 3] = torch.nan
    result = recompose(x_hat, x)
    assert result[1].isnan().all()
    assert torch.equal(result[[0, 2]], recompose(x_hat[[0, 2]], x[[0, 2]]))
    assert svd(x_hat).S[1].isnan().all()


def test_eight_by_eight_blocks_of_a_photograph_in_one_call(backend: str) -> None:
    """18432 matrices: a 768x512 RGB image, as large as Kodak's, with flat and saturated parts; interpreted a strip."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.linspace(0, 1, 512)[:, None], torch.linspace(0, 1, 768)
    picture = 0.5 + 0.3 * torch.sin(9 * x + 4 * y) + 0.25 * torch.rand(3, 512, 768, generator=generator)
    picture[:, :100] = 1.5
    picture[1, 200:300] = 0.25
    original = (picture.clamp(0, 1) * 255).round() / 255
    if backend == "triton" and availability.interpreted():
        original = original[:, 80:128]
    height = original.shape[1]
    decoded = ((original + 0.02 * torch.randn(original.shape, generator=generator)).clamp(0, 1) * 255).round() / 255

    result = recompose(decoded, original, block_size=8)

    def blocks(image: Tensor) -> Tensor:
        return image.double().unflatten(1, (height // 8, 8)).unflatten(3, (96, 8)).transpose(2, 3).reshape(-1, 8, 8)

    assert result.shape == original.shape
    u, values, vh = torch.linalg.svd(blocks(original))
    expected = (u * torch.linalg.svdvals(blocks(decoded))[:, None, :]) @ vh
    # Only values that are apart by more than rounding turns their vectors have a recomposition of their own.
    apart = (values.diff(dim=-1).abs().amin(-1) > 1e-3 * values[:, 0]) & (values[:, -1] > 1e-3 * values[:, 0])
    assert apart.sum() > 9 * height
    error = torch.linalg.matrix_norm(blocks(result) - expected) / torch.linalg.matrix_norm(expected)
    assert error[apart].max() < 1e-3
    assert error[apart].median() < 1e-6
    # The rest too has the spectrum of the decoded block.
    spectrum = torch.linalg.svdvals(blocks(result)) - torch.linalg.svdvals(blocks(decoded))
    assert spectrum.abs().max() < 30 * 8 * torch.finfo(torch.float32).eps * 8
