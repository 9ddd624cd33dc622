"""Checkpoints in CompressAI's layout, written so that no interruption leaves half a file."""

import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdrd.compress.errors import BadInput
from svdrd.compress.files import replacing

LAST = "checkpoint.pth.tar"
BEST = "checkpoint_best_loss.pth.tar"


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Writes ``state`` to ``path``: either the whole new file is there afterwards, or the old one untouched.

    :func:`remove_leftovers` removes what a killed process left half written.

    Raises:
        OSError: the disk is full, the folder is gone, and so on.
    """
    try:
        with replacing(path) as file:
            torch.save(dict(state), file)
    except RuntimeError as error:
        # On a full disk torch.save stumbles over its own count of the bytes written, and hides what happened.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes the temporary files of processes that were killed while they saved into ``folder``."""
    for name in (LAST, BEST):
        for path in Path(folder).glob(f"{name}*.tmp"):
            path.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Reads a checkpoint with ``weights_only=True``: a downloaded file cannot run code.

    Raises:
        BadInput: the file is missing, is no checkpoint, or holds other objects than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"checkpoint {str(path)!r}: no such file; give a .pth.tar of svdrd finetune or CompressAI")
    try:
        with warnings.catch_warnings():
            # About the pickle protocol of what is no pickle at all; the error below says it better.
            warnings.simplefilter("ignore", UserWarning)
            state = torch.load(path, map_location=map_location, weights_only=True)
    # On a damaged file the unpickler raises whatever it stumbles over, IndexError and struct.error included.
    except Exception as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise BadInput(
                f"checkpoint {str(path)!r}: not readable as tensors and plain values: it holds {refused[1]}, and "
                "loading that can run any code; if you made it yourself, load it with weights_only=False and save "
                "{'state_dict': its weights} to a new one"
            ) from error
        text = " ".join(str(error).split())
        reason = text.rpartition("WeightsUnpickler error: ")[2].partition(" In PyTorch 2.6")[0][:160]
        raise BadInput(
            f"checkpoint {str(path)!r}: not readable as tensors and plain values ({reason}); "
            "save it again with torch.save({'state_dict': model.state_dict()}, path)"
        ) from error
    if not isinstance(state, dict):
        raise BadInput(f"checkpoint {str(path)!r}: holds a {type(state).__name__}, wanted a dict with a 'state_dict'")
    return state


def with_constants(state_dict: Mapping[str, Tensor], of_code: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """``state_dict`` with the constants of the code where it holds them in 16 bits, as after ``model.half()``.

    CompressAI keeps bounds and offsets as buffers. In float16 1e-9, under which no likelihood falls, is 0; so is the
    2^-36 inside GDN. A likelihood of 0 has an infinite rate, and its gradient is NaN.

    Args:
        state_dict: weights by name.
        of_code: makes those of a new model of the same class; called where they are needed.
    """
    rounded = [
        key
        for key, value in state_dict.items()
        if key.endswith((".bound", ".pedestal")) and value.dtype in (torch.float16, torch.bfloat16)
    ]
    constants = of_code() if rounded else {}
    return {**state_dict, **{key: constants[key] for key in rounded if key in constants}}
