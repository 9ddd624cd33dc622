"""``make gpu-check`` without a GPU: it refuses; and what it measures, writes and says, on tiny cases on the CPU."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

for package in ("matplotlib", "skimage"):
    pytest.importorskip(package, reason="pip install 'svdrd[dev]' brings what the benchmarks need")

import svdrd  # noqa: E402
from benchmarks import bars, clock, counted, floor, gpu, gpu_check, measure, registry  # noqa: E402
from benchmarks.clock import Clock, Times  # noqa: E402
from benchmarks.gpu import GpuCase  # noqa: E402
from svdrd import ops  # noqa: E402
from svdrd.backends import availability  # noqa: E402
from svdrd.dispatch import routes  # noqa: E402
from tests import conftest  # noqa: E402
from tests.benchmarks import short_run_on_gpu  # noqa: E402

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
RUN = measure.Run("a device", 1, "2.11.0", "0.1.0", "abc", "2026-01-02T03:04:05Z")
CASE = GpuCase("basis_loss", "both", 8, 4, 4, "random", different=4)


def on_the_cpu() -> set[str]:
    """The backends that can compute there: interpreted and emulated ones where there is no GPU."""
    usable = (record.name for record in availability.describe() if record.available)
    return {name for name in usable if availability.refusal(name, CPU) is None}


def test_without_a_gpu_it_says_so_and_fails(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    output = capsys.readouterr()
    assert "NO GPU" in output.err
    assert not output.out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bensh"], "no piece is called bensh; there are tests, sanitizer, bench, step, report"),
        (["bench", "--seconds", "tests"], "--seconds tests: it has to be PIECE=N"),
        (["bench", "--seconds", "test=3"], "--seconds test=3: it has to be PIECE=N"),
    ],
)
def test_bad_arguments(argv, message, capsys):
    with pytest.raises(SystemExit) as raised:
        gpu_check.main(argv)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_the_pieces_fit_into_eight_minutes():
    assert sum(piece.seconds for piece in gpu_check.PIECES.values()) <= 8 * 60


def test_a_command_that_is_not_done_in_time_is_ended():
    status, last = gpu_check._command([sys.executable, "-uc", "print('begun'); import time; time.sleep(60)"], 1.0)
    assert (status, last) == (None, "begun")
    assert gpu_check._command([sys.executable, "-c", "print('end'); raise SystemExit(3)"], 60.0) == (3, "end")


def test_the_short_run_of_the_emulated_kernels():
    if "cuda" not in on_the_cpu():
        pytest.skip("make emulation has not been run")
    assert short_run_on_gpu.worst_of("cuda", CPU) < 1


def test_what_wants_a_gpu_is_not_run_on_a_cpu_and_nothing_is_called_passed(tmp_path, capsys):
    argv = ["tests", "sanitizer", "report", "--device", "cpu", "--csv", str(tmp_path / "none.csv")]
    assert gpu_check.main(argv) == 1
    lines = capsys.readouterr().out.split("== summary\n")[1].splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["tests", "NOT", "RUN"],
        ["sanitizer", "NOT", "RUN"],
        ["report", "NOT", "RUN"],
    ]


def test_a_quick_run_on_the_cpu(tmp_path, capsys, monkeypatch):
    """The very code of a GPU's run; Triton's kernels interpreted, those of CUDA emulated, where they are."""
    monkeypatch.setattr(measure, "commit", lambda: "abc")
    # How often a case is timed is not what is rehearsed, and an interpreted call takes half a second.
    monkeypatch.setattr(clock, "FEWEST_ROUNDS", 1)
    monkeypatch.setattr(clock, "SLOW", 0.05)
    csv, figure = tmp_path / "results" / "cpu.csv", tmp_path / "speed.png"
    # Time enough for a machine that does something else besides.
    argv = ["bench", "report", "--device", "cpu", "--quick", "--seconds", "bench=900"]
    argv += ["--csv", str(csv), "--figure", str(figure)]
    assert gpu_check.main(argv) == 0
    assert csv.read_text().splitlines()[0].split(",") == measure.COLUMNS
    rows = measure.read(csv)
    assert {row.op for row in rows} == {"svd", "basis_loss", "polar_factor", "recompose"}
    assert all(row.verdict == "right" for row in rows if row.provider.startswith("svdrd"))
    for row in rows:
        assert (row.p50 is None) == (row.verdict != "right")
    here = on_the_cpu()
    there = {row.provider for row in rows}
    assert {
        "svdrd",
        "torch.linalg.svd",
        "svdrd, torch backend",
        "svdrd.backends.products",
        "Newton-Schulz",
    } <= there
    for name in ("triton", "cuda"):
        assert (f"svdrd, {name} backend" in there) == (name in here)
    assert ("svdrd.backends.triton.jacobi" in there) == ("triton" in here)
    output = capsys.readouterr().out
    assert "not taking part: torch.linalg.svd, gesvdj|gesvda|gesvd" in output
    assert floor.UNKNOWN in output
    assert "| a training step grows by at most 10% by the loss | - | not measured |" in output
    assert figure.read_bytes().startswith(b"\x89PNG")

    assert gpu_check.main([*argv[:1], *argv[2:], "--resume"]) == 0
    assert len(measure.read(csv)) == len(rows)
    assert capsys.readouterr().out.count("measured before") == len(list(gpu.quick_cases()))


def test_another_run_is_not_resumed(tmp_path, capsys):
    csv = tmp_path / "cpu.csv"
    argv = ["bench", "--device", "cpu", "--quick", "--csv", str(csv), "--resume"]
    with pytest.raises(SystemExit, match="has no rows"):
        gpu_check.main(argv)
    measure.append(csv, [replace(ROW, device=measure.device_name("cpu"), torch="1.13")])
    with pytest.raises(SystemExit, match=r"torch '1\.13', now"):
        gpu_check.main(argv)


def test_what_does_not_fit_into_the_time_is_named(tmp_path, capsys):
    gpu.measure_all([CASE], CPU, RUN, [], 0.0, lambda rows: pytest.fail("measured"))
    assert f"basis_loss-both-8x4x4-random-float32, ours: {gpu.OUT_OF_TIME}" in capsys.readouterr().out


def test_a_wrong_answer_of_svdrd_is_a_failure_and_is_not_timed(monkeypatch):
    def twice(x_hat, x, block_size):
        return (2 * ops.basis_loss(x_hat, x),)

    def fails(x_hat, x, block_size):
        raise torch.OutOfMemoryError("too much")

    wrong, failing = (registry.Provider(f"svdrd, {f.__name__}", {"basis_loss": f}) for f in (twice, fails))
    monkeypatch.setattr(gpu, "providers", lambda device: ([registry.OURS, wrong, failing], [], {}))
    written = []
    with pytest.raises(gpu.Wrong, match=r"svdrd, twice, basis_loss-both.* wrong.*\n.*failed: OutOfMemoryError"):
        gpu.measure_all([CASE], CPU, RUN, [], 1.0, written.extend)
    assert [(row.provider, row.p50 is None) for row in written] == [
        ("svdrd", False),
        ("svdrd, twice", True),
        ("svdrd, fails", True),
    ]


@pytest.mark.parametrize("op", ["svd", "polar_factor", "basis_loss", "recompose"])
def test_the_truth_of_repeated_matrices_is_that_of_the_batch(op):
    case = replace(CASE, op=op, batch=12)
    given, truth = gpu.repeated(case, CPU)
    assert given.x.shape == (12, 4, 4)
    assert torch.equal(given.x_hat[:4], given.x_hat[8:])
    exact = registry.OPERATIONS[op].truth(given)
    if op in ("basis_loss", "recompose"):
        for output, other in zip(truth.outputs, exact.outputs, strict=True):
            torch.testing.assert_close(output, other)
    if op == "basis_loss":  # the others' cotangents are random, and repeated too
        torch.testing.assert_close(truth.derivatives, exact.derivatives)
    right, error = measure.gate(replace(case, mode="forward"), registry.OURS, given, truth)
    assert right
    right, error = measure.gate(case, registry.OURS, given, truth)
    assert right
    assert error < 1e-4


def test_one_implementation_alone_takes_a_case_or_declines():
    if "triton" not in on_the_cpu():
        pytest.skip("triton does not compute on the CPU here")
    ours, _, _ = gpu.providers(CPU)
    jacobi = next(provider for provider in ours if provider.name == "svdrd.backends.triton.jacobi")
    with jacobi.context():
        assert ops.svd(torch.eye(2)[None]).S.tolist() == [[1.0, 1.0]]
        with pytest.raises(routes.NotTaken, match="jacobi does not compute svd of 70 x 6 matrices"):
            ops.svd(torch.rand(1, 70, 6))
    assert not routes.restricted()
    case = GpuCase("svd", "forward", 2, 70, 6, "random", different=2)
    rows = list(gpu.measure_case(case, [registry.OURS, jacobi], Clock(CPU), RUN, 0.01))
    assert [row.provider for row in rows] == ["svdrd"]


class Events(Clock):
    """A GPU's clock without one: graphs that are plain calls, or that are off by a little."""

    off = 0.0

    @property
    def is_cuda(self):
        return True

    def time(self, work, calls=1):
        for _ in range(calls):
            work()
        return Times(2e-3, 1e-3)

    def peak_memory(self, work):
        return 3 * 2**20

    def captured(self, work):
        outputs = tuple(output.clone() for output in work())

        def replay():
            for output, value in zip(outputs, work(), strict=True):
                output.copy_(value + self.off)

        return replay, outputs


