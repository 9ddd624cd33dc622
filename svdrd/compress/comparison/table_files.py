"""A comparison as files: Markdown to read, CSV and JSON to go on with. A missing number is an empty cell, never NaN."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from svdrd.compress.comparison.bd_rate import METHODS, PRIMARY
from svdrd.compress.comparison.differences import QUALITIES, BDRate, Comparison, Estimate, RDLoss
from svdrd.compress.comparison.tables import find, markdown, rate_name, row_keys
from svdrd.compress.files import write_text


def write_tables(comparison: Comparison, folder: Path, figures: Sequence[str] = ()) -> list[Path]:
    """Writes comparison.md, Table I as table-*.csv, all numbers as bd-rate*.csv and rd-loss.csv, and comparison.json.

    Returns:
        what was written.
    """
    paths = [folder / "comparison.md"]
    write_text(paths[0], markdown(comparison, figures))
    rows = {f"table-{quality}.csv": _table_one_rows(comparison, quality) for quality in QUALITIES}
    rows |= {
        "points.csv": _point_rows(comparison),
        "bd-rate.csv": [_bd_rate_row(row) for row in comparison.bd_rates],
        "bd-rate-images.csv": _image_rows(comparison),
        "rd-loss.csv": [_loss_row(row) for row in comparison.rd_losses],
    }
    for name, table in rows.items():
        # One of an earlier call must not pass for one of this.
        (folder / name).unlink(missing_ok=True)
        if table:
            paths.append(_write_csv(folder / name, table))
    paths.append(folder / "comparison.json")
    content = {
        "resamples": comparison.resamples,
        "seed": comparison.seed,
        "primary": PRIMARY,
        "methods": METHODS,
        "rate": rate_name(comparison),
        "bd_rates": [asdict(row) for row in comparison.bd_rates],
        "rd_losses": [asdict(row) for row in comparison.rd_losses],
        "notes": comparison.notes,
    }
    write_text(paths[-1], json.dumps(content, indent=2, allow_nan=False) + "\n")
    return paths


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())
    return path


def _table_one_rows(comparison: Comparison, quality: str) -> list[dict[str, Any]]:
    datasets = list(dict.fromkeys(row.dataset for row in comparison.bd_rates))
    rows = []
    for codec, arm, anchor in row_keys(comparison):
        row: dict[str, Any] = {"codec": codec, "arm": arm, "anchor": anchor}
        for dataset in datasets:
            found = find(comparison, dataset, codec, arm, anchor, quality)
            of_mean = Estimate() if found is None else found.of_mean
            row |= {dataset: of_mean.value, f"{dataset} low": of_mean.low, f"{dataset} high": of_mean.high}
            row[f"{dataset} note"] = of_mean.reason
        rows.append(row)
    return rows


def _point_rows(comparison: Comparison) -> list[dict[str, Any]]:
    rows = []
    for curve in comparison.curves:
        for k, point in enumerate(curve.points):
            for index, image in enumerate(curve.images):
                rows.append(
                    {
                        "dataset": curve.dataset,
                        "codec": curve.codec,
                        "arm": curve.arm,
                        "point": point,
                        "lambda": curve.lmbda[k],
                        "mu": curve.mu[k] if curve.mu else None,
                        "image": image,
                        rate_name(comparison): curve.bpp[k, index],
                        "psnr": curve.psnr[k, index],
                        "ms-ssim": curve.ms_ssim[k, index],
                    }
                )
    return rows


def _names(row: BDRate | RDLoss) -> dict[str, Any]:
    return {"dataset": row.dataset, "codec": row.codec, "arm": row.arm, "anchor": row.anchor}


def _bd_rate_row(row: BDRate) -> dict[str, Any]:
    return _names(row) | {
        "quality": row.quality,
        "method": row.method,
        "bd_rate": row.of_mean.value,
        "low": row.of_mean.low,
        "high": row.of_mean.high,
        "note": row.of_mean.reason,
        "mean_of_images": row.of_images.value,
        "images_low": row.of_images.low,
        "images_high": row.of_images.high,
        "images_note": row.of_images.reason,
        "overlap": row.overlap,
    }


def _image_rows(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        _names(row)
        | {"quality": row.quality, "method": row.method, "image": image}
        | {"bd_rate": "" if isinstance(value, str) else value, "note": value if isinstance(value, str) else ""}
        for row in comparison.bd_rates
        for image, value in row.images.items()
    ]


def _loss_row(row: RDLoss) -> dict[str, Any]:
    return _names(row) | {
        "lambda": row.lmbda,
        "metric": row.metric,
        "anchor_loss": row.anchor_loss,
        "difference": row.difference.value,
        "low": row.difference.low,
        "high": row.difference.high,
        "percent": row.percent.value,
        "percent_low": row.percent.low,
        "percent_high": row.percent.high,
        "better": row.better,
        "images": row.images,
        "note": row.percent.reason,
    }
