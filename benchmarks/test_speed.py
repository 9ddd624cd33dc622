"""One test a case: providers through the gate, the right ones against the clock, rows into the CSV."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import measure, registry


def test_speed(
    case: registry.Case,
    run: measure.Run,
    benchmark: Any,
    pytestconfig: pytest.Config,
    capsys: pytest.CaptureFixture[str],
) -> None:
    device = pytestconfig.getoption("--device")
    rows = list(measure.measure(case, registry.PROVIDERS, benchmark, run, device, pytestconfig.getoption("--seconds")))
    measure.append(pytestconfig.getoption("--csv") or measure.RESULTS / f"{device}.csv", rows)
    with capsys.disabled():
        print(f"\n{case}", *map(measure.describe, rows), sep="\n", flush=True)
    ours = next(row for row in rows if row.provider == registry.OURS.name)
    assert ours.verdict == "right", f"{case}: svdrd is wrong, error {ours.error}"
