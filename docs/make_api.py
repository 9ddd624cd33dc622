"""Writes docs/api from the docstrings of the public names: ``python docs/make_api.py``.

The docstrings are reStructuredText with Google's sections, as far as the project uses them. ``--check`` writes nothing
and fails where a page is not what the docstrings say.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

API = Path(__file__).resolve().parent / "api"
PAGES = {
    "ops": (
        "The operators",
        ("svdrd.ops.basis_loss", "svdrd.ops.polar_factor", "svdrd.ops.svd", "svdrd.ops.recompose", "svdrd.BasisLoss",
         "svdrd.use_backend"),
    ),
    "compress": (
        "Training codecs",
        ("svdrd.compress.BasisRateDistortionLoss", "svdrd.compress.load_codec", "svdrd.compress.lambda_for",
         "svdrd.compress.BadInput"),
    ),
}  # fmt: skip
SECTIONS = ("Args", "Returns", "Raises", "Example")
END = {"math": (r"\end{aligned}", "```"), "python": ("```",)}


def signature(name: str, thing: Callable[..., Any]) -> str:
    """As it is called, an argument a line where it is long."""

    def written(annotation: Any) -> str:
        text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        text = text.replace("torch.nn.modules.module.", "").removeprefix("torch.")
        return re.sub(r"\bsvdrd\.[\w.]*\.", "", text)

    def annotated(parameter: inspect.Parameter) -> str:
        text = written(parameter.annotation)
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        return f"{parameter.name}: {text}{default}"

    called = inspect.signature(thing)
    arguments = [annotated(parameter) for parameter in called.parameters.values()]
    returned = called.return_annotation
    result = "" if returned in (called.empty, None, "None") else f" -> {written(returned)}"
    line = f"{name}({', '.join(arguments)}){result}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(arguments) + f",\n){result}"


def markdown(docstring: str) -> Iterator[str]:
    """The lines of a docstring: sections as lists, formulas and examples as blocks, roles and code as code."""
    section, block = "", ""
    for line in docstring.splitlines():
        indent = len(line) - len(line.lstrip())
        if block and line.strip() and indent == 0:
            yield from END[block]
            yield ""
            block = ""
        if block:
            if line.strip():
                yield line[4:]
            continue
        if line.strip() == ".. math::":
            block = "math"
            yield from ("```math", r"\begin{aligned}")
            continue
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            section = line.rstrip(":")
            if line.endswith("::"):
                block = "python"
                yield "```python"
            else:
                yield f"**{section}**"
                yield ""
            continue
        text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", line).replace("``", "`")
        if not text.strip():
            section = "" if indent == 0 else section
            yield ""
        elif section and indent == 4 and section != "Returns":
            name, _, rest = text.strip().partition(": ")
            yield f"- `{name}`: {rest}" if rest else f"- {name}"
        elif section and indent:
            yield text[4:] if section == "Returns" else "  " + text.strip()
        else:
            section = ""
            yield text
    if block:
        yield from END[block]


def entry(name: str) -> str:
    """A heading, the signature and the docstring of one name."""
    module, _, attribute = name.rpartition(".")
    thing = getattr(importlib.import_module(module), attribute)
    own = attribute if module == "svdrd.ops" else name
    docstring = inspect.getdoc(thing) or ""
    lines = [f"## `{name}`", ""]
    if not (inspect.isclass(thing) and issubclass(thing, Exception)):
        lines += ["```python", signature(own, thing), "```", ""]
    return "\n".join([*lines, *markdown(docstring)]).rstrip() + "\n"


def page(title: str, names: Sequence[str]) -> str:
    """A page of the reference."""
    made = "This page is made from the docstrings, by `python docs/make_api.py`."
    text = "\n".join([f"# {title}", "", made, "", *(entry(name) for name in names)])
    return re.sub(r"\n{3,}", "\n\n", text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python docs/make_api.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    arguments = parser.parse_args(argv)
    differing = []
    for stem, (title, names) in PAGES.items():
        path, text = API / f"{stem}.md", page(title, names)
        if path.exists() and path.read_text() == text:
            continue
        differing.append(path.name)
        if not arguments.check:
            API.mkdir(exist_ok=True)
            path.write_text(text)
    if arguments.check and differing:
        print(f"{parser.prog}: docs/api is not what the docstrings say: {', '.join(differing)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
