"""The zoo: matrices that break singular value decompositions, by name, in float64 (cast and rescaled by the tests).

Shapes are ``(m, n)`` in float64; each generator is deterministic. The rank is known for those in ``RANKS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Generator = Callable[[int, int], Tensor]


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _orthonormal(m: int, k: int, seed: int) -> Tensor:
    return torch.linalg.qr(_random(m, k, seed=seed))[0]


def with_spectrum(m: int, n: int, s: Tensor, seed: int = 1) -> Tensor:
    """``U diag(s) V^T`` with random orthonormal U and V."""
    k = min(m, n)
    return (_orthonormal(m, k, seed) * s) @ _orthonormal(n, k, seed + 1).mT


def _arithmetic(k: int) -> Tensor:
    return torch.linspace(1, 1 / k, k, dtype=torch.float64)


def _geometric(k: int, last: float = 1e-5) -> Tensor:
    return torch.logspace(0, torch.log10(torch.tensor(last)).item() if k > 1 else 0, k, dtype=torch.float64)


def _clustered(k: int) -> Tensor:
    s = torch.full((k,), 1e-3, dtype=torch.float64)
    s[0] = 1
    return s


def _log_random(k: int) -> Tensor:
    exponents = torch.rand(k, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return (10 ** (-5 * exponents)).sort(descending=True).values


def _image(m: int, n: int) -> Tensor:
    """A smooth picture with an edge and grain, 8-bit values over 255."""
    y = torch.linspace(0, 1, m, dtype=torch.float64)[:, None]
    x = torch.linspace(0, 1, n, dtype=torch.float64)
    picture = 0.5 + 0.3 * torch.sin(3 * x + 2 * y) + 0.15 * (x > 0.6) + 0.03 * _random(m, n, seed=4)
    return (picture.clamp(0, 1) * 255).round() / 255


def _half_flat(m: int, n: int) -> Tensor:
    a = _image(m, n)
    a[:, n // 2 :] = 128 / 255
    return a


def _duplicated(m: int, n: int) -> Tensor:
    a = _image(m, n)
    a[:, 1::2] = a[:, ::2][:, : a[:, 1::2].shape[1]]
    return a


def _zero_row_and_column(m: int, n: int) -> Tensor:
    a = _image(m, n)
    a[m // 2], a[:, n // 2] = 0, 0
    return a


def _jordan(m: int, n: int) -> Tensor:
    return torch.ones(m, n, dtype=torch.float64).triu().tril(1)


def _product(m: int, n: int, rank: int) -> Tensor:
    return _random(m, rank, seed=5) @ _random(rank, n, seed=6)


def _two_ulp_gap(m: int, n: int) -> Tensor:
    s = _arithmetic(min(m, n))
    if len(s) > 1:
        s[1] = s[0] * (1 - 2 * torch.finfo(torch.float64).eps)
    return with_spectrum(m, n, s)


def _equal_pairs(k: int) -> Tensor:
    return _arithmetic(k)[torch.arange(k) // 2 * 2]


def _tiny_element(m: int, n: int) -> Tensor:
    a = torch.zeros(m, n, dtype=torch.float64)
    a[m // 2, n // 2] = 1e-20
    return a


ZOO: dict[str, Generator] = {
    "zero": lambda m, n: torch.zeros(m, n, dtype=torch.float64),
    "identity": lambda m, n: torch.eye(m, n, dtype=torch.float64),
    "orthogonal": lambda m, n: with_spectrum(m, n, torch.ones(min(m, n), dtype=torch.float64)),
    "signs": lambda m, n: torch.sign(_random(m, n, seed=7)),
    "random": lambda m, n: _random(m, n, seed=8),
    "diagonal": lambda m, n: torch.eye(m, n, dtype=torch.float64) * torch.arange(1, n + 1) / n,
    "arithmetic": lambda m, n: with_spectrum(m, n, _arithmetic(min(m, n))),
    "geometric": lambda m, n: with_spectrum(m, n, _geometric(min(m, n))),
    "clustered": lambda m, n: with_spectrum(m, n, _clustered(min(m, n))),
    "log random": lambda m, n: with_spectrum(m, n, _log_random(min(m, n))),
    "equal pairs": lambda m, n: with_spectrum(m, n, _equal_pairs(min(m, n))),
    "two ulp gap": _two_ulp_gap,
    "ones": lambda m, n: torch.ones(m, n, dtype=torch.float64),
    "jordan": _jordan,
    "kronecker": lambda m, n: _random((m + 1) // 2, (n + 1) // 2).repeat(2, 2)[:m, :n],
    "hilbert": lambda m, n: 1 / (torch.arange(m, dtype=torch.float64)[:, None] + torch.arange(n) + 1),
    "graded rows": lambda m, n: _random(m, n, seed=9) * _geometric(m)[:, None],
    "graded columns": lambda m, n: _random(m, n, seed=10) * _geometric(n),
    "upper triangular ones": lambda m, n: torch.ones(m, n, dtype=torch.float64).triu(),
    "rank 1": lambda m, n: _product(m, n, 1),
    "rank k/2": lambda m, n: _product(m, n, max(min(m, n) // 2, 1)),
    "rank k-1": lambda m, n: _product(m, n, max(min(m, n) - 1, 1)),
    "tiny element": _tiny_element,
    "image": _image,
    "constant image": lambda m, n: torch.full((m, n), 77 / 255, dtype=torch.float64),
    "half flat": _half_flat,
    "duplicated columns": _duplicated,
    "zero row and column": _zero_row_and_column,
    "checkerboard": lambda m, n: ((torch.arange(m)[:, None] + torch.arange(n)) % 2).double(),
    "ramp": lambda m, n: (torch.arange(m)[:, None] + torch.arange(n)).double() / 255,
}  # fmt: skip

SIZES = [
    (1, 1),
    (2, 2),
    (3, 3),
    (4, 4),
    (7, 7),
    (8, 8),
    (8, 5),
    (5, 8),
    (1, 6),
    (6, 1),
    (16, 16),
    (17, 16),
    (31, 33),
    (32, 32),
]
LARGE_SIZES = [(64, 64), (63, 64), (100, 24), (24, 100), (128, 128)]


def exact_rank(name: str, m: int, n: int) -> int | None:
    """The rank of ``ZOO[name](m, n)`` where it is exact in floating point too, hence free of rounding in the
    entries."""
    k = min(m, n)
    ranks = {"zero": 0, "identity": k, "ones": 1, "constant image": 1, "tiny element": 1, "checkerboard": min(k, 2)}
    return ranks.get(name)


def animals(sizes: list[tuple[int, int]]) -> Iterator[tuple[str, int, int]]:
    """Every name at every size."""
    for m, n in sizes:
        for name in ZOO:
            yield name, m, n


def _one_large(k: int, ratio: float) -> Tensor:
    """``ratio`` once, then values of the order of 1."""
    s = torch.linspace(1, 0.5, k, dtype=torch.float64)
    s[0] = ratio
    return s


def _graded(k: int, ratio: float) -> Tensor:
    return torch.logspace(0, 1, k, dtype=torch.float64, base=1 / ratio) * ratio


def _one_large_and_none(k: int, ratio: float) -> Tensor:
    """``ratio`` once, 1 once, then zeros."""
    s = torch.zeros(k, dtype=torch.float64)
    s[:2] = torch.tensor([ratio, 1.0], dtype=torch.float64)[:k]
    return s


# Spectra of k values whose largest is ``ratio`` times 1: with ``smooth`` near 1, ratios up to the range of a dtype.
SPECTRA: dict[str, Callable[[int, float], Tensor]] = {
    "one large": _one_large,
    "graded": _graded,
    "one large and none": _one_large_and_none,
}
