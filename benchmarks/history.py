"""The history of the benchmarks, one point for each run in the CSV: ``python -m benchmarks.history``.

Ratios of one run are drawn, not times: both sides of a ratio were measured in turns on one machine, so that runs of
different machines stand on one axis.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import measure, report
from benchmarks.measure import Row

SIZES = (8, 16, 32, 64, 256)
INPUT = "natural"


def runs_of(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each run, the oldest run first."""
    dates = sorted({row.date for row in rows})
    return [report.run_of(rows, date) for date in dates]


def ratio_of(run: Sequence[Row], op: str, mode: str, n: int) -> float | None:
    """Times as fast as torch.linalg.svd in this run: a batch of ``n x n`` float32 blocks of photographs."""
    for row in run:
        if (row.provider, row.op, row.mode, row.dtype) != (report.OURS, op, mode, "float32"):
            continue
        if row.batch > 1 and (row.m, row.n) == (n, n) and report.kind(row) == INPUT:
            return report.ratio(run, row)
    return None


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel for each operation, a line for each size; dotted where a run has another machine than the one before."""
    runs = runs_of(rows)
    firsts = [run[0] for run in runs]
    figure, axes = plt.subplots(2, 2, figsize=(10, 8), sharex=True, sharey=True, layout="constrained")
    for axis, ((op, mode), title) in zip(axes.flat, report.PANELS.items(), strict=True):
        for n in SIZES:
            points = [(i, value) for i, run in enumerate(runs) if (value := ratio_of(run, op, mode, n)) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", label=f"{n} x {n}", markersize=4.5, linewidth=1.5)
        for i, (before, now) in enumerate(itertools.pairwise(firsts)):
            if before.device != now.device:
                axis.axvline(i + 0.5, color="0.4", linewidth=1, linestyle=":")
        axis.axhline(1, color="0.4", linewidth=1)
        axis.set_title(title, fontsize=11)
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:g}x")
        axis.grid(which="major", color="0.9")
        axis.set_xticks(range(len(runs)), [f"{row.date[:10]}\n{row.commit[:7]}" for row in firsts], fontsize=8)
        axis.tick_params(axis="x", rotation=45)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    figure.supylabel("times as fast as torch.linalg.svd", fontsize=11)
    machines = "; ".join(dict.fromkeys(f"{row.device}, torch {row.torch}" for row in firsts))
    figure.suptitle(f"batches of float32 blocks of photographs\n{machines}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__)
    parser.add_argument("--csv", type=Path, default=measure.RESULTS / "cpu.csv")
    parser.add_argument("--figure", type=Path, default=report.ROOT / "docs" / "figures" / "history_cpu.png")
    arguments = parser.parse_args(argv)
    try:
        rows = measure.read(arguments.csv)
        draw(rows, arguments.figure)
    except OSError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.figure} has the runs of {arguments.csv}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
