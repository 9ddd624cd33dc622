"""Every loop of every Triton kernel carries all that it assigns; compiled, not interpreted, and without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from svdrd.backends.triton.aot import configurations


@pytest.fixture(scope="module")
def loops() -> list[dict[str, Any]]:
    """What ``python -m tests.backends.triton_loops`` found, in a process of its own: here kernels are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command, root = [sys.executable, "-m", "tests.backends.triton_loops"], Path(__file__).resolve().parents[2]
    printed = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    return [json.loads(line) for line in printed.stdout.splitlines()]


def test_samples_of_the_fault_are_found(loops: list[dict[str, Any]]) -> None:
    samples = {loop["kernel"]: (loop["carried"], loop["dropped"]) for loop in loops if loop["sample"]}
    assert samples == {
        "alias_kernel": (["value"], ["previous"]),
        "conditional_alias_kernel": (["value", "k"], ["previous"]),
        "distinct_kernel": (["value", "previous"], []),
    }


def test_no_loop_drops_a_name(loops: list[dict[str, Any]]) -> None:
    dropped = {
        f"{loop['function']}, line {loop['line']}: {', '.join(loop['dropped'])}"
        for loop in loops
        if loop["dropped"] and not loop["sample"]
    }
    assert not dropped, "These begin as the same tensor as another name. Give each one of its own."


def test_every_kernel_with_a_loop_was_looked_at(loops: list[dict[str, Any]]) -> None:
    without = {"magnitude_kernel", "write_kernel", "distance_kernel"}
    seen = {loop["kernel"] for loop in loops if not loop["sample"]}
    assert seen == {one.kernel.__name__ for one in configurations()} - without