def test_rows_of_device_host_and_graph():
    rows = list(gpu.measure_case(CASE, [registry.OURS], Events(CPU), RUN, 0.01))
    assert [(row.mode, row.verdict, row.p50) for row in rows] == [
        ("both", "right", 2e-3),
        ("both, host", "right", 1e-3),
        ("both, graph", "right", 2e-3),
    ]
    assert [row.peak_memory for row in rows] == [3 * 2**20, None, None]


def test_a_graph_whose_replay_differs_from_the_call_is_wrong(monkeypatch):
    monkeypatch.setattr(Events, "off", 1e-6)
    rows = list(gpu.measure_case(CASE, [registry.OURS], Events(CPU), RUN, 0.01))
    assert [(row.mode, row.verdict) for row in rows][2] == ("both, graph", "wrong: not the bits of the call")
    assert rows[2].p50 is None
    monkeypatch.setattr(Events, "captured", lambda self, work: (_ for _ in ()).throw(RuntimeError("no capture\n...")))
    rows = list(gpu.measure_case(CASE, [registry.OURS], Events(CPU), RUN, 0.01))
    assert rows[2].verdict == "failed: no capture"


def test_turns_and_the_clock_of_a_cpu():
    order = []
    works = [lambda i=i: order.append(i) for i in range(3)]
    times = clock.take_turns(Clock(CPU), works, [nullcontext] * 3, 1e-3)
    assert [len(taken) for taken in times] == [len(times[0])] * 3
    assert all(taken.device == taken.host > 0 for taken in times[0])
    changes = [now for before, now in zip([None, *order[3:-1]], order[3:], strict=True) if now != before]
    assert changes == [0, 1, 2] * len(times[0])
    assert Clock(CPU).peak_memory(lambda: None) is None


