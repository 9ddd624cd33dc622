"""The command that measures what the loss costs, on a step small enough for a test."""

import pytest

pytest.importorskip("compressai")

from benchmarks import training_step


def test_a_line_for_each_codec(capsys: pytest.CaptureFixture[str]):
    argv = ["--patch-size", "64", "--batch-size", "1", "--rounds", "1", "--quality", "1"]
    assert training_step.main([*argv, "--codecs", "bmshj2018-factorized", "bmshj2018-hyperprior"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| bmshj2018")]
    assert len(lines) == 2
    for line in lines:
        _, name, without, with_loss, _, _, loss, share, _ = (cell.strip() for cell in line.split("|"))
        assert name.endswith(", quality 1")
        assert float(without) > 0
        assert float(with_loss) > float(loss) / 1000 > 0
        assert 0 < float(share.removesuffix(" %")) < 100
