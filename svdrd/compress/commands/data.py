"""Gets a data set of photographs from its official address: svdrd data get kodak.

An interrupted download goes on where it stopped; a file appears under its name only when it is complete and its
checksum is right; what is there already is not fetched again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from svdrd.compress.errors import BadInput
from svdrd.compress.images.data_sets import DATA_SETS, get


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("action", choices=("get",), help="get: fetch it")
    add("name", choices=DATA_SETS, help="kodak (24 images, 15 MB), div2k (4.0 GB) or clic (professional, 3.0 GB)")
    add("-o", "--output", type=Path, help="folder for it (default: data/NAME)")
    add("--only", nargs="+", metavar="PART", help="of div2k and clic: train, valid, (clic) test")


def run(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    arguments = parser.parse_args(argv)
    folder = arguments.output or Path("data") / arguments.name
    sources = DATA_SETS[arguments.name]
    parts = list(dict.fromkeys(source.part for source in sources))
    for part in arguments.only or []:
        if part not in parts:
            raise BadInput(f"--only {part}: {arguments.name} has {', '.join(parts)}")
    for source in sources:
        if arguments.only is None or source.part in arguments.only:
            get(source, folder)
    print(f"{arguments.name} is in {folder}")
    return 0
