"""Operations, providers, cases: what is compared, who computes it, on which shapes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import svdrd
from benchmarks import inputs
from svdrd import ops
from svdrd.reference import definitions, derivatives

try:
    import roma
except ImportError:  # a lent machine may have no way to get it; ABSENT says so
    roma = None

Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """One operation on one shape: every provider that can is timed on it."""

    op: str
    mode: str  # "forward", "backward" alone (the graph stands already), or "both"
    batch: int
    m: int
    n: int
    input: str = "natural"  # as of inputs.make
    dtype: torch.dtype = torch.float32
    peak_memory: bool = False  # measure it too
    peers: bool = True  # all providers, or svdrd and torch.linalg.svd alone

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.op}-{self.mode}-{self.batch}x{self.m}x{self.n}-{self.input}-{dtype}"

    def inputs(self, device: str = "cpu") -> inputs.Inputs:
        made = inputs.make(self.input, self.batch, self.m, self.n, self.dtype)
        return made._replace(x_hat=made.x_hat.to(device), x=made.x.to(device))


# Providers


def _everything(case: Case) -> str | None:
    return None


@dataclass(frozen=True)
class Provider:
    """Somebody's way to compute operations.

    ``functions`` by operation, each called as ``f(x_hat, x, block_size)`` (``svd`` and ``polar_factor`` of ``x_hat``
    alone) and differentiable in ``x_hat``; ``declines`` says why a case is not for it, or None.
    """

    name: str
    functions: Mapping[str, Function]
    declines: Callable[[Case], str | None] = _everything
    backend: str | None = None

    def context(self) -> Any:
        """In which it computes: one of svdrd's backends, or as anybody would call it."""
        return nullcontext() if self.backend is None else svdrd.use_backend(self.backend)


def in_blocks(image: Tensor, block_size: int | None) -> Tensor:
    if block_size is None:
        return image
    return definitions.to_blocks(image.flatten(0, -3), block_size, block_size)


def _with_polar(polar: Callable[[Tensor], Tensor]) -> dict[str, Function]:
    """Whoever has a polar factor has the basis loss as anybody would write it."""

    def basis_loss(x_hat: Tensor, x: Tensor, block_size: int | None) -> tuple[Tensor, ...]:
        return ((polar(in_blocks(x_hat, block_size)) - polar(in_blocks(x, block_size))).abs().mean(),)

    return {"polar_factor": lambda x_hat, x, block_size: (polar(x_hat),), "basis_loss": basis_loss}


def _linalg_svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    return u, s, vh


def _linalg_svd_polar(a: Tensor) -> Tensor:
    u, _, vh = _linalg_svd(a)
    return u @ vh


def _linalg_svd_recompose(x_hat: Tensor, x: Tensor, block_size: int | None) -> tuple[Tensor, ...]:
    s = torch.linalg.svdvals(x_hat)
    u, _, vh = _linalg_svd(x)
    return ((u * s[..., None, :]) @ vh,)


