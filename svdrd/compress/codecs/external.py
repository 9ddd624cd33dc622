"""Codecs that CompressAI does not have: LIC-TCM from a checkout of its repository, any other one from its own module.

Their code belongs to others and stays where it is. It is run because a command line names it, or the arguments of a run
that is resumed; a file of weights given as --checkpoint makes nothing run.
"""

import importlib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from svdrd.compress.codecs import checkpoints
from svdrd.compress.compressai import CompressionModel
from svdrd.compress.errors import BadInput
from svdrd.compress.options import LIC_TCM_ADDRESS

LIC_TCM = "lic-tcm"
# Its windows of 8 latents and its hyperprior need sides that are multiples of 128, and more than one window.
LIC_TCM_MULTIPLE = 128
LIC_TCM_SMALLEST_SIDE = 256
FORMS = f"{LIC_TCM} and package.module:factory are others"

# What training and coding call.
METHODS = ("forward", "aux_loss", "update", "compress", "decompress", "load_state_dict")


def is_external(name: str) -> bool:
    """Whether ``name`` is ``lic-tcm`` or a ``package.module:factory``, and no model of CompressAI."""
    return name == LIC_TCM or ":" in name


def build(
    name: str,
    state_dict: dict[str, Tensor] | None,
    checkpoint: str | os.PathLike[str] | None,
    init: str,
    lic_tcm_repo: str | os.PathLike[str] | None,
    model_args: Mapping[str, Any],
) -> CompressionModel:
    """The codec ``name``, with the weights ``state_dict`` of the file ``checkpoint`` if there are any.

    Raises:
        BadInput: code that is not there or cannot be imported, arguments it does not take, weights of another model.
    """
    if name == LIC_TCM:
        model = _lic_tcm(lic_tcm_repo, state_dict, checkpoint, init, model_args)
    else:
        model = _from_factory(name, model_args)
    if state_dict is not None:
        _load_weights(name, model, state_dict, checkpoint)
    if name != LIC_TCM:
        _check_takes_colours(name, model)
    return model.train()


