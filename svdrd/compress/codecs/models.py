"""Image codecs by name: CompressAI's from the zoo, from a checkpoint, or at random; others from their own code."""

import difflib
import inspect
import math
import os
import urllib.error
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from svdrd.compress.codecs import checkpoints, external
from svdrd.compress.codecs.soundness import problem_of_codec
from svdrd.compress.compressai import MODELS, CompressionModel, compute_padding, zoo, zoo_image, zoo_image_vbr
from svdrd.compress.errors import BadInput
from svdrd.compress.options import parse_model_args

# https://interdigitalinc.github.io/CompressAI/zoo.html, "Training"
ZOO_LAMBDAS = {
    "mse": (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483, 0.0932, 0.1800),
    "ms-ssim": (2.40, 4.58, 8.73, 16.64, 31.73, 60.50, 115.37, 220.00),
}

# CompressAI's `eval_model` pads every image to multiples of 64, also for models that need less.
PADDING = 64

# What DataParallel and torch.compile put before the names of a model's parameters.
WRAPPERS = ("module.", "_orig_mod.")


def image_codecs() -> dict[str, type[CompressionModel]]:
    """Name to class of every image codec that CompressAI has registered, those of its zoo first.

    CompressAI's registry also holds video and point-cloud models and plain layers; those are left out.
    """
    classes = {
        name: cls
        for name, cls in MODELS.items()
        if inspect.isclass(cls)
        and issubclass(cls, CompressionModel)
        and not cls.__module__.startswith(("compressai.models.video", "compressai.models.pointcloud"))
    }
    zoo_first = [name for name in zoo.image_models if name in classes]
    return {name: classes[name] for name in dict.fromkeys([*zoo_first, *sorted(classes)])}


def qualities(name: str) -> range:
    """The qualities of the zoo's model ``name``; empty where a model has none (variable rate, or not in the zoo)."""
    return range(1, len(zoo_image.cfgs.get(name, ())) + 1)


def lambda_for(name: str, quality: int, metric: str = "mse") -> float:
    """The lambda that CompressAI's zoo trained ``name`` with at ``quality``.

    Raises:
        BadInput: an unknown model, metric or quality, or a model without qualities.

    Example::

        svdrd.compress.lambda_for("bmshj2018-hyperprior", 3)  # 0.0067
    """
    _check_quality(name, quality)
    if metric not in ZOO_LAMBDAS:
        raise BadInput(f"metric={metric!r}: the zoo has {' and '.join(ZOO_LAMBDAS)}")
    return ZOO_LAMBDAS[metric][quality - 1]


def load_codec(
    name: str,
    quality: int | None = None,
    metric: str = "mse",
    checkpoint: str | os.PathLike[str] | None = None,
    init: str = "zoo",
    lic_tcm_repo: str | os.PathLike[str] | None = None,
    **model_args: Any,
) -> CompressionModel:
    """An image codec in training mode, on the CPU.

    Args:
        name: a model of ``compressai.zoo.image_models``, or another image codec of ``compressai.registry``;
            ``"lic-tcm"``; or ``"package.module:factory"``, a class or function that makes a codec
            (docs/guide/codecs.md says what of).
        quality: the zoo's quality, 1 to 8 (cheng2020: 6); without ``model_args`` it sizes a random model, too.
        metric: ``"mse"`` or ``"ms-ssim"``, what the zoo's weights were trained for.
        checkpoint: a file of ``svdrd finetune`` or CompressAI, with or without updated CDFs and ``module.`` prefixes.
            It decides the size of the model; ``quality``, ``metric`` and ``init`` are not used.
        init: ``"zoo"`` (downloads, or takes the file from ``$TORCH_HOME/hub/checkpoints``) or ``"random"``. The weights
            of a factory without a checkpoint are those it makes.
        lic_tcm_repo: for ``"lic-tcm"``: a checkout of its repository, whose ``models/tcm.py`` is run.
        **model_args: for ``init="random"``: arguments of the model's class, such as ``N=64, M=96``. For ``lic-tcm`` and
            factories with a checkpoint, too; those that a checkpoint of ``svdrd finetune`` names are the default there.

    Raises:
        BadInput: (a ValueError) an unknown name (similar ones are suggested), a quality out of range, weights that
            cannot be had, a checkpoint of another model, arguments the class does not take, code that is not there;
            weights that are not finite, or tables that cannot be made of them.

    Example::

        net = svdrd.compress.load_codec("bmshj2018-hyperprior", init="random", N=64, M=96)
    """
    model = _load(name, quality, metric, checkpoint, init, lic_tcm_repo, model_args)
    check_sound(model, name, checkpoint)
    return model


