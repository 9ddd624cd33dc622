"""The public functions, one file each.

They check their arguments, flatten the batch, and call the operators of ``svdrd.dispatch``.

``svdrd.ops.basis_loss`` is the function, not the module of the same name. Each function has itself as an attribute. So
after ``import svdrd.ops.basis_loss`` both ``svdrd.ops.basis_loss(...)`` and ``svdrd.ops.basis_loss.basis_loss(...)``
work.
"""

import torch

from svdrd.ops.basis_loss import basis_loss
from svdrd.ops.polar_factor import polar_factor
from svdrd.ops.recompose import recompose
from svdrd.ops.svd import svd

__all__ = ["basis_loss", "polar_factor", "recompose", "svd"]

for _function in (basis_loss, polar_factor, recompose, svd):
    setattr(_function, _function.__name__, _function)
    torch.jit.ignore(_function)
