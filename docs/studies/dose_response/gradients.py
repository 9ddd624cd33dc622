"""Where the gradient of the basis term goes: its size and direction beside the MSE's, and by singular index.

    python docs/studies/dose_response/gradients.py --images photographs/val16

computes gradients.csv and gradients_by_index.csv beside this file (two minutes), draws gradients.png from them and
prints the tables of docs/studies/dose_response.md. --draw only draws and prints.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torchvision.transforms.functional import center_crop, to_tensor

from svdrd.compress import BasisRateDistortionLoss, load_codec
from svdrd.compress.comparison.tables import markdown_table
from svdrd.compress.images.folders import ImageFolder
from svdrd.losses import BasisLoss

HERE = Path(__file__).parent
LAMBDAS = (0.0035, 0.0067, 0.013, 0.025)
PATCH = 256
BATCH = 4
# Names of the ways to take the basis loss, and the options of each.
WAYS: dict[str, dict[str, Any]] = {
    "whole patches": {},
    "whole patches, smoothed": {"smooth": 1 / 255},
    "8x8 blocks": {"block_size": 8},
    "8x8 blocks, smoothed": {"block_size": 8, "smooth": 1 / 255},
}
DOSES = (10, 100, 1000, 10 * 255**2)


def batches(images: ImageFolder) -> Iterator[Tensor]:
    """The central patch of every image, (4, 3, 256, 256) at a time."""
    patches = [center_crop(to_tensor(images[index]), [PATCH, PATCH]) for index in range(len(images.samples))]
    for start in range(0, len(patches), BATCH):
        yield torch.stack(patches[start : start + BATCH])


def flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def of_weights(lmbda: float, images: ImageFolder) -> list[dict[str, Any]]:
    """Gradients by the weights, as a training step has them: of a batch each, and of all patches together."""
    codec = load_codec("bmshj2018-hyperprior", checkpoint=HERE / "base" / f"lambda-{lmbda:g}.pth.tar")
    weights = [p for name, p in codec.named_parameters() if not name.endswith(".quantiles")]
    criterion = BasisRateDistortionLoss(lmbda, mu=0, monitor_basis=False)
    torch.manual_seed(0)
    found: dict[str, list[Tensor]] = {}
    for x in batches(images):
        output = codec(x)
        terms = {
            **criterion.terms(criterion(output, x)),
            **{way: lmbda * BasisLoss(**options)(output["x_hat"], x) for way, options in WAYS.items()},
        }
        for name, term in terms.items():
            gradient = torch.autograd.grad(term, weights, retain_graph=True, materialize_grads=True)
            found.setdefault(name, []).append(flat(gradient).double())
    rows = []
    for way in WAYS:
        of_all = {name: [torch.stack(parts).mean(0)] for name, parts in found.items()}
        for patches, gradients in (("a batch", found), ("all", of_all)):
            pairs = list(zip(gradients[way], gradients["mse"], gradients["bpp"], strict=True))
            rows.append(
                {
                    "lambda": lmbda,
                    "way": way,
                    "patches": patches,
                    # With mu = 1: the norm is proportional to mu, the cosine does not depend on it.
                    "norm over that of the mse": fmean(float(b.norm() / m.norm()) for b, m, _ in pairs),
                    "cosine with the mse": fmean(cosine(b, m) for b, m, _ in pairs),
                    "cosine with mse and rate": fmean(cosine(b, m + r) for b, m, r in pairs),
                }
            )
    return rows


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


@torch.no_grad()
def decoded(lmbda: float, images: ImageFolder) -> Iterator[tuple[Tensor, Tensor]]:
    codec = load_codec("bmshj2018-hyperprior", checkpoint=HERE / "base" / f"lambda-{lmbda:g}.pth.tar").eval()
    for x in batches(images):
        yield codec(x)["x_hat"], x


def by_index(lmbda: float, images: ImageFolder) -> list[dict[str, Any]]:
    r"""Shares of the gradient by the decoded pixels that belong to each singular index of the decoded patch.

    With ``A = U S V^T`` the entry ``(i, j)`` of ``U^T G V`` mixes the directions i and j and counts for the larger
    index, that of the smaller singular value. The shares of a patch's channel sum to 1; these are means over all.
    """
    shares: dict[str, list[Tensor]] = {}
    values: list[Tensor] = []
    for x_hat, x in decoded(lmbda, images):
        u, s, vh = torch.linalg.svd(x_hat.double())
        values.append((s / s[..., :1]).flatten(0, 1).mean(0))
        of_pixels = {"mse": x_hat - x}
        for way, options in WAYS.items():
            y = x_hat.clone().requires_grad_()
            (of_pixels[way],) = torch.autograd.grad(BasisLoss(**options)(y, x), y)
        for name, gradient in of_pixels.items():
            energy = (u.mT @ gradient.double() @ vh.mT).square()
            corner = energy.cumsum(-1).cumsum(-2).diagonal(dim1=-2, dim2=-1)
            shares.setdefault(name, []).append((corner / corner[..., -1:]).flatten(0, 1).mean(0))
    means = {name: torch.stack(parts).mean(0) for name, parts in shares.items()}
    rows = []
    for index, value in enumerate(torch.stack(values).mean(0).tolist(), start=1):
        row = {"lambda": lmbda, "index": index, "singular value over the largest": value}
        rows.append(row | {f"share up to it, {name}": float(mean[index - 1]) for name, mean in means.items()})
    return rows


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tables(folder: Path) -> list[str]:
    """The page's tables: sizes beside the MSE's, directions, and how many directions hold half of a gradient."""
    rows = [row for row in read(folder / "gradients.csv") if row["patches"] == "all"]
    sizes, cosines = [], []
    for way in WAYS:
        of_way = [row for row in rows if row["way"] == way]
        ratios = [float(row["norm over that of the mse"]) for row in of_way]
        equal = f"{1 / max(ratios):.0f} to {1 / min(ratios):.0f}"
        sizes.append([way, *(f"{1000 * ratio:.2f} %" for ratio in ratios), equal])
        cosines.append([way, *(f"{float(row['cosine with the mse']):+.3f}" for row in of_way)])
    halves = []
    by_index = read(folder / "gradients_by_index.csv")
    for name in ("mse", *WAYS):
        counts = []
        for lmbda in LAMBDAS:
            shares = [float(row[f"share up to it, {name}"]) for row in by_index if float(row["lambda"]) == lmbda]
            counts.append(str(sum(share >= 0.5 for share in shares)))
        halves.append([name, *counts])
    lambdas = [f"lambda {lmbda:g}" for lmbda in LAMBDAS]
    return [
        *markdown_table(["size at mu = 10", *lambdas, "mu for equal size"], sizes, 1),
        "",
        *markdown_table(["cosine", *lambdas], cosines, 1),
        "",
        *markdown_table([f"last directions of {PATCH} that hold half", *lambdas], halves, 1),
    ]


def draw(folder: Path) -> None:
    rows = [row for row in read(folder / "gradients.csv") if row["patches"] == "all"]
    figure, (size, direction, index) = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    styles = dict(zip(WAYS, ("-", "--", "-.", ":"), strict=True))
    colours = dict(zip(WAYS, ("tab:red", "tab:orange", "tab:blue", "tab:cyan"), strict=True))
    for way in WAYS:
        of_way = [row for row in rows if row["way"] == way]
        ratios = [float(row["norm over that of the mse"]) for row in of_way]
        low, high = ([dose * bound for dose in DOSES] for bound in (min(ratios), max(ratios)))
        size.fill_between(DOSES, low, high, color=colours[way], alpha=0.25)
        size.plot(DOSES, [dose * fmean(ratios) for dose in DOSES], styles[way], color=colours[way], label=way)
        lambdas = [float(row["lambda"]) for row in of_way]
        cosines = [float(row["cosine with the mse"]) for row in of_way]
        direction.plot(lambdas, cosines, styles[way], color=colours[way], marker="o", label=way)
    size.axhline(1, color="0.5", linewidth=0.8)
    size.set(xscale="log", yscale="log", xlabel="mu", ylabel="norm of the gradient over the MSE's")
    size.set_title("by the weights; bands: the four lambdas", fontsize=10)
    direction.axhline(0, color="0.5", linewidth=0.8)
    direction.set(xscale="log", xlabel="lambda", ylabel="cosine with the MSE's gradient")
    direction.set_title("by the weights, over all patches", fontsize=10)
    direction.set_xticks(LAMBDAS, [f"{lmbda:g}" for lmbda in LAMBDAS])
    direction.minorticks_off()
    rows = [row for row in read(folder / "gradients_by_index.csv") if float(row["lambda"]) == LAMBDAS[1]]
    indices = [int(row["index"]) for row in rows]
    for name, style, colour in (("mse", "-", "0.4"), *((way, styles[way], colours[way]) for way in WAYS)):
        index.plot(indices, [float(row[f"share up to it, {name}"]) for row in rows], style, color=colour, label=name)
    index.set(xlabel=f"singular index of the decoded {PATCH} x {PATCH} patch", ylabel="share of the gradient up to it")
    index.set_title(f"by the decoded pixels, lambda {LAMBDAS[1]:g}", fontsize=10)
    for axes in (size, direction, index):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(folder / "gradients.png", dpi=130)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="photographs/val16", help="folder (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=HERE, help="folder (default: that of this file)")
    parser.add_argument("--draw", action="store_true", help="only draw and print, from the files that are there")
    arguments = parser.parse_args(argv)
    if not arguments.draw:
        images = ImageFolder(arguments.images, decode=True)
        write(arguments.output / "gradients.csv", [row for lmbda in LAMBDAS for row in of_weights(lmbda, images)])
        rows = [row for lmbda in LAMBDAS for row in by_index(lmbda, images)]
        write(arguments.output / "gradients_by_index.csv", rows)
    draw(arguments.output)
    print("\n".join(tables(arguments.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