def check_sound(model: nn.Module, name: str, checkpoint: str | os.PathLike[str] | None) -> None:
    """Raises BadInput where ``model`` cannot be coded with; the message names the file that its weights are from."""
    problem = problem_of_codec(model)
    if not problem:
        return
    if checkpoint is None:
        raise BadInput(f"model {name!r}: {problem}; fetch the weights again, or give a --checkpoint")
    best = Path(checkpoint).with_name(checkpoints.BEST)
    earlier = f"such as {str(best)!r} " if best.is_file() and Path(checkpoint).name != checkpoints.BEST else ""
    raise BadInput(
        f"checkpoint {str(checkpoint)!r}: {problem}; take an earlier checkpoint {earlier}from before the training "
        "diverged"
    )


def _load(
    name: str,
    quality: int | None,
    metric: str,
    checkpoint: str | os.PathLike[str] | None,
    init: str,
    lic_tcm_repo: str | os.PathLike[str] | None,
    model_args: dict[str, Any],
) -> CompressionModel:
    if external.is_external(name):
        state_dict = None
        if checkpoint is not None:
            state = checkpoints.load(checkpoint)
            state_dict = state_dict_of(state, checkpoint)
            model_args = _model_args_of(state, name) | model_args
        return external.build(name, state_dict, checkpoint, init, lic_tcm_repo, model_args)
    codec_class = codec_class_of(name)
    if checkpoint is not None:
        return _from_checkpoint(name, codec_class, checkpoint)
    if init == "random":
        return _random(name, codec_class, quality, model_args)
    if init != "zoo":
        raise BadInput(f"init={init!r}: start from 'zoo' or 'random', or give a checkpoint")
    if model_args:
        raise BadInput(f"model_args={model_args}: the zoo's weights fix the size; init='random' lets you choose")
    return _from_zoo(name, quality, metric)


def _model_args_of(state: dict[str, Any], name: str) -> dict[str, Any]:
    """The size of the model of a run of ``svdrd finetune``; plain values, whatever wrote the file."""
    arguments = state.get("arguments")
    if not isinstance(arguments, dict) or arguments.get("model") != name:
        return {}
    return parse_model_args(arguments.get("model_args", []))


def input_sides(model: nn.Module) -> tuple[int, int]:
    """Of what the sides of images have to be multiples, and the smallest side.

    A codec says so by its attributes ``downsampling_factor`` (as most of CompressAI's do; without it 64, which serves
    all of them) and ``smallest_side`` (without it: one multiple).
    """
    multiple = int(getattr(model, "downsampling_factor", 64))
    return multiple, int(getattr(model, "smallest_side", multiple))


