"""Everything that knows CompressAI: criterion, codecs, images, training, evaluation, comparison, studies, commands.

Importing this package registers ``BasisRateDistortionLoss`` in ``compressai.registry``. The command line does not need
that: there the names of this package are imported when they are first used, so that ``--help`` answers at once.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from svdrd.compress.errors import BadInput
from svdrd.first_use import in_the_command_line, on_first_use

if TYPE_CHECKING:
    from svdrd.compress.codecs.models import lambda_for, load_codec
    from svdrd.compress.criterion import BasisRateDistortionLoss
else:
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "BasisRateDistortionLoss": "svdrd.compress.criterion",
            "lambda_for": "svdrd.compress.codecs.models",
            "load_codec": "svdrd.compress.codecs.models",
        },
    )

__all__ = ["BadInput", "BasisRateDistortionLoss", "lambda_for", "load_codec"]


if sys.modules.get("compressai") or not in_the_command_line():
    importlib.import_module("svdrd.compress.criterion")
