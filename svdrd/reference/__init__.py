"""The specification in plain PyTorch: definitions and derivatives, for any device. It is the tests' oracle.

The functions that are named here compute on the CPU for a device that cannot; those of the modules do not.
"""

from svdrd.reference import definitions, derivatives
from svdrd.reference.devices import anywhere

__all__ = ["basis_loss", "polar_factor", "polar_factor_vjp", "svd", "svd_vjp"]

svd = anywhere(definitions.svd)
polar_factor = anywhere(definitions.polar_factor)
basis_loss = anywhere(definitions.basis_loss)
polar_factor_vjp = anywhere(derivatives.polar_factor_vjp)
svd_vjp = anywhere(derivatives.svd_vjp)
