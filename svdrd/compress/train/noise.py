"""The noise that stands for quantisation in training, as one process with the whole batch would draw it.

CompressAI draws uniform noise for the latents of whatever batch it is given from torch's global generator. A process
that has some crops of the batch, or computes them in several parts, draws the noise of the whole batch here and takes
what belongs to its crops. The loss curve then does not depend on the number of processes and parts, except for
rounding. With one process and one part it is CompressAI's training, bit for bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from svdrd.compress.compressai import EntropyBottleneck, EntropyModel


class BatchNoise:
    """A generator of its own, which begins where the global one of ``device`` stands; only the noise moves it on."""

    def __init__(self, device: torch.device) -> None:
        self.generator = torch.Generator(device)
        if device.type == "cuda":
            self.generator.set_state(torch.cuda.get_rng_state(device))
        else:
            self.generator.set_state(torch.get_rng_state())
        self.start = self.generator.get_state()
        self._part = (0, 1, 1)
        original = EntropyModel.quantize

        # One function for all steps: for each new one torch.compile would translate the model again.
        @torch.compiler.disable
        def quantize(module: EntropyModel | None, inputs: Tensor, mode: str, means: Tensor | None = None) -> Tensor:
            if mode != "noise":
                return original(module, inputs, mode, means)
            return inputs + self._draw(inputs, isinstance(module, EntropyBottleneck))

        self._quantize = quantize

    def begin_step(self) -> None:
        self.start = self.generator.get_state()

    def undo_step(self) -> None:
        """As if the step that :meth:`begin_step` began had not been."""
        self.generator.set_state(self.start)

    @contextmanager
    def of(self, first: int, last: int, batch: int) -> Iterator[None]:
        """In this context a model's forward is that of the crops ``first`` to ``last`` (excluded) of ``batch``.

        Each use within a step starts from the same state, so all parts get slices of the same noise.
        """
        self.generator.set_state(self.start)
        self._part = (first, last, batch)
        # The class, not its instances: the checkerboard codec calls `EntropyModel.quantize(None, y, mode)`.
        original = EntropyModel.quantize
        EntropyModel.quantize = self._quantize
        try:
            yield
        finally:
            EntropyModel.quantize = original

    def _draw(self, like: Tensor, is_bottleneck: bool) -> Tensor:
        first, last, batch = self._part
        if is_bottleneck:  # (C, 1, N * H * W): its latents come with the channels first and everything else in one row
            channels, _, length = like.shape
            whole = like.new_empty(channels, batch, length // (last - first))
            return whole.uniform_(-0.5, 0.5, generator=self.generator)[:, first:last].reshape(like.shape)
        # uniform_ fills in the order of memory, so the whole batch needs the layout that CompressAI's `empty_like` has.
        strides = torch.empty_like(like).stride()
        order = (0, *sorted(range(1, like.dim()), key=lambda dimension: -strides[dimension]))
        whole = torch.empty_permuted((batch, *like.shape[1:]), order, dtype=like.dtype, device=like.device)
        return whole.uniform_(-0.5, 0.5, generator=self.generator)[first:last]
