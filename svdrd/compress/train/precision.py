"""In which number format a step computes: float32, TF32 products, or bfloat16 and float16 under autocast."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from svdrd.compress.compressai import EntropyModel

AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# torch begins at 2^16, for losses of about 1; a distortion counted in 255^2 overflows float16 with that for the first
# dozen steps. The scale doubles after each 2000 steps that it fits.
FIRST_SCALE = 2.0**7


class Precision:
    """Autocast for the networks, and the scaling of the loss that float16 needs.

    Weights, gradients and optimizers stay in float32; so do likelihoods (:func:`likelihoods_in_float32`) and the whole
    criterion, basis term included.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = AUTOCAST_DTYPES[name]
        self.device_type = device.type
        self.scaler = torch.amp.GradScaler(device.type, init_scale=FIRST_SCALE, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype is None else torch.autocast(self.device_type, self.dtype)

    def overflow_is_expected(self) -> bool:
        """Whether a gradient that is not finite says only that float16's scale is too large still."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1


def likelihoods_in_float32(model: nn.Module) -> None:
    """Entropy models of ``model`` compute in float32 under autocast.

    A bfloat16 latent of 100 has neighbours at 99.5 and 100.5: noise of +-0.5 and the differences of cumulative
    distributions that are likelihoods would be lost.
    """
    for module in model.modules():
        if isinstance(module, EntropyModel):
            module.forward = _in_float32(module.forward)


def _in_float32(forward: Callable[..., Any]) -> Callable[..., Any]:
    def convert(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    def in_float32(*args: Any, **options: Any) -> Any:
        tensor = next(value for value in (*args, *options.values()) if isinstance(value, Tensor))
        with torch.autocast(tensor.device.type, enabled=False):
            return forward(*map(convert, args), **{key: convert(value) for key, value in options.items()})

    return in_float32


@contextmanager
def reproducible_products(tf32: bool) -> Iterator[None]:
    """Convolutions that give the same bits every time; matrix products and convolutions in TF32 if wished."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        # cuDNN's other backward kernels add in any order, and no two runs would be equal.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
