"""Runs the project's Triton kernels from their PTX and compares with float64: ``python suite.py jacobi|fused|products``.

Set PYTHONPATH to the project's checkout. Errors are in units of eps; ``!`` marks what is not as it should be.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.ptx import machine
from tests.ptx import translation as translate
from tests.ptx import triton_launch

torch.set_num_threads(1)
ORDERS = itertools.cycle(["lockstep", "reverse", "random", "forward"])
results: list[dict[str, Any]] = []
trouble = 0
only = ""


def matrices(m: int, n: int, count: int, dtype: torch.dtype, seed: int, size: float = 2.0**20) -> Tensor:
    """Random, zero, with a NaN, of rank 1, with equal columns, of half the rank and larger by ``size``, positive."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(count, m, n, generator=g, dtype=torch.float64)
    for k in range(count):
        kind = k % 7
        if kind == 1:
            a[k] = 0
        elif kind == 2:
            a[k, m // 2, n // 3] = float("nan")
        elif kind == 3:
            left, right = (torch.randint(-9, 10, (x,), generator=g).double() for x in (m, n))
            a[k] = left[:, None] * right
        elif kind == 4:
            a[k] = torch.randint(0, 256, (m, n), generator=g).double() / 256
            a[k, :, 1::2] = a[k, :, ::2][:, : a[k, :, 1::2].shape[1]]
        elif kind == 5:
            r = max(1, min(m, n) // 2)
            left, right = (torch.randint(-9, 10, x, generator=g).double() for x in ((m, r), (r, n)))
            a[k] = left @ right * size
        elif kind == 6:
            a[k] = torch.rand(m, n, generator=g, dtype=torch.float64) * 0.1 + 0.5
    return a.to(dtype)


def image_pair(b: int, rows: int, columns: int, m: int, n: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(b, rows * m, columns * n, generator=g, dtype=torch.float64)
    x_hat = (x + 0.05 * torch.randn(x.shape, generator=g, dtype=torch.float64)).clamp(0, 1)
    if rows * columns > 2:
        x[0, :m, :n] = 0.5
        x_hat[0, :m, -n:] = 0
        x[-1, -m:, -n:] = x_hat[-1, -m:, -n:]
    if rows * columns > 3:
        x[0, 0, n] = float("nan")
    return x_hat.to(dtype), x.to(dtype)


def poisoned(tensors: list[Tensor]) -> int:
    return sum(int((t.contiguous().view(torch.uint8).numpy().reshape(-1).view("u4") == machine.POISON_WORD).sum()) for t in tensors if t.numel())


def run(name: str, f: Any, judge: Any, limit: float) -> Any:
    """Runs f through the emulator, judges its outputs, prints a line."""
    global trouble
    if not re.search(only, name):
        return f() if name.startswith("polar_factor ") and re.search(only, name.replace("factor", "factor_backward", 1)) else None
    first = len(triton_launch.records)
    triton_launch.options.order = next(ORDERS)
    triton_launch.options.seed += 1
    start = time.time()
    try:
        out = f()
    except machine.Fault as fault:
        print(f"! {name}: {fault}", flush=True)
        trouble += 1
        return None
    if out is NotImplemented:
        print(f"  {name}: not taken")
        return None
    seconds = time.time() - start
    records = triton_launch.records[first:]
    errors: Counter = Counter()
    examples: dict[Any, str] = {}
    same = 0
    for r in records:
        for key, count in r.errors.items():
            errors[key if isinstance(key, str) else (r.name, *key)] += count
        examples.update(r.examples)
        same += r.same_value
    values = judge(out)
    unwritten = poisoned([t for t in out if isinstance(t, Tensor)])
    bad = any(not v <= limit for v in values.values()) or errors or unwritten
    trouble += bool(bad)
    launches = Counter((r.name, r.threads // 32, r.shared) for r in records)
    result = {
        "name": name, "order": triton_launch.options.order, "eps": {k: float(v) for k, v in values.items()},
        "launches": [f"{k[0]} warps={k[1]} smem={k[2]} x{v}" for k, v in launches.items()],
        "errors": sum(errors.values()), "unwritten": unwritten, "same value": same, "seconds": round(seconds, 1),
        "programs": sum(r.grid for r in records), "partial": sum(r.partial for r in records),
        "configurations": sorted({f"{r.name} {r.constants}" for r in records}),
    }  # fmt: skip
    results.append(result)
    shown = ", ".join(f"{k} {v:.2g}" for k, v in values.items())
    print(f"{'!' if bad else ' '} {name} [{triton_launch.options.order}] {shown}; {result['programs']} programs, "
          f"{len(records)} launches, {seconds:.1f} s" + (f", {same} writes of the same value" if same else "")
          + (f", {unwritten} words not written" if unwritten else ""), flush=True)  # fmt: skip
    for text in list(examples.values())[:6]:
        print("    ", text)
    if errors and not examples:
        print("    ", errors)
    return out


def _eye(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-1], dtype=x.dtype)


def judge_svd(a: Tensor) -> Any:
    eps = torch.finfo(a.dtype).eps
    exact = a.double()
    finite = torch.isfinite(exact).all(-1).all(-1)

    def judge(out: Any) -> dict[str, float]:
        u, s, vh = (x.double() for x in out)
        nan = all(bool(x[~finite].isnan().all()) for x in (u, s, vh))
        u, s, vh, x = u[finite], s[finite], vh[finite], exact[finite]
        values = torch.linalg.svdvals(x)
        scale = values[:, :1].clamp(min=1e-300)
        return {
            "a": ((u * s[:, None]) @ vh - x).abs().amax((-1, -2)).div(scale[:, 0]).max().item() / eps,
            "s": ((s - values).abs() / scale).max().item() / eps,
            "u": (u.mT @ u - _eye(u)).abs().max().item() / eps,
            "v": (vh @ vh.mT - _eye(u)).abs().max().item() / eps,
            "order": 0.0 if (s.diff(dim=-1) <= 0).all() and (s >= 0).all() else float("inf"),
            "nan": 0.0 if nan else float("inf"),
        }

    return judge


def _smallest(a: Tensor, rcond: float, smooth: float) -> tuple[Tensor, Tensor]:
    """The smallest kept value over the largest, and the largest."""
    s = torch.linalg.svdvals(torch.nan_to_num(a.double()))
    first = s[:, :1].clamp(min=1e-300)
    relative = s / first
    if smooth > 0:
        relative = torch.hypot(s, torch.full_like(s, smooth)) / first.clamp(min=smooth)
        return relative.amin(-1).clamp(max=1.0), first[:, 0].clamp(min=smooth)
    return torch.where(relative > rcond, relative, torch.inf).amin(-1).clamp(max=1.0), first[:, 0]


def judge_polar(a: Tensor, rcond: float, smooth: float) -> Any:
    from svdrd import reference

    eps = torch.finfo(a.dtype).eps
    exact = reference.polar_factor(a.double(), rcond, smooth)[0]
    smallest, _ = _smallest(a, rcond, smooth)
    finite = torch.isfinite(a).all(-1).all(-1)

    def judge(out: Any) -> dict[str, float]:
        p = out[0].double()
        error = torch.linalg.matrix_norm((p - exact)[finite]) * smallest[finite]
        return {"p": error.max().item() / eps, "nan": 0.0 if bool(p[~finite].isnan().all()) else float("inf")}

    return judge


def judge_backward(a: Tensor, grad: Tensor, rcond: float, smooth: float) -> Any:
    from svdrd import gradients, reference

    eps = torch.finfo(a.dtype).eps
    _, *factors = reference.polar_factor(a.double(), rcond, smooth)
    exact = gradients.polar_factor_vjp(grad.double(), *factors, smooth)
    smallest, first = _smallest(a, rcond, smooth)
    finite = torch.isfinite(a).all(-1).all(-1)
    steepest = torch.linalg.matrix_norm(grad.double()) / (smallest * first)

    def judge(out: Any) -> dict[str, float]:
        (d,) = out
        error = torch.linalg.matrix_norm((d.double() - exact)[finite]) * smallest[finite] / steepest[finite]
        error = torch.where(torch.linalg.svdvals(torch.nan_to_num(a.double()))[finite][:, 0] > 0, error, 0.0)
        return {"d": error.max().item() / eps, "nan": 0.0 if bool(d[~finite].isnan().all()) else float("inf")}

    return judge


def judge_loss(x_hat: Tensor, x: Tensor, m: int, n: int, rcond: float, smooth: float, sides: tuple[bool, bool]) -> Any:
    from svdrd import reference

    eps = torch.finfo(x.dtype).eps
    exact = reference.basis_loss(x_hat.double(), x.double(), m, n, rcond, smooth, *sides)
    blocks = [reference.to_blocks(t, m, n) for t in (x_hat, x)]
    both = [_smallest(t, rcond, smooth) for t in blocks]
    finite = torch.isfinite(blocks[0]).all(-1).all(-1) & torch.isfinite(blocks[1]).all(-1).all(-1)
    same = (blocks[0] == blocks[1]).all(-1).all(-1)

    def judge(out: Any) -> dict[str, float]:
        loss, *derivatives = out
        smallest = torch.minimum(both[0][0], both[1][0])
        error = (loss.double() - exact[0]).reshape(-1).abs() * smallest
        result = {"loss": error[finite].max().item() / eps,
                  "nan": 0.0 if bool(loss.reshape(-1)[~finite].isnan().all()) else float("inf")}  # fmt: skip
        for k, (d, e) in enumerate(zip(derivatives, exact[1:])):
            if not d.numel():
                continue
            d, e = (reference.to_blocks(t.double(), m, n) for t in (d, e))
            least, first = both[k]
            # Where an entry of the difference is within rounding of 0 its sign is anyone's.
            p1, p2 = (reference.polar_factor(t.double(), rcond, smooth)[0] for t in blocks)
            clear = ((p1 - p2).abs() * smallest[:, None, None] > 8 * eps).all(-1).all(-1) & finite & ~same
            steepest = (m * n) ** -0.5 / (least * first)
            error = torch.linalg.matrix_norm(d - e) * least / steepest
            result["d" + "x"[k - 1 :] if k else "d"] = error[clear].max().item() / eps if clear.any() else 0.0
            result[f"clear{k}"] = float(clear.sum())
            if not bool(d[~finite].isnan().all()):
                result["nan"] = float("inf")
        return result

    return judge


def judge_recompose(x_hat: Tensor, x: Tensor, m: int, n: int) -> Any:
    from svdrd import reference

    eps = torch.finfo(x.dtype).eps
    a, b = (reference.to_blocks(t.double(), m, n) for t in (x_hat, x))
    finite = torch.isfinite(a).all(-1).all(-1) & torch.isfinite(b).all(-1).all(-1)
    a, b = torch.nan_to_num(a), torch.nan_to_num(b)
    s = torch.linalg.svdvals(a)
    u, t, vh = torch.linalg.svd(b, full_matrices=False)
    exact = (u * s[:, None]) @ vh
    gaps = (t[:, :-1] - t[:, 1:]).amin(-1) / t[:, 0].clamp(min=1e-300) if min(m, n) > 1 else torch.ones(len(t))
    gaps = torch.minimum(gaps, t[:, -1] / t[:, 0].clamp(min=1e-300))

    def judge(out: Any) -> dict[str, float]:
        r = reference.to_blocks(out[0].double(), m, n)
        error = torch.linalg.matrix_norm(r - exact) / s[:, 0].clamp(min=1e-300) * gaps
        return {"r": error[finite].max().item() / eps, "nan": 0.0 if bool(r[~finite].isnan().all()) else float("inf"),
                "s": ((torch.linalg.svdvals(r[finite]) - s[finite]).abs() / s[finite][:, :1].clamp(min=1e-300)).max().item() / eps}  # fmt: skip

    return judge


def jacobi(cases: Any) -> None:
    from svdrd.triton import jacobi as j

    for (m, n), dtype, count in cases:
        eps = torch.finfo(dtype).eps
        rcond, kind = 4 * eps, str(dtype)[6:]
        name = f"{m}x{n} {kind} b={count}"
        limit = 10 * max(m, n)
        a = matrices(m, n, count, dtype, m * n)
        run(f"svd {name}", lambda: j.svd(a), judge_svd(a), limit)
        if not j.takes_polar(m, n, dtype):
            continue
        out = run(f"polar_factor {name}", lambda: j.polar_factor(a, rcond, 0.0, True), judge_polar(a, rcond, 0.0), limit)
        grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        if out is not None:
            run(f"polar_factor_backward {name}", lambda: (j.polar_factor_backward(grad, a, *out, rcond, 0.0),),
                judge_backward(a, grad, rcond, 0.0), limit)  # fmt: skip
        if max(m, n) <= 32:
            a = matrices(m, n, count, dtype, m * n, 1.0)
            out = run(f"polar_factor smoothed {name}", lambda: j.polar_factor(a, rcond, 0.1, True), judge_polar(a, rcond, 0.1), limit)
            if out is not None:
                run(f"polar_factor_backward smoothed {name}", lambda: (j.polar_factor_backward(grad, a, *out, rcond, 0.1),),
                    judge_backward(a, grad, rcond, 0.1), limit)  # fmt: skip
        rows, columns = (3, 3) if max(m, n) <= 16 else (2, 2) if max(m, n) <= 32 else (1, 3)
        x_hat, x = image_pair(1, rows, columns, m, n, dtype, m + n)
        if j.takes_loss(m, n):
            for smooth, sides in ((0.0, (True, True)),) + (((0.1, (True, False)),) if max(m, n) <= 16 else ()):
                run(f"basis_loss {name} smooth={smooth}", lambda: j.basis_loss(x_hat, x, m, n, rcond, smooth, *sides),
                    judge_loss(x_hat, x, m, n, rcond, smooth, sides), limit)  # fmt: skip
        run(f"recompose {name}", lambda: (j.recompose(x_hat, x, m, n),), judge_recompose(x_hat, x, m, n), limit)


def products_like(module: Any, cases: Any, limit_of: Any) -> None:
    dtype = torch.float32
    eps = torch.finfo(dtype).eps
    rcond = 4 * eps
    for (m, n), smooth, count in cases:
        a = matrices(m, n, count, dtype, m * n + 1, 1.0 if smooth else 2.0**20)
        name = f"{m}x{n} smooth={smooth} b={count}"
        limit = limit_of(m, n)
        out = run(f"polar_factor {name}", lambda: module.polar_factor(a, rcond, smooth, False), judge_polar(a, rcond, smooth), limit)
        grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        if out is not None:
            run(f"polar_factor_backward {name}", lambda: (module.polar_factor_backward(grad, a, *out, rcond, smooth),),
                judge_backward(a, grad, rcond, smooth), limit)  # fmt: skip
        x_hat, x = image_pair(1, 1, 3, m, n, dtype, m + n)
        run(f"basis_loss {name}", lambda: module.basis_loss(x_hat, x, m, n, rcond, smooth, True, smooth == 0),
            judge_loss(x_hat, x, m, n, rcond, smooth, (True, smooth == 0)), limit)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["jacobi", "fused", "products"])
    parser.add_argument("--arch", type=int, default=80)
    parser.add_argument("--sizes", help="as 8x8,7x12")
    parser.add_argument("--dtype", choices=["float32", "float64"])
    parser.add_argument("--batch", type=int)
    parser.add_argument("--order", choices=["lockstep", "forward", "reverse", "random"], help="of warps, otherwise by turns")
    parser.add_argument("--perturb", type=float, default=0.0, help="share of the documented error that approximations err by")
    parser.add_argument("--only", default="", help="cases whose name this regular expression finds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds a launch")
    o = parser.parse_args()
    global ORDERS, only
    only = o.only
    if o.order:
        ORDERS = itertools.repeat(o.order)
    translate.settings.perturb = o.perturb
    triton_launch.install(o.arch)
    triton_launch.options.limit = o.limit
    sizes = [tuple(map(int, s.split("x"))) for s in o.sizes.split(",")] if o.sizes else None
    start = time.time()
    if o.what == "jacobi":
        chosen = sizes or [(4, 4), (8, 8), (16, 16), (7, 12), (32, 32), (41, 23), (64, 16), (64, 64)]
        dtypes = [getattr(torch, o.dtype)] if o.dtype else [torch.float32, torch.float64]
        count = {64: 3, 41: 7, 32: 7}
        jacobi([(s, d, o.batch or count.get(max(s), 13)) for s in chosen for d in dtypes])
    elif o.what == "fused":
        from svdrd.triton import fused

        chosen = sizes or [(16, 16), (32, 32), (13, 9), (40, 20), (16, 64)]
        products_like(fused, [(s, e, o.batch or 7) for s in chosen for e in (0.0, 0.1)], lambda m, n: 30 * max(m, n))
    else:
        from svdrd.triton import products

        chosen = sizes or [(16, 16), (33, 33), (64, 64), (96, 96), (100, 130)]
        products_like(products, [(s, e, o.batch or 3) for s in chosen for e in (0.0, 0.1)], lambda m, n: 30 * max(m, n))
    print(f"{len(results)} cases, {trouble} with trouble, {time.time() - start:.0f} s")
    if o.json:
        o.json.write_text(json.dumps(results, indent=1))
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
