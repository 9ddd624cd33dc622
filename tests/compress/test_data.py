from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("compressai")

from torch.utils.data import DataLoader
from torchvision import transforms

from svdrd.compress import BadInput
from svdrd.compress.data import EqualSizeBatches, ImageFolder, TrainingBatches, list_images, read_image
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
