"""svdrd: batched small-matrix SVD, the polar factor ``U V^T`` and the SVD basis loss, safe to differentiate."""

from importlib.metadata import PackageNotFoundError, version

from svdrd.backends.selection import use_backend
from svdrd.losses import BasisLoss

__all__ = ["BasisLoss", "__version__", "use_backend"]

try:
    __version__ = version("svdrd")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "unknown"