def _tall(polar: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``P(A^T) = P(A)^T`` for those who take ``m >= n`` alone."""
    return lambda a: polar(a) if a.shape[-2] >= a.shape[-1] else polar(a.mT).mT


NEWTON_SCHULZ_STEPS = 30


def _newton_schulz(a: Tensor) -> Tensor:
    """``X <- X (3 I - X^T X) / 2`` from ``A / |A|_F``: 30 steps lift a value of 1e-5 |A|_F to 1 (1.5^30 = 2e5).

    Muon's five quintic steps stop at singular values anywhere in [0.7, 1.2], which is no polar factor.
    """
    x = a / torch.linalg.matrix_norm(a, keepdim=True)
    for _ in range(NEWTON_SCHULZ_STEPS):
        x = 1.5 * x - 0.5 * x @ (x.mT @ x)
    return x


_ROMA_LIMIT = 2**27


def _roma_declines(case: Case) -> str | None:
    if case.m != case.n:
        return "square matrices only"
    size = case.batch * case.n**4 * torch.finfo(case.dtype).bits // 8
    if case.mode != "forward" and size > _ROMA_LIMIT:
        return f"its backward builds tensors of b n^4 entries, here {size / 2**30:.1f} GB each"
    return None


def _natural_loss_only(case: Case) -> str | None:
    if case.op == "basis_loss" and case.input == "natural" and case.mode == "both":
        return None
    return "measured for the basis loss of photographs' blocks, as the fallback that it is"


_OURS: dict[str, Function] = {
    "svd": lambda x_hat, x, block_size: ops.svd(x_hat),
    "polar_factor": lambda x_hat, x, block_size: (ops.polar_factor(x_hat),),
    "basis_loss": lambda x_hat, x, block_size: (ops.basis_loss(x_hat, x, block_size),),
    "recompose": lambda x_hat, x, block_size: (ops.recompose(x_hat, x, block_size),),
}

OURS = Provider("svdrd", _OURS)
BASELINE = Provider(
    "torch.linalg.svd",
    {"svd": lambda x_hat, x, block_size: _linalg_svd(x_hat), "recompose": _linalg_svd_recompose}
    | _with_polar(_linalg_svd_polar),
)
FALLBACK = Provider("svdrd, torch backend", _OURS, _natural_loss_only, "torch")
PROVIDERS = [OURS, BASELINE, FALLBACK]
# Who would take part and is not here, with the reason.
ABSENT: dict[str, str] = {}
if hasattr(torch.linalg, "polar"):
    PROVIDERS.append(Provider("torch.linalg.polar", _with_polar(_tall(lambda a: torch.linalg.polar(a)[0]))))
else:
    ABSENT["torch.linalg.polar"] = f"torch {torch.__version__} has none yet"
if roma is not None:
    PROVIDERS += [
        Provider("roma.procrustes", _with_polar(roma.procrustes), _roma_declines),
        # A rotation where the polar factor is a reflection: the gate has to find that out.
        Provider("roma.special_procrustes", _with_polar(roma.special_procrustes), _roma_declines),
    ]
else:
    ABSENT["roma"] = "no module of that name: pip install roma"
PROVIDERS.append(Provider("Newton-Schulz", _with_polar(_tall(_newton_schulz))))


def taking_part(case: Case, providers: Sequence[Provider]) -> list[Provider]:
    """Those of the providers that have the operation and do not decline the case."""
    chosen = [provider for provider in providers if case.peers or provider in (OURS, BASELINE, FALLBACK)]
    return [provider for provider in chosen if case.op in provider.functions and provider.declines(case) is None]


# Operations


class Truth(NamedTuple):
    """Of one operation, in float64: what its outputs and its derivative by ``x_hat`` are measured against."""

    outputs: tuple[Tensor, ...]
    cotangents: tuple[Tensor, ...]
    # Each is right. Of the loss there are two: the sign of a difference below 16 eps counts as 0 in svdrd, and as
    # what it is in plain PyTorch.
    derivatives: tuple[Tensor, ...]


@dataclass(frozen=True)
class Operation:
    """What an operation's answer is compared with, and how far from it a right one may lie."""

    truth: Callable[[inputs.Inputs], Truth]
    # From the forward outputs to those that are differentiated.
    differentiated: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
    # Outputs, inputs and truth to the relative Frobenius error of each matrix.
    error: Callable[[tuple[Tensor, ...], inputs.Inputs, Truth], Tensor]
    # By mode's answer: the outputs, the derivative. float32; for float64 a millionth of it.
    tolerance: float
    derivative_tolerance: float


def relative_error(got: Tensor, expected: Tensor) -> Tensor:
    """``|got - expected|_F / |expected|_F`` of each matrix, in float64; infinite where ``got`` is not finite."""
    difference = torch.linalg.vector_norm(got.double() - expected, dim=(-2, -1))
    norm = torch.linalg.vector_norm(expected, dim=(-2, -1))
    error = torch.where(difference == 0, 0.0, difference / norm)  # a zero matrix: 0 where it is met exactly
    return torch.where(error.isnan(), torch.inf, error).flatten()


def _cotangent(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def _rcond(x: Tensor) -> float:
    """svdrd's default for the dtype that the providers compute in, not for the float64 of the truth."""
    return 4 * torch.finfo(x.dtype).eps


def _svd_truth(given: inputs.Inputs) -> Truth:
    a = given.x_hat
    u, s, vh = definitions.svd(a.double())
    # <C, U V^T> + <c, s> does not depend on the choice of singular vectors: every provider has the same derivative.
    of_polar, of_values = _cotangent(*a.shape).to(a.device), _cotangent(*s.shape).to(a.device)
    derivative = derivatives.polar_factor_vjp(of_polar, u, s, vh) + (u * of_values[:, None, :]) @ vh
    return Truth((u, s, vh), (of_polar, of_values), (derivative,))


def _svd_error(outputs: tuple[Tensor, ...], given: inputs.Inputs, truth: Truth) -> Tensor:
    """The worst of: reconstruction, singular values, ``U^T U - I`` and ``V^T V - I`` over ``|I|``."""
    u, s, vh = (output.double() for output in outputs)
    eye = torch.eye(s.shape[-1], dtype=torch.float64, device=s.device).expand(s.shape[0], -1, -1)
    errors = [
        relative_error((u * s[:, None, :]) @ vh, given.x_hat.double()),
        relative_error(s[:, None, :], truth.outputs[1][:, None, :]),
        relative_error(u.mT @ u, eye),
        relative_error(vh @ vh.mT, eye),
    ]
    return torch.stack(errors).amax(0)


def _polar_truth(given: inputs.Inputs) -> Truth:
    a = given.x_hat
    p, u, s, vh = definitions.polar_factor(a.double(), _rcond(a), 0.0)
    cotangent = _cotangent(*a.shape).to(a.device)
    return Truth((p,), (cotangent,), (derivatives.polar_factor_vjp(cotangent, u, s, vh),))


def _basis_truth(given: inputs.Inputs) -> Truth:
    x_hat, x = (in_blocks(image, given.block_size).double() for image in (given.x_hat, given.x))
    p_hat, u, s, vh = definitions.polar_factor(x_hat, _rcond(given.x), 0.0)
    p = definitions.polar_factor(x, _rcond(given.x), 0.0)[0]
    signs = definitions.signs(p_hat, p), definitions.signs(p_hat, p, given.x.dtype)
    by_x_hat = (derivatives.polar_factor_vjp(sign / p.numel(), u, s, vh) for sign in signs)
    return Truth(((p_hat - p).abs().mean(),), (), tuple(by_x_hat))


def _recompose_truth(given: inputs.Inputs) -> Truth:
    x_hat, x = given.x_hat.double(), given.x.double()
    u_hat, s, vh_hat = definitions.svd(x_hat)
    u, _, vh = definitions.svd(x)
    cotangent = _cotangent(*x.shape).to(x.device)
    by_values = ((u.mT @ cotangent) * vh).sum(-1)
    derivative = (u_hat * by_values[:, None, :]) @ vh_hat
    return Truth(((u * s[:, None, :]) @ vh,), (cotangent,), (derivative,))


def _of_output(outputs: tuple[Tensor, ...], given: inputs.Inputs, truth: Truth) -> Tensor:
    return relative_error(torch.atleast_2d(outputs[0]), torch.atleast_2d(truth.outputs[0]))


def _as_is(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs


# The backward error of a float32 SVD is some eps, a few hundred at most. A polar factor and a derivative are worse by
# up to s_1 / s_k, and a derivative of the loss jumps with the sign of a difference that is nearly zero: five percent
# is far from what a working float32 SVD does to 95 % of the matrices, and from a wrong method.
# The loss is one mean, in which the errors of single entries cancel: 1e-4 is far from float32's 1e-7 there, and a
# rotation in place of a reflection in half of the matrices is still 5e-4 off.
OPERATIONS = {
    "svd": Operation(_svd_truth, lambda outputs: (outputs[0] @ outputs[2], outputs[1]), _svd_error, 1e-4, 5e-2),
    "polar_factor": Operation(_polar_truth, _as_is, _of_output, 5e-2, 5e-2),
    "basis_loss": Operation(_basis_truth, _as_is, _of_output, 1e-4, 5e-2),
    "recompose": Operation(_recompose_truth, _as_is, _of_output, 5e-2, 5e-2),
}


@functools.lru_cache(maxsize=2)
def truth(op: str, kind: str, batch: int, m: int, n: int, dtype: torch.dtype) -> Truth:
    """The modes of a case share it."""
    return OPERATIONS[op].truth(inputs.make(kind, batch, m, n, dtype))


def work(
    case: Case, provider: Provider, given: inputs.Inputs, cotangents: tuple[Tensor, ...]
) -> Callable[[], tuple[Tensor, ...]]:
    """What is timed: a call that returns the outputs, or for "backward" and "both" the derivative by ``x_hat``."""
    function = provider.functions[case.op]
    if case.mode == "forward":
        return lambda: function(given.x_hat, given.x, given.block_size)
    x_hat = given.x_hat.detach().requires_grad_()
    differentiated = OPERATIONS[case.op].differentiated
    upstream = [cotangent.to(given.x) for cotangent in cotangents] or None

    def outputs() -> tuple[Tensor, ...]:
        return differentiated(function(x_hat, given.x, given.block_size))

    if case.mode == "both":
        return lambda: torch.autograd.grad(outputs(), x_hat, upstream)
    with provider.context():
        graph = outputs()
    return lambda: torch.autograd.grad(graph, x_hat, upstream, retain_graph=True)


# Cases

# Batches that torch.linalg.svd works on for about 50 ms, and the basis loss with it for about 100 ms.
SQUARE = {4: 8192, 8: 4096, 16: 1024, 32: 256, 64: 64, 128: 16, 256: 6}
BETWEEN = {2: 8192, 6: 4096, 12: 1024, 24: 512, 48: 128, 96: 32, 192: 8}
RECTANGULAR = {(8, 32): 2048, (64, 16): 1024, (32, 64): 256, (64, 256): 32, (256, 64): 32, (512, 768): 1}
SINGLE = [*((n, n) for n in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)), (512, 768)]
# Points in three dimensions: many rows and few columns, or the other way round.
LONG = {(1000, 3): 64, (3, 1000): 64, (100000, 3): 1}
# All 8 x 8 blocks of a batch of 32 RGB patches of 256 x 256.
TRAINING_STEP = Case("basis_loss", "both", 98304, 8, 8, "patches", peak_memory=True, peers=False)


def cases() -> Iterator[Case]:
    """The CPU part."""
    main = {"svd": "forward", "polar_factor": "both", "basis_loss": "both", "recompose": "forward"}
    yield TRAINING_STEP
    for (op, mode), (n, batch), kind in itertools.product(main.items(), SQUARE.items(), ("natural", "random")):
        yield Case(op, mode, batch, n, n, kind, peak_memory=op == "basis_loss" and kind == "natural" and n in (32, 256))
    for (op, mode), ((m, n), batch) in itertools.product(main.items(), RECTANGULAR.items()):
        yield Case(op, mode, batch, m, n)
    for op, (n, batch) in itertools.product(("svd", "basis_loss"), BETWEEN.items()):
        yield Case(op, main[op], batch, n, n, "random", peers=False)
    for op, (m, n) in itertools.product(("svd", "basis_loss"), SINGLE):
        yield Case(op, main[op], 1, m, n, "random", peers=False)
    for (op, mode), ((m, n), batch) in itertools.product(main.items(), LONG.items()):
        yield Case(op, mode, batch, m, n, "random", peers=False)
    other_modes = (
        ("svd", "backward"), ("svd", "both"), ("polar_factor", "forward"), ("polar_factor", "backward"),
        ("basis_loss", "forward"), ("basis_loss", "backward"), ("recompose", "both"),
    )  # fmt: skip
    for (op, mode), n in itertools.product(other_modes, (8, 32, 128)):
        yield Case(op, mode, SQUARE[n], n, n)
    for op, n in itertools.product(main, (8, 32, 128)):
        yield Case(op, main[op], SQUARE[n], n, n, "random", torch.float64, peers=False)


def quick_cases() -> Iterator[Case]:
    """Every operation, mode and input on batches too small to mean anything: is the suite in order?"""
    for op, mode in itertools.product(OPERATIONS, ("forward", "backward", "both")):
        yield Case(op, mode, 16, 8, 8)
    yield Case("svd", "forward", 4, 8, 16, "random", torch.float64)
    yield Case("svd", "forward", 1, 16, 16, "random")
    yield replace(TRAINING_STEP, batch=3072)
