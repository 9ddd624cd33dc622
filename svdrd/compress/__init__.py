"""Everything that knows CompressAI: criterion, model loading, data, checkpoints and the commands."""

import warnings

with warnings.catch_warnings():
    # CompressAI scripts a function at import, which torch 2.15 answers with a FutureWarning that no user can act on.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
    import compressai.models  # noqa: F401  (for its side effect: the warning is spent here)

from svdrd.compress.codecs.models import lambda_for, load_codec
from svdrd.compress.criterion import BasisRateDistortionLoss
from svdrd.compress.errors import BadInput

__all__ = ["BadInput", "BasisRateDistortionLoss", "lambda_for", "load_codec"]
