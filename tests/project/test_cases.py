"""The collected cases of other people's bug reports, each a program of its own; where they lie beside the project.

What they found is tested where it belongs. This shows that each whole situation is right.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.warm import Warm

ROOT = Path(__file__).resolve().parents[2]
CASES = sorted((ROOT.parent / "shared" / "cases").glob("*.py"))
# Modules that have moved since the cases were written.
MOVED = {
    "svdrd.compress.data import ImageFolder": "svdrd.compress.images.folders import ImageFolder",
    'sys.modules["svdrd.library"]': 'sys.modules["svdrd.dispatch.registration"]',
}


@pytest.mark.skipif(not CASES, reason="no collection of cases beside the project")
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_case(case: Path, tmp_path: Path, warm: Warm) -> None:
    program = case.read_text()
    for before, now in MOVED.items():
        program = program.replace(before, now)
    (tmp_path / case.name).write_text(program)
    result = warm.run([tmp_path / case.name], tmp_path, cwd=ROOT, timeout=400)
    assert result.returncode == 0, (result.stdout + result.stderr).decode(errors="replace")
