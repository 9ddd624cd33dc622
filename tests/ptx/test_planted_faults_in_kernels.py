"""Faults planted into what Triton makes of the project's kernels.

Each barrier is taken out; waits, addresses and shuffles are changed. The emulator finds each, or it is shown that the
kernel does not need what was taken out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="no Triton beside this PyTorch")

from svdrd.backends.triton import jacobi, products
from tests.ptx import handwritten, machine, triton_launch
from tests.ptx.group import Fault
from tests.ptx.memory import Memory

BARRIER = re.compile(r"bar\.sync[^;]*;")


@dataclass(frozen=True)
class Launch:
    """A launch of one of the project's kernels, that can be repeated with other PTX."""

    name: str
    text: str
    threads: int
    shared: int
    parameters: bytes
    memory: Memory
    before: np.ndarray

    def run(self, text: str, order: str = "lockstep") -> tuple[set[str], np.ndarray | None, machine.Record | None]:
        """Program 0 alone: what is found, what global memory holds afterwards, and the record."""
        self.memory.bytes[:] = self.before
        self.memory.touched = self.memory.touched[:0]
        try:
            record = handwritten.launch_in(
                handwritten.translated(text), self.memory, self.parameters, threads=self.threads, shared=self.shared,
                order=order, count=False, limit=60.0,
            )  # fmt: skip
        except Fault as fault:
            return {str(fault)}, None, None
        return handwritten.found(record), self.memory.bytes.copy(), record


def _near_diagonal(m: int, n: int) -> torch.Tensor:
    """Two sweeps of Jacobi diagonalise it, so that a run takes a moment; no two entries are equal."""
    noise = 1e-3 * torch.randn(2, m, n, generator=torch.Generator().manual_seed(0))
    return torch.eye(m, n) * torch.arange(1, n + 1) + noise


@cache
def launches(module: Any, m: int, n: int) -> dict[str, Launch]:
    """The first launch of each kernel that a polar factor takes."""
    found: dict[str, Launch] = {}
    launch = machine.launch

    def kept(
        translated: Any, grid: int, threads: int, shared: int, parameters: bytes, memory: Memory, options: Any
    ) -> Any:
        before = memory.bytes.copy()
        record = launch(translated, grid, threads, shared, parameters, memory, options)
        waiting.append((threads, shared, parameters, memory, before))
        return record

    waiting: list[Any] = []
    with (
        triton_launch.emulation(80, machine.Options(count=False)) as records,
        mock.patch.object(machine, "launch", kept),
    ):
        module.polar_factor(_near_diagonal(m, n), 1e-6, 0.0, False)
    for record, launched in zip(records, waiting, strict=True):
        found.setdefault(record.name, Launch(record.name, record.compiled.asm["ptx"], *launched))
    return found


def without(text: str, match: re.Match[str], by: str = "") -> str:
    return text[: match.start()] + by + text[match.end() :]


KERNELS = {"product": (products, 33, 33, "product_kernel"), "polar": (jacobi, 64, 16, "polar_kernel")}


@pytest.fixture(params=KERNELS)
def launch(request: pytest.FixtureRequest) -> Launch:
    module, m, n, name = KERNELS[request.param]
    return launches(module, m, n)[name]


def _is_executed(launch: Launch, record: machine.Record, instruction: re.Match[str]) -> bool:
    line = launch.text.count("\n", 0, instruction.end()) + 1
    numbers = [i.number for i in record.translated.kernel.instructions if i.line == line]
    return any(b.first <= n < b.last and record.warps[b.number] for b in record.translated.blocks for n in numbers)


