import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("compressai")

from svdrd.__main__ import main as svdrd
from svdrd.compress import BadInput, checkpoints, data, experiment, finetune
from svdrd.compress.study import read_study
from tests.compress.conftest import differing, synthetic_photograph, weights

LAMBDAS = (0.001, 0.004, 0.016, 0.064)
STUDY = """
output = "study"
model = "bmshj2018-hyperprior"
lambdas = [0.001, 0.004, 0.016, 0.064]
seeds = [0]

[base]
init = "random"
model-args = ["N=8", "M=12"]
mu = 0
steps = 2
learning-rate = 1e-3
{training}

[finetune]
steps = 3
learning-rate = 1e-3
{training}

[arms.control]
mu = 0

[arms.basis]
mu = 300
block_size = 8

[evaluate]
folders = {{ held-out = "held_out" }}
"""
TRAINING = """dataset = "photographs"
patch-size = [64, 64]
batch-size = 2
num-workers = 0
device = "cpu"
"""


@pytest.fixture
def place(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a study, its photographs, and the stages in this process: starting one takes seconds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").symlink_to(photographs)
    (tmp_path / "held_out").mkdir()
    for seed in range(2):
        synthetic_photograph(176, 192, seed).save(tmp_path / "held_out" / f"{seed}.png")
    monkeypatch.setattr(experiment, "OwnProcess", lambda _lock: svdrd)
    write_study()
    return tmp_path


def write_study(*replacements: tuple[str, str]) -> None:
    text = STUDY.format(training=TRAINING)
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    Path("study.toml").write_text(text)


# Two rates are enough where the comparison is not looked at.
SHORT = (("lambdas = [0.001, 0.004, 0.016, 0.064]", "lambdas = [0.001, 0.016]"),)


def test_a(place: Path, capsys: pytest.CaptureFixture[str]):
    assert svdrd(["experiment", "study.toml", "--dry-run"]) == 0
    assert svdrd(["experiment", "study.toml"]) == 0
    print("=======")
    assert svdrd(["experiment", "study.toml"]) == 0
    with capsys.disabled():
        print(capsys.readouterr().out)
    print(sorted(str(p) for p in Path("study").rglob("*")))
