"""`make demo` with tiny settings: three rows that differ, and two figures with something in them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

for package in ("compressai", "matplotlib", "skimage"):
    pytest.importorskip(package, reason="the demo needs pip install 'svdrd[demo]'")

DEMO = Path(__file__).resolve().parents[2] / "demo" / "demo.py"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    specification = importlib.util.spec_from_file_location("demo", DEMO)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    # A corner of each photograph, just large enough for MS-SSIM.
    whole = module.photograph
    monkeypatch.setattr(module, "photograph", lambda name: whole(name).crop((100, 100, 292, 270)))
    return module


def test_demo(demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path), "--steps", "3", "--batch-size", "2", "--patch-size", "64", "--mu", "300"]
    assert demo.main(arguments) == 0
    printed = capsys.readouterr().out

    commands = [line for line in printed.splitlines() if line.startswith("$ svdrd")]
    control, basis = (line.split() for line in commands if "finetune" in line)
    # The two arms differ in mu and in the folder they write to, and in nothing else.
    differing = [(a, b) for a, b in zip(control, basis, strict=True) if a != b]
    assert differing == [("0", "300.0"), (str(tmp_path / "run" / "control"), str(tmp_path / "run" / "basis"))]
    assert len([line for line in commands if "evaluate" in line]) == 3
    # It says how far it is.
    steps = [line[:5] for line in printed.splitlines() if line.startswith("[")]
    assert steps == [f"[{number}/5]" for number in range(1, 6)]

    table = printed[printed.index("basis distance\n") :].splitlines()
    rows = {line.split()[0]: line.split(")")[-1].split() for line in table if ")" in line}
    assert any(line.startswith("basis - control") for line in table)
    numbers = {arm: [float(value) for value in rows[arm]] for arm in ("base", "control", "basis")}
    for bpp, psnr, ms_ssim, rd_loss, basis_distance in numbers.values():
        assert 0.05 < bpp < 3
        assert 15 < psnr < 45
        assert 0.5 < ms_ssim < 1
        assert rd_loss == pytest.approx(bpp + 0.013 * 255**2 * 10 ** (-psnr / 10), rel=0.2)
        assert 0 < basis_distance < 0.2
    assert numbers["base"] != numbers["control"] != numbers["basis"] != numbers["base"]

    for name in ("rd.png", "side_by_side.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    # What the figure shows was decoded, not copied.
    decoded = [np.asarray(Image.open(tmp_path / "run" / "decoded" / arm / "coffee.png")) for arm in demo.ARMS]
    assert not np.array_equal(decoded[0], decoded[1])
    assert not np.array_equal(decoded[1], decoded[2])


def test_training_and_held_out_photographs_are_different_ones(demo: ModuleType) -> None:
    assert not set(demo.TRAINING) & set(demo.HELD_OUT)
    for name in (*demo.TRAINING, *demo.HELD_OUT):
        assert demo.photograph(name).mode == "RGB"
