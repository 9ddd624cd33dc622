"""Where the numbers of an evaluation come from: the weights, the images, and how they were made."""

import hashlib
import json
from typing import Any

from svdrd.compress.codecs import checkpoints
from svdrd.compress.codecs.models import lambda_for
from svdrd.compress.files import sha256
from svdrd.compress.images.folders import ImageFolder
from svdrd.compress.versions import versions


def weights_of(metric: str, codec: dict[str, Any]) -> str:
    """The SHA-256 of a checkpoint, ``{"checkpoint": path}``, or the name of the zoo's weights, ``{"quality": q}``."""
    return f"zoo {metric} {codec['quality']}" if "quality" in codec else sha256(codec["checkpoint"])


def origin(model: str, metric: str, codec: dict[str, Any]) -> dict[str, Any]:
    """Which weights a point was made with, and ``lambda``, ``mu`` and ``metric`` of their training, None if unknown."""
    known: dict[str, Any] = {}
    if "quality" in codec:
        known = {"lmbda": lambda_for(model, codec["quality"], metric), "mu": 0.0, "metric": metric}
    elif isinstance(arguments := checkpoints.load(codec["checkpoint"]).get("arguments"), dict):
        known = arguments
    return {
        "weights": weights_of(metric, codec),
        "lambda": known.get("lmbda"),
        "mu": known.get("mu"),
        "metric": known.get("metric"),
    }


def digest_of(images: ImageFolder) -> str:
    """Of the names and contents of the images, in their order; not of where the folder is."""
    listing = [(images.name(index), sha256(path)) for index, path in enumerate(images.samples)]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def settings_of(model: str, images: ImageFolder, estimated: bool, device: str) -> dict[str, Any]:
    """How an evaluation was made. Two are comparable where ``images``, ``rate`` and ``quality`` are equal."""
    return {
        "model": model,
        "dataset": images.root.resolve().name,
        "images": digest_of(images),
        "rate": "estimated" if estimated else "coded",
        "quality": "8-bit",
        "device": device,
        "versions": versions(),
    }
