"""The configuration file of ``svdrd experiment``, and the stages that it means."""

import argparse
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdrd.compress.codecs import checkpoints, models
from svdrd.compress.errors import BadInput
from svdrd.compress.options import MEASURES, METRICS
from svdrd.compress.study.contents import Contents
from svdrd.compress.study.stages import CompareStage, EvaluateStage, FinetuneStage, Stage, finetune_parser
from svdrd.compress.train.command_line import read_configuration, words_of

BASE = "base"
KEYS = ("output", "model", "metric", "lambdas", "qualities", "seeds", "base", "finetune", "arms", "evaluate", "report")
EVALUATE_KEYS = ("folders", "also", "estimate", "device")
# Anchors: base answers what all of the fine-tuning gave, the control arm what the loss gave beyond further training.
REPORT_KEYS = ("anchors",)

# What the experiment itself sets in the options of svdrd finetune, and where it takes it from.
SET_BY_US = {
    "model": "model at the top of the file",
    "metric": "metric at the top of the file",
    "lambda": "lambdas at the top of the file",
    "quality": "qualities at the top of the file",
    "save-dir": "output at the top of the file, or --output",
    "save": "nothing: a study keeps its runs",
    "resume": "nothing: the experiment resumes what is begun",
}
START = "[base]: all arms begin with the same weights"
FINETUNE_SET_BY_US = {
    **SET_BY_US, "seed": "seeds at the top of the file", "checkpoint": START, "init": START, "model-args": START,
}  # fmt: skip
# Arms that differed in these would not see the same crops in the same order for the same number of steps.
COMMON = "[finetune]: all arms see the same crops in the same steps"
ARM_SET_BY_US = {
    **FINETUNE_SET_BY_US,
    **dict.fromkeys(
        ("dataset", "val-dataset", "patch-size", "crops-per-image", "batch-size", "epochs", "steps"), COMMON
    ),
}


@dataclass(frozen=True)
class Rate:
    """One point of the curves: lambda, and the zoo's quality where the base codecs are the zoo's."""

    lmbda: float
    quality: int | None = None

    @property
    def folder(self) -> str:
        return f"lambda-{self.lmbda:g}"

    def words(self) -> list[str]:
        """As options of ``svdrd finetune``."""
        return ["--lambda", f"{self.lmbda:g}"] if self.quality is None else ["-q", str(self.quality)]

    def fill(self, words: Iterable[str]) -> list[str]:
        return [word.replace("{lambda}", f"{self.lmbda:g}") for word in words]


@dataclass(frozen=True)
class Study:
    """A study as its file describes it; option lists are words of a command line.

    ``seeds`` holds for each seed the rates, in the order of ``rates``, that its arms are trained at.
    """

    path: str
    output: Path
    model: str
    metric: str
    rates: tuple[Rate, ...]
    seeds: Mapping[int, tuple[Rate, ...]]
    base_weights: str | None
    base_options: tuple[str, ...] | None
    finetune_options: tuple[str, ...]
    arms: Mapping[str, tuple[str, ...]]
    folders: Mapping[str, str]
    evaluate_options: tuple[str, ...]
    anchors: tuple[str, ...]

    def stages(self) -> list[Stage]:
        """Base codecs, arms, evaluations, comparisons, in the order in which they can run."""
        contents = Contents()
        return [
            *self._bases(contents),
            *self._arms(contents),
            *self._evaluations(contents),
            *self.comparisons(contents),
        ]

    def _bases(self, contents: Contents) -> Iterator[Stage]:
        if self.base_options is None or self.base_weights is not None:
            return
        for rate in self.rates:
            options = rate.fill(self.base_options)
            # Values are written behind an equals sign.
            first = next((Path(word[13:]) for word in options if word.startswith("--checkpoint=")), None)
            words = [*self._codec(), *rate.words(), *options]
            yield FinetuneStage(contents, self.output, f"{BASE}/{rate.folder}", words, first)

    def _arms(self, contents: Contents) -> Iterator[Stage]:
        """Seed by seed: a study that is stopped has whole curves."""
        for seed, rates in self.seeds.items():
            for rate in rates:
                start = self._start(rate)
                begin = [] if start is None else ["--checkpoint", str(start)]
                for arm, its_options in self.arms.items():
                    options = rate.fill([*self.finetune_options, *its_options])
                    words = [*self._codec(), *rate.words(), *begin, *options, "--seed", str(seed)]
                    yield FinetuneStage(contents, self.output, self._arm(arm, rate, seed), words, start)

    def _evaluations(self, contents: Contents) -> Iterator[Stage]:
        def stage(path: str, codec: dict[str, Any], images: str) -> Stage:
            rest = (self.model, codec, self.metric, images, self.evaluate_options)
            return EvaluateStage(contents, self.output, path, *rest)

        for name, images in self.folders.items():
            for rate in self.rates:
                start = self._start(rate)
                codec = {"quality": rate.quality} if start is None else {"checkpoint": str(start)}
                yield stage(self._evaluation(name, BASE, rate), codec, images)
            for seed, rates in self.seeds.items():
                for rate in rates:
                    for arm in self.arms:
                        checkpoint = self.output / self._arm(arm, rate, seed) / checkpoints.LAST
                        yield stage(self._evaluation(name, arm, rate, seed), {"checkpoint": str(checkpoint)}, images)

    def comparisons(self, contents: Contents) -> Iterator[CompareStage]:
        """Seed by seed: arms of equal seed have seen the same crops."""
        for name in self.folders:
            for seed, rates in self.seeds.items():
                arms = {}
                for arm in (BASE, *self.arms):
                    its_seed = None if arm == BASE else seed
                    files = [self.output / f"{self._evaluation(name, arm, rate, its_seed)}.json" for rate in rates]
                    arms[arm] = [(file, rate.lmbda) for file, rate in zip(files, rates, strict=True)]
                path = f"report/{name}/seed-{seed}"
                yield CompareStage(contents, self.output, path, arms, self.anchors)

    def _codec(self) -> list[str]:
        return ["-m", self.model, *(["--metric", self.metric] if self.metric != "mse" else [])]

    @staticmethod
    def _arm(arm: str, rate: Rate, seed: int) -> str:
        return f"arms/{arm}/{rate.folder}/seed-{seed}"

    @staticmethod
    def _evaluation(folder: str, arm: str, rate: Rate, seed: int | None = None) -> str:
        return f"evaluations/{folder}/{arm}/{rate.folder}" + ("" if seed is None else f"/seed-{seed}")

    def _start(self, rate: Rate) -> Path | None:
        """The weights that all arms of a rate begin with; None: the zoo's."""
        if self.base_weights is not None:
            return Path(*rate.fill([self.base_weights]))
        if self.base_options is not None:
            return self.output / BASE / rate.folder / checkpoints.LAST
        return None


