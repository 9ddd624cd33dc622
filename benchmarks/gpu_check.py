"""``make gpu-check``: everything that wants a GPU, in pieces that can be run alone, and the bars that they are held to.

    python -m benchmarks.gpu_check [PIECE ...] [--resume] [--seconds PIECE=N ...]

- ``tests``: the test suite over the backends triton and cuda;
- ``sanitizer``: a short run of every kernel against float64, also under compute-sanitizer where that is;
- ``bench``: the benchmarks, and ``step``, a training step with and without the loss: rows of
  ``benchmarks/results/DEVICE.csv``;
- ``report``: from these rows ``docs/figures/speed_DEVICE.png``, the tables, what was counted beside it, and the bars.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from benchmarks import bars, counted, gpu, measure, report
from benchmarks.measure import Row, Run
from svdrd.backends import availability

ROOT = Path(__file__).parents[1]
# Of the tests, what is no business of a GPU.
ELSEWHERE = ("compress", "test_benchmarks.py", "test_build.py", "test_demo.py", "test_docs.py", "test_gpu_check.py")
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# A part of the names of the kernels that are looked at, of each backend.
KERNELS = {"cuda": "svdrd", "triton": "_kernel"}
CODEC, QUALITY, BATCH, SIDE = "bmshj2018-hyperprior", 3, 32, 256


class Failed(Exception):
    """What a piece checks does not hold; the message is for its line of the summary."""


class NotRun(Exception):
    """A piece cannot be run here; the message says what it lacks."""


@dataclass(frozen=True)
class Options:
    """Of the whole check."""

    device: torch.device
    csv: Path
    figure: Path
    quick: bool
    run: Run
    step: tuple[str, ...]  # options of benchmarks.training_step, added to its own


class Piece(NamedTuple):
    """One part of the check: returns its line of the summary, or raises Failed or NotRun."""

    do: Callable[[Options, float], str]
    seconds: float  # what it may take


def _gpu_alone(options: Options) -> None:
    if options.device.type != "cuda":
        raise NotRun("wants a GPU")


def _command(command: Sequence[str], seconds: float, **environment: str) -> tuple[int | None, str]:
    """The exit status, None where the time was up, and the last line of what the command printed, all of it shown."""
    print("$", *command, flush=True)
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    late = threading.Event()

    def stop() -> None:  # the workers of pytest-xdist too
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(max(seconds, 1), stop)
    timer.start()
    last = "it printed nothing"
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    status = process.wait()
    timer.cancel()
    return None if late.is_set() else status, last


def tests(options: Options, seconds: float) -> str:
    """The suite over triton and cuda, on the GPU."""
    _gpu_alone(options)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", "--backends", "triton,cuda"]
    command += [f"--ignore=tests/{name}" for name in ELSEWHERE]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    status, last = _command(command, seconds, PYTHONUNBUFFERED="1")
    if status is None:
        raise Failed(f"not done in {seconds:.0f} s: --seconds tests={2 * seconds:.0f}")
    if status:
        raise Failed(last)
    missing = [record for record in availability.describe() if record.name in KERNELS and not record.available]
    return last + "".join(f"; without {record.name}: {record.reason}" for record in missing)


def sanitizer(options: Options, seconds: float) -> str:
    """The short run by itself, then under each tool, all tools at once: most of the time is Python's start."""
    _gpu_alone(options)
    begin = time.perf_counter()
    here = [record.name for record in availability.describe() if record.name in KERNELS and record.available]
    if not here:
        raise NotRun("neither triton nor cuda is here")
    short_run = [sys.executable, "-m", "tests.benchmarks.short_run_on_gpu", "--backend"]
    for backend in here:
        status, last = _command([*short_run, backend], seconds)
        if status != 0:
            raise Failed(f"the short run of {backend}: {last}")
    found = shutil.which("compute-sanitizer")
    if found is None:
        return f"{', '.join(here)} agree with float64; no compute-sanitizer on the PATH"
    # Memory that torch's allocator hands out a second time looks written to initcheck.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    running = {}
    with TemporaryDirectory() as folder:
        for backend in here:
            for tool in TOOLS:
                log = Path(folder, f"{backend}-{tool}")
                command = [found, "--tool", tool, "--kernel-regex", f"kns={KERNELS[backend]}", "--error-exitcode", "9"]
                command += [*short_run, backend]
                print("$", *command, flush=True)
                with log.open("w") as file:
                    running[backend, tool] = (
                        log,
                        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT),
                    )
        bad = []
        for (backend, tool), (log, process) in running.items():
            try:
                status = process.wait(timeout=max(seconds - (time.perf_counter() - begin), 1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                status = None
            if status != 0:
                bad.append(f"{tool} of {backend}: " + ("not done in time" if status is None else f"status {status}"))
                print(f"-- {bad[-1]}", *log.read_text().splitlines()[-40:], sep="\n", flush=True)
    if bad:
        raise Failed("; ".join(bad))
    return f"{', '.join(here)} agree with float64; {', '.join(TOOLS)} found nothing"


def rows_of(options: Options) -> list[Row]:
    """What the run has written so far."""
    if not options.csv.exists():
        return []
    return [row for row in measure.read(options.csv) if row.date == options.run.date]


def bench(options: Options, seconds: float) -> str:
    """The cases of :mod:`benchmarks.gpu`."""
    before = rows_of(options)
    chosen = list(gpu.quick_cases() if options.quick else gpu.cases())
    try:
        gpu.measure_all(
            chosen, options.device, options.run, before, seconds, lambda rows: measure.append(options.csv, rows)
        )
    except gpu.Wrong as error:
        raise Failed(str(error)) from error
    return f"{len(rows_of(options)) - len(before)} rows in {options.csv}"


def step(options: Options, seconds: float) -> str:
    """Steps of `svdrd finetune` with mu = 0 and mu = 10 in turns."""
    try:
        from benchmarks import training_step
    except ImportError as error:
        raise NotRun(f"{error}: pip install 'svdrd[compress]'") from error
    begin = time.perf_counter()
    argv = ["--device", str(options.device), "--batch-size", str(BATCH), "--patch-size", str(SIDE)]
    args = training_step.parse([*argv, *options.step])
    with TemporaryDirectory() as folder:
        training_step.photographs(Path(folder), args.photographs, args.patch_size, args.batch_size)
        times = training_step.measure(CODEC, args.quality, Path(folder), args)

    def row(provider: str, taken: list[float]) -> Row:
        p20, p50, p80 = (measure.quantile(taken, q) for q in (0.2, 0.5, 0.8))
        return Row(
            op=bars.STEP, provider=provider, mode="step", batch=args.batch_size, m=args.patch_size, n=args.patch_size,
            dtype={"fp32": "float32"}.get(args.precision, args.precision), input=f"{CODEC}, quality {args.quality}",
            verdict="right", error=0.0, p20=p20, p50=p50, p80=p80, peak_memory=None, **asdict(options.run),
        )  # fmt: skip

    rows = [row(bars.WITHOUT, times.without), row(bars.WITH, times.with_loss), row("basis_loss alone", times.loss)]
    measure.append(options.csv, rows)
    if time.perf_counter() - begin > seconds:
        print(f"step: took {time.perf_counter() - begin:.0f} s, more than its {seconds:.0f} s")
    return training_step.line(CODEC, args.quality, args.batch_size, times)


def show(options: Options, seconds: float) -> str:
    """The figure, tables and bars of the run's rows."""
    rows = rows_of(options)
    if not rows:
        raise NotRun(f"the run of {options.run.date} has no rows in {options.csv}: `bench` first, or --resume")
    report.draw([row for row in rows if row.op != bars.STEP] or rows, options.figure)
    beside = counted.measured_table(rows, counted.committed())
    print(f"\n{report.markdown(rows)}\n\nMeasured beside counted:\n\n{beside}\n\n{bars.table(rows)}\n")
    verdicts = [outcome.verdict for outcome in bars.outcomes(rows)]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in (bars.MET, bars.MISSED, bars.UNMEASURED))
    return f"{options.figure}; bars: {counts}"


# Together below 8 minutes.
PIECES = {
    "tests": Piece(tests, 200),
    "sanitizer": Piece(sanitizer, 80),
    "bench": Piece(bench, 140),
    "step": Piece(step, 40),
    "report": Piece(show, 15),
}


def slug(device: str) -> str:
    """The device's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _resumed(csv: Path, run: Run) -> Run:
    """The newest run in the CSV, if it was made of the same things on the same device."""
    rows = measure.read(csv) if csv.exists() else []
    if not rows:
        raise SystemExit(f"gpu-check: --resume: {csv} has no rows; leave it out to begin a run")
    newest = max(rows, key=lambda row: row.date)
    resumed = replace(run, date=newest.date)
    different = [name for name, value in asdict(resumed).items() if getattr(newest, name) != value]
    if different:
        what = ", ".join(f"{name} {getattr(newest, name)!r}, now {getattr(run, name)!r}" for name in different)
        raise SystemExit(f"gpu-check: --resume: the run of {newest.date} had {what}; leave it out to begin another")
    return resumed


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=f"default: all, {' '.join(PIECES)}")
    parser.add_argument("--resume", action="store_true", help="go on with the newest run of the CSV, same commit")
    parser.add_argument("--seconds", nargs="+", default=[], metavar="PIECE=N", help="what a piece may take")
    parser.add_argument("--csv", type=Path, help="default: benchmarks/results/DEVICE.csv")
    parser.add_argument("--figure", type=Path, help="default: docs/figures/speed_DEVICE.png")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses bench, step, report")
    parser.add_argument("--quick", action="store_true", help="tiny cases: is the check in order?")
    parser.add_argument("--only-ask", action="store_true", help="say which device it would be, and stop")
    parser.add_argument("--step", nargs=argparse.REMAINDER, default=[], help="the rest: for benchmarks.training_step")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.pieces if name not in PIECES]
    if unknown:
        parser.error(f"no piece is called {', '.join(unknown)}; there are {', '.join(PIECES)}")
    budgets = {}
    for wish in arguments.seconds:
        name, _, number = wish.partition("=")
        if name not in PIECES or not number.isdecimal():
            parser.error(f"--seconds {wish}: it has to be PIECE=N, as in --seconds tests=600")
        budgets[name] = float(number)
    arguments.seconds = budgets
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """0 where all pieces hold, 1 where one fails or could not be run, 2 where there is no GPU."""
    arguments = _parse(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            f"gpu-check: NO GPU: torch.cuda.is_available() is False (torch {torch.__version__}). Nothing was checked. "
            "Run it on a machine with an NVIDIA GPU; to rehearse the benchmarks on this one,\n"
            "    python -m benchmarks.gpu_check bench report --device cpu --quick --csv rows.csv --figure speed.png",
            file=sys.stderr,
        )
        return 2
    name = measure.device_name(arguments.device)
    print(f"gpu-check on {name}, torch {torch.__version__}, Python {sys.version.split()[0]}")
    if arguments.only_ask:
        return 0
    for record in availability.describe():
        print(
            f"  {record.name}: {record.reason}" if record.available else f"  {record.name} IS MISSING: {record.reason}"
        )
    csv = arguments.csv or measure.RESULTS / f"{slug(name)}.csv"
    run = Run.begin(arguments.device)
    if arguments.resume:
        run = _resumed(csv, run)
    figure = arguments.figure or ROOT / "docs" / "figures" / f"speed_{slug(name)}.png"
    options = Options(torch.device(arguments.device), csv, figure, arguments.quick, run, tuple(arguments.step))

    summary: list[tuple[str, str, float, str]] = []
    for piece in arguments.pieces or PIECES:
        print(f"\n== {piece}", flush=True)
        begin = time.perf_counter()
        try:
            said, outcome = PIECES[piece].do(options, arguments.seconds.get(piece, PIECES[piece].seconds)), "passed"
        except Failed as error:
            said, outcome = str(error), "FAILED"
        except NotRun as error:
            said, outcome = str(error), "NOT RUN"
        summary.append((piece, outcome, time.perf_counter() - begin, said))
        print(f"{piece}: {outcome}: {said}", flush=True)
    print("\n== summary")
    for piece, outcome, seconds, said in summary:
        print(f"{piece:10} {outcome:8} {seconds:6.1f} s  {said}")
    return 0 if all(outcome == "passed" for _, outcome, _, _ in summary) else 1


if __name__ == "__main__":
    sys.exit(main())