ROW = measure.Row(
    op="basis_loss", provider="svdrd", mode="both", batch=96, m=256, n=256, dtype="float32", input="natural (kodak)",
    verdict="right", error=2e-7, p20=5e-3, p50=5.4618e-3, p80=6e-3, peak_memory=500_000_000, device="NVIDIA H200",
    threads=16, torch="2.11.0", svdrd="0.1.0", commit="abc", date="2026-01-02T03:04:05Z",
)  # fmt: skip


def test_the_floor_is_that_of_the_design():
    """One factor of 96 x 256^2: 135 GFLOP, 2.0 ms in float32 and 0.8 ms in three-term TF32 on an H200."""
    factor = replace(ROW, op="polar_factor", mode="forward")
    assert floor.seconds(factor, "float32") == pytest.approx(2.0e-3, rel=0.02)
    assert floor.seconds(factor, "tf32x3") == pytest.approx(0.82e-3, rel=0.01)
    assert floor.fraction(ROW, "tf32x3") == pytest.approx(0.5, rel=1e-3)
    # Matrices this small are bound by memory.
    small = replace(factor, batch=100_000, m=2, n=2)
    assert floor.seconds(small, "tf32x3") == pytest.approx(2 * 100_000 * 4 * 4 / 4.8e12)
    assert floor.seconds(replace(ROW, device="GeForce"), "tf32x3") is None
    assert floor.seconds(replace(ROW, op="svd"), "tf32x3") is None


