"""Fine-tunes a codec of CompressAI with the basis loss: a script to copy, in the way of CompressAI's examples/train.py.

    python examples/finetune.py -m bmshj2018-hyperprior -q 3 --lambda 0.0067 -d DIV2K
    python examples/finetune.py -m bmshj2018-hyperprior --checkpoint base.pth.tar --lambda 0.013 -d DIV2K

The first line starts from the weights of CompressAI's zoo, the second from a checkpoint. DIV2K is a folder with
photographs in train/ and test/. To train with the basis loss, a script for CompressAI changes one line:

    criterion = RateDistortionLoss(lmbda=args.lmbda)
    criterion = BasisRateDistortionLoss(lmbda=args.lmbda, mu=args.mu)

CompressAI's ``eval_model`` reads what this script saves. Needs svdrd[compress].

``svdrd finetune`` is the same training with all that is around it: resume, several GPUs, mixed precision, frozen parts,
logs. From the same batches both give the same weights, bit for bit: tests/compress/train/test_finetune.py compares.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from compressai.datasets import ImageFolder
from compressai.models import CompressionModel
from compressai.optimizers import net_aux_optimizer
from compressai.zoo import image_models, load_state_dict
from compressai.zoo.image import model_architectures
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torchvision import transforms

from svdrd.compress import BasisRateDistortionLoss


def configure_optimizers(
    net: CompressionModel, learning_rate: float, aux_learning_rate: float
) -> tuple[Optimizer, Optimizer]:
    """Adam for the weights, and Adam for the quantiles of the entropy bottleneck."""
    rates = {"net": learning_rate, "aux": aux_learning_rate}
    optimizers = net_aux_optimizer(net, {name: {"type": "Adam", "lr": rate} for name, rate in rates.items()})
    return optimizers["net"], optimizers["aux"]


def train_one_epoch(
    net: CompressionModel,
    criterion: nn.Module,
    loader: Iterable[Tensor],
    optimizer: Optimizer,
    aux_optimizer: Optimizer,
    clip_max_norm: float,
) -> None:
    """One step for each batch (N, 3, H, W)."""
    net.train()
    device = next(net.parameters()).device
    for step, batch in enumerate(loader):
        x = batch.to(device)
        optimizer.zero_grad()
        aux_optimizer.zero_grad()

        losses = criterion(net(x), x)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(net.parameters(), clip_max_norm)
        optimizer.step()

        aux_loss = net.aux_loss()
        aux_loss.backward()
        aux_optimizer.step()

        if step % 10 == 0:
            values = "  ".join(f"{name} {value.item():.5f}" for name, value in losses.items())
            print(f"  step {step}:  {values}  aux_loss {aux_loss.item():.2f}", flush=True)


@torch.no_grad()
def validate(net: CompressionModel, criterion: nn.Module, loader: Iterable[Tensor]) -> dict[str, float]:
    """Means of the losses over the images."""
    net.eval()
    device = next(net.parameters()).device
    sums: dict[str, float] = {}
    images = 0
    for batch in loader:
        x = batch.to(device)
        images += len(x)
        for name, value in criterion(net(x), x).items():
            sums[name] = sums.get(name, 0.0) + len(x) * value.item()
    return {name: value / images for name, value in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tunes a codec of CompressAI with the basis loss.")
    add = parser.add_argument
    add("-m", "--model", default="bmshj2018-hyperprior", choices=image_models, help="default: %(default)s")
    add("-q", "--quality", type=int, default=3, help="of the zoo's weights (default: %(default)s)")
    add("--checkpoint", type=Path, help="weights to start from, in place of the zoo's")
    add("-d", "--dataset", required=True, help="folder with train/ and test/")
    add("-e", "--epochs", type=int, default=100, help="default: %(default)s")
    add("-lr", "--learning-rate", type=float, default=1e-5, help="default: %(default)s, the paper's")
    add("--aux-learning-rate", type=float, default=1e-3, help="of the quantiles (default: %(default)s)")
    add("--lambda", dest="lmbda", type=float, default=0.0067, help="default: %(default)s, the zoo's of quality 3")
    add("--mu", type=float, default=10.0, help="weight of the basis loss (default: %(default)s, the paper's)")
    add("--batch-size", type=int, default=32, help="default: %(default)s, the paper's")
    add("--patch-size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"), help="default: %(default)s")
    add("-n", "--num-workers", type=int, default=4, help="processes that load images (default: %(default)s)")
    add("--clip-max-norm", type=float, default=1.0, help="of the gradient (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--save-dir", type=Path, default=Path("runs/finetune_example"), help="default: %(default)s")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    crops = transforms.Compose([transforms.RandomCrop(args.patch_size), transforms.ToTensor()])
    centres = transforms.Compose([transforms.CenterCrop(args.patch_size), transforms.ToTensor()])
    options = {"batch_size": args.batch_size, "num_workers": args.num_workers, "pin_memory": device == "cuda"}
    train_loader = DataLoader(ImageFolder(args.dataset, crops, split="train"), shuffle=True, **options)
    test_loader = DataLoader(ImageFolder(args.dataset, centres, split="test"), **options)

    if args.checkpoint is None:
        net = image_models[args.model](quality=args.quality, pretrained=True)
    else:
        state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
        net = model_architectures[args.model].from_state_dict(load_state_dict(state["state_dict"]))
    net = net.to(device)

    criterion = BasisRateDistortionLoss(lmbda=args.lmbda, mu=args.mu)
    optimizer, aux_optimizer = configure_optimizers(net, args.learning_rate, args.aux_learning_rate)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min")

    args.save_dir.mkdir(parents=True, exist_ok=True)
    best_loss = float("inf")
    for epoch in range(args.epochs):
        print(f"epoch {epoch}, learning rate {optimizer.param_groups[0]['lr']:g}")
        train_one_epoch(net, criterion, train_loader, optimizer, aux_optimizer, args.clip_max_norm)
        losses = validate(net, criterion, test_loader)
        print(f"  test:  {'  '.join(f'{name} {value:.5f}' for name, value in losses.items())}")
        scheduler.step(losses["loss"])

        # Without force, the tables of the entropy coder would stay those of the weights before the training.
        net.update(force=True)
        state = {
            "epoch": epoch,
            "loss": losses["loss"],
            "state_dict": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "aux_optimizer": aux_optimizer.state_dict(),
            "lr_scheduler": scheduler.state_dict(),
        }
        torch.save(state, args.save_dir / "checkpoint.pth.tar")
        if losses["loss"] < best_loss:
            best_loss = losses["loss"]
            torch.save(state, args.save_dir / "checkpoint_best_loss.pth.tar")
            print(f"  saved {args.save_dir / 'checkpoint_best_loss.pth.tar'}")


if __name__ == "__main__":
    main()
