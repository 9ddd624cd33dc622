"""What `svdrd compare` compares: arms of checkpoints, of the zoo's qualities or of results that are there already."""

import glob
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdrd.compress.errors import BadInput

FORM = "--arm NAME=FILE[,FILE...], as in --arm control='runs/control-*/checkpoint.pth.tar'"
NAME = re.compile(r"[\w.+-]+")
# Without them the rest of a path is what tells points apart.
SUFFIXES = (".pth.tar", ".tar", ".pth", ".pt", ".json")


@dataclass(frozen=True)
class Source:
    """A point of an arm (or several, where `results` has several): what to call it, and where it comes from.

    Either `results`, a JSON file of `svdrd evaluate`, or `codec`: `{"checkpoint": path}` or `{"quality": q}`. `lmbda`
    is what the user wrote behind it, and goes before what the file says.
    """

    label: str
    codec: dict[str, Any]
    results: Path | None = None
    lmbda: float | None = None


@dataclass(frozen=True)
class Arm:
    """`model` is None where no option names it; JSON files name theirs."""

    name: str
    model: str | None
    sources: tuple[Source, ...]


def parse_arms(values: Sequence[Sequence[str]], model: str | None) -> list[Arm]:
    """The arms of `--arm [MODEL:]NAME=ITEM[,ITEM...]` or `--arm [MODEL:]NAME ITEM [ITEM...]`, in their order.

    An item is a file or a pattern of files: checkpoints, or JSON files of `svdrd evaluate`; or `zoo:3` or `zoo:1-4`,
    qualities of CompressAI's zoo. `@0.013` behind it is the lambda of its training.

    Raises:
        BadInput: another form, no such file, a name that is given twice, a checkpoint without a model.
    """
    arms = []
    for first, *rest in values:
        left, _, items = first.partition("=")
        own_model, _, name = left.rpartition(":")
        if not NAME.fullmatch(name):
            raise BadInput(f"--arm {first}: no name of letters, digits, and . _ + - in front; wanted {FORM}")
        found = [source for item in [*items.split(","), *rest] if item for source in sources_of(name, item)]
        if not found:
            raise BadInput(f"--arm {first}: no file; wanted {FORM}")
        arm = Arm(name, own_model or model, labelled(found))
        if arm.model is None and any(source.results is None for source in found):
            raise BadInput(f"--arm {first}: of which codec? give --model, or --arm MODEL:NAME=...")
        arms.append(arm)
    ((_, name), count), *_ = Counter((arm.model, arm.name) for arm in arms).most_common(1)
    if count > 1:
        raise BadInput(f"--arm {name}: given {count} times; give all its points at once: {FORM}")
    return arms


def sources_of(arm: str, item: str) -> list[Source]:
    pattern, lmbda = item, None
    before, at, behind = item.rpartition("@")
    if at:
        try:
            pattern, lmbda = before, float(behind)
        except ValueError:
            pattern = item
        if lmbda is not None and not 0 < lmbda < float("inf"):
            raise BadInput(f"--arm {arm}: {item}: wanted a finite lambda above 0 behind the @, as in @0.013")
    if pattern.startswith("zoo:"):
        first, _, last = pattern.removeprefix("zoo:").partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            raise BadInput(f"--arm {arm}: {item}: wanted a quality of the zoo or a range of them: zoo:3, zoo:1-4")
        qualities = range(int(first), int(last or first) + 1)
        return [Source(f"zoo-{quality}", {"quality": quality}, lmbda=lmbda) for quality in qualities]
    # Path.glob takes no absolute pattern.
    paths = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    if not paths:
        raise BadInput(f"--arm {arm}: {pattern}: no such file; wanted {FORM}")
    return [
        Source(path, {}, Path(path), lmbda)
        if path.endswith(".json")
        else Source(path, {"checkpoint": path}, None, lmbda)
        for path in paths
    ]


def labelled(sources: Sequence[Source]) -> tuple[Source, ...]:
    """Paths as labels become as many of their last parts as tell them apart."""
    parts = []
    for source in sources:
        path = source.label
        for suffix in SUFFIXES:
            if path.endswith(suffix):
                path = path.removesuffix(suffix)
                break
        parts.append([part for part in Path(path).parts if part not in ("/", "..")])
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["-".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            break
    else:
        labels = [f"{label}-{number}" for number, label in enumerate(labels, 1)]
    return tuple(
        Source(label, source.codec, source.results, source.lmbda) for label, source in zip(labels, sources, strict=True)
    )


def check_anchors(arms: Sequence[Arm], anchors: Sequence[str]) -> None:
    if len(arms) < 2:
        raise BadInput(f"--arm {arms[0].name}: the only one; give another --arm to compare it with")
    for anchor in anchors:
        if anchor not in [arm.name for arm in arms]:
            raise BadInput(f"--anchor {anchor}: no such arm; there are {', '.join(arm.name for arm in arms)}")