def made_up() -> list[measure.Row]:
    def baseline(row: measure.Row, **changes: object) -> measure.Row:
        return replace(row, provider="torch.linalg.svd", peak_memory=None, **changes)

    random = replace(ROW, input="random")
    small = replace(ROW, batch=100_000, m=8, n=8, p50=1e-3)
    svd = replace(small, op="svd", mode="forward")
    alone = replace(ROW, op=bars.STEP, mode="step", peak_memory=None)
    return [
        ROW, baseline(ROW, p50=1.0), random, baseline(random, p50=0.4),  # the second: 73x
        small, baseline(small, verdict="wrong", error=0.3, p50=None), replace(small, input="random"),
        baseline(replace(small, input="random"), p50=0.03),
        svd, baseline(svd, p50=0.011), replace(svd, input="random"), baseline(replace(svd, input="random"), p50=0.02),
        replace(alone, provider="mu = 0", p50=0.2), replace(alone, provider="mu = 10", p50=0.23),
    ]  # fmt: skip


def test_the_bars_of_made_up_rows():
    found = {outcome.bar: outcome for outcome in bars.outcomes(made_up())}
    large = found["svdrd: basis_loss forward + backward, 96 x 256^2, 100x"]
    assert large == (large.bar, "natural 183.1x (5.46 ms); random 73.2x (5.46 ms)", "MISSED")
    small = found["svdrd: basis_loss forward + backward, 100000 x 8^2, 20x"]
    assert small[1:] == ("natural: torch.linalg.svd wrong; random 30.0x (1 ms)", "not measured")
    svd = found["svdrd: svd forward, 100000 x 8^2, 10x"]
    assert svd[1:] == ("natural 11.0x (1 ms); random 20.0x (1 ms)", "met")
    fraction = found["basis_loss forward + backward, 96 x 256^2: at least 25% of the tf32x3 floor"]
    assert fraction[1:] == ("50.0%, 50.0%", "met")
    assert found["memory beyond the inputs there: at most 600 MB"][1:] == ("500 MB", "met")
    step = found["a training step grows by at most 10% by the loss"]
    assert step[1:] == ("+15.0% (200.0 ms, then 230.0 ms)", "MISSED")
    assert {outcome.verdict for bar, outcome in found.items() if bar.startswith("svdrd, cuda")} == {"not measured"}
    unknown = {o.bar: o for o in bars.outcomes([replace(row, device="GeForce") for row in made_up()])}
    assert unknown[fraction.bar][1:] == ("unknown device: no fraction", "not measured")


def quantities(bound: float, pipes: float, chain: float) -> dict[str, float]:
    """What is counted of a case; ``lsu`` is its busiest pipe."""
    times = {"bound ms": bound, "pipes ms": pipes, "chain ms": chain, "memory ms": 0.1, "issue ms": pipes / 2}
    others = {"PTX instructions": 1e6, "machine instructions": 1.2e6, "launches": 285, "registers": 200}
    return times | {"lsu ms": pipes} | others | {"resident warps": 8, "machine code / estimate": 1.05}


COUNTED = [
    counted.Counted(
        "basis_loss", "both", 96, 256, "products", True, "H200", "sm_80", "3.8.0", 1, quantities(2.7, 2.7, 1)
    ),
    counted.Counted(
        "basis_loss", "both", 96, 256, "jacobi", False, "H200", "sm_90", "3.8.0", 1, quantities(4.0, 3, 4.0)
    ),
]


def test_what_was_counted_survives_its_file(tmp_path):
    counted.write(tmp_path / "results" / "counted.csv", COUNTED)
    assert counted.read(tmp_path / "results" / "counted.csv") == COUNTED
    page = tmp_path / "page.md"
    page.write_text(f"before\n{counted.BEGIN}\nold\n{counted.END}\nafter\n")
    earlier = [replace(COUNTED[0], quantities=quantities(9.6, 9.6, 2))]
    counted.write_docs(page, COUNTED, earlier)
    assert page.read_text().startswith(f"before\n{counted.BEGIN}\nOne H200,")
    lines = page.read_text().splitlines()
    row = "| `basis_loss` both, 96 x 256² | **products** | **2.7** | 9.6 | lsu 2.7, issue 1.4 | 1 | 0.1 | 285 |"
    assert any(line.startswith(row) for line in lines)
    assert any(
        line.startswith("| `basis_loss` both, 96 x 256² | jacobi | **4** |  | lsu 3, issue 1.5 | 4 |") for line in lines
    )


