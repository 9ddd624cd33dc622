"""The versions and the device that a result was made with."""

import platform

import numpy as np
import torch

import svdrd
from svdrd.compress.compressai import __version__ as compressai_version


def versions() -> dict[str, str]:
    """By package; what checkpoints, summaries and evaluations record."""
    return {
        "svdrd": svdrd.__version__,
        # torch.__version__ is an object of torch's own, which weights_only=True refuses to load.
        "torch": str(torch.__version__),
        "compressai": compressai_version,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """The name of a GPU, or the processor and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
