"""The report of a study: what was run, the comparisons of all seeds in one table, and what the arms cost."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from svdrd.compress.comparison.tables import QUALITY_NAMES, markdown_table
from svdrd.compress.files import read_text, write_text
from svdrd.compress.study.configuration import BASE, Study
from svdrd.compress.study.contents import Contents
from svdrd.compress.study.stages import COMPARISON, FinetuneStage, Stage

REPORT = "report.md"


def write_report(study: Study, stages: Sequence[Stage]) -> Path:
    """Writes ``report/report.md`` of a study whose stages are all done; returns its path."""
    path = study.output / "report" / REPORT
    write_text(path, markdown(study, stages))
    return path


def markdown(study: Study, stages: Sequence[Stage]) -> str:
    lines = ["# Report", "", *_settings(study), ""]
    for folder in study.folders:
        comparisons = {
            stage.name.rpartition("seed-")[2]: json.loads(read_text(stage.folder / COMPARISON))
            for stage in study.comparisons(Contents())
            if stage.name.startswith(f"report/{folder}/")
        }
        lines += [f"## {folder}", "", *_bd_rates(comparisons), "", *_rd_losses(comparisons), ""]
        for seed in comparisons:
            lines += [
                f"Everything of seed {seed}: [{folder}/seed-{seed}/comparison.md]({folder}/seed-{seed}/comparison.md)"
            ]
            for figure in sorted((study.output / "report" / folder / f"seed-{seed}").glob("rd-*.png")):
                lines += ["", f"![{figure.stem}, seed {seed}]({folder}/seed-{seed}/{figure.name})"]
            lines.append("")
    lines += ["## What the arms cost", "", *_costs(study, stages), "", "## Commands", "", "```"]
    lines += [f"svdrd {shlex.join(stage.command)}" for stage in stages]
    return "\n".join([*lines, "```", ""])


def _settings(study: Study) -> list[str]:
    source = study.base_weights or (
        "the zoo's weights" if study.base_options is None else f"trained, {shlex.join(study.base_options)}"
    )
    rows = [
        ("configuration", study.path),
        ("codec", study.model),
        *(
            (f"seed {seed}", f"lambdas {', '.join(f'{rate.lmbda:g}' for rate in rates)}")
            for seed, rates in study.seeds.items()
        ),
        (BASE, source),
        ("fine-tuning, all arms", shlex.join(study.finetune_options) or "defaults"),
        *((f"arm {arm}", shlex.join(options) or "defaults") for arm, options in study.arms.items()),
    ]
    return markdown_table(["", ""], [(name, f"`{value}`") for name, value in rows], 2)


def _bd_rates(comparisons: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row an arm, anchor and quality; a column a seed. The last one is the mean of the seeds' numbers."""
    first = next(iter(comparisons.values()))
    seeds = [f"seed {seed}" for seed in comparisons]
    rows = []
    for row in first["bd_rates"]:
        if row["method"] != first["primary"]:
            continue
        keys = ("arm", "anchor", "quality", "method")
        found = [
            next(other for other in comparison["bd_rates"] if all(other[key] == row[key] for key in keys))["of_mean"]
            for comparison in comparisons.values()
        ]
        rows.append([row["arm"], row["anchor"], QUALITY_NAMES[row["quality"]], *_with_mean(found, "+.2f")])
    title = (
        f"BD-rate of the mean curves in percent, {first['primary']} interpolation, {first['rate']}; in brackets 95 % "
        "intervals over the images. Negative: the arm needs less."
    )
    head = ["arm", "anchor", "quality", *seeds, *_mean_heading(seeds)]
    return [title, "", *markdown_table(head, rows, 3), *_reasons(comparisons)]


def _rd_losses(comparisons: Mapping[str, Mapping[str, Any]]) -> list[str]:
    seeds = [f"seed {seed}" for seed in comparisons]
    keys = ("arm", "anchor", "lmbda")
    by_key = [
        {tuple(row[key] for key in keys): row["percent"] for row in comparison["rd_losses"]}
        for comparison in comparisons.values()
    ]
    rows = []
    for arm, anchor, lmbda in dict.fromkeys(key for found in by_key for key in found):
        estimates = [found.get((arm, anchor, lmbda)) for found in by_key]
        rows.append([arm, anchor, "mean of all" if lmbda is None else f"{lmbda:g}", *_with_mean(estimates, "+.3f")])
    title = (
        "RD loss `bpp + lambda 255^2 MSE` at equal lambda, paired by image: the difference in percent of the anchor's; "
        "in brackets 95 % intervals over the images. The mean of all is over the lambdas of the seed."
    )
    head = ["arm", "anchor", "lambda", *seeds, *_mean_heading(seeds)]
    return [title, "", *markdown_table(head, rows, 3)]


def _with_mean(found: Sequence[Mapping[str, Any] | None], form: str) -> list[str]:
    """A cell for each seed, empty where it has no run, and one for the mean of those that have."""
    cells = []
    for estimate in found:
        if estimate is None:
            cells.append("")
            continue
        cell = "none" if estimate["value"] is None else f"{estimate['value']:{form}}"
        if estimate["low"] is not None:
            cell += f" [{estimate['low']:{form}}, {estimate['high']:{form}}]"
        cells.append(cell)
    values = [estimate["value"] for estimate in found if estimate is not None]
    if len(found) == 1:
        return cells
    return [*cells, "none" if None in values else f"{fmean(values):{form}}"]


def _mean_heading(seeds: Sequence[str]) -> list[str]:
    return ["mean of the seeds"] if len(seeds) > 1 else []


def _reasons(comparisons: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why numbers are missing."""
    said: dict[str, None] = {}
    for seed, comparison in comparisons.items():
        for row in comparison["bd_rates"]:
            if row["method"] == comparison["primary"] and row["of_mean"]["reason"]:
                where = f"{row['arm']} over {row['anchor']}, {QUALITY_NAMES[row['quality']]}, seed {seed}"
                said[f"- {where}: {row['of_mean']['reason']}"] = None
    return ["", *said] if said else []


def _costs(study: Study, stages: Sequence[Stage]) -> list[str]:
    """Speed of training, from each run's summary."""
    rows = []
    for arm in study.arms:
        summaries = [
            json.loads(read_text(stage.folder / "summary.json"))
            for stage in stages
            if isinstance(stage, FinetuneStage) and stage.name.startswith(f"arms/{arm}/")
        ]
        # A run that was resumed when nothing was left to do has no speed.
        speeds = [summary["images_per_second"] for summary in summaries if summary["images_per_second"]]
        devices = ", ".join(sorted({summary["device"] for summary in summaries}))
        skipped = sum(summary["skipped_steps"] for summary in summaries)
        rows.append([arm, f"{fmean(speeds):.3g}" if speeds else "", str(skipped), devices])
    head = ["arm", "images a second", "skipped steps", "device"]
    return [
        "Means over the runs of each arm, as they came: other work on the machine is in them.",
        "",
        *markdown_table(head, rows, 1),
    ]
