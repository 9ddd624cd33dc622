"""The command line: ``python -m svdrd`` or ``svdrd``."""

import argparse
import sys
from collections.abc import Sequence

from svdrd.compress.commands import OneLineParser, call
from svdrd.compress.errors import BadInput, Stopped
from svdrd.compress.showing import let_streams_show_everything

COMMANDS = {
    "finetune": "train a CompressAI codec with the basis loss",
    "evaluate": "code a folder of images with a codec: bpp, PSNR, MS-SSIM",
    "compare": "compare arms: BD-rate, RD loss, curves, crops side by side",
    "recompose": "what the singular vectors of the originals would give a codec's images: PSNR, figures",
    "experiment": "run a whole study: base codecs, fine-tuning arms, evaluation, comparison",
    "data": "get a data set of photographs: kodak, div2k, clic",
    "info": "versions, build, devices, backends, who computes what (what svdrd prints without arguments)",
}
# What svdrd[compress] installs beside torch, by the names that Python imports.
EXTRAS = {
    "PIL", "bjontegaard", "compressai", "matplotlib", "numpy", "pytorch_msssim", "tensorboard", "tomli", "torchvision",
    "tqdm",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    let_streams_show_everything()
    argv = list(sys.argv[1:] if argv is None else argv)
    listing = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
    parser = OneLineParser(
        prog="svdrd",
        description=f"SVD basis loss for learned image compression.\n\ncommands:\n{listing}",
        epilog="svdrd COMMAND --help explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", default="info", choices=COMMANDS, metavar="COMMAND")
    command = parser.parse_args(argv[:1]).command
    if command == "info":
        return info(argv[1:])
    return run_compress_command(command, argv[1:])


def info(argv: Sequence[str]) -> int:
    """What a report of a fault has to say about where it happened."""
    parser = OneLineParser(prog="svdrd info", description=COMMANDS["info"])
    parser.add_argument("--json", action="store_true", help="the same and more as JSON, for programs")
    arguments = parser.parse_args(argv)
    from svdrd.environment import environment

    here = environment()
    print(here.as_json() if arguments.json else here.as_text())
    return 0


def run_compress_command(command: str, argv: Sequence[str]) -> int:
    """Runs a command, and turns what it raises into a line on stderr and an exit code."""
    prog = f"svdrd {command}"
    try:
        return call(command, argv)
    except BadInput as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in EXTRAS:
            raise
        print(f"{prog}: error: {error.name} is not installed; pip install 'svdrd[compress]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
