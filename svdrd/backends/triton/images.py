"""The address of a block in a batch of images, for use in kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def corner_of(
    item: tl.tensor, image_height: tl.tensor, image_width: tl.tensor, block_height: tl.tensor, block_width: tl.tensor
) -> tl.tensor:  # fmt: skip
    """Where block ``item`` of ``(b, h, w)`` images begins."""
    across = image_width // block_width
    blocks = (image_height // block_height) * across
    image, block = item // blocks, (item % blocks).to(tl.int32)
    corner = image * image_height * image_width
    return corner + (block // across).to(tl.int64) * block_height * image_width + (block % across) * block_width
