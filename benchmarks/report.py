"""From the CSV of one run: the figure, all tables of docs/benchmarks.md, and the README's rows.

python -m benchmarks.report [--date 2026-11-24T19:53:14Z]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import measure
from benchmarks.measure import Row

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- speed table: begin -->", "<!-- speed table: end -->"
OURS, BASELINE = "svdrd", "torch.linalg.svd"
PANELS = {
    ("svd", "forward"): "svd, forward",
    ("polar_factor", "both"): "polar_factor, forward + backward",
    ("basis_loss", "both"): "basis_loss, forward + backward",
    ("recompose", "forward"): "recompose, forward",
}
# Times torch.linalg.svd at 2 threads, by n of n x n: the aims of the project for a CPU.
BARS: dict[tuple[str, str], dict[int, float]] = {
    ("svd", "forward"): {8: 28, 16: 18, 32: 16, 64: 7},
    ("polar_factor", "both"): {8: 20, 16: 12, 32: 9, 64: 5, 128: 4, 256: 4},
    ("basis_loss", "both"): {8: 32, 16: 18, 32: 13, 64: 8, 128: 6, 256: 4.5},
}
BESIDE = [measure.RESULTS / "cpu_avx2.csv"]
LARGE_BAR = 2.5  # the loss of a single 512 x 768
# The README's rows: the loss over photographs.
HEADLINES = (8, 16, 32, 64, 128, 256)

Shape = tuple[int, int, int]


class Missing(Exception):
    """What the report needs is not there; the message says what would help."""


def run_of(rows: Sequence[Row], date: str | None) -> list[Row]:
    """The rows of the run that began at ``date``; None takes the newest."""
    dates = sorted({row.date for row in rows})
    if not dates:
        raise Missing("the CSV has no rows: run `make bench` first")
    if date is not None and date not in dates:
        raise Missing(f"no run began at {date}; there are {', '.join(dates)}")
    return [row for row in rows if row.date == (date or dates[-1])]


def newest_runs(paths: Iterable[Path]) -> list[list[Row]]:
    """Of each CSV that is there the newest run with each instruction set, the newest of all first.

    A stand-in, ``avx2 by SVDRD_ISA``, counts as one of its own.
    """
    runs = []
    for path in paths:
        rows = measure.read(path) if path.exists() else []
        dates = {row.device.rpartition(", ")[2]: row.date for row in sorted(rows, key=lambda row: row.date)}
        runs += [run_of(rows, date) for date in sorted(dates.values(), reverse=True)]
    return runs


def kind(row: Row) -> str:
    return row.input.split(" ")[0]


def shape(row: Row) -> Shape:
    return row.batch, row.m, row.n


def find(rows: Iterable[Row], provider: str, like: Row) -> Row | None:
    """The provider's row of the same case."""
    key = (like.op, like.mode, shape(like), like.dtype, like.input)
    same = [
        row for row in rows if row.provider == provider and (row.op, row.mode, shape(row), row.dtype, row.input) == key
    ]
    return same[0] if same else None


def ratio(rows: Sequence[Row], ours: Row) -> float | None:
    """Median of torch.linalg.svd over median of svdrd, both from the same run; None where either is not timed."""
    baseline = find(rows, BASELINE, ours)
    if baseline is None or baseline.p50 is None or ours.p50 is None:
        return None
    return baseline.p50 / ours.p50


def _per_matrix(row: Row | None) -> str:
    if row is None:
        return ""
    if row.p50 is None:
        return f"wrong ({_error(row)})"
    microseconds = row.p50 / row.batch * 1e6
    return f"{microseconds:.0f}" if microseconds >= 100 else f"{microseconds:.3g}"


def _error(row: Row) -> str:
    return "NaN" if math.isnan(row.error) else f"{row.error:.0e}"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    texts = [header, ["---"] + ["---:"] * (len(header) - 1), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in texts)


def _threads(row: Row) -> str:
    return f"{row.threads} thread" + "s" * (row.threads != 1)


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}x"


def speed_table(rows: Sequence[Row]) -> str:
    """Ours beside torch.linalg.svd: float32 batches of photographs' blocks, and the ratio on random matrices.

    Shapes that no photograph is cut into have a line of their own, of random matrices.
    """
    lines = []
    for (op, mode), title in PANELS.items():
        of_op = [row for row in rows if (row.op, row.mode, row.dtype, row.provider) == (op, mode, "float32", OURS)]
        for ours in of_op:
            alike = {kind(row): row for row in of_op if shape(row) == shape(ours)}
            if kind(ours) != "natural" and (kind(ours) != "random" or "natural" in alike or ours.m == ours.n):
                continue
            baseline = find(rows, BASELINE, ours)
            ratios = (_times(ratio(rows, alike[source])) if source in alike else "" for source in ("natural", "random"))
            lines.append([
                title, f"{ours.m} x {ours.n}", f"{ours.batch}", _per_matrix(ours), _per_matrix(baseline), *ratios,
                _error(ours), _error(baseline) if baseline else "",
            ])  # fmt: skip
    header = [
        "operation", "matrix", "batch", "svdrd, µs a matrix", "torch.linalg.svd", "ratio, photographs", "ratio, random",
        "error of svdrd", "of torch",
    ]  # fmt: skip
    return _table(header, lines)


