"""Fine-tunes a CompressAI codec with the SVD basis loss.

The arguments are those of CompressAI's examples/train.py where it has them; the defaults are the paper's. One process
trains on one device; torchrun starts several: torchrun --nproc-per-node gpu -m svdrd finetune ...
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdrd.compress.errors import BadInput
from svdrd.compress.files import existing_folder
from svdrd.compress.train.options import add_arguments, as_config, parse

if TYPE_CHECKING:
    from svdrd.compress.train.loop import Training

__all__ = ["add_arguments", "run"]


def run(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    arguments, resumed = parse(parser, argv)

    from svdrd.compress.train.config import check_arguments
    from svdrd.compress.train.distributed import processes
    from svdrd.compress.train.interruption import interrupt_flag
    from svdrd.compress.train.precision import reproducible_products
    from svdrd.compress.train.preparation import prepare
    from svdrd.compress.train.save_folder import check_save_folder, prepare_save_folder

    check_arguments(arguments)
    folder = Path(arguments.save_dir)
    with processes(arguments.device) as all_processes, reproducible_products(arguments.tf32):
        training = prepare(arguments, all_processes)
        if resumed is not None:
            try:
                training.load_state(resumed)
            except KeyError as error:
                raise BadInput(
                    f"--resume {arguments.resume}: has no {error}, it is of another version of svdrd "
                    f"({resumed.get('versions')}); start a new run from its weights with --checkpoint"
                ) from error
        if arguments.save and all_processes.first:
            check_save_folder(folder, arguments.resume)
        if all_processes.first:
            print(description(training), flush=True)
        if arguments.dry_run:
            if all_processes.first:
                print(plan(training, as_config(parser, arguments)))
            return 0
        if arguments.save and all_processes.first:
            prepare_save_folder(folder, as_config(parser, arguments))
        with interrupt_flag() as interrupted:
            return training.run(interrupted)


def description(training: Training) -> str:
    """What is trained, on what, from where to where: three lines."""
    arguments, train, size = training.arguments, training.images, training.processes.size
    validation: Any = training.validation_loader.dataset
    skipped = train.skipped + validation.skipped
    sizes = [(p.numel(), p.requires_grad) for p in training.model.parameters()]
    frozen = sum(size for size, trained in sizes if not trained)
    return (
        f"{arguments.model}, {sum(size for size, _ in sizes)} parameters"
        f"{f' ({frozen} frozen)' if frozen else ''}, on {arguments.device}{f', {size} processes' if size > 1 else ''}\n"
        f"{len(train)} training images in {train.root}, {len(validation)} validation images in {validation.root}"
        f"{f', {skipped} other files ignored' if skipped else ''}\n"
        f"lambda {arguments.lmbda:g}, mu {arguments.mu:g}, {arguments.metric}; "
        f"steps {training.step} to {training.total_steps}, {training.steps_per_epoch} an epoch"
    )


def plan(training: Training, config: dict[str, Any]) -> str:
    """What --dry-run prints: the effective configuration, memory, files."""
    from svdrd.compress.codecs import checkpoints
    from svdrd.compress.train import memory

    arguments = training.arguments
    crops, need = memory.of_step(training.stepper, arguments.batch_size)
    checkpoint = need.weights + need.optimizers
    lines = [
        "",
        "configuration, as --config takes it:",
        json.dumps(config, indent=2),
        f"\nmemory of a process, {crops} crops of {arguments.patch_size[0]}x{arguments.patch_size[1]} at once:",
        *(f"  {name:12} {getattr(need, name) / 2**20:9.1f} MiB" for name in memory.MemoryEstimate.__annotations__),
        f"  {'total':12} {need.total / 2**20:9.1f} MiB, and what one layer and the libraries need besides",
    ]
    if training.folder is not None:
        free = shutil.disk_usage(existing_folder(training.folder)).free
        lines.append(
            f"\nfiles in {training.folder}: {checkpoints.LAST} and {checkpoints.BEST}, {checkpoint / 2**20:.1f} MiB "
            f"each, one more while saving; metrics.csv, TensorBoard events, config.json, summary.json; "
            f"{free / 2**20:.0f} MiB are free"
        )
    return "\n".join([*lines, "\nnothing was trained or written (--dry-run)"])
