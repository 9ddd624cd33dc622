"""``python -m benchmarks``: runs the suite. The whole of it also draws both figures and writes the tables.

Options are those of pytest and of ``benchmarks/conftest.py``: ``-k basis_loss-both``, ``--ops svd,recompose``,
``--quick``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import history, registry, report

QUIET = ("-q", "--no-header", "--benchmark-only", "--benchmark-disable-gc", "--benchmark-quiet")


def main(argv: Sequence[str]) -> int:
    for name, reason in registry.ABSENT.items():
        print(f"not taking part: {name}, {reason}")
    # pytest-benchmark would summarise a case's rounds over all providers; the rows say it by provider.
    code = int(pytest.main([str(Path(__file__).parent), "-p", "no:cacheprovider", *QUIET, *argv]))
    if code or argv:  # a part of the suite is no reason to replace the figure and tables of a whole run
        return code
    return report.main([]) or history.main([])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
