"""The stages of a study: the command of each, what decides its result, and whether that is there already."""

import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from svdrd.compress.codecs import checkpoints
from svdrd.compress.errors import BadInput
from svdrd.compress.evaluation.provenance import weights_of
from svdrd.compress.files import read_text, write_json
from svdrd.compress.options import MEASURES
from svdrd.compress.study.contents import NOT_YET, Contents
from svdrd.compress.train.command_line import add_arguments, as_config, read_configuration
from svdrd.compress.train.config import TrainConfig

DONE, TO_DO = "done", "to do"
# All numbers of a comparison, as svdrd compare writes them.
COMPARISON = "comparison.json"

# Options that say where, how and how often, and do not decide what is trained. Images and the weights of the start are
# compared by what they are, not by where they lie.
NOT_COMPARED = frozenset(
    (
        "save-dir", "save", "num-workers", "device", "checkpoint-minutes", "gradient-norms", "log-images",
        "dataset", "val-dataset", "checkpoint",
    )
)  # fmt: skip

# What a run's own files do not hold.
CONTENTS = ("weights of the start", "training images", "validation images")


class ChangedStage(BadInput):
    """The configuration of a stage is no longer that of the result which is there."""


class OptionParser(argparse.ArgumentParser):
    """A parser whose errors are ours: the options come from a file, not from the command line of this process."""

    def error(self, message: str) -> Any:
        raise BadInput(message)


def finetune_parser() -> OptionParser:
    parser = OptionParser(prog="svdrd finetune", add_help=False)
    add_arguments(parser)
    return parser


