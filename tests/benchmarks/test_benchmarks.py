"""The benchmark suite: what it writes, what it refuses to time, what it makes of a CSV."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

for package in ("matplotlib", "pytest_benchmark", "roma", "skimage"):
    pytest.importorskip(package, reason="pip install 'svdrd[dev]' brings what the benchmarks need")

from benchmarks import history, inputs, measure, registry, report  # noqa: E402
from benchmarks.registry import Case, Provider  # noqa: E402

ROOT = Path(__file__).parents[2]


class Clock:
    """As pytest-benchmark's fixture, whose table has no place among the tests' output."""

    def __init__(self):
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, target, setup, rounds):
        for _ in range(rounds):
            arguments, options = setup()
            begin = time.perf_counter()
            target(*arguments, **options)
            self.stats.stats.data.append(time.perf_counter() - begin)


CASE = Case("polar_factor", "both", 32, 8, 8, "random")

ROW = measure.Row(
    op="basis_loss", provider="svdrd", mode="both", batch=100, m=8, n=8, dtype="float32", input="natural (kodak)",
    verdict="right", error=2e-7, p20=0.9e-4, p50=1e-4, p80=1.2e-4, peak_memory=3 * 2**20, device="a processor",
    threads=2, torch="2.15.0", svdrd="0.1.0", commit="abc", date="2026-01-02T03:04:05Z",
)  # fmt: skip


def peer(row: measure.Row, provider: str = "torch.linalg.svd", **changes: object) -> measure.Row:
    return replace(row, provider=provider, peak_memory=None, **{"p50": 4e-3, "error": 5e-4} | changes)


def rows() -> list[measure.Row]:
    """Two runs; the first one is older and ten times slower."""
    newest = [
        ROW,
        peer(ROW),
        peer(ROW, "roma.procrustes", verdict="wrong", error=math.nan, p20=None, p50=None, p80=None),
        replace(ROW, input="random"),
        peer(replace(ROW, input="random"), p50=3e-3),
        replace(ROW, n=16, m=16, p50=2e-4, peak_memory=None),
        peer(replace(ROW, n=16, m=16), p50=1.8e-4),
    ]
    return [replace(ROW, p50=1e-3, date="2026-01-01T00:00:00Z"), *newest]


def test_a_quick_run_writes_every_column_and_times_right_answers_alone(tmp_path):
    path = tmp_path / "results" / "quick.csv"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--seconds", "0.01", "--threads", "1", "--csv", str(path)]
    command += ["-k", "basis_loss-both or svd-forward or recompose"]
    # Whether blocks of photographs are Kodak's is none of this test's business; the name of the set is.
    # pytest-benchmark would take itself for a worker of pytest-xdist, and measures nothing in one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 0, process.stdout + process.stderr
    assert path.read_text().splitlines()[0].split(",") == measure.COLUMNS
    written = measure.read(path)
    assert {row.op for row in written} == {"svd", "basis_loss", "recompose"}
    assert len({row.date for row in written}) == 1
    for row in written:
        assert (row.verdict == "right") == (row.p50 is not None)
        if row.p50 is not None:
            assert 0 < row.p20 <= row.p50 <= row.p80
        assert row.input == "random" or row.input.split(" ")[0] in ("natural", "patches")
        assert row.threads == 1
        assert row.device
    assert all(row.verdict == "right" for row in written if row.provider == "svdrd")
    assert any(row.verdict == "wrong" for row in written if row.provider == "roma.special_procrustes")
    [patches] = [row for row in written if row.input.startswith("patches") and row.provider == "svdrd"]
    if sys.platform == "linux":
        assert patches.peak_memory >= patches.batch * 64 * 4  # the derivative alone
    assert f"{patches.error:7.1e}" in process.stdout


def gated(polar) -> tuple[bool, float]:
    given = CASE.inputs()
    truth = registry.OPERATIONS[CASE.op].truth(given)
    return measure.gate(CASE, Provider("test", registry._with_polar(polar)), given, truth)


def exact(a):
    u, _, vh = torch.linalg.svd(a.double(), full_matrices=False)
    return (u @ vh).to(a.dtype)


def test_the_gate_lets_a_right_provider_pass():
    right, error = gated(exact)
    assert right
    assert error < 1e-5


@pytest.mark.parametrize(
    "wrong",
    [lambda a: 1.1 * exact(a), lambda a: exact(a.mT), lambda a: exact(a).detach() + 0 * a],
    ids=["a scale", "a transpose", "no derivative"],
)
def test_the_gate_refuses_a_wrong_provider(wrong):
    right, error = gated(wrong)
    assert not right
    assert error > registry.OPERATIONS[CASE.op].derivative_tolerance


def test_the_gate_refuses_a_single_nan():
    def spoiled(a):
        return exact(a) * torch.where(torch.arange(len(a)) == 3, torch.nan, 1.0)[:, None, None]

    right, error = gated(spoiled)
    assert not right
    assert math.isnan(error)


def test_a_wrong_provider_is_listed_and_never_timed():
    providers = [registry.OURS, Provider("wrong", registry._with_polar(lambda a: 2 * exact(a)))]
    run = measure.Run.begin("cpu")
    ours, wrong = measure.measure(CASE, providers, Clock(), run, "cpu", seconds=0.01)
    assert (ours.verdict, wrong.verdict) == ("right", "wrong")
    assert ours.p50 is not None
    assert wrong.p50 is None
    assert "not timed" in measure.describe(wrong)


def test_providers_take_turns():
    order = []
    works = [lambda i=i: order.append(i) for i in range(3)]
    times = measure.time_interleaved(Clock(), works, seconds=1e-3)
    assert [len(durations) for durations in times] == [len(times[0])] * 3
    changes = [now for before, now in zip([None, *order[:-1]], order, strict=True) if now != before]
    assert changes == [0, 1, 2] * (1 + len(times[0]))  # once to estimate


def test_what_a_turn_costs_at_first_is_not_timed():
    last = None

    def work(number):
        nonlocal last
        if last != number:
            time.sleep(0.004)
        last = number

    times = measure.time_interleaved(Clock(), [lambda: work(0), lambda: work(1)], seconds=1e-3)
    assert max(min(durations) for durations in times) < 0.002


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_what_a_call_frees_is_there_for_the_next():
    program = """