def read_study(path: str, output: str | None = None) -> Study:
    """Reads and checks a configuration; ``output`` overrides the one of the file.

    Raises:
        BadInput: names the key, its value and what would work.
    """
    config = read_configuration(path, path)
    _check_keys(path, config, KEYS)
    metric = config.get("metric", "mse")
    if metric not in METRICS:
        raise BadInput(f"{path}: metric = {metric!r}: one of {', '.join(METRICS)}")
    model = config.get("model")
    if not isinstance(model, str):
        raise BadInput(f'{path}: model: missing; name the codec, for example model = "bmshj2018-hyperprior"')
    parser = finetune_parser()
    rates = _rates(path, config, model, metric)
    base = _table(path, config, "base")
    weights = base.pop("weights", None)
    if not base and weights is None and rates[0].quality is None:
        raise BadInput(
            f'{path}: [base]: missing; give weights = "file-{{lambda}}.pth.tar" to begin with, options of svdrd '
            "finetune to train them, or qualities in place of lambdas for the weights of CompressAI's zoo"
        )
    if (base or weights is not None) and rates[0].quality is not None:
        raise BadInput(f"{path}: qualities: these are the zoo's weights; with a [base], give lambdas")
    if weights is not None:
        _check_weights(path, weights, rates)
    arms = _table(path, config, "arms")
    if not arms or not all(isinstance(options, dict) for options in arms.values()):
        raise BadInput(f"{path}: [arms]: give each arm a table of its options: [arms.control] with mu = 0, for example")
    for name in arms:
        if name == BASE or not _is_name(name):
            raise BadInput(
                f"{path}: [arms.{name}]: not a name for an arm's folder; letters, digits, - and _, not {BASE}"
            )
    common = _table(path, config, "finetune")
    evaluate = _table(path, config, "evaluate")
    _check_keys(f"{path}: [evaluate]", evaluate, EVALUATE_KEYS)
    report = _table(path, config, "report")
    _check_keys(f"{path}: [report]", report, REPORT_KEYS)
    anchors = report.get("anchors", [BASE, next(iter(arms))])
    for anchor in anchors:
        if anchor not in (BASE, *arms):
            raise BadInput(f"{path}: [report] anchors: {anchor!r} is none of {', '.join((BASE, *arms))}")
    study = Study(
        path=path,
        output=Path(output or config.get("output", "runs/experiment")),
        model=model,
        metric=metric,
        rates=rates,
        seeds=_seeds(path, config, rates),
        base_weights=weights,
        base_options=_options(parser, f"{path}: [base]", base, SET_BY_US) if base else None,
        finetune_options=_options(parser, f"{path}: [finetune]", common, FINETUNE_SET_BY_US),
        arms={
            name: _options(parser, f"{path}: [arms.{name}]", options, ARM_SET_BY_US) for name, options in arms.items()
        },
        folders=_folders(path, evaluate),
        evaluate_options=_evaluate_options(path, evaluate),
        anchors=tuple(anchors),
    )
    return study


def _options(
    parser: argparse.ArgumentParser, where: str, options: Mapping[str, Any], set_by_us: Mapping[str, str]
) -> tuple[str, ...]:
    for key in options:
        source = set_by_us.get(key.replace("_", "-"))
        if source is not None:
            raise BadInput(f"{where}: {key}: comes from {source}")
    return tuple(words_of(parser, options, where))


