"""The tables of a comparison as Markdown. A missing number is `none` with the number of its reason, never NaN."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from svdrd.compress.comparison.bd_rate import PRIMARY
from svdrd.compress.comparison.differences import QUALITIES, SMALL_OVERLAP, BDRate, Comparison, Estimate, groups

QUALITY_NAMES = {"psnr": "PSNR", "ms-ssim": "MS-SSIM"}


class Reasons:
    """Why cells are empty, numbered in the order in which the tables need them."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return f"({self.texts.index(text) + 1})"

    def lines(self) -> list[str]:
        return [f"({number}) {text}" for number, text in enumerate(self.texts, 1)]


def cell(estimate: Estimate, reasons: Reasons, form: str = "+.2f", where: str = "") -> str:
    """``-1.74 [-2.01, -1.40]``; what is missing is ``none`` with the number of its reason."""
    text = "none" if estimate.value is None else f"{estimate.value:{form}}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:{form}}, {estimate.high:{form}}]"
    return f"{text} {reasons.mark(where + estimate.reason)}" if estimate.reason else text


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> list[str]:
    """The first ``left`` columns are text, the others numbers."""
    rule = ["---" if column < left else "---:" for column in range(len(head))]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


def table_one(comparison: Comparison, quality: str, reasons: Reasons) -> list[str]:
    """The layout of the paper's Table I: rows are codecs (and arms), columns data sets; BD-rate in percent."""
    datasets = list(dict.fromkeys(row.dataset for row in comparison.bd_rates))
    head = ["codec", "arm", "anchor", *datasets]
    rows = []
    for codec, arm, anchor in row_keys(comparison):
        row = [codec, arm, anchor]
        for dataset in datasets:
            found = find(comparison, dataset, codec, arm, anchor, quality)
            where = f"{codec} on {dataset}, {QUALITY_NAMES[quality]}: "
            row.append("" if found is None else cell(found.of_mean, reasons, where=where))
        rows.append(row)
    return markdown_table(head, rows, 3)


def row_keys(comparison: Comparison) -> list[tuple[str, str, str]]:
    return list(dict.fromkeys((row.codec, row.arm, row.anchor) for row in comparison.bd_rates))


def find(
    comparison: Comparison, dataset: str, codec: str, arm: str, anchor: str, quality: str, method: str = PRIMARY
) -> BDRate | None:
    wanted = (dataset, codec, arm, anchor, quality, method)
    for row in comparison.bd_rates:
        if (row.dataset, row.codec, row.arm, row.anchor, row.quality, row.method) == wanted:
            return row
    return None


def methods_table(comparison: Comparison, reasons: Reasons) -> list[str]:
    head = ["data set", "codec", "arm", "anchor", "quality", "method", "of the mean curve", "mean of images", "overlap"]
    rows = []
    for row in comparison.bd_rates:
        where = f"{row.codec} on {row.dataset}, {QUALITY_NAMES[row.quality]}, {row.method}: "
        # The primary method is that of the first tables, which name the reason without it.
        mean_where = where.replace(f", {row.method}", "") if row.method == PRIMARY else where
        names = (row.dataset, row.codec, row.arm, row.anchor, QUALITY_NAMES[row.quality], row.method)
        overlap = f"{row.overlap:.0%}"
        if 0 < row.overlap < SMALL_OVERLAP:
            overlap += f" {reasons.mark(f'the curves have less than {SMALL_OVERLAP:.0%} of their quality in common')}"
        of_mean = cell(row.of_mean, reasons, where=mean_where)
        rows.append([*names, of_mean, cell(row.of_images, reasons, where=where), overlap])
    return markdown_table(head, rows, 6)


def images_table(comparison: Comparison, dataset: str, codec: str, reasons: Reasons) -> list[str]:
    """The BD-rate of every image by the primary method."""
    columns = [row for row in comparison.bd_rates if (row.dataset, row.codec, row.method) == (dataset, codec, PRIMARY)]
    head = ["image", *(f"{row.arm} over {row.anchor}, {QUALITY_NAMES[row.quality]}" for row in columns)]
    rows = []
    for image in columns[0].images:
        row = [image]
        for column in columns:
            value = column.images[image]
            where = f"{codec} on {dataset}, {QUALITY_NAMES[column.quality]}, {image}: "
            row.append(f"none {reasons.mark(where + value)}" if isinstance(value, str) else f"{value:+.2f}")
        rows.append(row)
    return markdown_table(head, rows, 1)


def losses_table(comparison: Comparison, reasons: Reasons) -> list[str]:
    head = ["data set", "codec", "arm", "anchor", "lambda", "loss of the anchor", "difference", "in percent", "better"]
    rows = []
    for row in comparison.rd_losses:
        lmbda = (
            "mean of all" if row.lmbda is None else f"{row.lmbda:g}{' (ms-ssim)' if row.metric == 'ms-ssim' else ''}"
        )
        rows.append(
            [
                *(row.dataset, row.codec, row.arm, row.anchor, lmbda),
                "" if row.anchor_loss is None else f"{row.anchor_loss:.5f}",
                "" if row.lmbda is None else cell(row.difference, reasons, "+.5f"),
                cell(row.percent, reasons, "+.3f"),
                "" if row.better is None else f"{row.better} of {row.images}",
            ]
        )
    return markdown_table(head, rows, 5)


