"""Images and arguments small enough for a training run of a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

# Two epochs of the folder `photographs` are 2 * 3 steps.
STEPS_PER_EPOCH = 3
TINY_CODEC = ["--model", "bmshj2018-hyperprior", "--init", "random", "--model-args", "N=8", "M=12", "--lambda", "0.01"]
TINY_RUN = ["--patch-size", "64", "64", "--batch-size", "2", "--num-workers", "0", "--learning-rate", "1e-3"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Small codecs take twice as long where two threads each of two test processes share two cores.

    What depends on threads is PyTorch's here. That svdrd's kernels have the same bits with any number of them is in
    ``tests/backends/test_threads.py``.
    """


def synthetic_photograph(height: int, width: int, seed: int) -> Image.Image:
    """Smooth shading, an edge and a little noise: full rank, but with the decaying spectrum of a photograph."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    channels = []
    for _ in range(3):
        a, b, c, d = generator.uniform(1, 6, 4)
        channel = np.sin(a * x + b) * np.cos(c * y + d) + (x > y * generator.uniform(0.5, 2)) * 0.7
        channels.append(channel + generator.normal(0, 0.02, (height, width)))
    image = np.stack(channels, axis=-1)
    image = (image - image.min()) / (image.max() - image.min())
    return Image.fromarray(np.rint(255 * image).astype(np.uint8))


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CompressAI's layout: five training images, one of them in a folder of its own, and two test images."""
    root = tmp_path_factory.mktemp("photographs")
    for seed, name in enumerate(("a.png", "b.jpg", "c.png", "d.JPG", "nested/e.png")):
        path = root / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        synthetic_photograph(80 + 7 * seed, 96, seed).save(path)
    (root / "test").mkdir()
    synthetic_photograph(130, 70, 10).save(root / "test" / "x.png")
    synthetic_photograph(64, 128, 11).save(root / "test" / "y.png")
    (root / "train" / "README.txt").write_text("not an image")
    return root


@pytest.fixture
def train(photographs: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs ``svdrd finetune`` in the folder ``name``; returns the checkpoint that it leaves."""
    from svdrd.compress.codecs import checkpoints
    from svdrd.compress.commands import call

    def run(name: str, *options: object, code: int = 0) -> dict[str, Any]:
        folder = tmp_path / name
        argv = [*TINY_CODEC, *TINY_RUN, "-d", str(photographs), "-o", str(folder), *map(str, options)]
        assert call("finetune", argv) == code
        return checkpoints.load(folder / checkpoints.LAST)

    return run


def resume(folder: Path, *options: object) -> dict[str, Any]:
    from svdrd.compress.codecs import checkpoints
    from svdrd.compress.commands import call

    assert call("finetune", ["--resume", str(folder / checkpoints.LAST), *map(str, options)]) == 0
    return checkpoints.load(folder / checkpoints.LAST)


def equal(a: Any, b: Any) -> bool:
    """Bit for bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [key for key in a if key != "arguments" and not equal(a[key], b[key])]


def weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return state["state_dict"]
