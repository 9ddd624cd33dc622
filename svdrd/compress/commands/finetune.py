"""Fine-tunes a CompressAI codec with the SVD basis loss.

The arguments are those of CompressAI's examples/train.py where it has them; the defaults are the paper's. One process
trains on one device; torchrun starts several: torchrun --nproc-per-node gpu -m svdrd finetune ...
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from svdrd.compress.files import existing_folder
from svdrd.compress.train.command_line import add_arguments, as_config, parse
from svdrd.compress.train.config import TrainConfig

if TYPE_CHECKING:
    from svdrd.compress.train.loop import Training

__all__ = ["add_arguments", "run"]


def run(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    arguments, resumed = parse(parser, argv)

    config = TrainConfig.from_arguments(arguments)

    from svdrd.compress.train.distributed import processes
    from svdrd.compress.train.interruption import interrupt_flag
    from svdrd.compress.train.precision import reproducible_products
    from svdrd.compress.train.preparation import prepare
    from svdrd.compress.train.save_folder import check_save_folder, prepare_save_folder

    with processes(config.device) as all_processes, reproducible_products(config.tf32):
        training = prepare(config, all_processes)
        if resumed is not None:
            training.state.load_state_dict(resumed)
        if all_processes.first:
            if config.folder is not None:
                check_save_folder(config.folder, config.resume)
            print(description(training), flush=True)
        if arguments.dry_run:
            if all_processes.first:
                print(plan(training, as_config(parser, config.saved())))
            return 0
        if config.folder is not None and all_processes.first:
            prepare_save_folder(config.folder, as_config(parser, config.saved()))
        with interrupt_flag() as interrupted:
            return training.run(interrupted)


def description(training: Training) -> str:
    """What is trained, on what, from where to where: three lines."""
    config, state = training.config, training.state
    images, processes = state.images, state.processes.size
    validation: Any = training.validation_loader.dataset
    skipped = images.skipped + validation.skipped
    sizes = [(p.numel(), p.requires_grad) for p in state.model.parameters()]
    frozen = sum(size for size, trained in sizes if not trained)
    return (
        f"{config.model}, {sum(size for size, _ in sizes)} parameters{f' ({frozen} frozen)' if frozen else ''}, "
        f"on {config.device}{f', {processes} processes' if processes > 1 else ''}\n"
        f"{len(images)} training images in {images.root}, {len(validation)} validation images in {validation.root}"
        f"{f', {skipped} other files ignored' if skipped else ''}\n"
        f"lambda {config.lmbda:g}, mu {config.mu:g}, {config.metric}; "
        f"steps {state.step} to {training.total_steps}, {state.steps_per_epoch} an epoch"
    )


def plan(training: Training, options: dict[str, Any]) -> str:
    """What --dry-run prints: the effective configuration, memory, files."""
    from svdrd.compress.codecs import checkpoints
    from svdrd.compress.train import memory

    config = training.config
    crops, need = memory.of_step(training.stepper, config.batch_size)
    checkpoint = need.weights + need.optimizers
    lines = [
        "",
        "configuration, as --config takes it:",
        json.dumps(options, indent=2),
        f"\nmemory of a process, {crops} crops of {config.patch_size[0]}x{config.patch_size[1]} at once:",
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