def peers_table(rows: Sequence[Row]) -> str:
    """Everybody's polar factor and basis loss on square blocks of photographs, µs a matrix."""
    chosen = [
        row
        for row in rows
        if (row.mode, row.dtype) == ("both", "float32")
        and row.op in ("polar_factor", "basis_loss")
        and kind(row) != "random"
        and row.m == row.n
    ]
    providers = list(dict.fromkeys(row.provider for row in chosen))
    lines = []
    for ours in (row for row in chosen if row.provider == OURS):
        size = f"{ours.n} x {ours.n}" + (", all blocks of RGB patches" if kind(ours) == "patches" else "")
        cells = [_per_matrix(find(chosen, provider, ours)) for provider in providers]
        lines.append([PANELS[ours.op, "both"], size, f"{ours.batch}", *cells])
    return _table(["operation", "matrix", "batch", *providers], lines)


def memory_table(rows: Sequence[Row]) -> str:
    lines = [
        [
            f"{PANELS[row.op, row.mode]}, {row.batch} of {row.m} x {row.n}",
            row.provider,
            f"{row.batch * row.m * row.n * (8 if row.dtype == 'float64' else 4) / 2**20:.1f}",
            f"{row.peak_memory / 2**20:.1f}",
        ]
        for row in rows
        if row.peak_memory is not None
    ]
    return _table(["operation", "provider", "one input, MiB", "peak beyond the two inputs, MiB"], lines)


def _against_bar(rows: Sequence[Row], op: str, mode: str, m: int, n: int, bar: float) -> str:
    """The ratios on photographs and on random matrices, the ones below the bar in bold."""
    cells = []
    for source in ("natural", "random"):
        for row in rows:
            if (row.op, row.mode, row.dtype, row.provider) != (op, mode, "float32", OURS):
                continue
            if kind(row) != source or (row.m, row.n) != (m, n) or (row.batch == 1) != (m != n):
                continue
            value = ratio(rows, row)
            if value is not None:
                cells.append(f"{value:.1f}x" if value >= bar else f"**{value:.1f}x**")
    return ", ".join(cells)


def bars_table(runs: Sequence[Sequence[Row]]) -> str:
    """The bars beside each run's ratios: photographs, random."""
    bars = [(op, mode, n, n, bar) for (op, mode), of_op in BARS.items() for n, bar in of_op.items()]
    bars.append(("basis_loss", "both", 512, 768, LARGE_BAR))
    lines = [
        [PANELS[op, mode], f"{m} x {n}", f"{bar:g}x", *(_against_bar(rows, op, mode, m, n, bar) for rows in runs)]
        for op, mode, m, n, bar in bars
    ]
    return _table(["operation", "matrix", "bar", *(f"{run[0].device}" for run in runs)], lines)


def _setting(row: Row) -> str:
    """Where and with what the run was made."""
    return f"{row.device}, {_threads(row)}, torch {row.torch}, svdrd {row.svdrd} at `{row.commit}`, {row.date[:10]}"


def headlines(rows: Sequence[Row]) -> str:
    """What the README has between its markers: the loss with its gradient over square blocks of photographs."""
    lines = []
    for n in HEADLINES:
        for ours in rows:
            if (ours.op, ours.mode, ours.dtype, ours.provider) != ("basis_loss", "both", "float32", OURS):
                continue
            if kind(ours) != "natural" or (ours.m, ours.n) != (n, n):
                continue
            baseline = find(rows, BASELINE, ours)
            lines.append([
                f"{n} x {n}", f"{ours.batch}", _per_matrix(ours), _per_matrix(baseline), _times(ratio(rows, ours)),
                _error(ours), _error(baseline) if baseline else "",
            ])  # fmt: skip
    header = [
        "matrices", "pairs", "svdrd, µs a pair", "torch.linalg.svd", "ratio", "error of svdrd", "of torch",
    ]  # fmt: skip
    return f"{_table(header, lines)}\n\n{_setting(rows[0])}."


