"""Devices that cannot compute the definitions: the CPU does it for them, and says so once."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from svdrd import reference
from svdrd.ops import basis_loss, polar_factor, recompose, svd
from svdrd.reference import devices


def test_a_device_without_float64() -> None:
    """Values, first and second derivatives of every operation, on a device that another process plays."""
    command = [sys.executable, "-m", "tests.dispatch.device_without_float64"]
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert process.stdout == "right on a device without float64\n", process.stderr


class NoDouble(TorchDispatchMode):
    """Plays a device without float64 on the CPU: whatever gives such a tensor raises."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor) and x.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


def computed(a: Tensor) -> list[Tensor]:
    """By the reference's public functions and by the operators."""
    x = a.clone().requires_grad_()
    value = basis_loss(x, a.flip(0)) + svd(x).S.sum() + (polar_factor(x) * recompose(x, a)).sum()
    p, *factors = reference.polar_factor(a, 1e-6, 0.0)
    return [
        value.detach(),
        *torch.autograd.grad(value, x),
        *reference.svd(a),
        *reference.basis_loss(a, a.flip(0), 2, 2, 1e-6, 0.0, True, True),
        reference.polar_factor_vjp(p, *factors),
        reference.svd_vjp(p, None, None, *factors),
    ]


@pytest.mark.slow_interpreted
def test_a_mode_that_refuses_float64(backend: str) -> None:
    a = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = computed(a)
    with NoDouble():
        found = computed(a)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_other_errors_are_not_mended() -> None:
    class Refuses(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "frexp" in str(function):
                raise RuntimeError("not here")
            return function(*args, **(kwargs or {}))

    with Refuses(), pytest.raises(RuntimeError, match="not here"):
        reference.svd(torch.rand(2, 4, 4))
    with pytest.raises(IndexError):
        reference.svd(torch.rand(4))


def test_what_is_tried_is_tried_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_refusal", {"single": "no float64 here\nand more", "double": None}.__getitem__)
    devices._computes.cache_clear()
    single, double = (type("Device", (), {"type": kind}) for kind in ("single", "double"))
    with pytest.warns(UserWarning, match=r"'single' devices cannot decompose float64 matrices \(no float64 here\), so"):
        assert devices.elsewhere(single)
    monkeypatch.setattr(devices, "_refusal", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert devices.elsewhere(single)
        for kind in ("cpu", "cuda", "meta"):  # are not tried
            assert not devices.elsewhere(torch.device(kind))
    monkeypatch.setattr(devices, "_refusal", lambda kind: None)
    assert not devices.elsewhere(double)
    devices._computes.cache_clear()
