"""Which files below a folder are photographs: behind links, beside editors' copies, in folders nobody can read."""

import os
from pathlib import Path

import pytest

pytest.importorskip("compressai")

from svdrd.compress import BadInput
from svdrd.compress.images.folders import ImageFolder, list_images
from svdrd.compress.train.preparation import open_images
from tests.compress.conftest import synthetic_photograph


def photograph(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        synthetic_photograph(64, 64, 0).save(path)


def names(root: Path) -> list[str]:
    images, _ = list_images(root)
    return [path.relative_to(root).as_posix() for path in images]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    photograph(tmp_path / "store" / "kodak" / "a.png", tmp_path / "store" / "kodak" / "deep" / "b.png")
    return tmp_path / "store"


def test_linked_folders_and_files_are_found(store: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder):
    root = tmp_path / "root"
    photograph(root / "c.png")
    (root / "kodak").symlink_to(store / "kodak")
    (root / "d.png").symlink_to(store / "kodak" / "a.png")
    assert names(root) == ["c.png", "d.png", "kodak/a.png", "kodak/deep/b.png"]
    (tmp_path / "link").symlink_to(root)
    assert len(ImageFolder(tmp_path / "link")) == 4
    assert not recwarn.list


def test_links_to_links(store: Path, tmp_path: Path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "second").symlink_to(store)
    (root / "first").symlink_to(tmp_path / "second")
    assert names(root) == ["first/kodak/a.png", "first/kodak/deep/b.png"]


def test_circles_end_and_a_folder_counts_once(tmp_path: Path):
    """Each of nine folders links to all others and to the top: more paths than there is time for."""
    root = tmp_path / "root"
    folders = [root / f"folder{number}" for number in range(9)]
    for folder in folders:
        photograph(folder / "a.png")
    for folder in folders:
        for other in (*folders, root):
            (folder / f"to-{other.name}").symlink_to(other)
    assert names(root) == [f"folder{number}/a.png" for number in range(9)]


def test_a_link_does_not_rename_what_is_in_the_folder_itself(tmp_path: Path):
    root = tmp_path / "root"
    photograph(root / "real" / "a.png")
    (root / "alias").symlink_to(root / "real")
    assert names(root) == ["real/a.png"]


def test_links_that_lead_nowhere_are_named(tmp_path: Path):
    photograph(tmp_path / "a.png")
    for name in ("b.png", "folder"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    with pytest.warns(UserWarning, match=r"left out links that lead nowhere: 3 \(first .*/b\.png\)$"):
        assert names(tmp_path) == ["a.png"]


def test_nothing_but_links_that_lead_nowhere(tmp_path: Path):
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(BadInput, match=r"no image among them; links that lead nowhere: 1 \(.*b\.png\); give a folder"):
        ImageFolder(tmp_path)
    (tmp_path / "root").symlink_to(tmp_path / "gone")
    with pytest.raises(BadInput, match="a link that leads nowhere; give a folder of images"):
        ImageFolder(tmp_path / "root")


COPIES = (
    ".ipynb_checkpoints/a-checkpoint.png",
    "__MACOSX/._a.png",
    "._a.png",
    ".Trash-1000/files/b.png",
    "@eaDir/a.png/SYNOFILE_THUMB_M.jpg",
    "nested/.thumbnails/c.png",
)


def test_copies_of_editors_and_hidden_images_are_no_photographs(tmp_path: Path):
    photograph(tmp_path / "a.png", *(tmp_path / copy for copy in COPIES))
    (tmp_path / ".DS_Store").touch()
    with pytest.warns(UserWarning, match=r"left out hidden images, or .*: 6 ") as warned:
        folder = ImageFolder(tmp_path)
    assert ([folder.name(0)], folder.skipped) == (["a.png"], 0)
    assert len(warned) == 1


def test_copies_of_validation_images_are_not_trained(tmp_path: Path):
    """Every tenth image is for validation; a notebook was opened beside them."""
    photograph(*(tmp_path / f"{number:02}.png" for number in range(20)))
    photograph(*(tmp_path / ".ipynb_checkpoints" / f"{number:02}-checkpoint.png" for number in range(20)))
    with pytest.warns(UserWarning, match="hidden images, or images in hidden folders: 20 "):
        train, validation = open_images(str(tmp_path), None, (64, 64))
    assert [path.name for path in validation.samples] == ["00.png", "10.png"]
    assert len(train) == 18
    assert not any("checkpoint" in path.name for path in train.samples)


def test_a_hidden_folder_that_is_asked_for(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    """By its own name, or by a visible link, as stores of large files have them."""
    photograph(tmp_path / ".data" / "kodak" / "a.png")
    (tmp_path / "kodak").symlink_to(tmp_path / ".data" / "kodak")
    assert names(tmp_path / ".data") == ["kodak/a.png"]
    assert names(tmp_path) == ["kodak/a.png"]
    photograph(tmp_path / ".annex" / "SHA256E-s1.png")
    (tmp_path / "b.png").symlink_to(tmp_path / ".annex" / "SHA256E-s1.png")
    assert names(tmp_path) == ["b.png", "kodak/a.png"]
    assert not recwarn.list


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path):
    photograph(tmp_path / "a.png", tmp_path / "closed" / "b.png")
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.warns(UserWarning, match=r"files or folders that cannot be read: 1 \(.*closed\)"):
            assert names(tmp_path) == ["a.png"]
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_a_folder_that_vanishes_while_it_is_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    photograph(tmp_path / "a.png", tmp_path / "closed" / "b.png")
    iterdir = Path.iterdir

    def refused(self: Path) -> object:
        if self.name == "closed":
            raise PermissionError(13, "Permission denied")
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.warns(UserWarning, match=r"files or folders that cannot be read: 1 \(.*closed\)"):
        assert names(tmp_path) == ["a.png"]