def _lic_tcm(
    repo: str | os.PathLike[str] | None,
    state_dict: dict[str, Tensor] | None,
    checkpoint: str | os.PathLike[str] | None,
    init: str,
    model_args: Mapping[str, Any],
) -> CompressionModel:
    options = dict(model_args)
    if state_dict is not None:
        first = state_dict.get("g_a.0.conv1.weight")
        if first is None:
            raise BadInput(f"checkpoint {str(checkpoint)!r}: not a {LIC_TCM}: it has no g_a.0.conv1.weight")
        # Its class method from_state_dict reads N off a layer that the model does not have.
        options.setdefault("N", first.shape[0] // 2)
    elif init != "random":
        raise BadInput(
            f"model {LIC_TCM!r}: CompressAI's zoo has no weights for it; give --checkpoint with a file from "
            f"{LIC_TCM_ADDRESS}, or --init random"
        )
    if repo is None:
        raise BadInput(
            f"model {LIC_TCM!r}: --lic-tcm-repo is missing; git clone {LIC_TCM_ADDRESS} and give that folder"
        )
    file = Path(repo) / "models" / "tcm.py"
    if not file.is_file():
        raise BadInput(f"--lic-tcm-repo {str(repo)!r}: no models/tcm.py in it; give a checkout of {LIC_TCM_ADDRESS}")
    model_class = getattr(_import_file(file), "TCM", None)
    if not inspect.isclass(model_class):
        raise BadInput(f"--lic-tcm-repo {str(repo)!r}: models/tcm.py has no class TCM; take {LIC_TCM_ADDRESS}")
    model = _call(LIC_TCM, model_class, options)
    model.downsampling_factor = LIC_TCM_MULTIPLE
    model.smallest_side = LIC_TCM_SMALLEST_SIDE
    return model


def _import_file(file: Path) -> ModuleType:
    """The module in ``file``, whose name must not collide with the ``models`` of some other project."""
    spec = importlib.util.spec_from_file_location("svdrd_lic_tcm", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        with warnings.catch_warnings():
            # It imports timm's layers by their former address.
            warnings.simplefilter("ignore", FutureWarning)
            spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("einops", "timm"):
            raise BadInput(
                f"model {LIC_TCM!r}: its code needs einops and timm, and {package} is not installed; "
                "pip install einops timm"
            ) from error
        raise BadInput(f"--lic-tcm-repo: {file} imports {error.name}, which is not installed") from error
    except (ImportError, SyntaxError) as error:
        raise BadInput(f"--lic-tcm-repo: {file} cannot be imported ({_line(error)})") from error
    return module


def _from_factory(name: str, model_args: Mapping[str, Any]) -> CompressionModel:
    module_name, _, factory_name = name.partition(":")
    form = "wanted package.module:factory, for example --model mypackage.codecs:build"
    if not all(part.isidentifier() for part in module_name.split(".")) or not factory_name.isidentifier():
        raise BadInput(f"model {name!r}: {form}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise BadInput(
                f"model {name!r}: no module {missing}; install it, or name its folder in PYTHONPATH ({form})"
            ) from error
        raise BadInput(f"model {name!r}: {module_name} imports {missing}, which is not installed") from error
    except (ImportError, SyntaxError) as error:
        raise BadInput(f"model {name!r}: {module_name} cannot be imported ({_line(error)})") from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise BadInput(f"model {name!r}: {module_name} has no function or class {factory_name}; it has {_some(known)}")
    return _call(name, factory, model_args)


def _call(name: str, factory: Callable[..., Any], model_args: Mapping[str, Any]) -> CompressionModel:
    try:
        with warnings.catch_warnings():
            # Of CompressAI, about arguments of its base class that older codecs still use.
            warnings.simplefilter("ignore", DeprecationWarning)
            model = factory(**model_args)
    except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        try:
            wanted = ", ".join(map(str, inspect.signature(factory).parameters.values())) or "no arguments"
        except ValueError:  # a builtin
            wanted = "other arguments"
        raise BadInput(f"model_args={dict(model_args)}: {name} takes {wanted} ({_line(error)})") from error
    missing = [method for method in METHODS if not callable(getattr(model, method, None))]
    if not isinstance(model, nn.Module) or missing:
        what = f"has no {_some(missing)}" if isinstance(model, nn.Module) else "is no torch.nn.Module"
        raise BadInput(
            f"model {name!r}: what it makes ({type(model).__name__}) {what}; "
            "derive it from compressai.models.CompressionModel"
        )
    return cast(CompressionModel, model)


@torch.no_grad()
def _check_takes_colours(name: str, model: CompressionModel) -> None:
    """Raises BadInput where ``forward`` does not turn an image of three channels into one: seconds before the first."""
    multiple = int(getattr(model, "downsampling_factor", 64))
    side = max(int(getattr(model, "smallest_side", multiple)), multiple)
    shape = (1, 3, -(-side // multiple) * multiple, -(-side // multiple) * multiple)
    first = next(model.parameters(), torch.empty(0))
    wanted = "svdrd's images have three channels, grey ones too: make the codec with three"
    with torch.random.fork_rng():
        try:
            output = model.eval()(torch.zeros(shape, device=first.device))
            made = tuple(output["x_hat"].shape)
        except (RuntimeError, ValueError, AssertionError, TypeError, KeyError) as error:
            raise BadInput(
                f"model {name!r}: its forward does not take an image of shape {shape} ({_line(error)}); {wanted}"
            ) from error
    if made != shape:
        raise BadInput(f"model {name!r}: its forward makes {made} of an image of shape {shape}; {wanted}")


def _load_weights(
    name: str, model: CompressionModel, state_dict: dict[str, Tensor], checkpoint: str | os.PathLike[str] | None
) -> None:
    expected = model.state_dict()
    problems = []
    for what, keys in (
        ("missing", [key for key in expected if key not in state_dict]),
        ("unexpected", [key for key in state_dict if key not in expected]),
    ):
        if keys:
            problems.append(f"{len(keys)} keys {what} ({_some(keys)})")
    try:
        # Not all take `strict`, so that the keys have been compared above.
        if not problems:
            model.load_state_dict(checkpoints.with_constants(state_dict, lambda: expected))
    except (KeyError, TypeError, RuntimeError, ValueError, AttributeError) as error:
        mismatches = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        problems = [f"{len(mismatches)} shapes differ, the first: {mismatches[0]}" if mismatches else _line(error)]
        raise BadInput(f"checkpoint {str(checkpoint)!r}: not a {name} of these --model-args: {problems[0]}") from error
    if problems:
        raise BadInput(f"checkpoint {str(checkpoint)!r}: not a {name} of these --model-args: {'; '.join(problems)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