def markdown(rows: Sequence[Row], others: Sequence[Sequence[Row]] = ()) -> str:
    """What docs/benchmarks.md has between its markers: all tables. ``others``: runs beside it at the bars."""
    first = rows[0]
    ratios = [(value, row) for row in rows if row.provider == OURS and (value := ratio(rows, row)) is not None]
    lowest = ""
    if ratios:
        value, row = min(ratios, key=lambda pair: pair[0])
        lowest = (
            f"\nThe lowest of the {len(ratios)} ratios of the run is {value:.2f}x: {row.op} {row.mode}, "
            f"{row.batch} of {row.m} x {row.n}, {row.dtype}, {row.input}."
        )
    sources = sorted({row.input for row in rows if kind(row) == "natural"})
    parts = [
        f"{_setting(first)}.\n"
        "Times are medians of rounds in which all providers take turns.\n"
        "An error is the 95 % quantile over the matrices of the relative Frobenius error against float64.\n"
        "Of the loss's derivative, differences below 16 eps may count as 0, as in svdrd, or as what they are.\n"
        "A wrong answer, by this error or by a NaN, is not timed.\n"
        f"Photographs: {', '.join(sources) or 'none'}, without the rank-deficient blocks."
        f"{lowest}",
        speed_table(rows),
        "Everybody's forward and backward, µs a matrix; empty where a provider does not take the case:",
        peers_table(rows),
    ]
    if any(row.peak_memory is not None for row in rows):
        parts += ["Peak memory of one forward and backward, results included:", memory_table(rows)]
    parts += [
        "### The bars\n\nThe project's aims for a CPU, as ratios to `torch.linalg.svd`: photographs, random. "
        "What is below its bar is **set like this**.",
        bars_table([rows, *others]),
        *(f"Beside it: {_setting(run[0])}." for run in others),
    ]
    return "\n\n".join(parts)


def write_between_markers(page: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    content = page.read_text()
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise Missing(f"{page} has to hold, once and in this order, the lines\n{begin}\n{end}")
    head, rest = content.split(begin)
    tail = rest.split(end)[1]
    page.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


def draw(rows: Sequence[Row], path: Path) -> None:
    """The ratio to torch.linalg.svd over the size of square float32 matrices, a panel an operation."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), sharex=True, sharey=True, layout="constrained")
    lines: list[tuple[str, str, Callable[[Row], bool]]] = [
        ("batch, photographs", "o-", lambda row: row.batch > 1 and kind(row) == "natural"),
        ("batch, random", "s--", lambda row: row.batch > 1 and kind(row) == "random"),
        ("a single matrix, random", "^:", lambda row: row.batch == 1 and kind(row) == "random"),
    ]
    largest = 1
    for axis, ((op, mode), title) in zip(axes.flat, PANELS.items(), strict=True):
        for label, style, belongs in lines:
            points = sorted(
                (row.n, value)
                for row in rows
                if (row.op, row.mode, row.dtype, row.provider) == (op, mode, "float32", OURS)
                and row.m == row.n and belongs(row) and (value := ratio(rows, row)) is not None
            )  # fmt: skip
            if points:
                largest = max(largest, points[-1][0])
                axis.plot(*zip(*points, strict=True), style, label=label, markersize=4.5, linewidth=1.5)
        axis.axhline(1, color="0.4", linewidth=1)
        axis.set_title(title, fontsize=11)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.grid(which="major", color="0.9")
        if axis.has_data() and axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=9, frameon=False)
    sizes = [2**i for i in range(int(math.log2(largest)) + 1)]
    ratios = [
        value
        for value in (2.0**i for i in range(-1, 11))
        if axes[0, 0].get_ylim()[0] <= value <= axes[0, 0].get_ylim()[1]
    ]
    axes[0, 0].set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes[0, 0].set_yticks(ratios, [f"{value:g}x" for value in ratios], minor=False)
    axes[0, 0].yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    figure.supxlabel("n of the n x n matrices", fontsize=11)
    figure.supylabel("times as fast as torch.linalg.svd", fontsize=11)
    first = rows[0]
    figure.suptitle(
        f"svdrd {first.svdrd} on {first.device}, {_threads(first)}, torch {first.torch}, {first.date[:10]}",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--csv", type=Path, default=measure.RESULTS / "cpu.csv")
    parser.add_argument("--date", help="when the run began, as its rows say; default: the newest run")
    parser.add_argument(
        "--beside", type=Path, nargs="*", default=BESIDE,
        help="CSVs whose newest run with each instruction set stands beside it at the bars; an absent one is left out",
    )  # fmt: skip
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "figures" / "speed_cpu.png")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md", help="takes all tables")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="takes the rows of the loss")
    arguments = parser.parse_args(argv)
    try:
        rows = run_of(measure.read(arguments.csv), arguments.date)
        draw(rows, arguments.figure)
        write_between_markers(arguments.page, markdown(rows, newest_runs(arguments.beside)))
        write_between_markers(arguments.readme, headlines(rows))
    except (Missing, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    written = f"{arguments.figure} and the tables of {arguments.page} and {arguments.readme}"
    print(f"{written} are those of the run of {rows[0].date}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
