"""The command line of ``svdrd finetune``: its options, a file of them, the run that is resumed."""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from svdrd.compress.errors import BadInput
from svdrd.compress.files import read_text
from svdrd.compress.options import METRICS, PRECISIONS, SCHEDULES, add_codec_arguments

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What a call does once, and no property of the run.
OF_A_CALL = ("resume", "config", "dry_run")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    codec = parser.add_argument_group("codec")
    add = codec.add_argument
    add("-m", "--model", default="bmshj2018-hyperprior", help="docs/guide/codecs.md has all (default: %(default)s)")
    add("-q", "--quality", type=int, help="quality in CompressAI's zoo: decides the weights and lambda")
    add("--init", choices=("zoo", "random"), default="zoo", help="where the weights come from (default: %(default)s)")
    add("--checkpoint", help="start a new run from the weights of this checkpoint, svdrd's or CompressAI's")
    add(
        "--resume",
        help="continue the run that wrote this checkpoint; its arguments hold unless given again. "
        "auto: continue the run in --save-dir if there is one, else begin it",
    )
    add_codec_arguments(codec)
    add(
        "--freeze",
        nargs="+",
        default=[],
        metavar="PART",
        help="do not train: encoder, decoder, entropy (model), or modules by name, such as h_a",
    )

    data = parser.add_argument_group("images")
    add = data.add_argument
    add("-d", "--dataset", help="folder of training images, with or without train/ and test/ inside")
    add("--val-dataset", help="folder of validation images (default: test/ or val/ in the dataset, else every tenth)")
    add("--patch-size", type=int, nargs=2, default=[256, 256], metavar=("H", "W"), help="crop (default: 256 256)")
    add("--crops-per-image", type=int, default=1, help="crops that an epoch takes of each image (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="crops in a step, over all processes (default: %(default)s)")
    add("--accumulate", type=int, default=1, help="parts in which a process computes its crops (default: %(default)s)")
    add("--test-batch-size", type=int, default=1, help="validation images of equal size at once (default: %(default)s)")
    add("-n", "--num-workers", type=int, default=min(4, os.cpu_count() or 1), help="loaders (default: %(default)s)")

    loss = parser.add_argument_group("loss")
    add = loss.add_argument
    add("--lambda", dest="lmbda", type=float, help="weight of the distortion (default: the zoo's for the quality)")
    add("--metric", choices=METRICS, default="mse", help="distortion (default: %(default)s)")
    add("--mu", type=float, default=10.0, help="weight of the basis term; 0: the control (default: %(default)s)")
    add("--block-size", type=int, help="side of the blocks of the basis loss (default: the patch is one matrix)")
    add("--smooth", type=float, default=0.0, help="smoothing of the polar factor, images in [0, 1] (default: 0)")

    run = parser.add_argument_group("run")
    add = run.add_argument
    add("-e", "--epochs", type=int, default=100, help="(default: %(default)s)")
    add("--steps", type=int, help="stop after this many steps, if that is before the last epoch")
    add("-lr", "--learning-rate", type=float, default=1e-5, help="(default: %(default)s)")
    add("--aux-learning-rate", type=float, default=1e-3, help="of the entropy model's quantiles (default: %(default)s)")
    add(
        "--lr-schedule",
        choices=SCHEDULES,
        default="plateau",
        help="plateau: to a tenth after more than 10 epochs without a better validation loss, as CompressAI; "
        "cosine: to a hundredth over all steps; step: a tenth for the last fifth of all steps (default: %(default)s)",
    )
    add("--clip-max-norm", "--clip_max_norm", type=float, default=1.0, help="of the gradient; 0: none (default: 1.0)")
    add("--seed", type=int, default=0, help="of weights, order, crops and quantisation noise (default: %(default)s)")
    add(
        "--max-skipped",
        type=int,
        default=20,
        help="give the run up after this many steps in a row without a finite loss and gradient (default: %(default)s)",
    )

    machine = parser.add_argument_group("machine")
    add = machine.add_argument
    add("--device", help="(default: cuda where there is a GPU, else cpu)")
    add("--cuda", dest="device", action="store_const", const="cuda", help="the same as --device cuda")
    add(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of the networks; weights, likelihoods and loss stay in fp32 (default: %(default)s)",
    )
    switch = argparse.BooleanOptionalAction
    add("--tf32", action=switch, default=False, help="products of fp32 with TF32 inside, on Ampere and later GPUs")
    add("--compile", action=switch, default=False, help="torch.compile the model's training step")
    add("--channels-last", action=switch, default=False, help="memory layout that tensor cores prefer")

    files = parser.add_argument_group("files")
    add = files.add_argument
    add("--config", help="TOML or JSON file of these options by their long names; those of the command line win")
    add("--dry-run", action="store_true", help="check everything, say what would be done, and end")
    add("-o", "--save-dir", default="runs/finetune", help="for checkpoints, metrics.csv, logs (default: %(default)s)")
    add("--save", action=switch, default=True, help="write to that folder (default: yes)")
    add(
        "--checkpoint-minutes",
        type=float,
        default=10.0,
        help="save inside an epoch, too, when this long has passed since the last time (default: %(default)s)",
    )
    add(
        "--gradient-norms",
        type=int,
        default=100,
        metavar="STEPS",
        help="after every so many steps log the gradient norm of each term of the loss; 0: never (default: 100)",
    )
    add("--log-images", type=int, default=2, help="validation crops shown in TensorBoard (default: %(default)s)")


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, dict[str, Any] | None]:
    """The arguments, and the checkpoint to resume from if they name one.

    What the command line says wins over ``--config``, that over the run resumed from, and that over the defaults.

    Raises:
        BadInput: a file that cannot be read, or does not hold what it should.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(argv)
    if arguments.config:
        argv = [*options_of_file(parser, arguments.config), *argv]
        arguments = parser.parse_args(argv)
    resumed = None
    resume = arguments.resume
    if resume:
        # Below the parsing, for the sake of --help: it imports torch.
        from svdrd.compress.codecs import checkpoints

        if resume == "auto":
            last = Path(arguments.save_dir) / checkpoints.LAST
            resume = str(last) if last.exists() else None
    if resume:
        resumed = checkpoints.load(resume)
        if "arguments" not in resumed:
            raise BadInput(f"--resume {resume}: not a run of svdrd finetune; use --checkpoint for its weights")
        parser.set_defaults(**{**resumed["arguments"], "save_dir": str(Path(resume).parent)})
        arguments = parser.parse_args(argv)
    arguments.resume = resume
    return arguments, resumed


def as_config(parser: argparse.ArgumentParser, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by argparse's names, as a file for ``--config`` has them."""
    names = {action.dest: name for name, action in reversed(list(_long_options(parser)))}
    kept = [dest for dest in values if dest in names and dest not in OF_A_CALL]
    return {names[dest]: values[dest] for dest in kept if values[dest] not in (None, [])}


