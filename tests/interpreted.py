"""Triton's interpreter without half of its time, which goes into preparing the language that it has prepared before.

For a launch it replaces the functions of ``triton.language``, which it finds among all members of the package.
It does so again at every call of a function within the kernel, and that takes longer than the kernel's arithmetic.
Here the builtins are looked for once, and nothing is replaced that is replaced. What is interpreted is as before.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any


def prepare_once() -> None:
    """For this process; nothing happens where Triton is missing."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        return
    names: dict[Any, list[str]] = {}

    def getmembers(place: Any) -> list[tuple[str, Any]]:
        if place not in names:
            names[place] = [name for name, member in inspect.getmembers(place) if tl.core.is_builtin(member)]
        return [(name, getattr(place, name)) for name in names[place]]

    # The interpreter's name `inspect`, and nobody else's. It asks for members where it looks for builtins, only there.
    once = types.ModuleType("inspect")
    vars(once).update(vars(inspect), getmembers=getmembers)
    interpreter.inspect = once

    replace, original = interpreter._patch_lang, tl.range
    places: dict[Callable[..., Any], list[Any]] = {}

    def replace_once(function: Callable[..., Any]) -> Any:
        """Each launch replaces methods of tensors, and takes them back at its end: within it they are replaced."""
        if function not in places:
            places[function] = [place for place in function.__globals__.values() if place is tl or place is tl.core]
        # Of what is replaced together, `range` stands for the functions and `__index__` for the methods.
        if "__index__" in vars(tl.tensor) and all(place.range is not original for place in places[function]):
            return interpreter._LangPatchScope()  # with nothing to take back
        return replace(function)

    if hasattr(interpreter, "_LangPatchScope") and "__index__" not in vars(tl.tensor):
        interpreter._patch_lang = replace_once
