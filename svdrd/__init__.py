"""svdrd: batched small-matrix SVD, the polar factor ``U V^T`` and the SVD basis loss, safe to differentiate.

The names of this package are imported when they are first used: the command line answers ``--help`` without torch. The
operators ``torch.ops.svdrd.*`` are there as soon as one of the names has been used, or torch was imported before.
"""

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from svdrd.first_use import on_first_use

if TYPE_CHECKING:
    from svdrd.backends.selection import use_backend
    from svdrd.losses import BasisLoss
else:
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "BasisLoss": "svdrd.losses",
            "use_backend": "svdrd.backends.selection",
            "backends": "svdrd.backends",
            "losses": "svdrd.losses",
            "ops": "svdrd.ops",
        },
    )

__all__ = ["BasisLoss", "__version__", "use_backend"]

try:
    __version__ = version("svdrd")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "unknown"

if sys.modules.get("torch"):
    # Nothing is to be saved then, and programs that call torch.ops.svdrd.* find the operators.
    importlib.import_module("svdrd.losses")