def options_of_file(parser: argparse.ArgumentParser, path: str) -> list[str]:
    """The content of a configuration file as words of a command line, which argparse then checks as usual.

    Keys are the long names of the options, with ``-`` or ``_``; ``true`` and ``false`` switch. TOML's tables (and
    JSON's objects) are headings without a meaning.
    """
    where = f"--config {path}"
    return words_of(parser, dict(_flat(read_configuration(path, where))), where)


def words_of(parser: argparse.ArgumentParser, options: Mapping[str, Any], where: str) -> list[str]:
    """Options by their long names as words of a command line; ``where`` begins the message of an error."""
    actions = {name.replace("-", "_"): (name, action) for name, action in _long_options(parser)}
    words = []
    for key, value in options.items():
        name = key.replace("-", "_")
        if name not in actions or actions[name][1].dest in ("config", "help", "dry_run"):
            similar = difflib.get_close_matches(name, actions, n=1)
            hint = f"did you mean {actions[similar[0]][0]}?" if similar else "svdrd finetune --help lists them"
            raise BadInput(f"{where}: no option {key!r}; {hint}")
        option, action = actions[name]
        if value is None:
            continue
        if isinstance(value, bool) != isinstance(action, argparse.BooleanOptionalAction):
            wanted = "true or false" if isinstance(action, argparse.BooleanOptionalAction) else "a value, or none"
            raise BadInput(f"{where}: {key} = {json.dumps(value)}: wanted {wanted}")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{option}")
        elif isinstance(value, list) and value:
            words += [f"--{option}", *map(str, value)]
        elif not isinstance(value, list):
            words.append(f"--{option}={value}")
    return words


def _long_options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    for action in parser._actions:
        for option in action.option_strings:
            if (option.startswith("--") and not option.startswith("--no-") and action.nargs != 0) or (
                isinstance(action, argparse.BooleanOptionalAction) and not option.startswith("--no-")
            ):
                yield option[2:], action


def read_configuration(path: str, where: str) -> dict[str, Any]:
    """A TOML or, by its suffix, JSON file; ``where`` begins the message of an error.

    Raises:
        BadInput: no such file, not UTF-8, not TOML (JSON), or not a table (object).
    """
    try:
        text = read_text(path)
        value = json.loads(text) if Path(path).suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise BadInput(f"{where}: {error.strerror}; give a .toml or .json file of options") from error
    except UnicodeError as error:
        raise BadInput(f"{where}: not UTF-8 ({error}); save it in UTF-8") from error
    except ValueError as error:
        kind = "JSON" if Path(path).suffix == ".json" else "TOML"
        raise BadInput(f"{where}: not {kind} ({error}); for example: batch-size = 16") from error
    if not isinstance(value, dict):
        raise BadInput(f"{where}: holds a {type(value).__name__}, wanted an object of options by name")
    return value


def _flat(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield key, value
