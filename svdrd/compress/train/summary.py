"""summary.json: how a run ended or where it is, for people and scripts that collect runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from svdrd.compress.train.options import saved
from svdrd.compress.versions import device_name, versions

if TYPE_CHECKING:
    from svdrd.compress.train.loop import Training


def summarize(training: Training) -> dict[str, Any]:
    """Best and last validation, faults, speed, device, versions, arguments."""
    values = {
        "finished": training.validated_step >= training.total_steps,
        "step": training.step,
        "total_steps": training.total_steps,
        "best": min(training.history, key=lambda row: row["val_loss"], default=None),
        "last": training.history[-1] if training.history else None,
        "skipped_steps": training.faults.steps,
        "skipped_by_term": training.faults.terms or {},
        "damaged_images": sorted(training.damaged),
        "images_per_second": round(training.images_per_second(), 3),
        "processes": training.processes.size,
        "device": device_name(training.processes.device),
        "versions": versions(),
        "arguments": saved(training.arguments),
    }
    return {key: _json_value(value) for key, value in values.items()}


def _json_value(value: Any) -> Any:
    """JSON has no NaN and no infinity: null there."""
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