# The whole takes a minute and more.
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.nightly)])
def test_barriers_that_are_taken_out(launch: Launch, every: int) -> None:
    """Each is missed, in whatever order the warps run, but for at most one in five, that the kernel does not need.

    Without such a barrier nothing races in any order, and the result is the same. Triton puts one before each use of a
    piece of shared memory, also where the piece was not in use before, or where only the warp that wrote it reads it.
    """
    found, expected, record = launch.run(launch.text)
    assert not found
    assert record is not None
    orders = cycle(machine.ORDERS)
    missed, redundant = 0, []
    barriers = [b for b in BARRIER.finditer(launch.text) if _is_executed(launch, record, b)]
    for number, barrier in enumerate(barriers[::every]):
        mutated = without(launch.text, barrier)
        found, _, _ = launch.run(mutated, next(orders))
        missed += bool(found)
        if not found:
            redundant.append((number, mutated))
    assert len(redundant) <= max(1, missed // 4)
    for number, mutated in redundant:
        for order in machine.ORDERS:
            found, out, _ = launch.run(mutated, order)
            assert not found, f"barrier {number} is missed in some orders only"
            assert np.array_equal(out, expected)


@pytest.mark.parametrize("change", ["one group too few", "none"])
def test_waits_that_end_too_early(change: str) -> None:
    launch = launches(products, 33, 33)["product_kernel"]
    wait = next(re.finditer(r"cp\.async\.wait_group\s+(\d+);", launch.text))
    by = f"cp.async.wait_group {int(wait.group(1)) + 1};" if change == "one group too few" else ""
    found, _, _ = launch.run(without(launch.text, wait, by))
    assert "access to bytes of a cp.async in flight" in found


@pytest.mark.parametrize(
    ("kernel", "op"),
    [
        *((kernel, op) for kernel in KERNELS for op in ("ld.global", "st.global", "ld.shared", "st.shared")),
        ("product", "cp.async.c"),
    ],
)
def test_addresses_that_are_one_word_too_far(kernel: str, op: str) -> None:
    """The first such access: out of bounds, misaligned, never written, raced for; or the result is wrong."""
    module, m, n, name = KERNELS[kernel]
    launch = launches(module, m, n)[name]
    _, expected, record = launch.run(launch.text)
    assert record is not None
    accesses = re.finditer(rf"\b{re.escape(op)}[^;\[]*\[[^\]]*\]", launch.text)
    access = next(a for a in accesses if _is_executed(launch, record, a))
    address = access.group()
    start = address.rindex("[")
    register, _, offset = address[start + 1 : -1].partition("+")
    by = f"{address[:start]}[{register.strip()}+{int(offset or 0) + 4}]"
    found, out, _ = launch.run(without(launch.text, access, by))
    assert found or not np.array_equal(out, expected)


def test_stores_that_are_left_out(launch: Launch) -> None:
    """Without the first to shared memory its reader finds nothing, or what was there before.

    Without those to global memory there is no result.
    """
    found, expected, record = launch.run(launch.text)
    assert record is not None
    stores = [
        s for s in re.finditer(r"(@\S+\s+)?st\.(shared|global)[^;]*;", launch.text) if _is_executed(launch, record, s)
    ]
    shared = [s for s in stores if s.group(2) == "shared"]
    found, out, _ = launch.run(without(launch.text, shared[0]))
    assert found or not np.array_equal(out, expected)
    text = launch.text
    for store in reversed([s for s in stores if s.group(2) == "global"]):
        text = without(text, store)
    _, out, _ = launch.run(text)
    assert out is not None
    assert expected is not None
    assert handwritten.words_unwritten(out) > handwritten.words_unwritten(expected)


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ("0x7fffffff", "a warp-wide instruction by a lane that it does not name"),
        ("0xfffffffe", "shuffle from an inactive lane"),
    ],
)
def test_shuffles_that_do_not_name_a_lane(members: str, kind: str) -> None:
    launch = launches(jacobi, 64, 16)["polar_kernel"]
    _, _, record = launch.run(launch.text)
    assert record is not None
    shuffles = re.finditer(r"(shfl\.sync\.bfly\.b32[^;]*, )-1;", launch.text)
    shuffle = next(s for s in shuffles if _is_executed(launch, record, s))
    found, _, _ = launch.run(without(launch.text, shuffle, f"{shuffle.group(1)}{members};"))
    assert kind in found


def test_shuffles_from_other_lanes() -> None:
    """Allowed, but not what the kernel needs: every column that moves comes from the neighbour."""
    launch = launches(jacobi, 64, 16)["polar_kernel"]
    _, expected, _ = launch.run(launch.text)
    moves = r"shfl\.sync\.idx\.b32([^,;]*,[^,;]*), [^,;]*, 31, -1;"
    text, count = re.subn(moves, r"shfl.sync.bfly.b32\1, 1, 31, -1;", launch.text)
    assert count
    found, out, _ = launch.run(text)
    assert found or not np.array_equal(out, expected)
