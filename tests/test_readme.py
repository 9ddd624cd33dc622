"""The README's Python runs as it stands, and does what the text around it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import svdrd

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_examples() -> None:
    use, loop, lapack = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(use, names)
    assert torch.isfinite(names["loss"])
    assert torch.isfinite(names["x_hat"].grad).all()

    names["criterion"] = svdrd.BasisLoss(block_size=8)
    exec(loop, names)
    assert all(torch.isfinite(parameter).all() for parameter in names["model"].parameters())

    exec(lapack, names)
    exec(loop.replace("range(100)", "range(1)"), names)
    assert all(parameter.isnan().all() for parameter in names["model"].parameters())
