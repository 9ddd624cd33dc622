"""The public functions, one file each.

A package attribute can be the function or its module, not both. It is the function here, and each function carries
itself as an attribute, so that after ``import svdrd.ops.basis_loss`` both ``svdrd.ops.basis_loss(...)`` and
``svdrd.ops.basis_loss.basis_loss(...)`` work.
"""

from svdrd.ops.basis_loss import basis_loss
from svdrd.ops.polar_factor import polar_factor
from svdrd.ops.recompose import recompose
from svdrd.ops.svd import svd

__all__ = ["basis_loss", "polar_factor", "recompose", "svd"]

for _function in (basis_loss, polar_factor, recompose, svd):
    setattr(_function, _function.__name__, _function)
