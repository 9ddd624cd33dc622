"""The command line: ``python -m svdrd`` or ``svdrd``."""

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from typing import TYPE_CHECKING

from svdrd.compress.commands import OneLineParser, call
from svdrd.compress.errors import BadInput, Stopped
from svdrd.compress.showing import let_streams_show_everything

if TYPE_CHECKING:
    import torch

COMMANDS = {
    "finetune": "train a CompressAI codec with the basis loss",
    "evaluate": "code a folder of images with a codec: bpp, PSNR, MS-SSIM",
    "compare": "compare arms: BD-rate, RD loss, curves, crops side by side",
    "recompose": "what the singular vectors of the originals would give a codec's images: PSNR, figures",
    "experiment": "run a whole study: base codecs, fine-tuning arms, evaluation, comparison",
    "data": "get a data set of photographs: kodak, div2k, clic",
    "info": "versions, devices, backends (what svdrd prints without arguments)",
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
        OneLineParser(prog="svdrd info", description=COMMANDS["info"]).parse_args(argv[1:])
        print(info())
        return 0
    return run_compress_command(command, argv[1:])


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


def info() -> str:
    """Versions, devices and backends, with the reason for every one that is missing."""
    import torch

    import svdrd
    from svdrd.backends import availability

    lines = [
        f"svdrd {svdrd.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"cpu: {platform.platform()}, {torch.get_num_threads()} threads",
    ]
    if torch.tensor(1e-310, dtype=torch.float64).mul(1).item() == 0:
        lines.append("denormal numbers are flushed to 0 in this process; svdrd does not ask for that")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            lines.append(f"cuda:{index}: {torch.cuda.get_device_name(index)}, sm_{major}{minor}")
    else:
        lines.append("cuda: no device")
    for name, available, reason in availability.describe():
        lines.append(f"backend {name}: {'available' if available else 'missing'}, {reason}")
    if availability.native is not None:
        threads = {"OpenMP": "those of PyTorch's OpenMP", "own": "started for each call"}
        lines.append(f"threads of cpp: {threads[availability.native.threads_of()]}")
    lines += _routes(
        [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    )
    for package in ("bjontegaard", "compressai", "matplotlib", "pytorch-msssim", "tensorboard", "torchvision", "tqdm"):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package}: missing, pip install 'svdrd[compress]'")
    return "\n".join(lines)


# Sides of typical blocks and patches.
SIZES = (8, 16, 32, 64, 128, 256)


def _routes(devices: "Sequence[torch.device]") -> list[str]:
    """Who computes float32 matrices of typical sizes on each device now; neighbours with one answer share a line."""
    from svdrd.dispatch import routes

    lines = []
    for device in devices:
        for operator in ("svd", "polar_factor", "basis_loss", "recompose"):
            try:
                computers = [routes.route(operator, n, n, device=device) for n in SIZES]
            except RuntimeError as error:  # SVDRD_BACKEND names one that computes elsewhere
                lines.append(f"{operator} on {device}: {error}")
                continue
            by_size = dict(zip(SIZES, computers, strict=True))
            spans = [(computer, list(sizes)) for computer, sizes in groupby(SIZES, key=by_size.get)]
            parts = (f"{sizes[0]}{f' to {sizes[-1]}' if len(sizes) > 1 else ''}: {name}" for name, sizes in spans)
            lines.append(f"{operator} on {device}, n x n, {', '.join(parts)}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
