"""A training of several processes that a test can look into; they are forked from one that has imported everything."""

import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.compress.train.several_preload"])

Hook = Callable[[int], None]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _main(rank: int, size: int, port: int, argv: Sequence[str], folder: Path, hook: Hook | None) -> None:
    from svdrd.compress.commands import call
    from svdrd.compress.errors import BadInput, TrainingStopped
    from svdrd.compress.train import loop

    torch.set_num_threads(1)
    # As in a process that was not forked from a server: loaders are children of the process that they work for.
    multiprocessing.set_start_method("fork", force=True)
    sys.stdout = (folder / f"out_{rank}").open("w", buffering=1)
    sys.stderr = (folder / f"err_{rank}").open("w", buffering=1)
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({key: str(value) for key, value in environment.items()})
    if hook is not None:
        hook(rank)
    exit_code = loop.Training.exit_code

    def and_keep_the_state(self: loop.Training) -> int:
        state = {
            "state_dict": dict(self.state.model.named_parameters()),
            "optimizer": self.state.optimizer.state_dict(),
            "aux_optimizer": self.state.aux_optimizer.state_dict(),
            "history": self.state.history,
            "step": self.state.step,
        }
        # A test may have taken the room away.
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        torch.save(state, folder / f"state_{rank}")
        return exit_code(self)

    loop.Training.exit_code = and_keep_the_state
    try:
        code = call("finetune", argv)
    except (BadInput, TrainingStopped) as error:
        print(error, file=sys.stderr)
        code = 2 if isinstance(error, BadInput) else 1
    sys.stderr.flush()
    sys.exit(code)


def finetune_with(
    size: int, argv: Sequence[str], folder: Path, hook: Hook | None = None
) -> tuple[list[int | None], list[dict[str, Any]]]:
    """Exit codes and final states of ``svdrd finetune`` with ``size`` processes; ``hook(rank)`` runs first in each."""
    folder.mkdir()
    port = free_port()
    processes = [CONTEXT.Process(target=_main, args=(rank, size, port, argv, folder, hook)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
    paths = [folder / f"state_{rank}" for rank in range(size)]
    states = [torch.load(path, weights_only=True) for path in paths if path.exists()]
    return [process.exitcode for process in processes], states


def errors(folder: Path, size: int) -> list[str]:
    return [(folder / f"err_{rank}").read_text() for rank in range(size)]


def raise_signal_at(step: int, number: int, only: int) -> None:
    """The process ``only`` gets the signal while step ``step`` is being computed."""
    from svdrd.compress.train import loop

    take = loop.Training.train_step

    def train_step(self: loop.Training, batch: Any) -> dict[str, float] | None:
        if self.state.step + 1 == step and self.processes.rank == only:
            signal.raise_signal(number)
        return take(self, batch)

    loop.Training.train_step = train_step
