"""How an operator comes to ``torch.ops.svdrd``: schema, implementation, fake, derivatives and autocast, in one call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available

from svdrd.dispatch import differentiation, routes
from svdrd.dispatch.differentiation import Formulas
from svdrd.dispatch.routes import Case
from svdrd.reference import devices

ops = torch.ops.svdrd
# Of each operator its schema, its library, and the functions that its dispatch keys lead to. It is kept with PyTorch's
# own object: when a module is reloaded, or this package removed from sys.modules and imported again, the operator stays
# and leads to the new functions. Graphs hold operators, and one that was taken back is a dangling pointer in them.
_registered: dict[str, tuple[str, torch.library.Library, dict[str, Callable[..., Any]]]]
_registered = vars(ops).setdefault("_registered", {})


@dataclass(frozen=True)
class Operator:
    """An operator of flat batches, ``(b, m, n)`` or ``(b, h, w)``, of float32 or float64.

    Args:
        schema: as ``torch.library`` reads it, with the name in front.
        fake: the outputs without values.
        default: the plain-torch reference, for what no route takes.
        formulas: its derivatives.
        case: of the arguments what decides who computes; None where that is always the default.
    """

    schema: str
    fake: Callable[..., Any]
    default: Callable[..., Any]
    formulas: Formulas
    case: Callable[..., Case] | None = None

    @property
    def name(self) -> str:
        return self.schema.partition("(")[0]


OPERATORS: dict[str, Operator] = globals().get("OPERATORS", {})  # those of before, where this module is reloaded


def compute(name: str, *arguments: Any) -> Any:
    """Computes the operator: by whom the table of routes says, and otherwise by its default.

    For a device that cannot compute the default, the CPU does it, by whom the table says for the CPU.
    """
    operator = OPERATORS[name]
    if operator.case is not None:
        computer = routes.computer(name, operator.case(*arguments))
        if computer != routes.DEFAULT:
            return routes.kernel(computer, name)(*arguments)
    if devices.elsewhere(arguments[0].device):
        return devices.on_the_cpu(partial(compute, name), *arguments)
    with without_autocast(arguments[0].device):
        return operator.default(*arguments)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast on ``device``: products in bfloat16 would lose all but two digits. Not every device knows it."""
    kind = device.type
    if is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def register(operator: Operator) -> None:
    """Makes ``torch.ops.svdrd.<name>``, or gives the one that is there the functions of ``operator``."""
    name = operator.name
    OPERATORS[name] = operator
    schema, library, functions = _registered.get(name, ("", None, {}))
    if schema != operator.schema:
        if library is not None:
            library._destroy()
        library = torch.library.Library("svdrd", "FRAGMENT")
        functions = {}
        _define(operator.schema, library, functions)
        _registered[name] = operator.schema, library, functions
    # Looked up for every call, so that a test can stand in its way.
    functions["compute"] = lambda *arguments: compute(name, *arguments)
    functions["fake"] = operator.fake
    overload = getattr(ops, name).default
    functions["autograd"], functions["transform"] = differentiation.kernels(overload, operator.formulas)


def _define(schema: str, library: torch.library.Library, functions: dict[str, Callable[..., Any]]) -> None:
    """An operator whose dispatch keys lead to the ``functions`` of the time of the call."""
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    name = schema.partition("(")[0]
    library.impl(name, lambda *arguments: functions["compute"](*arguments), "CompositeExplicitAutograd")
    torch.library.register_fake(f"svdrd::{name}", lambda *arguments: functions["fake"](*arguments), lib=library)
    library.impl(
        name, lambda keyset, *arguments: functions["autograd"](keyset, *arguments), "Autograd", with_keyset=True
    )
    library.impl(name, lambda *arguments: functions["transform"](*arguments), "FuncTorchDynamicLayerFrontMode")
    # Autocast: these are float32 operators. On other devices only the default computes, without it.
    for device in ("cpu", "cuda"):
        torch.library.register_autocast(f"svdrd::{name}", device, torch.float32, lib=library)


def without_derivative(reason: str) -> Formulas:
    """The formulas of an operator that has no derivative: they raise ``NotImplementedError``."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
        return ()

    def refuse(ctx: Any, *directions: Any) -> None:
        raise NotImplementedError(f"svdrd: {reason}")

    return Formulas(setup, refuse, refuse)


NO_THIRD_DERIVATIVE = without_derivative(
    "third derivatives of polar_factor and basis_loss are not implemented; first and second ones are. "
    "Do not pass create_graph=True to the second backward."
)
