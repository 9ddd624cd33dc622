"""Runs a whole study from one configuration file: base codecs, fine-tuning arms, evaluation, comparison.

Each stage is a command of svdrd, printed before it runs, in a process of its own: what one leaves in a process
(threads, number formats, random generators, memory) does not reach the next, and one that is killed does not end the
study's own bookkeeping. The same call continues a study that was interrupted, and skips what is done. An example is
docs/studies/compact_codec/study.toml.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svdrd.compress.study.configuration import Study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", help="TOML or JSON file that describes the study")
    add("-o", "--output", help="folder of the study (default: output in the file, or runs/experiment)")
    add("--dry-run", action="store_true", help="list the stages, their commands and what is done of them, and end")


def run(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    arguments = parser.parse_args(argv)

    from svdrd.compress.showing import show
    from svdrd.compress.study.configuration import read_study
    from svdrd.compress.study.report import write_report
    from svdrd.compress.study.run import OwnProcess, check, locked, run_stages, shown
    from svdrd.compress.study.stages import DONE

    study = read_study(arguments.config, arguments.output)
    stages = study.stages()
    states = check(stages)
    print(description(study, len(stages), states.count(DONE)), flush=True)
    if arguments.dry_run:
        for stage, state in zip(stages, states, strict=True):
            print(f"{stage.name}: {state}\n{shown(stage)}")
        print("\nnothing was run or written (--dry-run)")
        return 0
    with locked(study.output) as lock:
        code = run_stages(stages, OwnProcess(lock))
        if code == 0:
            show(f"\nreport: {write_report(study, stages)}")
        return code


def description(study: Study, stages: int, done: int) -> str:
    """What is studied, and how many of the stages are done: two lines."""
    counts = (
        (len(study.rates), "rate"),
        (len(study.arms), "arm"),
        (len(study.seeds), "seed"),
        (len(study.folders), "folder"),
    )
    parts = ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
    return f"{study.path}: {study.model}, {parts}; into {study.output}\n{stages} stages, {done} of them done"
