"""Each example runs as its user runs it, in a folder that is empty at first."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.project.examples import EXAMPLES
from tests.warm import Warm

ROOT = EXAMPLES.parent
TRAINER = EXAMPLES / "trainer.yaml"
# What ImageCompressionRunner measures itself: handle_batch and _handle_batch_infer of
# compressai_trainer/runners/image_compression.py. All other meters are keys of what the criterion returns.
MEASURED_BY_THE_RUNNER = {"aux_loss", "bpp", "psnr", "ms-ssim", "ms-ssim-db"}


def run(command: list[str], folder: Path) -> str:
    """What a command prints, without what tests/conftest.py sets for the kernels of GPUs that are not here."""
    environment = {
        key: os.environ[key] for key in os.environ if key not in ("TRITON_INTERPRET", "SVDRD_CUDA_EMULATION")
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_example(warm: Warm, folder: Path, name: str, *arguments: object) -> str:
    done = warm.run([EXAMPLES / name, *arguments], folder, cwd=folder)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def values(pattern: str, text: str) -> list[float]:
    return [float(number) for number in re.findall(pattern, text)]


def test_every_example_is_run_here_and_says_how():
    for path in EXAMPLES.iterdir():
        if path.suffix == ".py":
            assert f"\n    python examples/{path.name}" in path.read_text()
            assert f'run_example(warm, tmp_path, "{path.name}"' in Path(__file__).read_text()
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix not in (".py", "")} == {
        TRAINER.name,
        "basis_loss.ipynb",
    }


def test_basis_loss(tmp_path: Path, warm: Warm):
    printed = run_example(warm, tmp_path, "basis_loss.py")
    ours, lapack = (
        "\n".join(re.findall(f"^{name} .*", printed, re.M)) for name in ("svdrd.BasisLoss", "torch.linalg.svd")
    )
    assert values(r"step +(\d+)", ours) == [0, 50, 100, 150, 200]
    norms = values(r"norm of the gradient (\S+)", ours)
    assert len(norms) == 5
    assert 0 < min(norms) <= max(norms) < 1
    losses = values(r"basis loss (\S+)", ours)
    assert losses[-1] < losses[0] < 0.2
    assert re.search(r"step +0 .* gradient nan\n.* stops here", lapack)


def test_finetune(tmp_path: Path, warm: Warm):
    pytest.importorskip("compressai")
    from compressai.utils.eval_model.__main__ import load_checkpoint

    from tests.compress.conftest import synthetic_photograph

    for seed, name in enumerate(("train/a.png", "train/b.png", "train/c.png", "test/x.png", "test/y.png")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        synthetic_photograph(100, 120, seed).save(path)
    base = ROOT / "docs" / "studies" / "dose_response" / "base" / "lambda-0.013.pth.tar"
    codec = ["-m", "bmshj2018-hyperprior", "--checkpoint", base, "--lambda", 0.013]
    options = ["-d", "images", "--patch-size", 64, 64, "--batch-size", 2, "-e", 2, "-n", 0, "--save-dir", "saved"]
    printed = run_example(warm, tmp_path, "finetune.py", *codec, *options)

    assert printed.count("step 0:") == 2
    lines = re.findall("(?:step 0|test): .*", printed)
    assert len(lines) == 4
    for line in lines:
        (bpp,), (mse,), (basis,), (loss,) = (
            values(rf" {name} (\S+)", line) for name in ("bpp_loss", "mse_loss", "basis_loss", "loss")
        )
        assert loss == pytest.approx(bpp + 0.013 * (255**2 * mse + 10 * basis), abs=0.013 * 255**2 * 1e-5)
        assert basis > 0

    # CompressAI's own evaluation reads the file, and the entropy coder's tables are those of the new weights.
    last = str(tmp_path / "saved" / "checkpoint.pth.tar")
    as_saved, updated = (load_checkpoint("bmshj2018-hyperprior", no_update, last) for no_update in (True, False))
    for name, value in updated.state_dict().items():
        assert torch.equal(as_saved.state_dict()[name], value), name
    start = torch.load(base, map_location="cpu", weights_only=True)["state_dict"]
    assert not torch.equal(as_saved.state_dict()["g_a.0.weight"], start["g_a.0.weight"])

    tests = [float(re.search(r" loss (\S+)", line)[1]) for line in lines if line.startswith("test")]
    best = torch.load(tmp_path / "saved" / "checkpoint_best_loss.pth.tar", map_location="cpu", weights_only=True)
    assert best["loss"] == pytest.approx(min(tests), abs=1e-5)


def test_restoration(tmp_path: Path, warm: Warm):
    for package in ("matplotlib", "skimage"):
        pytest.importorskip(package, reason="the example needs matplotlib and scikit-image")
    from PIL import Image

    # A weight at which the loss makes a difference after so few steps.
    options = ["--steps", 50, "--seeds", 3, "--mu", 300, "--output", "picture.png"]
    printed = run_example(warm, tmp_path, "restoration.py", *options)
    assert len(re.findall("^seed 3, mu .* last step", printed, re.M)) == 2
    rows = {
        name: np.array(values(r"(?<= )\d+\.\d+", re.search(f"^{name} .*", printed, re.M)[0]))
        for name in ("noisy", "seed 3, without basis loss", "seed 3, with basis loss")
    }
    noisy, without, with_loss = rows.values()
    assert noisy.shape == without.shape == with_loss.shape == (2,)
    assert (noisy > 20).all()
    assert (noisy < 21).all()
    assert (without > noisy + 1).all()
    assert (with_loss > noisy + 1).all()
    assert (without != with_loss).any()
    mean, low, high = values(r"[+-]\d+\.\d+", re.search("^with - without.*", printed, re.M)[0])
    assert (low, high) == pytest.approx(sorted(with_loss - without), abs=0.011)
    assert mean == pytest.approx((with_loss - without).mean(), abs=0.011)

    pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))
    assert min(pixels.shape[:2]) > 600
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


@pytest.fixture
def trainer() -> dict[str, Any]:
    return pytest.importorskip("yaml").safe_load(TRAINER.read_text())


def test_trainer_finds_its_criterion_in_compressais_registry(trainer: dict[str, Any]):
    """What compressai_trainer.config.create_criterion does, and the keys that the runner then reads."""
    pytest.importorskip("compressai")
    from compressai.registry import CRITERIONS

    import svdrd.compress

    kwargs = dict(trainer["criterion"])
    criterion = CRITERIONS[kwargs.pop("type")](**kwargs)
    assert type(criterion) is svdrd.compress.BasisRateDistortionLoss
    assert kwargs == {"lmbda": 0.0067, "mu": 10.0}
    assert {name: getattr(criterion, name) for name in kwargs} == kwargs

    x = torch.rand(2, 3, 16, 24)
    losses = criterion({"x_hat": x.flip(0), "likelihoods": {"y": torch.rand(2, 4, 1, 2)}}, x)
    assert "loss" in losses
    for loader, meters in trainer["runner"]["meters"].items():
        assert "basis_loss" in meters
        assert set(meters) - (MEASURED_BY_THE_RUNNER if loader == "infer" else set()) <= losses.keys()


def test_the_control_arm_trains_with_compressais_loss_and_reports_the_basis_loss(trainer: dict[str, Any]):
    pytest.importorskip("compressai")
    from compressai.losses import RateDistortionLoss
    from compressai.registry import CRITERIONS

    import svdrd.compress  # noqa: F401

    kwargs = trainer["criterion"] | {"mu": 0}
    control = CRITERIONS[kwargs.pop("type")](**kwargs)
    x = torch.rand(2, 3, 16, 24)
    x_hat = x.flip(0).requires_grad_()
    output = {"x_hat": x_hat, "likelihoods": {"y": torch.rand(2, 4, 1, 2)}}
    ours, theirs = control(output, x), RateDistortionLoss(lmbda=kwargs["lmbda"])(output, x)
    assert ours["basis_loss"] > 0
    torch.testing.assert_close(ours["loss"], theirs["loss"])
    gradients = [torch.autograd.grad(losses["loss"], x_hat)[0] for losses in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def trainer_command() -> list[str]:
    """The one in the comment at the head of the file: python -c PROGRAM --config-dir=..."""
    lines = re.findall(r"^#   (.*)$", TRAINER.read_text(), re.M)
    command = shlex.split(" ".join(line.removesuffix("\\") for line in lines))
    assert command[:2] == ["python", "-c"]
    return [sys.executable, *command[1:]]


def test_trainers_first_import_registers_the_criterion(trainer: dict[str, Any]):
    pytest.importorskip("compressai")
    first_import, _, _ = trainer_command()[2].split("; ")
    look = f"from compressai.registry import CRITERIONS; print({trainer['criterion']['type']!r} in CRITERIONS)"
    assert run([sys.executable, "-c", f"{first_import}; {look}"], ROOT).split() == ["True"]


def commands_of_the_page() -> list[list[str]]:
    """Those of docs/guide/trainer.md that start the trainer."""
    page = EXAMPLES.parent / "docs" / "guide" / "trainer.md"
    if not page.exists():
        pytest.skip("the documentation is not beside these tests")
    fences = re.findall(r"^```\n(python .*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [[sys.executable, *shlex.split(fence.replace("\\\n", ""))[1:]] for fence in fences]


def test_the_page_starts_the_trainer_as_the_file_says_and_a_control_arm():
    with_loss, control = commands_of_the_page()

    def words(command: list[str]) -> list[str]:
        return [" ".join(word.split()) for word in command]

    assert words(with_loss) == words(trainer_command())
    assert words(control) == [*words(with_loss), "criterion.mu=0", "exp.name=control"]


@pytest.mark.parametrize(("arm", "mu", "name"), [(0, 10.0, "basis_loss"), (1, 0, "control")])
def test_trainer_takes_the_configuration(arm: int, mu: float, name: str):
    """The commands that the page gives, as far as the trainer's Hydra composes the configuration with them."""
    pytest.importorskip(
        "compressai_trainer",
        reason="CompressAI-Trainer is not installed; docs/guide/trainer.md says how, it is on no package index",
    )
    from compressai_trainer.config import create_criterion, create_runner
    from omegaconf import OmegaConf

    from svdrd.compress import BasisRateDistortionLoss

    configuration = OmegaConf.create(run([*commands_of_the_page()[arm], "--cfg=job"], ROOT))
    assert configuration.exp.name == name
    assert configuration.paths.model_checkpoint == "base.pth.tar"
    assert configuration.dataset.train.config.root == "/data/datasets/DIV2K"
    assert configuration.optimizer.net.lr == 1e-5
    criterion = create_criterion(configuration.criterion)
    assert type(criterion) is BasisRateDistortionLoss
    assert (criterion.lmbda, criterion.mu) == (0.0067, mu)
    assert "basis_loss" in create_runner(configuration.runner)._meter_keys["train"]
