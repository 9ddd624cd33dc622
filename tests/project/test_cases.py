"""The collected cases of other people's bug reports, each a program of its own; where they lie beside the project.

What they found is tested where it belongs. This shows that each whole situation is right.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = sorted((ROOT.parent / "shared" / "cases").glob("*.py"))
# Modules that have moved since the cases were written.
MOVED = {
    "svdrd.compress.data import ImageFolder": "svdrd.compress.images.folders import ImageFolder",
    'sys.modules["svdrd.library"]': 'sys.modules["svdrd.dispatch.registration"]',
}


@pytest.mark.skipif(not CASES, reason="no collection of cases beside the project")
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_case(case: Path, tmp_path: Path) -> None:
    program = case.read_text()
    for before, now in MOVED.items():
        program = program.replace(before, now)
    (tmp_path / case.name).write_text(program)
    command = [sys.executable, str(tmp_path / case.name)]
    # As a user runs it: without what tests/conftest.py sets for the kernels of a GPU.
    environment = {
        key: os.environ[key] for key in os.environ if key not in ("TRITON_INTERPRET", "SVDRD_CUDA_EMULATION")
    }
    environment["TMPDIR"] = str(tmp_path)
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
