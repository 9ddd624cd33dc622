"""The bars for a GPU against the rows of a run: bar, measured, met or missed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks import floor, report
from benchmarks.measure import Row

OURS, CUDA, BASELINE = "svdrd", "svdrd, cuda backend", "torch.linalg.svd"
INPUTS = ("natural", "random")
# Operation, mode, batch, n, times as fast as torch.linalg.svd.
RATIOS = (
    ("svd", "forward", 100_000, 8, 10.0),
    ("svd", "forward", 100_000, 16, 5.0),
    ("svd", "forward", 100_000, 32, 5.0),
    ("svd", "forward", 1536, 64, 20.0),
    ("basis_loss", "both", 100_000, 8, 20.0),
    ("basis_loss", "both", 100_000, 16, 10.0),
    ("basis_loss", "both", 100_000, 32, 10.0),
    ("basis_loss", "both", 1536, 64, 50.0),
    ("basis_loss", "both", 96, 256, 100.0),
)
CUDA_RATIOS = tuple(
    (op, mode, 100_000, n, least)
    for op, mode, least in (("svd", "forward", 5.0), ("basis_loss", "both", 10.0))
    for n in (8, 16, 32)
)
FRACTION = 0.25
MEMORY = 600e6
GROWTH = 0.10
STEP = "training_step"
WITHOUT, WITH = "mu = 0", "mu = 10"

MET, MISSED, UNMEASURED = "met", "MISSED", "not measured"


class Outcome(NamedTuple):
    """One line of the table."""

    bar: str
    measured: str
    verdict: str


def _row(rows: Sequence[Row], provider: str, op: str, mode: str, batch: int, n: int, kind: str) -> Row | None:
    key = (provider, op, mode, batch, n, n, "float32")
    return next(
        (
            row
            for row in rows
            if (row.provider, row.op, row.mode, row.batch, row.m, row.n, row.dtype) == key and report.kind(row) == kind
        ),
        None,
    )


def _judged(value: float, least: float) -> str:
    return MET if value >= least else MISSED


def _ratio(
    rows: Sequence[Row], provider: str, op: str, mode: str, batch: int, n: int, least: float
) -> Outcome:  # fmt: skip
    """Met where it is on both kinds of input; a comparison with a wrong answer is none."""
    said, verdicts = [], []
    for kind in INPUTS:
        ours, baseline = (_row(rows, name, op, mode, batch, n, kind) for name in (provider, BASELINE))
        if ours is None or baseline is None:
            continue
        said += [f"{kind}: {row.provider} {row.verdict}" for row in (ours, baseline) if row.p50 is None]
        if ours.p50 is None:
            verdicts.append(MISSED)
        elif baseline.p50 is not None:
            said.append(f"{kind} {baseline.p50 / ours.p50:.1f}x ({ours.p50 * 1e3:.3g} ms)")
            verdicts.append(_judged(baseline.p50 / ours.p50, least))
    whole = MISSED if MISSED in verdicts else MET if len(verdicts) == len(INPUTS) else UNMEASURED
    what = {"both": "forward + backward"}.get(mode, mode)
    return Outcome(f"{provider}: {op} {what}, {batch} x {n}^2, {least:g}x", "; ".join(said) or "-", whole)


def outcomes(rows: Sequence[Row]) -> Iterator[Outcome]:
    """Every bar, in one run's rows."""
    for op, mode, batch, n, least in RATIOS:
        yield _ratio(rows, OURS, op, mode, batch, n, least)
    for op, mode, batch, n, least in CUDA_RATIOS:
        yield _ratio(rows, CUDA, op, mode, batch, n, least)

    bar = f"basis_loss forward + backward, 96 x 256^2: at least {FRACTION:.0%} of the tf32x3 floor"
    large = [row for kind in INPUTS if (row := _row(rows, OURS, "basis_loss", "both", 96, 256, kind)) is not None]
    shares = [share for row in large if (share := floor.fraction(row, "tf32x3")) is not None]
    unknown = floor.UNKNOWN if large and floor.peaks(large[0].device) is None else "-"
    yield (
        Outcome(bar, ", ".join(f"{share:.1%}" for share in shares), _judged(min(shares), FRACTION))
        if shares
        else Outcome(bar, unknown, UNMEASURED)
    )

    bar = f"memory beyond the inputs there: at most {MEMORY / 1e6:.0f} MB"
    peaks = [row.peak_memory for row in large if row.peak_memory is not None]
    yield (
        Outcome(bar, f"{max(peaks) / 1e6:.0f} MB", MET if max(peaks) <= MEMORY else MISSED)
        if peaks
        else Outcome(bar, "-", UNMEASURED)
    )

    bar = f"a training step grows by at most {GROWTH:.0%} by the loss"
    steps = {row.provider: row.p50 for row in rows if row.op == STEP and row.p50 is not None}
    if WITHOUT in steps and WITH in steps:
        growth = steps[WITH] / steps[WITHOUT] - 1
        said = f"{growth:+.1%} ({steps[WITHOUT] * 1e3:.1f} ms, then {steps[WITH] * 1e3:.1f} ms)"
        yield Outcome(bar, said, MET if growth <= GROWTH else MISSED)
    else:
        yield Outcome(bar, "-", UNMEASURED)


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    lines = [["bar", "measured", ""], ["---"] * 3, *outcomes(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
