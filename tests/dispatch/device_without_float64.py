"""A device without float64, as Apple's MPS is one, played on the CPU by way of PyTorch's PrivateUse1.

``python -m tests.dispatch.device_without_float64`` computes everything there and compares it with the CPU's results.
It is a program of its own because a process cannot unregister a device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import svdrd
from svdrd import reference
from svdrd.backends import selection
from svdrd.dispatch import routes
from svdrd.ops import basis_loss, polar_factor, recompose, svd

DEVICE = "single"


# The values of each of the device's storages, by its address.
HELD: dict[int, Tensor] = {}


def held(tensor: Tensor) -> Tensor:
    """The values of a tensor of the device, where they are held."""
    values = HELD[tensor.untyped_storage()._cdata]
    return values.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def on_the_device(values: Tensor) -> Tensor:
    """``values`` as the device holds them."""
    if values.dtype == torch.float64:
        raise TypeError("Cannot convert a single Tensor to float64 dtype as the framework doesn't support float64.")
    tensor: Tensor = torch._C._acc.create_empty_tensor(values.shape, values.dtype)
    HELD[tensor.untyped_storage()._cdata] = values.clone(memory_format=torch.contiguous_format)
    return tensor


def compute(function: Any, *arguments: Any, **options: Any) -> Any:
    """Any operator of PyTorch, by the CPU's."""
    given: dict[int, Tensor] = {}

    def here(value: Any) -> Any:
        if isinstance(value, Tensor) and value.device.type == DEVICE:
            values = held(value)
            given[id(values)] = value
            return values
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        # What was computed in place is the very tensor that was given.
        return given[id(value)] if id(value) in given else on_the_device(value)

    result = function(*pytree.tree_map(here, arguments), **pytree.tree_map(here, options))
    return pytree.tree_map(there, result)


def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Between the device and the CPU."""
    source, into = (held(x) if x.device.type == DEVICE else x for x in (source, target))
    into.copy_(source)
    return target


def register() -> tuple[torch.library.Library, torch.library.Library]:
    """Makes the device. It is there as long as what is returned."""
    _setup_privateuseone_for_python_backend(DEVICE)
    rest, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    rest.fallback(compute, "PrivateUse1")
    aten.impl("_copy_from", copy_from, "PrivateUse1")
    return rest, aten


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "svd": lambda a, b: svd(a).U.square() @ svd(b).S[..., None],
    "polar_factor": lambda a, b: polar_factor(a) * polar_factor(b, smooth=0.1),
    "basis_loss": lambda a, b: basis_loss(a, b) * basis_loss(b, a, 2, "sum"),
    "recompose": lambda a, b: recompose(a, b, 2) + recompose(b, a),
}


def derivatives(function: Callable[[Tensor, Tensor], Tensor], *sides: Tensor) -> list[Tensor]:
    """The value, and the first and second derivatives."""
    sides = tuple(side.detach().requires_grad_() for side in sides)
    value = function(*sides)
    (value.sum()).backward(retain_graph=True)
    plain = [side.grad for side in sides]  # without create_graph other ways are taken
    first = torch.autograd.grad(value.square().sum(), sides, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), sides)
    return [value, *plain, *first, *second]


def main() -> None:
    libraries = register()
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 4, 6), torch.rand(2, 3, 4, 6)
    device = torch.device(DEVICE, 0)
    with pytest.raises(TypeError, match="float64"):
        a.double().to(device)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, function in FUNCTIONS.items():
            expected, found = (derivatives(function, *(x.to(where) for x in (a, b))) for where in ("cpu", device))
            for one, other in zip(expected, found, strict=True):
                assert other.device == device, name
                torch.testing.assert_close(other.cpu(), one, atol=1e-5, rtol=1e-4, msg=name)
            (value, tangent), (values, tangents) = (
                torch.func.jvp(function, *(tuple(x.to(where) for x in sides) for sides in ((a, b), (b, a))))
                for where in ("cpu", device)
            )
            torch.testing.assert_close(values.cpu(), value, atol=1e-5, rtol=1e-4, msg=name)
            torch.testing.assert_close(tangents.cpu(), tangent, atol=1e-5, rtol=1e-4, msg=name)
        for one, other in zip(reference.svd(a[0]), reference.svd(a[0].to(device)), strict=True):
            assert torch.equal(other.cpu(), one)
    said = [str(warning.message) for warning in caught if "svdrd" in str(warning.message)]
    assert len(said) == 1, said
    assert f"'{DEVICE}' devices" in said[0], said

    assert routes.route("svd", 8, 8, device=device) == routes.route("svd", 8, 8, device="cpu")
    with svdrd.use_backend("torch"):
        assert torch.equal(polar_factor(a.to(device)).cpu(), polar_factor(a))
        assert routes.route("svd", 8, 8, device=device) == "reference"
    if selection.usable("cpp"):
        with svdrd.use_backend("cpp"), pytest.raises(RuntimeError, match=r"\.cpu\(\)"):
            polar_factor(a.to(device))
    del libraries
    print("right on a device without float64")


if __name__ == "__main__":
    main()
