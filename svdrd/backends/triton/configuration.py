"""One compiled form of a kernel: the same object launches it and, without a GPU, compiles it ahead of time.

Kernels annotate every scalar argument (``tl.int64``, ``tl.float32``) and let Triton specialise on none of their values,
so that what ``svdrd.backends.triton.aot`` compiles is what a GPU will run. Pointers are annotated ``tl.tensor``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from triton import knobs


@dataclass(frozen=True)
class Configuration:
    """A kernel with its constants.

    Args:
        kernel: the function that ``triton.jit`` made.
        constants: its constexpr arguments, sorted pairs of name and value.
        num_warps, num_stages: Triton's launch options.
        maxnreg: registers that a thread may have at most; None leaves the number to the compiler, which for the sake of
            more warps may spill.
        dtype: what its pointers point to, as Triton names it: ``"fp32"`` or ``"fp64"``.
        others: pointers that point to something else, sorted pairs of name and type.
    """

    kernel: Any
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int = 1
    dtype: str = "fp32"
    maxnreg: int | None = None
    others: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls,
        kernel: Any,
        constants: Mapping[str, Any],
        num_warps: int,
        num_stages: int = 1,
        dtype: str = "fp32",
        maxnreg: int | None = None,
        others: Mapping[str, str] | None = None,
    ) -> Configuration:
        """As the constructor, from mappings of constants and of other pointers."""
        others = others or {}
        sorted_constants, sorted_others = tuple(sorted(constants.items())), tuple(sorted(others.items()))
        return cls(kernel, sorted_constants, num_warps, num_stages, dtype, maxnreg, sorted_others)

    @property
    def options(self) -> dict[str, int | None]:
        """What Triton calls options, for a launch and for a compilation."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "maxnreg": self.maxnreg,
            # Multiply-adds. Triton 3.9 warns where this is not said, because later versions will separate them.
            "enable_fp_fusion": True,
        }

    @property
    def name(self) -> str:
        """The kernel's name, types, constants and options, for tables and errors."""
        constants = " ".join(f"{name}={value}" for name, value in self.constants + self.others)
        return f"{self.kernel.__name__} {self.dtype} {constants} warps={self.num_warps} stages={self.num_stages}"

    def launch(self, grid: tuple[int, ...], *arguments: Any) -> None:
        """Runs ``grid`` programs on the current stream of the current device."""
        self.kernel[grid](*arguments, **dict(self.constants), **self.options)


def interpreted(device: torch.device) -> bool:
    """Whether Triton's interpreter runs the launches of ``device``: it pays for each operation of each program."""
    return device.type == "cpu" and bool(knobs.runtime.interpret)
