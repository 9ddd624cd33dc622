"""Denormal numbers on the way cost no time: on x86-64 one operation on them takes as long as a hundred others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch

import svdrd
from svdrd import ops
from svdrd.backends import availability

pytestmark = pytest.mark.skipif(availability.native is None, reason="no native module")

ATTEMPTS = 200
# Twice to three times as long where they are not counted as zero, the same where they are.
AS_LONG = 1.3


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("PyTorch cannot switch denormal numbers off here")
    yield
    torch.set_flush_denormal(False)


def decaying(count: int, size: int) -> torch.Tensor:
    """U diag(1, 0.7, 0.49, ..) V^T, whose rotations have small sines."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(count, size, size, generator=generator))[0] for _ in range(2))
    return left * 0.7 ** torch.arange(float(size)) @ right


def flat(count: int, size: int) -> torch.Tensor:
    """Saturated blocks of a photograph: what the reflectors leave is the rounding of rounding, and is squared."""
    return torch.ones(count, size, size)


def slowdown(call: Callable[[], object]) -> float:
    """The shortest time with denormal numbers over that without, as soon as it is small."""
    shortest = {False: float("inf"), True: float("inf")}
    for attempt in range(ATTEMPTS):
        for without in shortest:
            torch.set_flush_denormal(without)
            begun = time.perf_counter()
            call()
            shortest[without] = min(shortest[without], time.perf_counter() - begun)
        if attempt >= 5 and shortest[False] <= AS_LONG * shortest[True]:
            break
    return shortest[False] / shortest[True]


@pytest.mark.parametrize("make", [decaying, flat])
@pytest.mark.parametrize("size", [8, 20, 28, 32])
def test_svd(make: Callable[[int, int], torch.Tensor], size: int, one_thread: None) -> None:
    matrices = make(64, size)
    with svdrd.use_backend("cpp"):
        assert slowdown(lambda: ops.svd(matrices)) <= AS_LONG
