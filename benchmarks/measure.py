"""The gate, the clock and the memory gauge, and the CSV that they write."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

import svdrd
from benchmarks import inputs, registry
from benchmarks.clock import SHORTEST_ROUND
from benchmarks.registry import Case, Provider
from svdrd.backends import availability

RESULTS = Path(__file__).parent / "results"
# A batch of photographs has a few matrices on which any float32 method is off, so the gate looks at this quantile.
GATE_QUANTILE = 0.95
# A turn begins with calls that are not timed, for so many seconds and one at least. What comes after another
# provider's milliseconds is slow at first, whatever it computes: on a virtual machine an addition of 256 numbers
# took 1.5 ms after 35 ms of plain Python, and 0.02 ms after 1 ms. A turn timed at once measures this, not the work.
WARM_UP = 5e-3

Work = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """A line of the CSV. Times are seconds a call over the whole batch, empty where the answer is wrong."""

    op: str
    provider: str
    mode: str
    batch: int
    m: int
    n: int
    dtype: str
    input: str
    verdict: str  # right, wrong
    error: float  # 95 % quantile over the matrices, of the relative Frobenius error against float64
    p20: float | None
    p50: float | None
    p80: float | None
    peak_memory: int | None  # bytes beyond the inputs
    device: str
    threads: int
    torch: str
    svdrd: str
    commit: str
    date: str  # when the run began: rows of one run share it


COLUMNS = [field.name for field in fields(Row)]


def append(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            values = asdict(row)
            for name in ("error", "p20", "p50", "p80"):
                if values[name] is not None:
                    values[name] = f"{values[name]:.4g}"
            writer.writerow(values)


def read(path: Path) -> list[Row]:
    def optional(value: str, convert: Callable[[str], Any]) -> Any:
        return convert(value) if value else None

    rows = []
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            values: dict[str, Any] = dict(line)
            for name in ("batch", "m", "n", "threads"):
                values[name] = int(line[name])
            for name in ("p20", "p50", "p80"):
                values[name] = optional(line[name], float)
            values["error"] = float(line["error"])
            values["peak_memory"] = optional(line["peak_memory"], int)
            rows.append(Row(**values))
    return rows


@dataclass(frozen=True)
class Run:
    """What the rows of one run have in common."""

    device: str
    threads: int
    torch: str
    svdrd: str
    commit: str
    date: str

    @classmethod
    def begin(cls, device: str) -> Run:
        return cls(
            device_name(device), torch.get_num_threads(), torch.__version__, svdrd.__version__, commit(),
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )  # fmt: skip


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    path = Path("/proc/cpuinfo")
    cpuinfo = path.read_text() if path.exists() else ""
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    name = f"{model[1] if model else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    if availability.native is None:
        return name
    return f"{name}, {_instruction_set(availability.native.instruction_set(), cpuinfo)}"


def _instruction_set(used: str, cpuinfo: str) -> str:
    """The one that is used, and whether that is less than the processor has, whose flags ``cpuinfo`` lists."""
    listed = re.search(r"flags\s*: (.*)", cpuinfo)
    flags = set(listed[1].split()) if listed else set()
    more = {"baseline": {"avx2", "fma"}, "avx2": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}
    return f"{used} by SVDRD_ISA" if more.get(used, {""}) <= flags else used


def commit() -> str:
    """Of this checkout, with ``+`` where the tree differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "no git"


def gate(case: Case, provider: Provider, given: inputs.Inputs, truth: registry.Truth) -> tuple[bool, float]:
    """Whether the provider's answer to the case is right, and its error, as :func:`judge` says."""
    with provider.context():
        answer = registry.work(case, provider, given, truth.cotangents)()
    return judge(case, answer, given, truth)


def judge(
    case: Case, outputs: Sequence[torch.Tensor], given: inputs.Inputs, truth: registry.Truth
) -> tuple[bool, float]:
    """Whether an answer to the case is right, and its error: the 95 % quantile over the matrices.

    Right: the answer is finite, and the quantile within the operation's tolerance.
    """
    operation = registry.OPERATIONS[case.op]
    answer = tuple(output.detach() for output in outputs)
    if case.mode == "forward":
        errors, tolerance = operation.error(answer, given, truth), operation.tolerance
    else:
        blocks = registry.in_blocks(answer[0], given.block_size)
        each = [registry.relative_error(blocks, derivative) for derivative in truth.derivatives]
        errors = torch.stack(each).amin(0)
        tolerance = operation.derivative_tolerance
    if case.dtype == torch.float64:
        tolerance *= 1e-6
    # The quantile of finite numbers alone: interpolating with an infinite one gives NaN.
    error = torch.sort(errors).values[math.ceil(GATE_QUANTILE * len(errors)) - 1].item()
    finite = all(bool(output.isfinite().all()) for output in answer)
    return finite and error <= tolerance, error if finite else math.nan


