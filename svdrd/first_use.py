"""Names that are imported when they are first used (PEP 562): the command line answers ``--help`` without torch.

Whoever imports the package gets all of it at once.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any


def in_the_command_line() -> bool:
    """Whether this program is ``svdrd`` or ``python -m svdrd``."""
    if "svdrd.__main__" in sys.modules:
        return True
    # Before that module is there: Python imports the package that it is in.
    program = getattr(sys, "argv", [""])[:1]
    return [Path(name).stem for name in program] == ["svdrd"] or ("-m", "svdrd") in pairwise(sys.orig_argv)


def on_first_use(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of ``package``.

    Args:
        package: its ``__name__``.
        homes: for each public name the module that defines it, or that is it.
    """

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(homes[name])
        # From now on an attribute like any other.
        value = module if homes[name] == f"{package}.{name}" else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return getattr_, dir_
