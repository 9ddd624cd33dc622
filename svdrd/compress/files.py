"""Files that are there whole or not at all, and are known by their contents."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from svdrd.compress.errors import BadInput


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to: afterwards either the whole new one is at ``path``, or the old one untouched.

    The temporary file lies in the same folder, because only a rename within one file system is atomic. It is removed
    where writing fails.

    Raises:
        OSError: the disk is full, the folder is gone, and so on.
    """
    path = Path(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file readable by its owner only.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""``text`` in UTF-8 at ``path``, as :func:`replacing` writes; its folder is made where there is none.

    What is no text, such as a file name of other bytes, is written out as ``\udce9``: whoever reads UTF-8 can read it.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def read_text(path: str | os.PathLike[str]) -> str:
    """A file in UTF-8, whatever the locale; the byte-order mark that some editors write is none of the text.

    Raises:
        OSError: no such file, and so on.
        ValueError: not UTF-8.
    """
    return Path(path).read_text(encoding="utf-8-sig")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """``content`` at ``path``, as :func:`replacing` writes; its folder is made where there is none."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def existing_folder(path: str | os.PathLike[str]) -> Path:
    """``path``, or the nearest one above it that exists."""
    path = Path(path)
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def check_writable(option: str, folder: str | os.PathLike[str], advice: str = "choose another") -> None:
    """Whether files can be written into ``folder``, which is there or could be made; leaves nothing behind.

    Raises:
        BadInput: they cannot; names ``option``, and ends with ``advice``.
    """
    existing = existing_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise BadInput(
            f"{option} {folder}: not writable: {str(existing)!r} is not a folder that can be written to "
            f"({error.strerror}); {advice}"
        ) from error


def sha256(path: str | os.PathLike[str]) -> str:
    """Of the contents, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Without it the rename itself may be lost with the power."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
