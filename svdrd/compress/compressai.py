"""What is used of CompressAI; every other module imports it from here.

CompressAI scripts a function at import, which torch answers with a FutureWarning that no user can act on: it is spent
here, in silence.
"""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
    from compressai import __version__, get_entropy_coder, zoo
    from compressai.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional
    from compressai.models import CompressionModel
    from compressai.models.vbr import ScaleHyperpriorVbr
    from compressai.ops import compute_padding
    from compressai.registry import MODELS, register_criterion
    from compressai.zoo import image as zoo_image
    from compressai.zoo import image_vbr as zoo_image_vbr

__all__ = [
    "MODELS",
    "CompressionModel",
    "EntropyBottleneck",
    "EntropyModel",
    "GaussianConditional",
    "ScaleHyperpriorVbr",
    "__version__",
    "compute_padding",
    "get_entropy_coder",
    "register_criterion",
    "zoo",
    "zoo_image",
    "zoo_image_vbr",
]
