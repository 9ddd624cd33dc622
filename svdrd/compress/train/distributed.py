"""The processes of one training: torchrun starts them, torch.distributed connects them, and they stay equal.

There is no DistributedDataParallel around the model. CompressAI trains two sets of parameters by two losses, and DDP
waits for gradients of quantiles that the rate-distortion loss does not have. Here every process computes the gradient
of its crops, one sum over all processes makes it that of the whole batch, and everything else that a step depends on is
either a function of that sum or sent by the first process. So all processes take the same step, bit for bit.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from svdrd.compress.errors import BadInput, TrainingStopped

# A process that waits longer than this for the others gives up: one that died without a word must not cost a weekend.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Processes:
    """This process among all of them; with ``size = 1`` every method is the identity and nothing is sent.

    ``rank`` numbers all processes, ``local_rank`` those of this machine; the first (rank 0) prints and writes files.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def part(self, total: int) -> tuple[int, int]:
        """Which of ``total`` items in a row are this process's: start and stop; the parts differ by one at most."""
        return self.rank * total // self.size, (self.rank + 1) * total // self.size

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its sum over the processes; a missing one counts as zero."""
        if self.size == 1:
            return
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self._together(gradients, dist.all_reduce)

    def send_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrites ``tensors`` by those of the first process."""
        if self.size > 1 and tensors:
            self._together(tensors, lambda flat: dist.broadcast(flat, src=0))

    @staticmethod
    def _together(tensors: Sequence[Tensor], communicate: Any) -> None:
        """One message for all: latency counts once."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        communicate(flat)
        for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(values.view(tensor.shape))

    def sum(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over the processes, on all of them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every process, in the order of their ranks, on all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def check_equal(self, what: str, value: Any) -> None:
        """Raises TrainingStopped on all processes where ``value`` is not the same on all of them."""
        values = self.gather(value)
        different = [rank for rank, other in enumerate(values) if other != values[0]]
        if different:
            raise TrainingStopped(
                f"processes {', '.join(map(str, different))} of {self.size}: their {what} differ from the first one's; "
                "all machines need the same files, versions and arguments"
            )

    @contextmanager
    def one_after_the_other(self) -> Iterator[None]:
        """On each machine its first process alone, then the others: what it downloads is there for them."""
        if self.size > 1 and self.local_rank > 0:
            dist.barrier()
        yield
        if self.size > 1 and self.local_rank == 0:
            dist.barrier()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Connects this process with the others that torchrun started, if it did.

    On CUDA each process of a machine takes the GPU of its local rank, and NCCL sends; on the CPU gloo does.

    Raises:
        BadInput: more processes on this machine than it has GPUs.
    """
    if "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield Processes(torch.device(device))
        return
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    on_cuda = torch.device(device).type == "cuda"
    if on_cuda:
        if local_rank >= torch.cuda.device_count():
            raise BadInput(
                f"--device {device}: process {local_rank + 1} of this machine, which has {torch.cuda.device_count()} "
                "GPUs; torchrun --nproc-per-node gpu starts one for each"
            )
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=TIMEOUT)
    try:
        yield Processes(torch.device(device), rank, size, local_rank)
    finally:
        dist.destroy_process_group()


def fingerprint(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """Two weighted sums (modulo 2^64) over the bits of all float32 entries: hardly ever equal for unequal tensors."""
    sums = torch.zeros(2, dtype=torch.int64)
    for tensor in tensors:
        bits = tensor.detach().float().contiguous().view(-1).view(torch.int32).to(torch.int64)
        weights = torch.arange(1, len(bits) + 1, device=bits.device)
        sums = sums * 31 + torch.stack([bits.sum(), (bits * weights).sum()]).cpu()
    return tuple(sums.tolist())
