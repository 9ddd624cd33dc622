"""svdrd: batched small-matrix SVD, the polar factor ``U V^T`` and the SVD basis loss, safe to differentiate.

Importing it registers the operators ``torch.ops.svdrd.*``, for programs that load a captured graph.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from svdrd.first_use import in_the_command_line, on_first_use

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

if not in_the_command_line():
    importlib.import_module("svdrd.losses")
