"""The operators under ``torch.ops.svdrd``, one file each, and who computes them; all that knows ``torch.library``."""

from svdrd.dispatch import basis_loss, polar_factor, recompose, svd  # noqa: F401  (each registers its operators)
