"""The options of a run, and its cases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import clock, measure, registry


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks")
    group.addoption("--ops", default=",".join(registry.OPERATIONS), help="operations, separated by commas")
    group.addoption("--quick", action="store_true", help="tiny batches: is the suite in order?")
    group.addoption("--seconds", type=float, default=1.0, help="for the rounds of one case")
    group.addoption("--threads", type=int, default=2)
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"))
    group.addoption("--csv", type=Path, help="default: benchmarks/results/DEVICE.csv")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--ops").split(",")
    unknown = set(chosen) - set(registry.OPERATIONS)
    if unknown:
        raise pytest.UsageError(
            f"--ops: {', '.join(sorted(unknown))}; it has to be among {', '.join(registry.OPERATIONS)}"
        )
    cases = registry.quick_cases() if metafunc.config.getoption("--quick") else registry.cases()
    metafunc.parametrize("case", [case for case in cases if case.op in chosen], ids=str)


@pytest.fixture(scope="session")
def run(pytestconfig: pytest.Config) -> Iterator[measure.Run]:
    before = torch.get_num_threads()
    torch.set_num_threads(pytestconfig.getoption("--threads"))
    clock.keep_freed_memory()
    yield measure.Run.begin(pytestconfig.getoption("--device"))
    torch.set_num_threads(before)
