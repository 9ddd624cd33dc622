"""Folders of photographs: which files are images, and how they are read."""

import hashlib
import os
import stat
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch.utils.data import Dataset

from svdrd.compress.errors import BadInput

# CompressAI's eval_model takes these; lower-cased here, so that a camera's .JPG counts too.
IMAGE_EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))

# What systems and editors leave beside photographs: copies, thumbnails, what was deleted. Hidden names, too.
NOT_PHOTOGRAPHS = frozenset(("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found"))

TRAIN_FOLDERS = ("train",)
TEST_FOLDERS = ("test", "val", "valid")

# What PIL raises for damaged files: truncated data, a broken stream, a header that promises too much.
DECODE_ERRORS = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)

# What undoes each EXIF orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImagesVanished(RuntimeError):
    """A file that was there when the folder was opened cannot be read: a disk or a network share has gone."""


def list_images(root: str | os.PathLike[str]) -> tuple[list[Path], int]:
    """All image files below ``root``, sorted, and the number of other files there.

    Links to files and folders are followed; a folder counts once, however many links lead to it. Hidden files and
    folders and :data:`NOT_PHOTOGRAPHS` are no photographs. A warning names the images among them, links that lead
    nowhere, and files and folders that cannot be read.

    Raises:
        BadInput: ``root`` is missing, is a file, or holds no image.
    """
    root = Path(root)
    if not root.is_dir():
        what = "a file" if root.exists() else "a link that leads nowhere" if root.is_symlink() else "missing"
        raise BadInput(f"dataset {str(root)!r}: {what}; give a folder of images")
    found = _Listing(root)
    images = sorted(path for path in found.files if is_image(path))
    left_out = [
        _count_and_first(paths, what)
        for paths, what in (
            ([path for path in found.hidden if is_image(path)], "hidden images, or images in hidden folders"),
            (found.dangling, "links that lead nowhere"),
            (found.closed, "files or folders that cannot be read"),
        )
        if paths
    ]
    if not images:
        raise BadInput(
            f"dataset {str(root)!r}: {len(found.files)} files and no image among them"
            f"{''.join(f'; {text}' for text in left_out)}; "
            f"give a folder with {' '.join(sorted(IMAGE_EXTENSIONS))} files"
        )
    if left_out:
        warnings.warn(f"dataset {str(root)!r}: left out {'; '.join(left_out)}", stacklevel=2)
    return images, len(found.files) - len(images)


class _Listing:
    """What is below ``root``: ``files``; ``hidden`` ones; ``dangling`` links; what is ``closed`` to us.

    Real folders come before linked ones, so that what is in ``root`` itself has its own name, and all of them before
    hidden ones: what a visible link leads to is visible.
    """

    def __init__(self, root: Path) -> None:
        self.files: list[Path] = []
        self.hidden: list[Path] = []
        self.dangling: list[Path] = []
        self.closed: list[Path] = []
        self._seen: set[str] = set()
        self._links = [root]
        self._hidden_folders: list[Path] = []
        self._follow(self.files)
        visible = set(map(os.path.realpath, self.files)) if self._hidden_folders or self.hidden else set()
        self._links = self._hidden_folders
        self._follow(self.hidden)
        self.hidden = [path for path in self.hidden if os.path.realpath(path) not in visible]

    def _follow(self, files: list[Path]) -> None:
        while self._links:
            self._walk(self._links.pop(0), files)

    def _walk(self, folder: Path, files: list[Path]) -> None:
        """Lists ``folder`` and the real folders below; its links are for later."""
        real = os.path.realpath(folder)
        if real in self._seen:
            return
        self._seen.add(real)
        below: list[Path] = []
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            self.closed.append(folder)
            return
        for path in entries:
            hidden = path.name.startswith(".") or path.name in NOT_PHOTOGRAPHS
            try:
                mode = path.stat().st_mode
            except OSError:
                if not hidden and files is self.files:
                    (self.dangling if path.is_symlink() else self.closed).append(path)
                continue
            if stat.S_ISDIR(mode):
                waiting = self._hidden_folders if hidden else self._links if path.is_symlink() else below
                waiting.append(path)
            elif stat.S_ISREG(mode):
                (self.hidden if hidden else files).append(path)
        for path in below:
            self._walk(path, files)


def _count_and_first(paths: Sequence[Path], what: str) -> str:
    return f"{what}: {len(paths)} ({'first ' if len(paths) > 1 else ''}{paths[0]})"


