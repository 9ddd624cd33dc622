"""The benchmarks of a GPU: its cases, who takes part besides those of the CPU, and the run that writes the rows.

A wrong answer is never timed. The modes of the rows are those of the CPU ("forward", "backward", "both": seconds of the
device), the same with ", host" (seconds until the call has returned) and, for svdrd, with ", graph" (the replay of a
CUDA graph, whose results have to be those of the call, bit for bit).

Every matrix of a large batch comes many times, so that float64 need factor only the different ones.
"""

from __future__ import annotations

import importlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import svdrd
from benchmarks import clock, counted, floor, inputs, measure, registry
from benchmarks.clock import Clock, Times
from benchmarks.measure import Row, Run
from benchmarks.registry import BASELINE, OURS, Case, Provider
from svdrd.backends import availability, limits
from svdrd.dispatch import routes

# The modules below svdrd.backends.triton whose launchers are timed by themselves.
LAUNCHERS = ("jacobi", "products")
DRIVERS = ("gesvdj", "gesvda", "gesvd")


# Providers


@dataclass(frozen=True)
class Only(Provider):
    """svdrd's operators computed by one implementation alone: what that does not take raises ``NotTaken``."""

    computer: str = routes.DEFAULT

    @contextmanager
    def context(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self.backend is not None:
                stack.enter_context(svdrd.use_backend(self.backend))
            stack.enter_context(routes.only(self.computer))
            yield


def _loops_for_long(case: Case) -> str | None:
    if case.op in ("svd", "recompose") and min(case.m, case.n) > limits.BATCHED_SVD and case.batch > 100:
        return "torch's float64 SVD would loop over the matrices for minutes"
    return None


def _large_alone(case: Case) -> str | None:
    long = _loops_for_long(case)
    return long or (None if min(case.m, case.n) > limits.JACOBI else "for what is too large for the kernels")


def _driver(name: str) -> Provider:
    def decompose(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vh = torch.linalg.svd(a, full_matrices=False, driver=name)
        return u, s, vh

    def polar(a: Tensor) -> Tensor:
        u, _, vh = decompose(a)
        return u @ vh

    functions: dict[str, registry.Function] = {"svd": lambda x_hat, x, block_size: decompose(x_hat)}
    return Provider(f"torch.linalg.svd, {name}", functions | registry._with_polar(polar))


def providers(device: torch.device) -> tuple[list[Provider], list[Provider], dict[str, str]]:
    """Those of svdrd and torch.linalg.svd, the other peers, and who is not here, with the reason."""
    absent = dict(registry.ABSENT)
    ours: list[Provider] = [OURS, BASELINE]
    for name in ("triton", "cuda"):
        record = next(record for record in availability.describe() if record.name == name)
        reason = record.reason if not record.available else availability.refusal(name, device)
        if reason:
            absent[f"svdrd, {name} backend"] = reason
        else:
            ours.append(Provider(f"svdrd, {name} backend", registry._OURS, backend=name))
    ours.append(replace(registry.FALLBACK, declines=_loops_for_long))
    functions = {name: registry._OURS[name] for name in ("polar_factor", "basis_loss")}
    ours.append(Only("svdrd.backends.products", functions, backend="torch", computer="products"))
    # The path beyond the kernels' sizes, and what it took the place of.
    for name, computer in (("svdrd.backends.products", "products"), ("svdrd.reference", routes.DEFAULT)):
        ours.append(Only(name, {"svd": registry._OURS["svd"]}, _large_alone, backend="torch", computer=computer))
    for name in LAUNCHERS:
        full = f"svdrd.backends.triton.{name}"
        try:
            module = importlib.import_module(full)
        except ImportError as error:
            absent[full] = str(error)
            continue
        if "svdrd, triton backend" in absent:
            absent[full] = absent["svdrd, triton backend"]
            continue
        functions = {op: function for op, function in registry._OURS.items() if hasattr(module, op)}
        ours.append(Only(full, functions, backend="triton", computer=f"triton.{name}"))
    peers = [provider for provider in registry.PROVIDERS if provider not in (OURS, BASELINE, registry.FALLBACK)]
    if device.type == "cuda":
        peers += [_driver(name) for name in DRIVERS]
    else:
        absent["torch.linalg.svd, " + "|".join(DRIVERS)] = "cuSOLVER's, on CUDA devices alone"
    return ours, peers, absent


# Cases


@dataclass(frozen=True)
class GpuCase(Case):
    """A case whose batch repeats its first ``different`` matrices."""

    different: int = 1
    # "ours": svdrd and torch.linalg.svd; "peers": the rest; "both".
    who: str = "ours"


# The bars' batches, and how many different matrices they hold.
SIZES = {8: (100_000, 4000), 16: (100_000, 1000), 32: (100_000, 500), 64: (1536, 128), 256: (96, 24)}


def cases() -> Iterator[GpuCase]:
    """The bars first: if time runs out, what is missing is at the end."""

    def square(op: str, mode: str, n: int, kind: str, who: str = "ours") -> GpuCase:
        batch, different = SIZES[n]
        return GpuCase(op, mode, batch, n, n, kind, different=different, who=who)

    for n, kind in itertools.product((8, 16, 32, 64), ("natural", "random")):
        yield square("svd", "forward", n, kind)
    for n, kind in itertools.product(SIZES, ("natural", "random")):
        yield square("basis_loss", "both", n, kind)
    for n in (8, 32, 256, 16, 64):
        yield square("basis_loss", "both", n, "natural", "peers")
    for mode, n in itertools.product(("forward", "backward"), (8, 32, 256)):
        yield square("basis_loss", mode, n, "natural")
    for n in (8, 32, 256, 16):
        yield square("polar_factor", "both", n, "natural", "both")
        yield square("recompose", "forward", n, "natural")
    for mode, n in itertools.product(("backward", "both"), (8, 32)):
        yield square("svd", mode, n, "natural")
    for n in (8, 32):
        yield square("svd", "forward", n, "natural", "peers")
    # What is larger than the kernels take.
    for n, batch in ((96, 96), (128, 96), (256, 24)):
        yield GpuCase("svd", "forward", batch, n, n, "natural", different=24)
    yield GpuCase("svd", "forward", 3000, 8, 8, "random", torch.float64, different=300)
    yield GpuCase("basis_loss", "both", 3000, 8, 8, "random", torch.float64, different=300)


def quick_cases() -> Iterator[GpuCase]:
    """A case of each kind, small enough for interpreters and emulators: tiled products take seconds a matrix there."""
    yield GpuCase("svd", "forward", 6, 4, 4, "random", different=3)
    yield GpuCase("basis_loss", "forward", 8, 4, 4, "random", different=4, who="peers")
    yield GpuCase("basis_loss", "both", 4, 4, 4, "random", different=2, who="both")
    yield GpuCase("polar_factor", "backward", 2, 4, 4, "random", different=2)
    yield GpuCase("recompose", "forward", 4, 4, 4, "random", different=4)


@lru_cache(maxsize=32)
def _truth(op: str, kind: str, different: int, m: int, n: int, dtype: torch.dtype) -> registry.Truth:
    return registry.OPERATIONS[op].truth(inputs.make(kind, different, m, n, dtype))


def repeated(case: GpuCase, device: torch.device) -> tuple[inputs.Inputs, registry.Truth]:
    """The inputs of a case and the float64 truth of all its matrices."""
    few = inputs.make(case.input, case.different, case.m, case.n, case.dtype)
    truth = _truth(case.op, case.input, case.different, case.m, case.n, case.dtype)
    times, rest = divmod(case.batch, case.different)
    if rest:
        raise ValueError(f"{case}: the batch is no multiple of the {case.different} different matrices")

    def all_of(x: Tensor) -> Tensor:
        return x.to(device).repeat(times, *[1] * (x.ndim - 1)) if x.ndim else x.to(device)

    # The loss is a mean over the batch, so that the derivative by one matrix shrinks as the batch grows.
    share = 1 / times if case.op == "basis_loss" else 1.0
    return (
        few._replace(x_hat=all_of(few.x_hat), x=all_of(few.x)),
        registry.Truth(
            tuple(map(all_of, truth.outputs)),
            tuple(map(all_of, truth.cotangents)),
            tuple(all_of(derivative * share) for derivative in truth.derivatives),
        ),
    )


# The run

OUT_OF_TIME = "not measured: the time of the piece was up"


class Wrong(Exception):
    """Answers of svdrd itself that are wrong, or that it could not give."""


@dataclass(frozen=True)
class Answer:
    """What became of a provider's first call."""

    verdict: str
    error: float
    times: Times | None  # where right


def _first(watch: Clock, case: Case, provider: Provider, given: inputs.Inputs, truth: registry.Truth) -> Answer:
    """Loads what is loaded lazily with a few matrices, then times and judges a call on all of them."""
    few = given._replace(x_hat=given.x_hat[:8], x=given.x[:8])
    with provider.context():
        registry.work(case, provider, few, tuple(cotangent[:8] for cotangent in truth.cotangents))()
        work = registry.work(case, provider, given, truth.cotangents)
        answers: list[tuple[Tensor, ...]] = []
        times = watch.time(lambda: answers.append(work()))
    right, error = measure.judge(case, answers[0], given, truth)
    return Answer("right" if right else "wrong", error, times if right else None)


def _capturable(case: Case) -> bool:
    """Whether svdrd promises that a CUDA graph can capture the case: where PyTorch's SVD computes, none can."""
    return case.op in ("polar_factor", "basis_loss") or max(case.m, case.n) <= limits.JACOBI


def _replays(watch: Clock, work: clock.Work, seconds: float) -> tuple[str, list[Times]]:
    """The verdict on a CUDA graph of the call, right if its replay gives the bits of the call, and its times."""
    expected = [output.clone() for output in work()]
    try:
        replay, outputs = watch.captured(work)
    except RuntimeError as error:
        return f"failed: {error}".split("\n", 1)[0], []
    for output in outputs:
        output.detach().fill_(math.nan)
    replay()
    if not all(torch.equal(output, other) for output, other in zip(outputs, expected, strict=True)):
        return "wrong: not the bits of the call", []
    return "right", clock.take_turns(watch, [replay], [nullcontext], seconds)[0]


def measure_case(
    case: GpuCase, taking_part: Sequence[Provider], watch: Clock, run: Run, seconds: float
) -> Iterator[Row]:
    """The rows of one case; ``verdict`` is right, wrong, or the error that a provider raised."""
    given, truth = repeated(case, watch.device)
    answers: dict[str, Answer] = {}
    for provider in taking_part:
        try:
            answers[provider.name] = _first(watch, case, provider, given, truth)
        except routes.NotTaken:
            continue
        except (RuntimeError, NotImplementedError) as error:  # cuSOLVER's, out of memory
            answers[provider.name] = Answer(f"failed: {type(error).__name__}", math.nan, None)

    def row(
        provider: Provider, mode: str, verdict: str, error: float, seconds_of: list[float], peak: int | None
    ) -> Row:
        p20, p50, p80 = (measure.quantile(seconds_of, q) if seconds_of else None for q in (0.2, 0.5, 0.8))
        return Row(
            op=case.op, provider=provider.name, mode=mode, batch=case.batch, m=case.m, n=case.n,
            dtype=str(case.dtype).removeprefix("torch."), input=given.source, verdict=verdict, error=error,
            p20=p20, p50=p50, p80=p80, peak_memory=peak, **asdict(run),
        )  # fmt: skip

    there = [provider for provider in taking_part if provider.name in answers]
    works = {
        provider.name: registry.work(case, provider, given, truth.cotangents)
        for provider in there
        if answers[provider.name].times is not None
    }
    slow = {name for name in works if (first := answers[name].times) and first.device >= clock.SLOW}
    fast = [provider for provider in there if provider.name in works and provider.name not in slow]
    times_of = clock.take_turns(watch, [works[one.name] for one in fast], [one.context for one in fast], seconds)
    turns = {provider.name: times for provider, times in zip(fast, times_of, strict=True)}
    for provider in there:
        answer = answers[provider.name]
        times = turns.get(provider.name, [answer.times] if answer.times else [])
        peak = None
        if provider in fast or (provider.name in works and provider.name.startswith("svdrd")):
            with provider.context():
                peak = watch.peak_memory(works[provider.name])
        yield row(provider, case.mode, answer.verdict, answer.error, [taken.device for taken in times], peak)
        if times and watch.is_cuda:
            yield row(provider, f"{case.mode}, host", answer.verdict, answer.error, [t.host for t in times], None)
        if provider is OURS and times and watch.is_cuda and _capturable(case):
            verdict, replays = _replays(watch, works[provider.name], seconds / 4)
            yield row(provider, f"{case.mode}, graph", verdict, answer.error, [t.device for t in replays], None)


def describe(row: Row) -> str:
    """A row as the run prints it."""
    if row.p50 is None or row.p20 is None or row.p80 is None:
        return f"    {row.provider:26} {row.mode:15} error {row.error:7.1e}   not timed: {row.verdict}"
    low, middle, high = (p * 1e3 for p in (row.p20, row.p50, row.p80))
    line = f"    {row.provider:26} {row.mode:15} error {row.error:7.1e} {middle:10.3f} ms ({low:.3f} to {high:.3f})"
    if row.peak_memory is not None:
        line += f", {row.peak_memory / 2**20:.0f} MiB"
    if not row.mode.endswith("host"):
        shares = [f"{floor.fraction(row, precision):.1%} of the {precision} floor"
                  for precision in floor.PRECISIONS if floor.fraction(row, precision) is not None]  # fmt: skip
        line += "".join(f", {share}" for share in shares)
    if (bound := counted.beside(row, counted.committed())) is not None:
        line += f", {bound}"
    return line


def done(rows: Sequence[Row]) -> set[tuple[Any, ...]]:
    """The cases that a run already has rows of."""
    return {
        (row.op, row.mode, row.batch, row.m, row.n, row.dtype, row.input.split(" ")[0], row.provider) for row in rows
    }


def measure_all(
    chosen: Sequence[GpuCase], device: torch.device, run: Run, before: Sequence[Row], seconds: float,
    take: Callable[[Sequence[Row]], None],
) -> None:  # fmt: skip
    """Measures case after case until the time is up, and hands over each one's rows.

    Args:
        before: the rows that the run has already; their cases are not measured again.
        seconds: of the whole; a case that begins in time is finished.

    Raises:
        Wrong: svdrd gave a wrong answer, or none, to a case; the others are measured all the same.
    """
    begin = time.perf_counter()
    watch = Clock(device)
    ours, peers, absent = providers(device)
    for name, reason in absent.items():
        print(f"not taking part: {name}, {reason}")
    if floor.peaks(run.device) is None:
        print(floor.UNKNOWN)
    wrong: list[str] = []
    late = 0
    measured_before = done(before)
    for case in chosen:
        group = {"ours": ours, "peers": peers, "both": [*ours, *peers]}[case.who]
        taking_part = [one for one in group if case.op in one.functions and one.declines(case) is None]
        key = (case.op, case.mode, case.batch, case.m, case.n, str(case.dtype).removeprefix("torch."), case.input)
        if any((*key, provider.name) in measured_before for provider in taking_part):
            print(f"{case}: measured before")
            continue
        left = seconds - (time.perf_counter() - begin)
        if left <= 0:
            late += 1
            print(f"{case}, {case.who}: {OUT_OF_TIME}")
            continue
        print(f"{case}, {case.who}")
        rows = []
        for row in measure_case(case, taking_part, watch, run, min(1.0, left / 10)):
            rows.append(row)
            print(describe(row), flush=True)
            if row.provider.startswith("svdrd") and row.verdict != "right":
                wrong.append(f"{row.provider}, {case}, {row.mode}: {row.verdict}, error {row.error:.1e}")
        take(rows)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if late:
        print(f"{late} cases {OUT_OF_TIME}; --resume measures them")
    if wrong:
        raise Wrong("\n".join(wrong))
