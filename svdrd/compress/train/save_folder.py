"""The folder of a run: whether one may begin there, and what is in it before the first step."""

from pathlib import Path
from typing import Any

from svdrd.compress.codecs import checkpoints
from svdrd.compress.errors import BadInput
from svdrd.compress.files import check_writable, write_json

ADVICE = "choose another, or --no-save"


def check_save_folder(folder: Path, resume: str | None) -> None:
    """Whether a run may begin in ``folder``, or the one of the checkpoint ``resume`` go on there; writes nothing.

    Raises:
        BadInput: it holds another run, or cannot be written to.
    """
    last = folder / checkpoints.LAST
    continued = resume is not None and Path(resume).resolve().parent == folder.resolve()
    if last.exists() and not continued:
        raise BadInput(f"--save-dir {folder}: holds a run already; continue it with --resume {last}, or choose another")
    check_writable("--save-dir", folder, ADVICE)


def prepare_save_folder(folder: Path, config: dict[str, Any]) -> None:
    """The folder with the effective configuration in it, and without what a killed process left half written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.remove_leftovers(folder)
        write_json(folder / "config.json", config)
    except OSError as error:
        raise BadInput(f"--save-dir {folder}: not writable ({error.strerror}); {ADVICE}") from error
