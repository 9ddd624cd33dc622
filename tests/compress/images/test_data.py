import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("compressai")

from torch.utils.data import DataLoader
from torchvision import transforms

from svdrd.compress import BadInput
from svdrd.compress.images.batches import EqualSizeBatches, TrainingBatches
from svdrd.compress.images.folders import ImageFolder, list_images, read_image
from tests.compress.conftest import synthetic_photograph


def names(folder: ImageFolder) -> list[str]:
    return [path.name for path in folder.samples]


def damage(path: Path) -> None:
    """The header stays readable, the pixels do not."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_compressais_layout(photographs: Path):
    train = ImageFolder(photographs, split="train")
    assert names(train) == ["a.png", "b.jpg", "c.png", "d.JPG", "e.png"]
    assert train.skipped == 1
    assert names(ImageFolder(photographs, split="test")) == ["x.png", "y.png"]
    assert len(ImageFolder(photographs)) == 7


def test_any_folder(photographs: Path):
    assert names(ImageFolder(photographs / "train", split="train")) == ["a.png", "b.jpg", "c.png", "d.JPG", "e.png"]
    assert names(ImageFolder(photographs / "test", split="test")) == ["x.png", "y.png"]


def test_training_without_train_folder_leaves_the_test_images_out(tmp_path: Path):
    for name in ("a.png", "test/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        synthetic_photograph(64, 64, 0).save(tmp_path / name)
    assert names(ImageFolder(tmp_path, split="train")) == ["a.png"]


def test_every_image_mode_becomes_rgb(tmp_path: Path):
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).round().astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey16.png")
    Image.fromarray((grey / 257).round().astype(np.uint8)).save(tmp_path / "grey8.png")
    colour = synthetic_photograph(64, 64, 0)
    colour.save(tmp_path / "rgb.png")
    colour.putalpha(128)
    colour.save(tmp_path / "rgba.png")
    colour.convert("RGB").quantize(256).save(tmp_path / "palette.png")
    colour.convert("CMYK").save(tmp_path / "cmyk.tif")
    pixels = {path.name: np.asarray(read_image(path)) for path in tmp_path.iterdir()}
    assert {array.shape for array in pixels.values()} == {(64, 64, 3)}
    assert {array.dtype for array in pixels.values()} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(pixels["grey16.png"], pixels["grey8.png"])
    np.testing.assert_array_equal(pixels["rgba.png"], pixels["rgb.png"])


@pytest.mark.parametrize("content", ["missing", "file", "empty", "only text"])
def test_folder_without_images(tmp_path: Path, content: str):
    folder = tmp_path / "folder"
    if content == "file":
        folder.write_text("")
    elif content != "missing":
        folder.mkdir()
    if content == "only text":
        (folder / "a.txt").write_text("no image")
    with pytest.raises(BadInput, match=f"{folder}.*give a folder"):
        ImageFolder(folder)


def test_folder_of_damaged_images(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"no image at all")
    synthetic_photograph(64, 64, 0).save(tmp_path / "b.png")
    damage(tmp_path / "b.png")
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(BadInput, match=f"{tmp_path}.*give a folder"):
        ImageFolder(tmp_path)


def test_small_images_are_refused_with_a_crop_that_fits(tmp_path: Path):
    for name, size in (("a.png", (128, 128)), ("b.png", (60, 90)), ("c.png", (100, 40))):
        synthetic_photograph(*size, seed=0).save(tmp_path / name)
    with pytest.raises(BadInput, match=r"2 of 3 images .* the crop 64x64, first b\.png.*--patch-size 60 40"):
        ImageFolder(tmp_path, smallest=(64, 64))
    assert ImageFolder(tmp_path, smallest=(60, 40)).sizes == [(128, 128), (60, 90), (100, 40)]


@pytest.fixture
def with_damaged(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        synthetic_photograph(64, 64, seed).save(tmp_path / name)
    damage(tmp_path / "b.png")
    (tmp_path / "d.png").write_bytes(b"no image at all")
    return tmp_path


def test_damaged_image_is_left_out_where_each_counts_once(with_damaged: Path):
    with pytest.warns(UserWarning, match="not a readable image") as warned:
        folder = ImageFolder(with_damaged, decode=True)
    assert names(folder) == ["a.png", "c.png"]
    assert ["b.png" in str(w.message) for w in warned] == [True, False]
    assert ["d.png" in str(w.message) for w in warned] == [False, True]


def test_damaged_image_is_replaced_in_training(with_damaged: Path):
    with pytest.warns(UserWarning, match=r"d\.png"):
        folder = ImageFolder(with_damaged, transforms.ToTensor())
    assert names(folder) == ["a.png", "b.png", "c.png"]
    with pytest.warns(UserWarning, match=r"b\.png"):
        replaced = folder[1]
    assert torch.equal(replaced, folder[2])


def test_crops_depend_on_their_seed_alone(photographs: Path):
    crop = transforms.Compose([transforms.RandomCrop(32), transforms.RandomHorizontalFlip(), transforms.ToTensor()])
    folder = ImageFolder(photographs, crop, split="train")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = folder[2, 77]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(folder[2, 77], first)
    assert not torch.equal(folder[2, 78], first)


def test_order_is_a_function_of_seed_and_epoch():
    batches = TrainingBatches(images=5, crops_per_image=3, batch_size=4, seed=7)
    epoch0 = list(batches)
    assert [len(batch) for batch in epoch0] == [4, 4, 4, 3]
    assert len(batches) == 4
    assert sorted(index for batch in epoch0 for index, _ in batch) == sorted([*range(5)] * 3)
    assert len({seed for batch in epoch0 for _, seed in batch}) == 15
    assert list(batches) == epoch0
    batches.start = 2
    assert list(batches) == epoch0[2:]
    batches.start = 0
    batches.epoch = 1
    assert list(batches) != epoch0
    assert list(TrainingBatches(5, 3, 4, seed=8)) != epoch0


def test_workers_do_not_change_the_batches(photographs: Path):
    crop = transforms.Compose([transforms.RandomCrop(48), transforms.RandomHorizontalFlip(), transforms.ToTensor()])
    folder = ImageFolder(photographs, crop, split="train")
    batches = TrainingBatches(len(folder), 2, 3, seed=0)
    alone = list(DataLoader(folder, batch_sampler=batches))
    shared = list(DataLoader(folder, batch_sampler=batches, num_workers=2))
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_validation_batches_have_equal_sizes():
    sizes = [(64, 64), (64, 128), (64, 64), (64, 64), (64, 128)]
    assert list(EqualSizeBatches(sizes, 2)) == [[0, 2], [3], [1, 4]]


def test_list_images_counts_the_rest(photographs: Path):
    images, others = list_images(photographs)
    assert (len(images), others) == (7, 1)


def test_a_loop_over_the_folder_ends(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    folder = ImageFolder(str(tmp_path))
    assert len(list(folder)) == 2
    with pytest.raises(IndexError, match="index 2: the folder has 2 images"):
        folder[2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_read_upright(tmp_path: Path, orientation: int):
    """As every viewer shows them: what a phone stores on its side, with a note that says so."""
    upright = synthetic_photograph(64, 96, 0)
    # How each orientation stores an upright image: row 0 and column 0 of the file are these sides of the scene.
    stored = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: x.swapaxes(0, 1)[::-1],
        7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
        8: lambda x: x.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.ascontiguousarray(stored(np.asarray(upright)))
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(upright))
    # The size that is checked before anything is decoded is that of the upright image.
    assert ImageFolder(tmp_path, smallest=(64, 96)).sizes == [(64, 96)]


def test_unreadable_exif_data_is_no_obstacle(tmp_path: Path):
    photograph = synthetic_photograph(64, 64, 0)
    photograph.save(tmp_path / "a.png", exif=b"Exif\x00\x00no TIFF header at all")
    np.testing.assert_array_equal(np.asarray(ImageFolder(tmp_path)[0]), np.asarray(photograph))


def png(pixels: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG of (H, W, channels), which PIL cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_become_8(tmp_path: Path, colour_type: int, channels: int):
    photograph = np.asarray(synthetic_photograph(64, 64, 0))
    colours = photograph[..., :1] if channels < 3 else photograph
    alpha = np.full((64, 64, 1 - channels % 2), 99, np.uint8)
    (tmp_path / "a.png").write_bytes(png(np.concatenate([colours, alpha], -1).astype(np.uint16) * 257, colour_type))
    wanted = np.broadcast_to(colours, (64, 64, 3))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), wanted)


def test_cmyk_jpeg_has_its_colours(tmp_path: Path):
    """Printers' software stores CMYK inverted; a reader that does not know shows a negative."""
    photograph = synthetic_photograph(64, 64, 0)
    photograph.convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    error = np.asarray(read_image(tmp_path / "a.jpg"), np.float64) - np.asarray(photograph, np.float64)
    assert np.abs(error).mean() < 3


def test_transparent_and_black_and_white_images(tmp_path: Path):
    photograph = synthetic_photograph(64, 64, 0)
    grey = photograph.convert("L")
    with_alpha = grey.copy()
    with_alpha.putalpha(10)
    with_alpha.save(tmp_path / "la.png")
    grey.convert("1").save(tmp_path / "one_bit.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "la.png")), np.asarray(grey.convert("RGB")))
    assert set(np.unique(np.asarray(read_image(tmp_path / "one_bit.png")))) == {0, 255}


def test_floating_point_images_are_left_out(tmp_path: Path):
    synthetic_photograph(64, 64, 0).save(tmp_path / "a.png")
    Image.fromarray(np.random.default_rng(0).random((64, 64), np.float32)).save(tmp_path / "b.tif")
    with pytest.warns(UserWarning, match=r"b\.tif.*floating-point numbers of unknown range"):
        assert names(ImageFolder(tmp_path, decode=True)) == ["a.png"]