def _rates(path: str, config: Mapping[str, Any], model: str, metric: str) -> tuple[Rate, ...]:
    if ("lambdas" in config) == ("qualities" in config):
        raise BadInput(f"{path}: give either lambdas = [0.0035, 0.0067, ...] or qualities = [2, 3, ...] of the zoo")
    key = "lambdas" if "lambdas" in config else "qualities"
    values = config[key]
    kind = (int, float) if key == "lambdas" else int
    if not isinstance(values, list) or not values or not all(_is_number(value, kind) and value > 0 for value in values):
        raise BadInput(f"{path}: {key} = {values!r}: wanted a list of numbers above 0")
    if len(set(values)) != len(values):
        raise BadInput(f"{path}: {key} = {values!r}: the same one twice")
    if key == "lambdas":
        return tuple(Rate(float(value)) for value in values)
    return tuple(Rate(models.lambda_for(model, value, metric), value) for value in values)


def _seeds(path: str, config: Mapping[str, Any], rates: Sequence[Rate]) -> dict[int, tuple[Rate, ...]]:
    """``[0, 1]``, all rates with each seed, or a table that gives each seed its lambdas."""
    seeds = config.get("seeds", [0])
    if isinstance(seeds, dict):
        return _seeds_of_table(path, seeds, rates)
    valid = isinstance(seeds, list) and seeds and all(_is_number(seed, int) and seed >= 0 for seed in seeds)
    if not valid or len(set(seeds)) != len(seeds):
        raise BadInput(f"{path}: seeds = {seeds!r}: wanted a list of different whole numbers, for example [0, 1]")
    return dict.fromkeys(seeds, tuple(rates))


def _seeds_of_table(path: str, seeds: Mapping[str, Any], rates: Sequence[Rate]) -> dict[int, tuple[Rate, ...]]:
    known = [rate.lmbda for rate in rates]
    found: dict[int, tuple[Rate, ...]] = {}
    for seed, lambdas in seeds.items():
        chosen = (
            lambdas if isinstance(lambdas, list) and all(_is_number(value, (int, float)) for value in lambdas) else []
        )
        if not (seed.isdecimal() and int(seed) not in found and chosen and set(chosen) <= set(known)):
            raise BadInput(
                f"{path}: [seeds] {seed} = {lambdas!r}: wanted a whole number and lambdas of the study for it: "
                f"0 = [{', '.join(f'{lmbda:g}' for lmbda in known)}]"
            )
        found[int(seed)] = tuple(rate for rate in rates if rate.lmbda in chosen)
    if not found:
        raise BadInput(f"{path}: [seeds]: none; for example seeds = [0]")
    return found


def _check_weights(path: str, weights: Any, rates: Sequence[Rate]) -> None:
    if not isinstance(weights, str) or (len(rates) > 1 and "{lambda}" not in weights):
        raise BadInput(
            f'{path}: [base] weights = {weights!r}: wanted a path with {{lambda}} in it, "base-{{lambda}}.pth.tar"'
        )
    missing = [name for rate in rates for name in rate.fill([weights]) if not Path(name).is_file()]
    if missing:
        raise BadInput(
            f"{path}: [base] weights: no file {missing[0]}; leave the line out to train the base codecs by the "
            "options of [base]"
        )


def _folders(path: str, evaluate: Mapping[str, Any]) -> dict[str, str]:
    folders = evaluate.get("folders")
    valid = isinstance(folders, dict) and folders and all(isinstance(folder, str) for folder in folders.values())
    if not isinstance(folders, dict) or not valid or not all(_is_name(name) for name in folders):
        raise BadInput(f'{path}: [evaluate] folders = {folders!r}: wanted {{ kodak = "path/to/kodak" }}')
    for folder in folders.values():
        if not Path(folder).is_dir():
            raise BadInput(f"{path}: [evaluate] folders: no folder {folder}; give one of images")
    return dict(folders)


def _evaluate_options(path: str, evaluate: Mapping[str, Any]) -> tuple[str, ...]:
    estimate, device, also = evaluate.get("estimate", False), evaluate.get("device"), evaluate.get("also", [])
    if not isinstance(estimate, bool) or not (device is None or isinstance(device, str)):
        raise BadInput(f"{path}: [evaluate]: estimate is true or false, device a name")
    if not isinstance(also, list) or not all(measure in MEASURES for measure in also):
        raise BadInput(f"{path}: [evaluate] also = {also!r}: wanted a list of {', '.join(MEASURES)}")
    measures = ("--also", *also) if also else ()
    return (*measures, *(("--estimate",) if estimate else ()), *(("--device", device) if device else ()))


def _table(path: str, config: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = config.get(key, {})
    if not isinstance(table, dict):
        raise BadInput(f"{path}: {key} = {table!r}: wanted a table, [{key}]")
    return dict(table)


def _check_keys(where: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            similar = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {similar[0]}?" if similar else f"it has {', '.join(known)}"
            raise BadInput(f"{where}: no {key!r}; {hint}")


def _is_number(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_name(name: str) -> bool:
    return name.replace("-", "").replace("_", "").isalnum()
