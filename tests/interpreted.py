"""Triton's interpreter without half of its time, which goes into looking for the same names again and again.

Each call of a function of a kernel searches all members of ``triton.language`` for builtins, and finds those that it found
before: the search takes longer than the kernel's arithmetic. Here it is done once for each module and class. What is
interpreted, and how, is as before.
"""

from __future__ import annotations

import inspect
import types
from typing import Any


def find_builtins_once() -> None:
    """For this process; nothing happens where Triton is missing, or no longer searches like that."""
    try:
        from triton.language.core import is_builtin
        from triton.runtime import interpreter
    except ImportError:
        return
    names: dict[Any, list[str]] = {}

    def getmembers(place: Any) -> list[tuple[str, Any]]:
        if place not in names:
            names[place] = [name for name, member in inspect.getmembers(place) if is_builtin(member)]
        return [(name, getattr(place, name)) for name in names[place]]

    # Its name `inspect`, and nobody else's.
    once = types.ModuleType("inspect")
    vars(once).update(vars(inspect), getmembers=getmembers)
    interpreter.inspect = once
