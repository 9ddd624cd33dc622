"""Derivatives and batches of an operator: for autograd, reverse and forward, and for the transforms of torch.func.

``torch.library.register_autograd`` knows reverse mode alone: it drops tangents without a word, and stops in torch.func.
So one ``torch.autograd.Function`` with ``setup_context``, ``jvp`` and ``vmap`` stands at two dispatch keys of every
operator: at autograd's own, and at the one where a transform takes the call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch._functorch.eager_transforms import _unwrap_all_tensors_from_functional, _wrap_all_tensors_to_functional
from torch._functorch.pyfunctorch import FunctionalizeInterpreter, retrieve_current_functorch_interpreter
from torch.autograd import forward_ad


@dataclass(frozen=True)
class Formulas:
    """The derivatives of an operator, as ``torch.autograd.Function`` takes them.

    Args:
        setup_context: ``(ctx, inputs, output)``, to the tensors that the others need.
        backward: ``(ctx, *gradients of the outputs)``, to a gradient for each input; the tensors are
            ``ctx.saved_tensors``, and a gradient that is zero is None.
        jvp: ``(ctx, tensors, *tangents of the inputs)``, to a tangent for each output; one that is zero is None.
    """

    setup_context: Callable[[Any, tuple[Any, ...], Any], tuple[Tensor, ...]]
    backward: Callable[..., Any]
    jvp: Callable[..., Any]


def differentiated_again() -> bool:
    """Whether the backward pass that runs may itself be differentiated: by ``create_graph=True``, or with tangents."""
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def kernels(operator: torch._ops.OpOverload, formulas: Formulas) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What stands at the dispatch keys of autograd, ``(keyset, *arguments)``, and of transforms, ``(*arguments)``.

    They make the operator differentiable, and its batches batches of its own.
    """
    function = _function(operator, formulas)

    def autograd(keyset: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        # Where tangents are possible the function looks for them. A graph that is compiled enters its level in C++,
        # where it cannot be asked for; its tensors are of another class.
        if (
            forward_ad._current_level >= 0
            or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
            or any(type(x) is not Tensor for x in tensors)
        ):
            return function.apply(*arguments, keyset)
        return _below_autograd(operator, keyset, arguments)

    def transform(*arguments: Any) -> Any:
        interpreter = retrieve_current_functorch_interpreter()
        if isinstance(interpreter, FunctionalizeInterpreter):  # the one transform that functions have no rule for
            return _functionalized(operator, interpreter, arguments)
        # A function's apply goes through all transforms that are active, one after the other, and then calls forward.
        return function.apply(*arguments, None)

    return autograd, transform


def _below_autograd(
    operator: torch._ops.OpOverload, keyset: torch._C.DispatchKeySet, arguments: tuple[Any, ...]
) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return operator.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


def _functionalized(
    operator: torch._ops.OpOverload, interpreter: FunctionalizeInterpreter, arguments: tuple[Any, ...]
) -> Any:
    """The operator, which changes nothing in place, of what the tensors of ``torch.func.functionalize`` hold."""
    inside = _unwrap_all_tensors_from_functional(arguments, reapply_views=interpreter.functionalize_add_back_views())
    with interpreter.lower():
        outputs = operator(*inside)
    return _wrap_all_tensors_to_functional(outputs, interpreter.level())


def _function(operator: torch._ops.OpOverload, formulas: Formulas) -> type[torch.autograd.Function]:
    """The operator as a function; its last argument is the key set with which autograd was reached, or None."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> Any:
            *arguments, keyset = inputs
            if keyset is None:
                return operator(*arguments)
            return _below_autograd(operator, keyset, tuple(arguments))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.set_materialize_grads(False)
            saved = formulas.setup_context(ctx, inputs[:-1], output)
            ctx.save_for_backward(*saved)
            ctx.save_for_forward(*saved)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            by_inputs = formulas.backward(ctx, *gradients)
            return (*by_inputs, None) if isinstance(by_inputs, tuple) else (by_inputs, None)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            # PyTorch calls it with tangents switched off. That protects the saved tensors, which have tangents of this
            # level, from being differentiated by it again, but an outer jvp's tangents are lost in the formula.
            with forward_ad._set_fwd_grad_enabled(True):
                saved = [forward_ad.unpack_dual(x, level=0).primal for x in ctx.saved_tensors]
                by_outputs = formulas.jvp(ctx, saved, *tangents[:-1])
                # A tangent laid out unlike its output is copied by PyTorch, which fails where sizes are symbols.
                if isinstance(by_outputs, tuple):
                    return tuple(None if x is None else x.contiguous() for x in by_outputs)
                return None if by_outputs is None else by_outputs.contiguous()

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
            return _batched(operator, info.batch_size, in_dims[:-1], inputs[:-1])

    Function.__name__ = Function.__qualname__ = operator._schema.name.replace("::", "_")
    return Function


def _batched(
    operator: torch._ops.OpOverload, size: int, dims: tuple[int | None, ...], arguments: tuple[Any, ...]
) -> tuple[Any, Any]:
    """The operator over a further batch dimension, as one batch: outputs, and where their dimension is."""
    items = 0

    def flattened(x: Tensor, dim: int | None) -> Tensor:
        nonlocal items
        x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        if x.ndim == 2:  # (size, 0): stands for what is not there
            return x.new_empty(0)
        items = x.shape[1]
        return x.reshape(size * items, *x.shape[2:])

    outputs = operator(
        *(flattened(x, dim) if isinstance(x, Tensor) else x for x, dim in zip(arguments, dims, strict=True))
    )
    several = isinstance(outputs, (tuple, list))
    batches = [x if x.ndim == 1 else x.reshape(size, items, *x.shape[1:]) for x in (outputs if several else (outputs,))]
    where = [None if x.ndim == 1 else 0 for x in batches]
    return (tuple(batches), tuple(where)) if several else (batches[0], where[0])


def may_be_differentiated(x: Tensor) -> bool:
    """Whether a derivative by ``x`` may be asked for: by autograd, with a tangent, or by a transform around the call.

    Within ``torch.func.jvp`` the answer may be yes for want of knowing better.
    """
    reverse = torch.is_grad_enabled()
    if reverse and x.requires_grad:
        return True
    forward = forward_ad._current_level >= 0
    if not torch._C._are_functorch_transforms_active():
        return forward and forward_ad.unpack_dual(x).tangent is not None
    if torch.compiler.is_compiling():  # the layers of a tensor cannot be looked at there
        return True
    while functorch.is_functorch_wrapped_tensor(x):
        if forward or (reverse and x.requires_grad):
            return True
        x = functorch.get_unwrapped(x)
    return reverse and x.requires_grad