def padding(model: nn.Module, height: int, width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Pads around an image that make its sides what the codec takes, and the pads that undo them, for ``F.pad``."""
    multiple, smallest = input_sides(model)
    multiple = math.lcm(multiple, PADDING)
    out_h, out_w = (-(-max(side, smallest) // multiple) * multiple for side in (height, width))
    pads: tuple[tuple[int, ...], tuple[int, ...]] = compute_padding(height, width, out_h=out_h, out_w=out_w)
    return pads


def codec_class_of(name: str) -> type[CompressionModel]:
    """The class registered under ``name``; raises :class:`BadInput` with similar names."""
    codecs = image_codecs()
    if name not in codecs:
        similar = difflib.get_close_matches(name, [*codecs, external.LIC_TCM], n=3, cutoff=0.5)
        known = ", ".join(codecs)
        hint = f"did you mean {' or '.join(similar)}?" if similar else f"CompressAI has {known}; and {external.FORMS}"
        raise BadInput(f"model {name!r}: no such image codec; {hint}")
    return codecs[name]


def _random(
    name: str, codec_class: type[CompressionModel], quality: int | None, model_args: dict[str, Any]
) -> CompressionModel:
    if not model_args and quality is not None and qualities(name):
        _check_quality(name, quality)
        model_args = dict(zip(("N", "M"), zoo_image.cfgs[name][quality], strict=False))
    try:
        return codec_class(**model_args)
    except (TypeError, ValueError, RuntimeError) as error:
        signature = inspect.signature(codec_class.__init__)
        wanted = ", ".join(str(p) for p in signature.parameters.values() if p.name not in ("self", "kwargs"))
        raise BadInput(f"model_args={model_args}: {name} takes {wanted} ({error})") from error


def _from_zoo(name: str, quality: int | None, metric: str) -> CompressionModel:
    # Its zoo function for bmshj2018-factorized-relu returns bmshj2018-factorized, so the table of files decides.
    urls = {**zoo_image.model_urls, **zoo_image_vbr.model_urls}
    if metric not in urls.get(name, {}):
        raise BadInput(
            f"model {name!r}: CompressAI has no {metric} weights for it; use init='random' or a checkpoint "
            f"(it has {', '.join(known for known, metrics in urls.items() if metric in metrics)})"
        )
    if qualities(name):
        if quality is None:
            raise BadInput(f"quality=None: {name} has zoo weights for {_span(qualities(name))}; choose one")
        _check_quality(name, quality)
    try:
        return cast(CompressionModel, zoo.image_models[name](quality=quality, metric=metric, pretrained=True))
    except (urllib.error.URLError, OSError) as error:
        url = urls[name][metric] if isinstance(urls[name][metric], str) else urls[name][metric][quality]
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise BadInput(
            f"model {name!r}: its zoo weights could not be fetched from {url} ({error}); put that file into {folder}, "
            "or give a checkpoint, or use init='random'"
        ) from error


def _from_checkpoint(
    name: str, codec_class: type[CompressionModel], checkpoint: str | os.PathLike[str]
) -> CompressionModel:
    state_dict = state_dict_of(checkpoints.load(checkpoint), checkpoint)
    state_dict = checkpoints.with_constants(state_dict, lambda: _small(codec_class).state_dict())
    # The variable-rate bottleneck of the variable-rate codecs is one that their class builds only on request.
    options = {"vr_entbttlnck": True} if any(key.startswith("gayn2zqstep.") for key in state_dict) else {}
    try:
        # A fresh model each time: a model whose CDFs have been updated refuses those of another checkpoint.
        return codec_class.from_state_dict(state_dict, **options)
    except (KeyError, IndexError, TypeError, RuntimeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"checkpoint {str(checkpoint)!r}: not a {name}: {_difference(codec_class, state_dict, error)}"
        ) from error


def state_dict_of(state: dict[str, Any], path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights inside a checkpoint, under CompressAI's present key names.

    Prefixes of DataParallel and torch.compile are stripped. Tables of entropy models that are not there, as in
    checkpoints of weights alone, become empty ones, as in a model that has not been updated.
    """
    for key in ("state_dict", "model_state_dict", "network"):
        if isinstance(state.get(key), dict):
            state = state[key]
            break
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        found = ", ".join(map(str, list(state)[:5])) or "nothing"
        raise BadInput(f"checkpoint {str(path)!r}: holds {found}; wanted a 'state_dict' of tensors")
    while prefix := next((p for p in WRAPPERS if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    state = zoo.load_state_dict(state)
    for key in list(state):
        entropy_model = key.removesuffix(".quantiles").removesuffix(".scale_table")
        if entropy_model != key:
            for table in ("_offset", "_quantized_cdf", "_cdf_length"):
                state.setdefault(f"{entropy_model}.{table}", torch.IntTensor())
    return cast(dict[str, Tensor], state)


def _difference(codec_class: type[CompressionModel], state_dict: dict[str, Tensor], error: Exception) -> str:
    expected = _small(codec_class).state_dict()
    missing = [key for key in expected if key not in state_dict]
    unexpected = [key for key in state_dict if key not in expected]
    if missing or unexpected:
        return "; ".join(
            f"{len(keys)} keys {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        )
    mismatches = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
    if mismatches:
        return f"{len(mismatches)} shapes differ, the first: {mismatches[0]}"
    return f"{type(error).__name__}: {error}"


def _small(codec_class: type[CompressionModel]) -> CompressionModel:
    required = [p.name for p in inspect.signature(codec_class.__init__).parameters.values() if p.default is p.empty]
    return codec_class(**{key: 8 for key in ("N", "M") if key in required})


def _check_quality(name: str, quality: int) -> None:
    if not external.is_external(name):
        codec_class_of(name)
    known = qualities(name)
    if not known:
        raise BadInput(f"quality={quality}: {name} has no qualities in CompressAI's zoo; give lambda and model_args")
    if quality not in known:
        raise BadInput(f"quality={quality}: {name} has {_span(known)}")


def _span(known: range) -> str:
    return f"qualities {known[0]} to {known[-1]}"
