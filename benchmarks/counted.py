"""Bounds of GPU times, counted without a GPU: the CSV that ``make counted`` writes, and its table in the docs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks import report
from benchmarks.measure import RESULTS, Row

CSV = RESULTS / "counted.csv"
# The same of the kernels before the counts led to other ones.
BEFORE = RESULTS / "counted_8436875.csv"
DOCS = Path(__file__).parents[1] / "docs" / "design" / "counted.md"
BEGIN, END = "<!-- counted table: begin -->", "<!-- counted table: end -->"
# The devices that the counted one stands for: the same multiprocessors at the same clock.
ALIKE = {"H200": ("H200", "H100 80GB HBM3"), "A100": ("A100",)}
# Quantities in milliseconds that are no pipe's.
WHOLE = ("bound ms", "pipes ms", "chain ms", "memory ms")
SHOWN_PIPES = 4
HEAD = ("op", "mode", "batch", "n", "family", "chosen", "device", "target", "triton", "sample")


@dataclass(frozen=True)
class Counted:
    """One case by one family of kernels.

    Args:
        family: the module below ``svdrd.backends.triton``; ``chosen`` if it is the one that svdrd takes by itself.
        device: whose throughputs bound it; ``target``: what the kernels were compiled for.
        sample: how many matrices were emulated.
        quantities: by name; what ends in " ms" is of the whole batch.
    """

    op: str
    mode: str
    batch: int
    n: int
    family: str
    chosen: bool
    device: str
    target: str
    triton: str
    sample: int
    quantities: dict[str, float]

    @property
    def case(self) -> tuple[str, str, int, int, str]:
        """What is the same before and after a change of the kernels."""
        return self.op, self.mode, self.batch, self.n, self.family

    @property
    def bound(self) -> float:
        """Milliseconds that the whole batch takes at least."""
        return self.quantities["bound ms"]

    @property
    def pipes(self) -> list[tuple[str, float]]:
        """Milliseconds by pipe, the busiest first."""
        names = (name for name in self.quantities if name.endswith(" ms") and name not in WHOLE)
        found = [(name.removesuffix(" ms"), self.quantities[name]) for name in names]
        return sorted(found, key=lambda pair: -pair[1])

    @property
    def bound_by(self) -> str:
        """The busiest pipe, or the chain of dependencies."""
        return "chain" if self.quantities["chain ms"] > self.quantities["pipes ms"] else self.pipes[0][0]


def write(path: Path, rows: Sequence[Counted]) -> None:
    """A line for each quantity of each row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*HEAD, "quantity", "value"])
        for row in rows:
            for name, value in row.quantities.items():
                writer.writerow([*(getattr(row, column) for column in HEAD), name, f"{value:.5g}"])


def read(path: Path) -> list[Counted]:
    """What :func:`write` has written."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            found.setdefault(tuple(line[name] for name in HEAD), {})[line["quantity"]] = float(line["value"])
    return [
        Counted(op, mode, int(batch), int(n), family, chosen == "True", device, target, version, int(sample), values)
        for (op, mode, batch, n, family, chosen, device, target, version, sample), values in found.items()
    ]


@cache
def committed() -> list[Counted]:
    """What ``make counted`` wrote last."""
    return read(CSV)


def of(row: Row, rows: Sequence[Counted]) -> Counted | None:
    """What was counted of what a row timed: the same kernels, on a device like the counted one."""
    mode = row.mode.split(",")[0]
    if row.m != row.n or row.dtype != "float32" or row.mode.endswith("host"):
        return None
    for one in rows:
        same = (one.op, one.mode, one.batch, one.n) == (row.op, mode, row.batch, row.n)
        ours = one.chosen and row.provider in ("svdrd", "svdrd, triton backend")
        alone = row.provider == f"svdrd.backends.triton.{one.family}"
        if same and (ours or alone) and any(name in row.device for name in ALIKE[one.device]):
            return one
    return None


def beside(row: Row, rows: Sequence[Counted]) -> str | None:
    """The bound, and how many times as long a measured row took; None where nothing was counted of it."""
    one = of(row, rows)
    if one is None or row.p50 is None:
        return None
    return f"{row.p50 * 1e3 / one.bound:.1f} times the {one.bound:.3g} ms counted ({one.bound_by})"


def measured_table(measured: Sequence[Row], rows: Sequence[Counted]) -> str:
    """Measured and counted side by side, as Markdown; of the rows of which something was counted."""
    lines = [["case", "provider", "input", "measured, ms", "counted at least, ms", "ratio", "bound by"], ["---"] * 7]
    for row in measured:
        if (one := of(row, rows)) is not None and row.p50 is not None:
            case = f"{row.op} {row.mode}, {row.batch} x {row.n}^2"
            times = f"{row.p50 * 1e3:.3g}", f"{one.bound:.3g}", f"{row.p50 * 1e3 / one.bound:.2g}"
            lines.append([case, f"{row.provider} ({one.family})", row.input, *times, one.bound_by])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(rows: Sequence[Counted], before: Sequence[Counted] = ()) -> str:
    """As Markdown, milliseconds of the whole batch."""
    head = ["case", "kernels", "at least, ms", "before", "busiest pipes, ms", "chain, ms", "memory, ms", "launches"]
    head += ["PTX / machine instructions a matrix", "machine code", "registers, warps", "counted on"]
    lines = [head, ["---"] * len(head)]
    earlier = {row.case: row.bound for row in before}
    for row in rows:
        q = row.quantities
        instructions = f"{q['PTX instructions']:,.0f} / {q['machine instructions']:,.0f}".replace(",", " ")
        lines.append(
            [
                f"`{row.op}` {row.mode}, {row.batch} x {row.n}²",
                f"**{row.family}**" if row.chosen else row.family,
                f"**{row.bound:.3g}**",
                f"{earlier[row.case]:.3g}" if row.case in earlier else "",
                ", ".join(f"{name} {value:.2g}" for name, value in row.pipes[:SHOWN_PIPES]),
                f"{q['chain ms']:.2g}",
                f"{q['memory ms']:.2g}",
                f"{q['launches']:.0f}",
                instructions,
                f"x {q['machine code / estimate']:.2f}" if "machine code / estimate" in q else "",
                f"{q['registers']:.0f}, {q['resident warps']:.0f}",
                f"{row.sample}, {row.target}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_docs(path: Path, rows: Sequence[Counted], before: Sequence[Counted]) -> None:
    """The table, between the markers of the page."""
    first = rows[0]
    said = f"One {first.device}, float32, random matrices, Triton {first.triton}; bold: the kernels that svdrd takes."
    report.write_between_markers(path, f"{said}\n\n{table(rows, before)}", BEGIN, END)
