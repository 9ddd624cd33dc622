"""examples/basis_loss.ipynb: its cells run, print what is committed, and its figures are small and described."""

from __future__ import annotations

import contextlib
import io
import json
import re
from typing import Any

import pytest

from tests.project.examples import EXAMPLES

ROOT = EXAMPLES.parent
NOTEBOOK = EXAMPLES / "basis_loss.ipynb"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?")
CELLS: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)


def printed(cell: dict[str, Any]) -> str:
    return "".join(text(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def figures(cell: dict[str, Any]) -> list[str]:
    return [output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})]


def test_its_cells_print_what_is_committed(monkeypatch: pytest.MonkeyPatch):
    """Counts of NaN and last digits are LAPACK's, which differs between processors."""
    for package in ("matplotlib", "skimage"):
        pytest.importorskip(package, reason="the notebook needs matplotlib and scikit-image")
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in CODE:
        out = io.StringIO()
        before = len(shown)
        with contextlib.redirect_stdout(out):
            exec(text(cell["source"]), names)
        assert len(shown) - before == len(figures(cell)), cell["id"]
        now, committed = out.getvalue(), printed(cell)
        assert NUMBER.sub("#", now) == NUMBER.sub("#", committed), cell["id"]
        numbers = [[float(number) for number in NUMBER.findall(said)] for said in (now, committed)]
        if cell["id"] == "gradients":
            nans, blocks, error, _ = numbers[0]
            assert 100 < nans < blocks == 576
            assert error < 1e-5
        else:
            assert numbers[0] == pytest.approx(numbers[1], rel=0.1), cell["id"]
    plt.close("all")


def test_its_outputs_are_whole_and_small():
    assert NOTEBOOK.stat().st_size < 300 * 1024
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert {output["output_type"] for cell in CODE for output in cell["outputs"]} == {"stream", "display_data"}
    assert not [cell["id"] for cell in CELLS if "execution" in cell["metadata"]]
    assert len([figure for cell in CODE for figure in figures(cell)]) == 4


@pytest.mark.parametrize("cell", [cell for cell in CODE if figures(cell)], ids=lambda cell: cell["id"])
def test_a_figure_has_an_alternative_text(cell: dict[str, Any]):
    assert len(cell["metadata"]["mystnb"]["image"]["alt"]) > 40


def test_its_links_lead_somewhere():
    words = "".join(text(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    targets = re.findall(r"\]\(([^)#]+)", words)
    assert len(targets) >= 4
    assert not [target for target in targets if not (EXAMPLES / target).exists()]


def test_it_opens_in_colab_as_soon_as_there_is_an_address():
    """Colab opens notebooks of public repositories. pyproject.toml has the address, or says that there is none yet."""
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("pyproject.toml is not beside these tests")
    address = re.search(r'^Repository = "https://github\.com/(.*?)/?"$', (ROOT / "pyproject.toml").read_text(), re.M)
    badges = re.findall(r"https://colab\.research\.google\.com/github/([^)\s]+)", (ROOT / "README.md").read_text())
    assert badges == ([f"{address[1]}/blob/main/examples/{NOTEBOOK.name}"] if address else [])
