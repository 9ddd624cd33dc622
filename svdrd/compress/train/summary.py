"""summary.json: how a run ended or where it is, for people and scripts that collect runs."""

import math
from typing import Any

from svdrd.compress.train.state import RunState
from svdrd.compress.versions import device_name, versions


def summarize(state: RunState, total_steps: int, images_per_second: float) -> dict[str, Any]:
    """Best and last validation, faults, speed, device, versions, arguments."""
    values = {
        "finished": state.validated_step >= total_steps,
        "step": state.step,
        "total_steps": total_steps,
        "best": min(state.history, key=lambda row: row["val_loss"], default=None),
        "last": state.history[-1] if state.history else None,
        "skipped_steps": state.faults.steps,
        "skipped_by_term": state.faults.terms or {},
        "damaged_images": sorted(state.damaged),
        "images_per_second": round(images_per_second, 3),
        "processes": state.processes.size,
        "device": device_name(state.processes.device),
        "versions": versions(),
        "arguments": state.config.saved(),
    }
    return {key: _json_value(value) for key, value in values.items()}


def _json_value(value: Any) -> Any:
    """JSON has no NaN and no infinity: null there."""
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
