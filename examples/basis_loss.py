"""The basis loss in a training loop, and beside it the same formula by ``torch.linalg.svd``.

    python examples/basis_loss.py

A small network learns to sharpen an image whose upper half is a flat sky. A flat block has rank one: its other singular
values are all zero, so they are equal. The derivative of ``torch.linalg.svd`` divides by the differences of squared
singular values, and its first gradient is NaN. That of svdrd is exact and finite. The values of the two losses differ,
too: of a flat block, LAPACK's ``U V^T`` contains arbitrary singular vectors. Needs torch and svdrd, nothing else.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import svdrd


def basis_loss_by_torch(x_hat: Tensor, x: Tensor) -> Tensor:
    """``mean |U1 V1^T - U2 V2^T|`` over all 8 x 8 blocks, as one would write it without svdrd."""

    def polar_factor(image: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(image.unfold(-2, 8, 8).unfold(-2, 8, 8), full_matrices=False)
        return u @ vh

    return (polar_factor(x_hat) - polar_factor(x)).abs().mean()


def train(name: str, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    sharp = F.interpolate(torch.rand(1, 3, 16, 16), size=64, mode="bilinear")
    sharp[..., :32, :] = torch.tensor([0.5, 0.7, 0.9]).view(3, 1, 1)
    blurred = F.avg_pool2d(sharp, 3, stride=1, padding=1, count_include_pad=False)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding="same"), nn.ReLU(), nn.Conv2d(16, 3, 3, padding="same"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(201):
        x_hat = blurred + model(blurred)
        basis = criterion(x_hat, sharp)
        loss = F.mse_loss(x_hat, sharp) + 0.01 * basis
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
        if step % 50 == 0:
            print(f"{name:24} step {step:3}  basis loss {basis.item():.4f}  norm of the gradient {norm.item():.4f}")
        if not norm.isfinite():
            print(f"{name:24} stops here: a step along this gradient would make every weight NaN")
            return
        optimizer.step()


if __name__ == "__main__":
    train("svdrd.BasisLoss", svdrd.BasisLoss(block_size=8))
    train("torch.linalg.svd", basis_loss_by_torch)
