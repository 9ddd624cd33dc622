"""Text for terminals and figures: showing a result never costs the result.

File names of old archives and other systems need not be UTF-8 (Python keeps such bytes as lone surrogates), terminals
need not know more than ASCII, and who reads a pipe may go away before the work is done.
"""

import os
import sys
from typing import TextIO


def let_streams_show_everything() -> None:
    r"""What the terminal cannot show, stdout and stderr print as ``\xe9`` or ``\udce9`` from now on."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def show(text: str, file: TextIO | None = None) -> None:
    """Prints to ``file`` (stdout without it) at once.

    Where that takes nothing any more, the work goes on: in silence where the reader of a pipe has gone; else stderr
    says so.
    """
    file = file or sys.stdout
    try:
        print(text, file=file, flush=True)
    except OSError as error:
        # Python flushes what is left at its end, which would raise again.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)
        if file is not sys.stderr and not isinstance(error, BrokenPipeError):
            show(f"the output takes no more ({error.strerror}): what follows is not shown", file=sys.stderr)


def printable(text: str) -> str:
    r"""``text`` that can be encoded as UTF-8: the bytes that are none are written out, ``\udce9``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def in_a_figure(text: str) -> str:
    """The same for matplotlib, to which dollar signs begin a formula."""
    return printable(text).replace("$", r"\$")
