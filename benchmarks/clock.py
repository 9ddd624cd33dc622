"""Times, memory and graphs of what a device computes: CUDA events on a GPU, the host's clock on a CPU."""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Work = Callable[[], tuple[Tensor, ...]]

# Calls shorter than this are repeated within a round, so that neither clock's resolution counts.
SHORTEST_ROUND = 2e-4
FEWEST_ROUNDS, MOST_ROUNDS = 5, 200
# A call that takes longer than this many seconds is timed once, by whoever makes the rounds.
SLOW = 0.3


def keep_freed_memory() -> None:
    """Has glibc's malloc keep what is freed, for the rest of the process; elsewhere nothing is changed.

    Otherwise it gives a result's pages back to the system after one call and asks for them in the next, or it does not:
    that depends on what lies behind them. The system clears each page, so runs of the same code differ by a third.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        mallopt(-3, 1 << 30) or mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, of which older versions take 32 MiB at most


class Times(NamedTuple):
    """Of one call, in seconds."""

    device: float  # between the moments at which the device begins and has finished it
    host: float  # until it has returned, the device may still compute


class Clock:
    """Of one device. On a CPU both times are the host's, and there are no graphs and no count of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def time(self, work: Callable[[], Any], calls: int = 1) -> Times:
        """The mean of ``calls`` calls in a row; waits for the device before and after."""
        if not self.is_cuda:
            begin = time.perf_counter()
            for _ in range(calls):
                work()
            seconds = (time.perf_counter() - begin) / calls
            return Times(seconds, seconds)
        with torch.cuda.device(self.device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            begin = time.perf_counter()
            for _ in range(calls):
                work()
            returned = time.perf_counter()
            end.record()
            end.synchronize()
        return Times(start.elapsed_time(end) / 1000 / calls, (returned - begin) / calls)

    def peak_memory(self, work: Callable[[], Any]) -> int | None:
        """Bytes that one call holds at a time beyond what is held before, results included; None on a CPU.

        It is what PyTorch's allocator counts, which svdrd's kernels take their memory from too.
        """
        if not self.is_cuda:
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        result = work()
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device)
        del result
        return peak - before

    def captured(self, work: Work) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """A CUDA graph's replay of the call, and the tensors into which it writes."""
        with torch.cuda.device(self.device):
            # Capture wants a stream of its own, on which everything that allocates lazily has happened before.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    work()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = work()
        return graph.replay, outputs


def take_turns(
    clock: Clock, works: Sequence[Callable[[], Any]], contexts: Sequence[Callable[[], Any]], seconds: float
) -> list[list[Times]]:
    """Times a call of each work, over rounds in which every work has its turn: a disturbance meets all alike.

    Args:
        contexts: in which each work is called; to enter and leave them does not count.
        seconds: what all rounds together may take, unless ``FEWEST_ROUNDS`` take longer.
    """
    if not works:
        return []

    def turn(work: Callable[[], Any], context: Callable[[], Any], calls: int) -> Times:
        with context():
            return clock.time(work, calls)

    each = list(zip(works, contexts, strict=True))
    estimates = [turn(*one, 1).device for one in each]
    calls = [max(1, math.ceil(SHORTEST_ROUND / max(estimate, 1e-9))) for estimate in estimates]
    a_round = sum(estimate * count for estimate, count in zip(estimates, calls, strict=True))
    rounds = min(max(int(seconds / max(a_round, 1e-9)), FEWEST_ROUNDS), MOST_ROUNDS)
    times: list[list[Times]] = [[] for _ in works]
    for _ in range(rounds):
        for taken, one, count in zip(times, each, calls, strict=True):
            taken.append(turn(*one, count))
    return times