import resource, torch
from benchmarks.clock import keep_freed_memory

def page_faults(calls):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(calls):
        torch.ones(1 << 20)  # 1024 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.ones(1 << 20)
print(page_faults(10))
keep_freed_memory()
page_faults(10)  # the heap grows
print(page_faults(10))
"""
    gives_back = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ | gives_back, capture_output=True, text=True
    )
    before, after = map(int, result.stdout.split())
    # A page may be larger than 4 KiB.
    assert after <= before / 4, result.stderr


def test_natural_blocks_have_full_rank_and_patches_have_not():
    natural = inputs.make("natural", 64, 8, 8, torch.float32)
    for side in (natural.x_hat, natural.x):
        s = torch.linalg.svdvals(side.double())
        assert (s[:, -1] > inputs.MARGIN * torch.finfo(torch.float32).eps * s[:, 0]).all()
    assert 0 < (natural.x_hat - natural.x).abs().mean() < 0.1  # a JPEG of the same blocks
    patches = inputs.make("patches", 3072, 8, 8, torch.float32)
    assert patches.x.shape == (1, 3, 256, 256)


def test_a_number_of_blocks_that_fills_no_patch_is_named():
    with pytest.raises(ValueError, match="one patch holds 3072"):
        inputs.make("patches", 1000, 8, 8, torch.float32)


def test_rows_survive_the_csv_and_runs_are_appended(tmp_path):
    path = tmp_path / "cpu.csv"
    measure.append(path, rows()[:1])
    measure.append(path, rows()[1:])
    got = measure.read(path)
    assert len(got) == len(rows())
    assert got[1] == ROW
    assert math.isnan(got[3].error)
    assert got[3].p50 is None


def test_what_is_below_its_bar_is_in_bold():
    slow, fast = (
        replace(ROW, op="svd", mode="forward", m=8, n=8, input="natural (kodak)", p50=p) for p in (0.1, 0.001)
    )
    baseline = replace(slow, provider=report.BASELINE, p50=0.05)
    run = [fast, baseline, *(replace(row, input="random") for row in (slow, baseline))]
    lines = report.bars_table([run, [replace(row, device="another") for row in run]]).splitlines()
    cells = lines[2].split(" | ")
    assert cells[:3] == ["| svd, forward", "8 x 8", "28x"]
    assert cells[3] == "50.0x, **0.5x**"
    assert "another" in lines[0]


def test_a_run_with_each_instruction_set_stands_beside(tmp_path):
    csv = tmp_path / "cpu_avx2.csv"
    devices = ["A, 2 cores, avx2", "B, 2 cores, avx2", "A, 2 cores, avx2 by SVDRD_ISA", "A, 2 cores, avx2"]
    dates = ["2026-01-02", "2026-01-01", "2026-01-04", "2026-01-03"]
    measure.append(csv, [replace(ROW, device=device, date=date) for device, date in zip(devices, dates, strict=True)])
    runs = report.newest_runs([tmp_path / "absent.csv", csv])
    assert [(run[0].device, run[0].date) for run in runs] == [(devices[2], dates[2]), (devices[3], dates[3])]


@pytest.mark.parametrize(
    ("used", "flags", "name"),
    [
        ("avx512", "fma avx2 avx512f avx512bw avx512dq avx512vl", "avx512"),
        ("avx2", "fma avx2 avx512f avx512bw avx512dq avx512vl", "avx2 by SVDRD_ISA"),
        ("avx2", "fma avx2 avx512f", "avx2"),
        ("baseline", "fma avx2", "baseline by SVDRD_ISA"),
        ("baseline", "sse4_2", "baseline"),
    ],
)
def test_less_than_the_processor_has_is_named_a_wish(used, flags, name):
    assert measure._instruction_set(used, f"model name\t: A\nflags\t\t: {flags}\n") == name
    assert measure._instruction_set(used, "") == used


def test_the_tables_are_those_of_the_newest_run(tmp_path):
    csv, figure = tmp_path / "cpu.csv", tmp_path / "docs" / "speed.png"
    page, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    measure.append(csv, rows())
    for file in (page, readme):
        file.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    arguments = ["--csv", str(csv), "--page", str(page), "--readme", str(readme), "--figure", str(figure), "--beside"]
    assert report.main(arguments) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n")
    assert text.endswith(f"\n{report.END}\nafter\n")
    assert "old" not in text
    expected = "| basis_loss, forward + backward | 8 x 8 | 100 | 1 | 40 | 40.0x | 30.0x | 2e-07 | 5e-04 |"
    assert expected in text.splitlines()
    assert "| basis_loss, forward + backward | 8 x 8 | 100 | 1 | 40 | wrong (NaN) |" in text.splitlines()
    assert "The lowest of the 3 ratios of the run is 0.90x: basis_loss both, 100 of 16 x 16, float32" in text
    assert "| basis_loss, forward + backward, 100 of 8 x 8 | svdrd | 0.0 | 3.0 |" in text.splitlines()
    assert figure.read_bytes().startswith(b"\x89PNG")
    lines = readme.read_text().splitlines()
    assert "| 8 x 8 | 100 | 1 | 40 | 40.0x | 2e-07 | 5e-04 |" in lines
    assert "| 16 x 16 | 100 | 2 | 1.8 | 0.9x | 2e-07 | 5e-04 |" in lines
    assert len([line for line in lines if line.startswith("|")]) == 4

    assert report.main(arguments) == 0
    assert page.read_text() == text
    assert readme.read_text().splitlines() == lines


def test_a_page_without_markers_is_refused_and_kept(tmp_path, capsys):
    csv, page, readme = tmp_path / "cpu.csv", tmp_path / "benchmarks.md", tmp_path / "README.md"
    measure.append(csv, rows())
    for file in (page, readme):
        file.write_text("no markers\n")
    arguments = ["--csv", str(csv), "--page", str(page), "--readme", str(readme), "--figure", str(tmp_path / "a.png")]
    assert report.main(arguments) == 2
    assert report.BEGIN in capsys.readouterr().err
    assert page.read_text() == readme.read_text() == "no markers\n"


def test_the_history_has_a_point_for_each_run(tmp_path, capsys):
    csv, figure = tmp_path / "cpu.csv", tmp_path / "history.png"
    older = [replace(row, date="2026-01-01T00:00:00Z", device="another") for row in rows()[1:] if row.n == 8]
    measure.append(csv, [*rows()[1:], *older])
    runs = history.runs_of(measure.read(csv))
    assert [run[0].date for run in runs] == ["2026-01-01T00:00:00Z", ROW.date]
    assert [history.ratio_of(run, "basis_loss", "both", 8) for run in runs] == [pytest.approx(40.0)] * 2
    assert [history.ratio_of(run, "basis_loss", "both", 16) for run in runs] == [None, pytest.approx(0.9)]
    assert history.main(["--csv", str(csv), "--figure", str(figure)]) == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert history.main(["--csv", str(tmp_path / "none.csv"), "--figure", str(figure)]) == 2
    assert "none.csv" in capsys.readouterr().err


def test_an_unknown_run_is_named(tmp_path, capsys):
    csv = tmp_path / "cpu.csv"
    measure.append(csv, rows())
    assert report.main(["--csv", str(csv), "--date", "yesterday"]) == 2
    assert "2026-01-02T03:04:05Z" in capsys.readouterr().err
