"""A bar for what goes on inside an image: a large one takes minutes, and any by an autoregressive codec."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from svdrd.compress.codecs.models import padding

# Who waits for less than this wants no second bar.
SECONDS_WITHOUT_A_BAR = 3.0


class InsideAnImage:
    """Counts the layers that a codec has computed of those that an image takes.

    Their number is ``a + b * pixels``: ``b`` is 0 but for autoregressive codecs, which call layers for every position.
    Both are read off two tiny images before the first one that is shown.

    Args:
        model: the codec, in eval mode.
        coder: what is done with each image, ``coder(model, x)``.
        shown: whether anything is shown at all.
    """

    def __init__(self, model: nn.Module, coder: Callable[[Any, Tensor], Any], shown: bool) -> None:
        self.model = model
        self.coder = coder
        self.shown = shown
        self._line: tuple[float, float] | None = None

    @contextmanager
    def of(self, name: str, x: Tensor) -> Iterator[None]:
        """In this context ``coder`` is applied to ``x`` (1, 3, H, W), called ``name``."""
        if not self.shown:
            yield
            return
        with (
            tqdm(
                total=self.layers(x), desc=name, unit=" layers", leave=False, position=1, delay=SECONDS_WITHOUT_A_BAR
            ) as bar,
            self._counting(bar.update),
        ):
            yield

    def layers(self, x: Tensor) -> int:
        """How many layers ``coder`` computes for ``x`` (1, 3, H, W)."""
        if self._line is None:
            # One pixel more than what the padding of a single pixel leaves room for.
            small = x.new_zeros(1, 3, 1, 1)
            large = x.new_zeros(1, 3, 1, self._padded(small)[1] + 1)
            (first, pixels), (second, more) = ((self._count(image), self._pixels(image)) for image in (small, large))
            slope = (second - first) / (more - pixels)
            self._line = first - slope * pixels, slope
        intercept, slope = self._line
        return round(intercept + slope * self._pixels(x))

    def _padded(self, x: Tensor) -> tuple[int, int]:
        (left, right, top, bottom), _ = padding(self.model, *x.shape[-2:])
        return x.shape[-2] + top + bottom, x.shape[-1] + left + right

    def _pixels(self, x: Tensor) -> int:
        height, width = self._padded(x)
        return height * width

    def _count(self, x: Tensor) -> int:
        calls: list[None] = []
        with self._counting(lambda: calls.append(None)):
            self.coder(self.model, x)
        return len(calls)

    @contextmanager
    def _counting(self, one: Callable[[], Any]) -> Iterator[None]:
        """In this context ``one`` is called behind each layer."""

        def hook(*_: Any) -> None:
            one()

        layers = [module for module in self.model.modules() if next(module.children(), None) is None]
        hooks = [layer.register_forward_hook(hook) for layer in layers]
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()
