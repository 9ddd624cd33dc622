"""Allocated tensors hold what no kernel writes, so that reads of it and outputs that stay so are found."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.ptx.memory import POISON, POISON_WORD


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """``torch.empty``, ``torch.empty_like`` and ``Tensor.new_empty`` give poison."""
    with (
        mock.patch.object(torch, "empty", _poisoned(torch.empty)),
        mock.patch.object(torch, "empty_like", _poisoned(torch.empty_like)),
        mock.patch.object(Tensor, "new_empty", _poisoned(Tensor.new_empty)),
    ):
        yield


def _poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def allocated(*args: Any, **kwargs: Any) -> Tensor:
        tensor = allocate(*args, **kwargs)
        storage = tensor.untyped_storage()
        if tensor.device.type == "cpu" and (words := storage.nbytes() // len(POISON)):
            ctypes.memmove(storage.data_ptr(), POISON.tobytes() * words, words * len(POISON))
        return tensor

    return allocated


def unwritten(tensor: Tensor) -> int:
    """How many words of a tensor still hold poison."""
    words = tensor.contiguous().view(torch.uint8).numpy().reshape(-1).view("u4")
    return int((words == POISON_WORD).sum())