def test_measured_beside_counted():
    """ROW took 5.4618 ms: by svdrd's choice, or by one family alone, on a device like the counted one."""
    assert counted.beside(ROW, COUNTED) == "2.0 times the 2.7 ms counted (lsu)"
    alone = replace(ROW, provider="svdrd.backends.triton.jacobi", device="NVIDIA H100 80GB HBM3")
    assert counted.beside(alone, COUNTED) == "1.4 times the 4 ms counted (chain)"
    others = (
        {"device": "NVIDIA A100-SXM4-80GB"},
        {"mode": "both, host"},
        {"provider": "torch.linalg.svd"},
        {"p50": None},
    )
    for changes in (*others, {"dtype": "float64"}, {"m": 512}, {"batch": 24}, {"op": "svd"}):
        assert counted.beside(replace(ROW, **changes), COUNTED) is None
    table = counted.measured_table([ROW, alone, replace(ROW, op="svd")], COUNTED).splitlines()
    assert table[2] == "| basis_loss both, 96 x 256^2 | svdrd (products) | natural (kodak) | 5.46 | 2.7 | 2 | lsu |"
    assert len(table) == 4


def test_every_bar_of_the_gpu_was_counted():
    """In the committed file, by the kernels that svdrd takes."""
    there = {(one.op, one.mode, one.batch, one.n) for one in counted.committed() if one.chosen}
    assert {bar[:4] for bar in bars.RATIOS} <= there


def test_figure_and_tables_of_made_up_rows(tmp_path, capsys):
    csv = tmp_path / "nvidia-h200.csv"
    measure.append(csv, made_up())
    run = measure.Run(**{name: getattr(ROW, name) for name in measure.Run.__dataclass_fields__})
    options = gpu_check.Options(CPU, csv, tmp_path / "speed.png", False, run, ())
    assert gpu_check.show(options, 1.0).endswith("bars: 3 met, 2 MISSED, 13 not measured")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    output = capsys.readouterr().out
    assert "| svdrd: svd forward, 100000 x 8^2, 10x |" in output
    assert "| basis_loss both, 100000 x 8^2 | svdrd (jacobi) | random | 1 | " in output
    assert gpu_check.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_a_training_step_is_written_as_rows(tmp_path):
    pytest.importorskip("compressai")
    csv = tmp_path / "cpu.csv"
    tiny = ("--batch-size", "1", "--patch-size", "64", "--rounds", "1", "--quality", "1")
    options = gpu_check.Options(CPU, csv, tmp_path / "speed.png", False, RUN, tiny)
    assert gpu_check.step(options, 60.0).startswith("| bmshj2018-hyperprior, quality 1 |")
    without, with_loss, alone = measure.read(csv)
    assert (without.provider, with_loss.provider, alone.provider) == ("mu = 0", "mu = 10", "basis_loss alone")
    assert without.p50 > 0
    assert with_loss.p50 > alone.p50 > 0
    assert (without.op, without.batch, without.m) == ("training_step", 1, 64)


def test_the_suite_computes_cpu_tensors_on_the_device():
    """What tests/conftest.py does where there is a GPU, on a device that has no data at all."""
    seen, asked = [], []

    def kernel(a, *rest):
        seen.append((a.device.type, rest))
        return torch.ones(1, 2, 2), *(torch.zeros(0) for _ in range(3))

    meta = torch.device("meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes, "computer", lambda operator, case: asked.append(case.device) or "somebody")
        patch.setattr(routes, "kernel", lambda computer, operator: kernel)
        conftest.compute_on(meta, patch)
        with svdrd.use_backend("torch"):
            result = ops.polar_factor(torch.rand(2, 2))
    assert seen == [("meta", (4 * torch.finfo(torch.float32).eps, 0.0, False))]
    assert asked == [meta]
    assert torch.equal(result, torch.ones(2, 2))
    pair = conftest.on_device(lambda x, scale: (x * scale, x), CPU)(torch.ones(1), 3)
    assert [value.item() for value in pair] == [3, 1]


def test_the_suite_runs_over_the_backends_that_are_asked_for():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/ops/test_recompose.py"]
    process = subprocess.run(
        [*command, "--backends", "cuda,triton"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    chosen = [line for line in process.stdout.splitlines() if "test_gradcheck[" in line]
    assert chosen == [f"tests/ops/test_recompose.py::test_gradcheck[{name}]" for name in ("triton", "cuda")]
    config = SimpleNamespace(getoption=lambda name: "tritn")
    with pytest.raises(pytest.UsageError, match="--backends: tritn; there are torch, cpp, triton, cuda"):
        conftest.pytest_collection_modifyitems(config, [])
