"""What files and folders of a study hold: weights and images by their contents, whatever they are called."""

from pathlib import Path
from typing import Any

from svdrd.compress.evaluation.provenance import digest_of
from svdrd.compress.files import sha256
from svdrd.compress.images.folders import ImageFolder
from svdrd.compress.train.config import TrainConfig
from svdrd.compress.train.preparation import open_images

# Stands for the weights that an earlier stage has yet to make.
NOT_YET = "not there yet"


class Contents:
    """What files and folders hold, each read once as long as it stays as it is."""

    def __init__(self) -> None:
        self._files: dict[tuple[Path, int, int], str] = {}
        self._folders: dict[tuple[Any, ...], tuple[str, ...]] = {}

    def weights(self, path: Path | None) -> str:
        """The SHA-256 of a file; :data:`NOT_YET` where there is none, "none" without a path."""
        if path is None:
            return "none"
        if not path.is_file():
            return NOT_YET
        status = path.stat()
        key = (path.resolve(), status.st_mtime_ns, status.st_size)
        if key not in self._files:
            self._files[key] = sha256(path)
        return self._files[key]

    def training(self, config: TrainConfig) -> tuple[str, ...]:
        """Fingerprints of the training and the validation images that ``svdrd finetune`` opens: names and sizes."""
        options = (config.dataset, config.val_dataset, config.patch_size)
        if options not in self._folders:
            self._folders[options] = tuple(images.fingerprint() for images in open_images(*options))
        return self._folders[options]

    def images(self, folder: str) -> str:
        """A digest of the names and contents of the images of a folder, as ``svdrd evaluate`` records it."""
        if (folder,) not in self._folders:
            self._folders[(folder,)] = (digest_of(ImageFolder(folder)),)
        return self._folders[(folder,)][0]