class Stage(ABC):
    """One command of a study.

    ``name`` is the path below the output folder. A *record*, ``stages/<name>.json`` there, is written before the
    command starts: it holds :meth:`settings`, and a result is taken for done only under the same ones.
    """

    def __init__(self, contents: Contents, output: Path, name: str, command: Sequence[str]) -> None:
        self.contents = contents
        self.output = output
        self.name = name
        self.command = list(command)
        self.record_path = output / "stages" / f"{name}.json"

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that decides the result, by name; :data:`NOT_YET` for weights that are still to be made."""

    @abstractmethod
    def result(self) -> str:
        """:data:`DONE`, :data:`TO_DO`, or how far a result that is begun has come."""

    @abstractmethod
    def place(self) -> Path:
        """What to remove for the stage to begin anew."""

    def found(self) -> dict[str, Any] | None:
        """The settings of the result that is there, as far as they are known; None where there is none."""
        if not self.record_path.exists():
            return None
        try:
            record: dict[str, Any] = json.loads(read_text(self.record_path))["settings"]
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(f"{self.record_path}: not a record of svdrd experiment ({error}); remove it") from error
        return record

    def changes(self) -> list[str]:
        """What differs between the configuration and the result that is there."""
        # First, and also where there is nothing to compare with: a folder that is missing shows before anything runs.
        settings, found = self.settings(), self.found()
        return [] if found is None or self.result() == TO_DO else differences(found, settings, self.defaults())

    def defaults(self) -> dict[str, Any]:
        """Values of settings that a result of an earlier version does not name."""
        return {}

    def state(self) -> str:
        """:meth:`result`, after a check that the result is one of this configuration.

        Raises:
            ChangedStage: it is not; the message names what changed.
        """
        changes = self.changes()
        if changes:
            raise ChangedStage(
                f"{self.name}: {'; '.join(changes)}; {self.place()} keeps the result of before: give another folder "
                "(--output), or remove that one to begin this stage anew"
            )
        return self.result() if self.found() is not None else TO_DO

    def begin(self) -> None:
        """Writes the record."""
        self.place().parent.mkdir(parents=True, exist_ok=True)
        record = {"command": ["svdrd", *self.command], "settings": self.settings()}
        write_json(self.record_path, record)


class FinetuneStage(Stage):
    """``svdrd finetune`` into the folder ``name``; ``start`` is the file of weights that the command begins with."""

    def __init__(self, contents: Contents, output: Path, name: str, options: Sequence[str], start: Path | None) -> None:
        self.folder = output / name
        super().__init__(contents, output, name, ["finetune", *options, "-o", str(self.folder), "--resume", "auto"])
        self.checkpoint = self.folder / checkpoints.LAST
        self.start = start
        self.parser = finetune_parser()
        try:
            self.config = TrainConfig.from_arguments(self.parser.parse_args(["-o", str(self.folder), *options]))
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from error

    def settings(self) -> dict[str, Any]:
        training, validation = self.contents.training(self.config)
        return {
            **self._compared(self.config.saved()),
            **dict(zip(CONTENTS, (self.contents.weights(self.start), training, validation), strict=True)),
        }

    def result(self) -> str:
        if not self.checkpoint.exists():
            return TO_DO
        try:
            summary = json.loads(read_text(self.folder / "summary.json"))
            if summary["finished"]:
                return DONE
            return f"begun, step {summary['step']} of {summary['total_steps']}"
        except (OSError, ValueError, KeyError):
            return "begun"

    def place(self) -> Path:
        return self.folder

    def found(self) -> dict[str, Any] | None:
        """The record, with the options of the run that is really there; without a record, what its checkpoint says."""
        record = super().found()
        if not self.checkpoint.exists():
            return record
        if record is not None:
            config = read_configuration(str(self.folder / "config.json"), self.name)
            options = {key: value for key, value in config.items() if key not in NOT_COMPARED}
            return {**options, **{key: record[key] for key in CONTENTS if key in record}}
        state = checkpoints.load(self.checkpoint)
        if "arguments" not in state:
            raise BadInput(f"{self.name}: {self.checkpoint} is no run of svdrd finetune; remove {self.folder}")
        before = {**self.config.saved(), **state["arguments"]}
        start = self.contents.weights(None if before["checkpoint"] is None else Path(before["checkpoint"]))
        return {
            **self._compared(before),
            "weights of the start": f"{before['checkpoint']}, which is gone" if start == NOT_YET else start,
            "training images": state["images"],
        }

    def defaults(self) -> dict[str, Any]:
        # The validation images of a run without a record are unknown. They decide which of its checkpoints is the best
        # one, and the study uses the last.
        settings = self.settings()
        known = self._compared(vars(self.parser.parse_args([])))
        return {**known, "validation images": settings["validation images"]}

    def _compared(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in as_config(self.parser, values).items() if key not in NOT_COMPARED}


class EvaluateStage(Stage):
    """``svdrd evaluate`` over the folder ``images`` into ``name``.json.

    ``codec`` is ``{"checkpoint": path}``, or ``{"quality": q}`` of the zoo's weights for ``metric``.
    """

    def __init__(
        self,
        contents: Contents,
        output: Path,
        name: str,
        model: str,
        codec: Mapping[str, Any],
        metric: str,
        images: str,
        options: Sequence[str],
    ) -> None:
        self.file = output / f"{name}.json"
        self.model = model
        self.checkpoint = Path(codec["checkpoint"]) if "checkpoint" in codec else None
        self.zoo = None if self.checkpoint else weights_of(metric, dict(codec))
        self.images = images
        self.options = list(options)
        source = [word for key, value in codec.items() for word in (f"--{key}", str(value))]
        kind = [] if metric == "mse" else ["--metric", metric]
        command = ["evaluate", "-m", model, *kind, *source, "-d", images, *options, "-o", str(self.file)]
        super().__init__(contents, output, name, command)

    def settings(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "rate": "estimated" if "--estimate" in self.options else "coded",
            "weights": self.zoo if self.checkpoint is None else self.contents.weights(self.checkpoint),
            "images": self.contents.images(self.images),
            **{f"measure {name}": True for name in MEASURES if name in self.options},
        }

    def result(self) -> str:
        # svdrd evaluate writes its file at the end and at once: one that is there is whole.
        return DONE if self.file.exists() else TO_DO

    def place(self) -> Path:
        return self.file

    def found(self) -> dict[str, Any] | None:
        """What the file itself says."""
        if not self.file.exists():
            return None
        try:
            content = json.loads(read_text(self.file))
            said, results = content["settings"], content["results"]
            return {
                "model": said["model"],
                "rate": said["rate"],
                "weights": said["points"][0]["weights"],
                "images": said["images"],
                # Those that nobody asks for any more do no harm.
                **{f"measure {name}": True for name in MEASURES if name in results and name in self.options},
            }
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise BadInput(f"{self.name}: {self.file} is no result of svdrd evaluate ({error}); remove it") from error


class CompareStage(Stage):
    """``svdrd compare`` of the arms of one seed on one folder of images, into the folder ``name``.

    ``arms`` are the files of :class:`EvaluateStage`, with the lambda of each.
    """

    def __init__(
        self,
        contents: Contents,
        output: Path,
        name: str,
        arms: Mapping[str, Sequence[tuple[Path, float]]],
        anchors: Sequence[str],
    ) -> None:
        self.folder = output / name
        self.arms = arms
        self.anchors = list(anchors)
        command = ["compare"]
        for arm, points in arms.items():
            first, *rest = [f"{path}@{lmbda:g}" for path, lmbda in points]
            command += ["--arm", f"{arm}={first}", *rest]
        super().__init__(
            contents, output, name, [*command, "--anchor", *self.anchors, "-o", str(self.folder)]
        )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        points = [(arm, path, lmbda) for arm, its_points in self.arms.items() for path, lmbda in its_points]
        return {
            "anchors": self.anchors,
            "points": [f"{arm} {lmbda:g} {self.contents.weights(path)}" for arm, path, lmbda in points],
        }

    def result(self) -> str:
        # svdrd compare writes it last of the tables.
        return DONE if (self.folder / COMPARISON).exists() else TO_DO

    def place(self) -> Path:
        return self.folder

    def state(self) -> str:
        """A comparison of other results, or in another way, costs seconds, and is made anew without a question."""
        return self.result() if self.found() == self.settings() else TO_DO


def differences(before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """What changed, as text; a setting that ``before`` does not name had its default."""
    said = []
    for key in [*now, *(key for key in before if key not in now)]:
        old = before.get(key, defaults.get(key))
        new = now.get(key, defaults.get(key))
        if old == new or NOT_YET in (old, new):
            continue
        long = any(isinstance(value, str) and len(value) == 64 for value in (old, new))
        said.append(f"the {key} are others than before" if long else f"{key} was {old}, is {new}")
    return said