def is_image(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in IMAGE_EXTENSIONS


def split_folder(root: str | os.PathLike[str], split: str) -> Path | None:
    """The folder of ``split`` ("train" or "test") in CompressAI's layout, or None where ``root`` has no such folder."""
    names = {"train": TRAIN_FOLDERS, "test": TEST_FOLDERS}[split]
    return next((Path(root) / name for name in names if (Path(root) / name).is_dir()), None)


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """An RGB image with 8 bits a channel, upright.

    A camera's EXIF orientation is applied. Grey is repeated, CMYK converted, 16 bits a channel become the upper 8; PIL
    would clip 16-bit grey to 255, here it is scaled. Alpha is dropped, as in CompressAI: the colours are those that the
    file stores, not those over some background.

    Raises:
        ValueError: an image of floating-point numbers, whose range nobody knows.
    """
    with Image.open(path) as opened:
        turn = TURNS.get(orientation(opened))
        image = opened if turn is None else opened.transpose(turn)
        if image.mode == "F":
            raise ValueError("pixels are floating-point numbers of unknown range; save it with 8 or 16 bits a channel")
        if image.mode.startswith("I"):
            grey = np.asarray(image).astype(np.float64)
            return Image.fromarray(np.rint(grey.clip(0, 65535) / 257).astype(np.uint8)).convert("RGB")
        return image.convert("RGB")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of what :func:`read_image` returns, from the header of the opened file alone."""
    turned = orientation(image) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where the file has none, or EXIF data that nobody can read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return 1


class ImageFolder(Dataset[Any]):
    """Images of a folder, in sorted order.

    Construction reads the header of every file: what is no readable image is left out with a warning that names it.
    Damage behind the header shows only when the image is decoded: that image is replaced by the next good one of the
    folder, with a warning, so that batches keep their size; with ``decode=True`` all images are decoded once at
    construction instead, and a damaged one is left out, which is right where every image counts once.

    Args:
        root: the folder; searched recursively, files that are no images are counted in ``skipped``.
        transform: from a PIL image to what ``dataset[index]`` returns.
        split: ``"train"`` or ``"test"`` takes that folder below ``root`` where it exists, else ``root`` itself (for
            training without a test folder in it); ``None`` takes ``root``.
        smallest: (height, width) that every image must reach.
        paths: these files instead of a search below ``root``.
        decode: see above.

    ``dataset[index]`` draws random numbers of the transform from torch's global generator; ``dataset[index, seed]``
    draws them from ``seed`` alone, whatever the process and the state of that generator.

    Raises:
        BadInput: no folder, no image in it, no readable image, or an image smaller than ``smallest``.
        ImagesVanished: on access, a file that cannot be read any more. It is not replaced by another image, as a
            damaged one is: a share that comes and goes would change what is trained.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Callable[[Image.Image], Any] | None = None,
        split: str | None = None,
        smallest: tuple[int, int] = (1, 1),
        paths: Sequence[Path] | None = None,
        decode: bool = False,
    ) -> None:
        self.root = Path(root) if split is None else split_folder(root, split) or Path(root)
        self.transform = transform
        self.skipped = 0
        if paths is None:
            paths, self.skipped = list_images(self.root)
            if split == "train" and (test := split_folder(self.root, "test")) is not None:
                paths = [path for path in paths if not path.is_relative_to(test)]
        self.samples: list[Path] = []
        self.sizes: list[tuple[int, int]] = []
        for path in paths:
            try:
                with Image.open(path) as image:
                    size = upright_size(image)
                if decode:
                    read_image(path)
            except DECODE_ERRORS as error:
                warn_unreadable(path, error)
                continue
            self.samples.append(path)
            self.sizes.append(size)
        self._unreadable: set[int] = set()
        # Decodes one image: a folder of nothing but damaged ones is refused here, not in the middle of the first epoch.
        self._decode(0)
        self._check_sizes(smallest)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> Any:
        return self.load(key)[0]

    def load(self, key: int | tuple[int, int]) -> tuple[Any, int]:
        """``dataset[key]``, and the index of the image that it really is, where a damaged one was replaced."""
        index, seed = key if isinstance(key, tuple) else (key, None)
        if not 0 <= index < len(self):  # what ends a for loop over the folder
            raise IndexError(f"index {index}: the folder has {len(self)} images, 0 to {len(self) - 1}")
        image, index = self._decode(index)
        if self.transform is None:
            return image, index
        if seed is None:
            return self.transform(image), index
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would reseed the CUDA generators too, which fork_rng(devices=[]) leaves alone.
            torch.default_generator.manual_seed(seed)
            return self.transform(image), index

    def name(self, index: int) -> str:
        """The file's path below the folder."""
        return self.samples[index].relative_to(self.root).as_posix()

    def fingerprint(self) -> str:
        """Of the names and sizes of the images, in their order; not of where the folder is."""
        listing = repr([(self.name(index), size) for index, size in enumerate(self.sizes)])
        return hashlib.sha256(listing.encode()).hexdigest()

    def _decode(self, index: int) -> tuple[Image.Image, int]:
        for candidate in range(index, index + len(self)):
            candidate %= len(self)
            if candidate in self._unreadable:
                continue
            try:
                return read_image(self.samples[candidate]), candidate
            except DECODE_ERRORS as error:
                # PIL's own errors have no errno: those are about the content, these about the disk.
                if isinstance(error, OSError) and error.errno is not None:
                    raise ImagesVanished(
                        f"dataset {str(self.root)!r}: {self.name(candidate)} cannot be read any more ({error.strerror})"
                    ) from error
                warn_unreadable(self.samples[candidate], error)
                self._unreadable.add(candidate)
        raise BadInput(f"dataset {str(self.root)!r}: none of its images can be read; give a folder with readable ones")

    def _check_sizes(self, smallest: tuple[int, int]) -> None:
        small = [i for i, (height, width) in enumerate(self.sizes) if height < smallest[0] or width < smallest[1]]
        if small:
            height, width = (min(smallest[side], *(self.sizes[i][side] for i in small)) for side in (0, 1))
            raise BadInput(
                f"dataset {str(self.root)!r}: {len(small)} of {len(self)} images are smaller than the crop "
                f"{smallest[0]}x{smallest[1]}, first {self.samples[small[0]].name}; take them out, or use --patch-size "
                f"{height} {width}"
            )


def warn_unreadable(path: Path, error: Exception) -> None:
    reason = " ".join(str(error).split())
    warnings.warn(f"skipped {str(path)!r}: not a readable image ({reason})", stacklevel=3)
