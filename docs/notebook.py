"""Runs examples/basis_loss.ipynb and writes its outputs into it: ``make notebook``."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "basis_loss.ipynb"


def main() -> int:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # The time of a run is no result; without it a run that computes the same leaves the file as it was.
    NotebookClient(
        notebook, timeout=120, record_timing=False, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    # The kernel's version of Python would be another one on each machine.
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK}: {NOTEBOOK.stat().st_size // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