def time_interleaved(benchmark: Any, works: Sequence[Work], seconds: float, min_rounds: int = 5) -> list[list[float]]:
    """Seconds a call, of each work, over rounds in which every work has its turn: a disturbance meets all alike.

    Args:
        benchmark: pytest-benchmark's fixture; it keeps the clock.
        seconds: what all rounds together may take, unless ``min_rounds`` take longer.
    """

    def warm_up(work: Work) -> None:
        begin = time.perf_counter()
        work()
        while time.perf_counter() - begin < WARM_UP:
            work()

    def once(work: Work) -> float:
        warm_up(work)
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    estimates = [once(work) for work in works]
    calls = [max(1, math.ceil(SHORTEST_ROUND / estimate)) for estimate in estimates]
    a_round = sum(max(estimate, WARM_UP) + estimate * count for estimate, count in zip(estimates, calls, strict=True))
    rounds = min(max(int(seconds / a_round), min_rounds), 200)
    turns = itertools.cycle(zip(works, calls, strict=True))

    def next_turn() -> tuple[tuple[Work, int], dict[str, Any]]:
        work, count = next(turns)
        warm_up(work)
        return (work, count), {}

    def repeated(work: Work, count: int) -> None:
        for _ in range(count):
            work()

    benchmark.pedantic(repeated, setup=next_turn, rounds=rounds * len(works))
    durations = benchmark.stats.stats.data
    return [[d / count for d in durations[i :: len(works)]] for i, count in enumerate(calls)]


def quantile(values: Sequence[float], q: float) -> float:
    return torch.tensor(values, dtype=torch.float64).quantile(q).item()


def measure(
    case: Case, providers: Sequence[Provider], benchmark: Any, run: Run, device: str, seconds: float
) -> Iterator[Row]:
    """The rows of one case: everybody through the gate, and those that pass against the clock."""
    given = case.inputs(device)
    truth = registry.truth(case.op, case.input, case.batch, case.m, case.n, case.dtype)
    truth = registry.Truth(
        tuple(output.to(device) for output in truth.outputs),
        tuple(cotangent.to(device) for cotangent in truth.cotangents),
        tuple(derivative.to(device) for derivative in truth.derivatives),
    )
    taking_part = registry.taking_part(case, providers)
    verdicts = {provider.name: gate(case, provider, given, truth) for provider in taking_part}
    right = [provider for provider in taking_part if verdicts[provider.name][0]]

    def call(provider: Provider) -> Work:
        work = registry.work(case, provider, given, truth.cotangents)

        def run_and_wait() -> None:
            with provider.context():
                work()
            if device == "cuda":
                torch.cuda.synchronize()

        return run_and_wait

    times = time_interleaved(benchmark, [call(provider) for provider in right], seconds) if right else []
    timed = dict(zip([provider.name for provider in right], times, strict=True))
    for provider in taking_part:
        verdict, error = verdicts[provider.name]
        durations = timed.get(provider.name)
        p20, p50, p80 = (quantile(durations, q) if durations else None for q in (0.2, 0.5, 0.8))
        measure_memory = case.peak_memory and verdict and device == "cpu"
        yield Row(
            op=case.op, provider=provider.name, mode=case.mode, batch=case.batch, m=case.m, n=case.n,
            dtype=str(case.dtype).removeprefix("torch."), input=given.source,
            verdict="right" if verdict else "wrong", error=error, p20=p20, p50=p50, p80=p80,
            peak_memory=peak_memory(case, provider) if measure_memory else None, **asdict(run),
        )  # fmt: skip


def describe(row: Row) -> str:
    """A row as the run prints it: the error beside the time."""
    if row.p50 is None or row.p20 is None or row.p80 is None:
        measured = f"not timed: {row.verdict}"
    else:
        low, middle, high = (p / row.batch * 1e6 for p in (row.p20, row.p50, row.p80))
        measured = f"{middle:10.3f} us a matrix ({low:.3f} to {high:.3f})"
    if row.peak_memory is not None:
        measured += f", {row.peak_memory / 2**20:.1f} MiB"
    return f"    {row.provider:22} error {row.error:7.1e}   {measured}"


def peak_memory(case: Case, provider: Provider) -> int | None:
    """Bytes: the most memory beyond the inputs that one call holds at a time, native allocations and results included.

    It is the growth of the resident set, in a process of its own that has made its inputs and a small call before. None
    where the system (any but Linux) does not let a process reset its high-water mark.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    request = json.dumps(asdict(case) | {"dtype": str(case.dtype).removeprefix("torch."), "provider": provider.name})
    # malloc then maps every large block by itself: no block of an earlier call is at hand, none stays.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.measure", request, str(torch.get_num_threads())],
        cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if process.returncode:
        raise RuntimeError(f"the memory of {provider.name} on {case} could not be measured: {process.stderr}")
    return int(process.stdout)


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s*(\d+) kB", status)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024


def _measure_own_peak(case: Case, provider: Provider) -> int:
    if case.op != "basis_loss":
        raise ValueError(f"{case}: peak memory is measured for basis_loss, whose derivative needs no cotangent")
    given = case.inputs()
    # Libraries and threads are loaded by a call on a fraction of the input.
    few = 1 if case.input == "patches" else min(case.batch, 4)
    small = replace(case, peak_memory=False)
    registry.work(small, provider, given._replace(x_hat=given.x_hat[:few], x=given.x[:few]), ())()
    work = registry.work(case, provider, given, ())
    with provider.context():
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS
        before = _resident("VmRSS")
        result = work()
        peak = _resident("VmHWM")
    del result
    return max(peak - before, 0)


def _main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Peak memory of one call, in bytes; peak_memory() runs it.")
    parser.add_argument("request")
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args(argv)
    request = json.loads(arguments.request)
    torch.set_num_threads(arguments.threads)
    name = request.pop("provider")
    provider = next(provider for provider in registry.PROVIDERS if provider.name == name)
    print(_measure_own_peak(Case(**request | {"dtype": getattr(torch, request["dtype"])}), provider))


if __name__ == "__main__":
    _main()
