"""How Sphinx makes the pages: ``make docs``.

The source folder is the top of the repository, so that a link between Markdown files means the same here and in a
viewer of the repository. Nothing in the Markdown is for Sphinx alone; what Sphinx needs beside it, a table of contents,
is made from docs/index.md below. The build asks the network for nothing.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
# autodoc imports this checkout, also where another one is installed.
sys.path.insert(0, str(ROOT))

project = "svdrd"
author = "the svdrd contributors"
project_copyright = "the svdrd contributors; MIT licence"
release = version = version_of("svdrd")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/**", "examples/*.ipynb",
]  # fmt: skip
exclude_patterns = [".*", "build", "csrc", "runs", "svdrd.egg-info", "tests"]

# As in a viewer of the repository: headings have anchors, fences of a language that Sphinx does not know stay text.
myst_heading_anchors = 4
myst_enable_extensions: list[str] = []
suppress_warnings = ["myst.xref_ambiguous"]
# The notebook's outputs are committed and tested (tests/project/test_notebook.py).
nb_execution_mode = "off"

# A fence without a language is a command or a formula.
highlight_language = "none"

nitpicky = True
# Types of Python and PyTorch: their pages are elsewhere, and to link them a build would need the network.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|compressai|os|collections|typing)\..*"),
    ("py:.*", "Tensor|Iterator|Any|TypeError, ValueError|optional"),
    # The named tuple that svd returns; its docstring has the three fields.
    ("py:class", r"svdrd\.ops\.svd\.SVD"),
]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
# An argument a line, which phones can show.
maximum_signature_line_length = 60
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_param = False  # "x_hat, x" stay one entry
napoleon_use_rtype = False

templates_path = ["_templates"]
# Two columns that become one on a phone, tables and code that scroll by themselves, a dark theme, plain CSS.
html_theme = "furo"
html_title = f"svdrd {release}"
html_static_path = ["_static"]
html_css_files = ["svdrd.css"]
html_copy_source = False
html_show_sourcelink = False
# The site's own address leads to the index.
html_additional_pages = {"index": "to_the_index.html"}

LINK = re.compile(r"\]\(([^)\s#]+\.(?:md|ipynb))(?:#[^)]*)?\)")


def contents(index: str, folder: Path) -> str:
    """A table of contents of the sections of docs/index.md: each page once, under the reader it is named for first."""
    seen: set[Path] = set()
    tables = []
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        pages = []
        for target in LINK.findall(section):
            page = (folder / target).resolve()
            if page not in seen:
                seen.add(page)
                pages.append(f"/{page.relative_to(ROOT).with_suffix('').as_posix()}")
        if pages:
            caption = section.splitlines()[0]
            tables.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]))
    return "\n\n".join(tables)


def add_contents(app: Sphinx, document: str, source: list[str]) -> None:
    """For Sphinx, before it reads a page."""
    if document == root_doc:
        source[0] += "\n" + contents(source[0], Path(__file__).parent)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
