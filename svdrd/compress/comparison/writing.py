"""Everything that a comparison leaves in its folder: tables, figures, files for other plot tools."""

from collections.abc import Sequence
from pathlib import Path

from svdrd.compress.comparison.curve_figures import draw_curves, write_plot_json
from svdrd.compress.comparison.differences import Comparison, anchors_of, groups
from svdrd.compress.comparison.results import file_name
from svdrd.compress.comparison.table_files import write_tables


def write_comparison(comparison: Comparison, anchors: Sequence[str], folder: Path) -> list[Path]:
    """Tables, figures and plot files; what was written. The numbers come first: a figure that fails costs none."""
    drawn = []
    for group in groups(comparison.curves):
        for anchor in anchors_of(group, anchors):
            behind = [] if len(anchors) < 2 else [f"over-{anchor.arm}"]
            path = folder / f"{file_name('rd', group[0].codec, group[0].dataset, *behind)}.png"
            drawn.append((group, anchor.arm, path))
    figures = [path for _, _, path in drawn]
    written = write_tables(comparison, folder, [figure.name for figure in figures])
    plots = []
    for curve in comparison.curves:
        plots.append(folder / "curves" / curve.dataset / f"{file_name(curve.codec, curve.arm)}.json")
        write_plot_json(curve, plots[-1])
    for group, arm, path in drawn:
        draw_curves(group, arm, comparison.bd_rates, path)
    return [*written, *figures, *plots]
