"""Which crops `svdrd compare --visual` shows, and that it shows them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="svdrd.compress needs pip install 'svdrd[compress]'")

from svdrd.compress import BadInput
from svdrd.compress.comparison.crops import (
    Wish,
    choose,
    draw_crops,
    find_image,
    largest_difference,
    parse_wish,
    window_means,
)

NAMES = ("a.png", "b.png", "below/c.png")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, dict[str, Path]]:
    """Noise as originals; one arm is wrong by 10 everywhere, the other by 10 but for one place of each image."""
    generator = np.random.default_rng(0)
    found: dict[str, dict[str, Path]] = {"original": {}, "base": {}, "basis": {}}
    for number, name in enumerate(NAMES):
        original = generator.integers(60, 190, (60, 80, 3))
        base, basis = original + 10, original + 10
        # 12 x 12 pixels at (left, top) = (40 - 10 number, 20), better or worse the more the later the image comes.
        basis[20:32, 40 - 10 * number : 52 - 10 * number] = original[20:32, 40 - 10 * number : 52 - 10 * number]
        basis[20:32, 40 - 10 * number : 52 - 10 * number] += (9, 4, 40)[number]
        for arm, pixels in (("original", original), ("base", base), ("basis", basis)):
            found[arm][name] = tmp_path / arm / name
            found[arm][name].parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(found[arm][name])
    return found


def arms(files: dict[str, dict[str, Path]]) -> dict[str, dict[str, Path]]:
    return {arm: files[arm] for arm in ("base", "basis")}


def test_window_means_one_by_one():
    values = np.random.default_rng(0).normal(size=(9, 7))
    means = window_means(values, 4, 3)
    assert means.shape == (6, 5)
    for top in range(6):
        for left in range(5):
            assert means[top, left] == pytest.approx(values[top : top + 4, left : left + 3].mean())
    assert window_means(values, 9, 7) == pytest.approx(values.mean())


def test_crops_are_the_windows_of_the_largest_difference_largest_image_first(files: dict[str, dict[str, Path]]):
    crops = choose([], files["original"], arms(files), side=12, count=2)
    # Errors of 1600 and 16 against 100: the third image differs most, the second next, the first (81) least.
    assert [(crop.image, crop.left, crop.top) for crop in crops] == [("below/c.png", 20, 20), ("b.png", 30, 20)]
    assert crops[0].reason.startswith("MSE here: base ")
    assert crops[0].reason.endswith(" below basis")
    assert crops[1].reason == "MSE here: basis 84 below base"
    assert len(choose([], files["original"], arms(files), side=12, count=9)) == 3


def test_any_two_arms_count():
    errors = {name: np.full((30, 40), value) for name, value in (("base", 5.0), ("control", 4.0), ("basis", 4.5))}
    errors["basis"][10:18, 25:33] = 1.0
    difference, crop = largest_difference(errors, 8)
    assert (difference, crop.left, crop.top) == (pytest.approx(4), 25, 10)
    assert crop.reason == "MSE here: basis 4 below base"


def test_windows_as_large_as_the_image_and_equal_arms():
    difference, crop = largest_difference({"one": np.ones((20, 30)), "other": np.ones((20, 30))}, 64)
    assert (difference, crop.width, crop.height, crop.left, crop.top) == (0, 30, 20, 0, 0)
    assert crop.reason == "all arms are equal"


def test_wishes(files: dict[str, dict[str, Path]]):
    wishes = [parse_wish(text) for text in ("c", "b:5,6", "below/c.png:1,2,30,20", "absent")]
    assert wishes[1] == Wish("b", (5, 6))
    crops = choose(wishes, files["original"], arms(files), side=12, count=1)
    assert [(c.image, c.left, c.top, c.width, c.height) for c in crops] == [
        ("below/c.png", 20, 20, 12, 12),
        ("b.png", 5, 6, 12, 12),
        ("below/c.png", 1, 2, 30, 20),
    ]
    assert crops[1].reason == "chosen by hand"
    with pytest.raises(BadInput, match=r"b:70,6: 12x12 pixels from there leave the image of 80x60; .* is at 68,48"):
        choose([parse_wish("b:70,6")], files["original"], arms(files), side=12, count=1)


def test_ambiguous_name():
    with pytest.raises(BadInput, match=r"--visual a: could be x/a\.png or y/a\.png"):
        find_image("a", ["x/a.png", "y/a.png"])
    assert find_image("x/a", ["x/a.png", "y/a.png"]) == "x/a.png"
    assert find_image("b", ["x/a.png"]) is None


def test_the_figure_shows_the_pixels_of_the_crops(files: dict[str, dict[str, Path]], tmp_path: Path):
    flat = {}
    for arm, colour in (("original", (255, 0, 255)), ("base", (0, 255, 255)), ("basis", (10, 20, 200))):
        flat[arm] = {"a.png": tmp_path / f"flat-{arm}.png"}
        Image.new("RGB", (80, 60), colour).save(flat[arm]["a.png"])
    crops = choose([parse_wish("a:8,8,16,16")], flat["original"], arms(flat), side=16, count=1)
    captions = {arm: {"a.png": f"{arm}: 0.1 bpp, 30 dB"} for arm in ("base", "basis")}
    draw_crops(crops, flat["original"], arms(flat), captions, "a title", tmp_path / "new" / "figure.png")
    pixels = np.asarray(Image.open(tmp_path / "new" / "figure.png").convert("RGB"))
    for colour in ((255, 0, 255), (0, 255, 255), (10, 20, 200)):
        assert (pixels == colour).all(axis=2).sum() > 20_000
