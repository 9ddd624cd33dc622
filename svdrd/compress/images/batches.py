"""Batches of images: the crops of a training step, their order in an epoch, and images of equal size together."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from svdrd.compress.images.folders import ImageFolder, ImagesVanished


class Batch(TypedDict):
    """Crops (N, 3, H, W), the index of each one's image and of the image that was asked for, or what went wrong."""

    x: Tensor
    indices: list[int]
    wanted: list[int]
    problem: str


class TrainingCrops(Dataset[Any]):
    """The crops of ``images``, to be collated by :func:`collate`; a vanished file is a result here, not an exception.

    An exception in a loader's worker would end the training before it could agree with other processes and save.
    """

    def __init__(self, images: ImageFolder) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int] | str:
        try:
            return (*self.images.load(key), key[0])
        except ImagesVanished as error:
            return str(error)


def collate(samples: Sequence[tuple[Tensor, int, int] | str]) -> Batch:
    """Of no sample at all, the share of a process in a batch smaller than the number of processes, too."""
    problem = next((sample for sample in samples if isinstance(sample, str)), "")
    crops = [sample for sample in samples if not isinstance(sample, str)]
    return Batch(
        x=torch.stack([crop for crop, _, _ in crops]) if crops else torch.empty(0),
        indices=[index for _, index, _ in crops],
        wanted=[index for _, _, index in crops],
        problem=problem,
    )


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (index of the image, seed of its crop) of an epoch, as a function of (seed, epoch) alone.

    That makes training independent of the number of workers and processes, and lets a resumed run go on in the middle
    of an epoch: set ``epoch`` and ``start``, the number of batches of it to leave out, before iterating. The last batch
    of an epoch may be smaller. ``part`` cuts out of each batch, given its length, what this process computes.
    """

    def __init__(
        self,
        images: int,
        crops_per_image: int,
        batch_size: int,
        seed: int,
        part: Callable[[int], tuple[int, int]] = lambda length: (0, length),
    ) -> None:
        self.images = images
        self.samples = images * crops_per_image
        self.batch_size = batch_size
        self.seed = seed
        self.part = part
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def length(self, batch: int) -> int:
        """The number of crops in a batch of the epoch, over all processes."""
        return min(self.batch_size, self.samples - batch * self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator()
        generator.manual_seed(int(np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)[0]))
        order = torch.randperm(self.samples, generator=generator).remainder(self.images).tolist()
        seeds = torch.randint(2**62, (self.samples,), generator=generator).tolist()
        keys = list(zip(order, seeds, strict=True))
        for batch in range(self.start, len(self)):
            first, last = self.part(self.length(batch))
            yield keys[batch * self.batch_size + first : batch * self.batch_size + last]


class EqualSizeBatches(Sampler[list[int]]):
    """Batches of at most ``batch_size`` images of equal size; every index once, always in the same order.

    With ``rank`` and ``processes`` these are every ``processes``-th batch from ``rank`` on; ``numbers`` are theirs
    among all.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], batch_size: int, rank: int = 0, processes: int = 1) -> None:
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            by_size.setdefault(size, []).append(index)
        batches = [
            indices[start : start + batch_size]
            for indices in by_size.values()
            for start in range(0, len(indices), batch_size)
        ]
        self.numbers = range(rank, len(batches), processes)
        self.batches = [batches[number] for number in self.numbers]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
