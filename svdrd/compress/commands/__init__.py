"""The commands of ``svdrd``, one file each: its options, a call of what lives in the other folders, what is printed.

A command imports what it calls inside of its ``run``, below the parsing: that takes seconds, for torch above all, and
``--help`` and a wrong option need none of it.
"""

import argparse
import importlib
from collections.abc import Sequence
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """argparse prints the whole usage before an error; here an error is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def call(command: str, argv: Sequence[str]) -> int:
    """Runs ``svdrd COMMAND ARGV``, the module of that name in this folder.

    Returns:
        The exit code: 0, or 128 + the signal's number after SIGINT or SIGTERM.

    Raises:
        SystemExit: argparse has answered, ``--help`` or a wrong option.
        BadInput: an argument cannot work; nothing has been written then.
        Stopped: the command cannot go on.
    """
    module = importlib.import_module(f"svdrd.compress.commands.{command}")
    parser = OneLineParser(
        prog=f"svdrd {command}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    return int(module.run(parser, argv))
