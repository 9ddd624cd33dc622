"""`make demo` with tiny settings: rows that differ, and figures with something in them."""

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

pytest.importorskip("compressai", reason="the demo needs pip install 'svdrd[demo]'")
pytest.importorskip("matplotlib", reason="the demo needs pip install 'svdrd[demo]'")
pytest.importorskip("skimage", reason="the demo needs pip install 'svdrd[demo]'")

from svdrd.compress import load_codec
from svdrd.compress.evaluation import coding
from svdrd.compress.images import metrics
from tests.scripts import script

DEMO = Path(__file__).resolve().parents[2] / "demo" / "demo.py"


@pytest.fixture
def demo() -> ModuleType:
    return script(DEMO)


def test_demo(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A corner of each photograph, just large enough for MS-SSIM.
    whole = demo.photograph
    monkeypatch.setattr(demo, "photograph", lambda name: whole(name).crop((100, 100, 292, 270)))
    arguments = ["--output", str(tmp_path), "--steps", "6", "--batch-size", "2", "--patch-size", "64"]
    assert demo.main(arguments) == 0
    printed = capsys.readouterr().out

    commands = [line for line in printed.splitlines() if line.startswith("$ svdrd")]
    control, seed, basis = (line.split() for line in commands if "finetune" in line)
    # The two arms differ in mu and in the folder they write to, and in nothing else; the third in its seed.
    folders = {arm: str(tmp_path / "run" / arm) for arm in demo.ARMS}
    differing = [(a, b) for a, b in zip(control, basis, strict=True) if a != b]
    assert differing == [("0.0", "1000.0"), (folders["control"], folders["basis"])]
    differing = [(a, b) for a, b in zip(control, seed, strict=True) if a != b]
    assert differing == [("0", "1"), (folders["control"], folders["seed"])]
    assert len([line for line in commands if "evaluate" in line]) == 7
    # It says how far it is.
    steps = [line.split()[0] for line in printed.splitlines() if line.startswith("[")]
    assert steps == [f"[{number}/10]" for number in range(1, 11)]

    table = printed[printed.index("Distance: ") :].splitlines()
    rows = {
        line.split("(")[0].split()[0]: line.split(")")[-1].split()[-5:]
        for line in table
        if line.startswith(("base ", "seed (", "control (", "basis ("))
    }
    numbers = {arm: [float(value) for value in rows[arm]] for arm in ("base", *demo.ARMS)}
    for bpp, psnr, ms_ssim, rd_loss, basis_distance in numbers.values():
        assert 0.05 < bpp < 3
        assert 15 < psnr < 45
        assert 0.5 < ms_ssim < 1
        assert rd_loss == pytest.approx(bpp + 0.013 * 255**2 * 10 ** (-psnr / 10), rel=0.2)
        assert 0 < basis_distance < 0.6
    assert len({tuple(row) for row in numbers.values()}) == 4
    difference = numbers["basis"][4] - numbers["control"][4]
    line = next(line for line in table if line.startswith("basis - control"))
    assert float(line.split()[-1]) == pytest.approx(difference, abs=2e-5)
    said = re.search(r"basis distance  the loss moved it by (\S+) %, another seed by (\S+) %", printed)
    assert said is not None
    assert float(said[1]) == pytest.approx(100 * difference / numbers["control"][4], abs=0.05)

    for name in ("rd.png", "basis_distance.png", "side_by_side.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    # What the figures show was decoded, not copied, and measured more than once.
    decoded = [np.asarray(Image.open(tmp_path / "run" / "decoded" / arm / "coffee.png")) for arm in demo.ARMS]
    assert not np.array_equal(decoded[0], decoded[2])
    assert len((tmp_path / "run" / "basis" / "metrics.csv").read_text().splitlines()) > 3


def test_the_base_lies_above_jpeg_at_every_rate(demo: ModuleType, tmp_path: Path) -> None:
    """On the held-out photographs as they are, coded; JPEG linear between its points."""
    files = []
    for name in demo.HELD_OUT:
        files.append(tmp_path / f"{name}.png")
        demo.photograph(name).save(files[-1])
    rates, psnrs = demo.jpeg_curve(files)
    for quality in demo.QUALITIES:
        path = demo.BASE / f"lambda-{demo.lambda_for(demo.MODEL, quality):g}.pth.tar"
        model = coding.make_ready(load_codec(demo.MODEL, checkpoint=path), {"checkpoint": path}, "cpu")
        with torch.no_grad():
            images = [to_tensor(Image.open(file)).unsqueeze(0) for file in files]
            coded = [coding.code(model, image) for image in images]
            found = [metrics.psnr(one.x_hat, image).item() for one, image in zip(coded, images, strict=True)]
        bpp = np.mean([one.bpp for one in coded])
        assert rates[0] < bpp < rates[-1]
        assert np.mean(found) > np.interp(bpp, rates, psnrs)


def test_training_and_held_out_photographs_are_different_ones(demo: ModuleType) -> None:
    assert not set(demo.TRAINING) & set(demo.HELD_OUT)
    for name in (*demo.TRAINING, *demo.HELD_OUT):
        assert demo.photograph(name).mode == "RGB"