def points_table(comparison: Comparison) -> list[str]:
    """What was measured: the mean curve of every arm."""
    rows = []
    for curve in comparison.curves:
        rate, psnr = curve.mean("psnr")
        _, decibel = curve.mean("ms-ssim")
        for k, point in enumerate(curve.points):
            lmbda, mu = curve.lmbda[k], curve.mu[k] if curve.mu else None
            rows.append(
                [
                    *(curve.dataset, curve.codec, curve.arm, point),
                    "" if lmbda is None else f"{lmbda:g}",
                    "" if mu is None else f"{mu:g}",
                    *(f"{rate[k]:.5f}", f"{psnr[k]:.3f}", f"{curve.ms_ssim[k].mean():.5f}", f"{decibel[k]:.3f}"),
                ]
            )
    head = ["data set", "codec", "arm", "point", "lambda", "mu", rate_name(comparison), "PSNR (dB)", "MS-SSIM", "(dB)"]
    return markdown_table(head, rows, 4)


def rate_name(comparison: Comparison) -> str:
    return "bpp (estimate)" if any(curve.estimated for curve in comparison.curves) else "bpp"


def conventions(comparison: Comparison) -> list[str]:
    """What the numbers mean, for whoever sees the tables alone."""
    if any(curve.estimated for curve in comparison.curves):
        rate = "**Rates are estimates** (-log2 of the likelihoods), not lengths of coded files"
    else:
        rate = "Rates are lengths of the range coder's output"
    return [
        f"{rate}; PSNR and MS-SSIM are of 8-bit images. The mean curve is mean bpp against mean PSNR, or against the "
        "dB (-10 log10(1 - m)) of the mean MS-SSIM m. BD-rate in percent of the anchor's rate, negative is better; "
        f"{PRIMARY} interpolation unless another is named. In brackets: 95 % intervals, {comparison.resamples} "
        f"bootstrap resamples of the images, seed {comparison.seed}. They tell how much depends on the choice of "
        "images; what another seed of the training would give, they do not.",
    ]


def summary(comparison: Comparison) -> str:
    """The tables that answer the question, with the reasons of empty cells and the notes."""
    reasons = Reasons()
    lines = []
    if comparison.bd_rates:
        for quality in QUALITIES:
            what = f"BD-rate in {QUALITY_NAMES[quality]}{_estimated(comparison)} (%)"
            lines += [what, "", *table_one(comparison, quality, reasons), ""]
    if comparison.rd_losses:
        lines += [f"RD loss at equal lambda{_estimated(comparison)}", "", *losses_table(comparison, reasons), ""]
    return "\n".join([*lines, *reasons.lines(), *(f"note: {note}" for note in comparison.notes)]).rstrip()


def _estimated(comparison: Comparison) -> str:
    return ", rates estimated" if any(curve.estimated for curve in comparison.curves) else ""


def markdown(comparison: Comparison, figures: Sequence[str] = ()) -> str:
    """All tables, and the figures, whose paths are relative to the file."""
    reasons = Reasons()
    lines = ["# Comparison", "", *conventions(comparison), ""]
    if comparison.bd_rates:
        for quality in QUALITIES:
            title = f"## BD-rate in {QUALITY_NAMES[quality]} (%){_estimated(comparison)}"
            lines += [title, "", *table_one(comparison, quality, reasons), ""]
    if comparison.rd_losses:
        lines += [f"## RD loss at equal lambda{_estimated(comparison)}", ""]
        lines += [
            "Mean over the images of `bpp + lambda 255^2 MSE` (of training for MS-SSIM: `bpp + lambda (1 - MS-SSIM)`), "
            "without the basis term; the difference is paired by image.",
            "",
            *losses_table(comparison, reasons),
            "",
        ]
    for figure in figures:
        lines += [f"![{Path(figure).stem}]({figure})", ""]
    if comparison.bd_rates:
        lines += ["## By every method", "", *methods_table(comparison, reasons), ""]
        for group in groups(comparison.curves):
            dataset, codec = group[0].dataset, group[0].codec
            if len(group) > 1:
                lines += [f"## BD-rate of single images: {codec} on {dataset} (%)", ""]
                lines += [*images_table(comparison, dataset, codec, reasons), ""]
    lines += [f"## Points{_estimated(comparison)}", "", *points_table(comparison), ""]
    if reasons.texts or comparison.notes:
        lines += ["## Why some numbers are missing, and notes", ""]
        lines += [f"- {line}" for line in [*reasons.lines(), *comparison.notes]]
    return "\n".join(lines).rstrip() + "\n"
