"""Counts the warp instructions of a basis_loss with its derivative, and bounds its time on an H100 or H200.

    python estimate.py [--arch 90]     with PYTHONPATH set to the project's checkout

Two bounds: the busiest pipe of 132 multiprocessors at 1.98 GHz, and the length of the dependencies in a warp divided by
the warps that are resident. PTX instructions are counted; what ptxas makes of them is not.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from typing import Any

import torch

from tests.ptx import cases as suite
from tests.ptx import translation as translate
from tests.ptx import triton_launch

SMS, CLOCK, BANDWIDTH = 132, 1.98e9, 3.35e12
# Warp instructions a clock and multiprocessor (CUDA C++ Programming Guide, throughput of native arithmetic instructions,
# compute capability 9.0; tensor cores from the data sheet: 1024 and 128 multiply-adds a clock).
THROUGHPUT = {"fp32": 4.0, "fp64": 2.0, "mufu": 0.5, "alu": 2.0, "lsu": 1.0, "cvt f64": 0.5, "redux": 0.5, "issue": 4.0, "mma tf32": 1024.0,
              "mma f64": 128.0, "sectors": 2.0}  # fmt: skip
# Cycles until a result can be used.
LATENCY = {"fp32": 4, "int": 4, "imad": 4, "mov": 2, "fp64": 8, "setp f64": 8, "mufu": 20, "shfl": 24, "vote": 16, "cvt int": 6, "cvt f32": 6,
           "cvt f64": 12, "slow f64": 90, "slow f32": 40, "slow int": 60, "ld shared": 29, "ld global": 500, "ld param": 4, "ldmatrix": 33,
           "barrier": 25, "barrier warp": 10, "st shared": 2, "st global": 2, "cp.async": 4, "branch": 8}  # fmt: skip


def latency(kind: str) -> int:
    if kind.startswith("mma tf32"):
        return 26
    if kind.startswith("mma f64"):
        return 33
    return LATENCY.get(kind, 6)


def critical(translated: Any, block: Any) -> int:
    """Cycles of one warp alone in a block: dependencies, or one instruction a cycle."""
    ready: dict[str, int] = {}
    end = count = 0
    memory = 0
    for i in translated.kernel.instructions[block.first : block.last]:
        kind = translate.classify(i)
        names = [set(re.findall(r"[%$\w~.]+", a)) & translated.rows.keys() for a in i.args]
        writes_nothing = i.parts[0] in ("st", "bra", "bar", "cp", "ret", "membar")
        sources = set().union(*names) if writes_nothing else set().union(*names[1:], names[0] if i.predicate else set())
        if i.predicate:
            sources.add(i.predicate)
        begin = max([ready.get(s, 0) for s in sources], default=0)
        if kind in ("barrier", "barrier warp"):
            begin = max(begin, end)
        if kind in ("ld shared", "ldmatrix"):
            begin = max(begin, memory)
        done = begin + latency(kind)
        if kind in ("barrier", "barrier warp"):
            memory = done
            ready = {k: max(v, 0) for k, v in ready.items()}
        if not writes_nothing and names:
            for d in names[0]:
                ready[d] = done
        end = max(end, done if kind != "ld global" else done)
        count += 0 if kind in ("mov", "ld param") else 1
    return max(end, count)


def pipes(classes: Counter, memory: Counter) -> Counter:
    """Cycles of a multiprocessor by pipe."""
    work: Counter = Counter()
    for kind, n in classes.items():
        if kind in ("mov", "ld param", "other"):
            continue
        work["issue"] += n
        if kind == "fp32":
            work["fp32"] += n
        elif kind in ("fp64", "setp f64"):
            work["fp64"] += n
        elif kind in ("int", "imad", "cvt int", "cvt f32", "branch"):
            work["alu"] += n
        elif kind == "mufu":
            work["mufu"] += n
        elif kind == "cvt f64":
            work["cvt f64"] += n
        elif kind == "vote":
            work["redux"] += n
        elif kind == "shfl":
            work["lsu"] += n
        elif kind == "slow f64":
            work["fp64"] += 11 * n
            work["issue"] += 11 * n
            work["mufu"] += n
        elif kind == "slow f32":
            work["fp32"] += 7 * n
            work["issue"] += 7 * n
            work["mufu"] += n
        elif kind == "slow int":
            work["alu"] += 30 * n
            work["issue"] += 30 * n
        elif kind.startswith("mma"):
            m, k, l = (int(x) for x in re.search(r"m(\d+)n(\d+)k(\d+)", kind).groups())
            work["mma tf32" if "tf32" in kind else "mma f64"] += n * m * k * l
    for kind, n in memory.items():
        if kind.endswith("passes"):
            work["sectors" if "global" in kind or kind.startswith("cp.async passes") else "lsu"] += n
    return Counter({k: v / THROUGHPUT[k] for k, v in work.items()})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--only", default="")
    o = parser.parse_args()
    triton_launch.install(o.arch)
    from svdrd.triton import aot, fused, jacobi, products

    cases = [("jacobi", jacobi, 8, 100000, (8, 16)), ("jacobi", jacobi, 16, 100000, (4, 8)), ("jacobi", jacobi, 32, 100000, (2, 3)),
             ("fused", fused, 16, 100000, (2, 4)), ("fused", fused, 32, 100000, (1, 3)), ("products", products, 64, 1536, (1, 2))]  # fmt: skip
    for name, module, n, total, (rows, columns) in cases:
        if o.only not in f"{name} {n}":
            continue
        g = torch.Generator().manual_seed(n)
        x = torch.rand(1, rows * n, columns * n, generator=g)
        x_hat = (x + 0.05 * torch.randn(x.shape, generator=g)).clamp(0, 1)
        triton_launch.records.clear()
        triton_launch.options.check = False
        try:
            out = module.basis_loss(x_hat, x, n, n, 4 * 2.0**-23, 0.0, True, False)
        except Exception as error:
            print(name, n, "failed:", str(error)[:300])
            continue
        if out is NotImplemented:
            print(name, n, "not taken")
            continue
        scale = total / (rows * columns)
        classes, memory, work = Counter(), Counter(), Counter()
        alone = 0.0
        for r in triton_launch.records:
            c, m = r.classes(), r.memory()
            classes.update(c)
            memory.update(m)
            work.update(pipes(c, m))
            registers, _ = aot.resource_usage(r.compiled.asm["cubin"])
            warps = r.threads // 32
            per_cta = -(-registers // 8) * 8 * r.threads
            ctas = min(65536 // per_cta, 64 // warps, 227 * 1024 // max(1, r.shared + 1024), 32)
            cycles = sum(int(w) / (r.grid * warps) * critical(r.translated, b) for w, b in zip(r.warps, r.translated.blocks))
            alone += r.grid * scale / (SMS * ctas) * cycles / CLOCK
            r.note = f"{r.name} {registers} registers, {ctas * warps} warps resident, {cycles:.0f} cycles a warp"
        print(f"== {name} {n}x{n}, {total} blocks, float32, sm_{o.arch}; counted on {rows * columns} blocks")
        for note, count in Counter(r.note for r in triton_launch.records).items():
            print(f"   {count} x {note}")
        total_instructions = sum(v for k, v in classes.items() if k not in ("mov", "ld param"))
        print("   warp instructions a block:", ", ".join(f"{k} {v / (rows * columns):.0f}" for k, v in classes.most_common()))
        print("   memory a block:", ", ".join(f"{k} {v / (rows * columns):.0f}" for k, v in memory.most_common()))
        times = {k: v * scale / SMS / CLOCK * 1e3 for k, v in work.items()}
        print("   ms by pipe:", ", ".join(f"{k} {v:.3f}" for k, v in sorted(times.items(), key=lambda x: -x[1])))
        print(f"   bounds: throughput {max(times.values()):.3f} ms, dependencies {alone * 1e3:.3f} ms, total {total_instructions / (rows * columns):.0f} a block", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
