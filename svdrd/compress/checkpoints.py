"""Checkpoints in CompressAI's layout, written so that no interruption leaves half a file."""

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from svdrd.compress.errors import BadInput

LAST = "checkpoint.pth.tar"
BEST = "checkpoint_best_loss.pth.tar"


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Writes ``state`` to ``path``: either the whole new file is there afterwards, or the old one untouched.

    The temporary file lies in the same folder, because only a rename within one file system is atomic.
    """
    path = Path(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file readable by its owner only.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
        reason = " ".join(str(error).split())[:160]
        raise BadInput(
            f"checkpoint {str(path)!r}: not readable as tensors and plain values ({reason}); "
            "save it again with torch.save({'state_dict': model.state_dict()}, path)"
        ) from error
    if not isinstance(state, dict):
        raise BadInput(f"checkpoint {str(path)!r}: holds a {type(state).__name__}, wanted a dict with a 'state_dict'")
    return state


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
