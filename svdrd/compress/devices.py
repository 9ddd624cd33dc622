"""The devices of this machine: which one is used where none is named, and whether a named one works."""

import torch

from svdrd.compress.errors import BadInput


def default_device() -> str:
    """``"cuda"`` where there is a GPU, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raises BadInput where ``device`` is no device of this machine."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"--device {device}: {reason}; --device cpu works everywhere") from error
