"""The package imported again after its removal from sys.modules, and modules reloaded, as hot-reloading servers do."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.automatic

PROGRAM = """
import gc, importlib, sys
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

torch.manual_seed(0)
a = torch.rand(2, 6, 4, dtype=torch.float64)


def with_derivatives(function):
    x = a.clone().requires_grad_()
    value = function(x)
    first, = torch.autograd.grad(value, x, torch.ones_like(value), create_graph=True)
    second, = torch.autograd.grad(first.square().sum(), x)
    return value, first, second


def all_that_is_registered(ops):
    '''Values and derivatives; fake tensors and autocast are asked beside.'''
    with FakeTensorMode() as mode:
        assert torch.ops.svdrd.svd(mode.from_tensor(a))[1].shape == (2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.ops.svdrd.svd(a.bfloat16())[1].dtype == torch.float32
    for function in (
        lambda x: ops.polar_factor(x, smooth=0.1),
        lambda x: ops.basis_loss(x, a.cos(), block_size=2, smooth=0.1),
        lambda x: ops.svd(x).S,
        lambda x: ops.recompose(x, 2 * a),
    ):
        yield from with_derivatives(function)


import svdrd.ops
from svdrd import BasisLoss

first, loss = svdrd.ops, BasisLoss(smooth=0.1)
wanted = list(all_that_is_registered(first))
overload = torch.ops.svdrd.svd.default
graph = make_fx(lambda x: first.polar_factor(x, smooth=0.1))(a)


def check(again):
    import svdrd.ops

    # What was imported first still computes.
    for ops in (svdrd.ops, first):
        assert all(map(torch.equal, wanted, all_that_is_registered(ops))), again
    assert torch.equal(graph(a), wanted[0])
    assert torch.equal(overload(a)[1], first.svd(a).S)
    x = a.clone().requires_grad_()
    loss(x[None], a[None].cos()).backward()
    assert x.grad.norm() > 0
    print(again)


for name in [name for name in sys.modules if name.split(".")[0] == "svdrd"]:
    del sys.modules[name]
del svdrd
gc.collect()
check("imported again")

# In the order of the imports, then in the reverse.
names = ["routes", "registration", "svd", "polar_factor", "basis_loss", "recompose", "direct"]
importlib.reload(sys.modules["svdrd.dispatch.registration"])
check("one reloaded")
for name in [*names, *reversed(names)]:
    importlib.reload(sys.modules["svdrd.dispatch." + name])
check("all reloaded")
"""


def test_import_again() -> None:
    result = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", PROGRAM], capture_output=True, text=True)
    assert result.stdout.splitlines() == ["imported again", "one reloaded", "all reloaded"], result.stderr
