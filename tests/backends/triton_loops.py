"""What Triton's front end drops from loops: ``python -m tests.backends.triton_loops`` prints it for every kernel.

CONTRIBUTING.md, "Rules for kernels", has the rule. This module watches the front end while it turns a kernel into
Triton's first intermediate code: it records the names that the body of a loop assigns, and those that the loop carries.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import triton
import triton.language as tl

from svdrd.backends.triton.aot import configurations, signature
from svdrd.backends.triton.configuration import Configuration


class Loop(NamedTuple):
    """A loop over a range that is known at run time only.

    ``dropped`` are the names that it assigns and does not carry, though they had a value before it.
    """

    function: str
    line: int
    carried: tuple[str, ...]
    dropped: tuple[str, ...]


@contextmanager
def watched() -> Iterator[set[Loop]]:
    """The loops that the front end meets in the meantime."""
    from triton.compiler.code_generator import CodeGenerator, _is_triton_value

    loops: set[Loop] = set()
    bodies: dict[int, list[set[str]]] = {}  # of each generator, what the bodies that it is in have assigned
    find_carries, set_value = CodeGenerator._find_carries, CodeGenerator.set_value

    def assigning(self: Any, name: str, value: Any) -> None:
        for assigned in bodies.get(id(self), ()):
            assigned.add(name)
        set_value(self, name, value)

    def carrying(self: Any, node: Any, liveins: dict[str, Any], ignore: Iterable[str] = ()) -> Any:
        assigned: set[str] = set()
        bodies.setdefault(id(self), []).append(assigned)
        found = find_carries(self, node, liveins, set(ignore))
        bodies[id(self)].pop()
        before = {name for name in assigned - set(ignore) if name in liveins and _is_triton_value(liveins[name])}
        dropped = tuple(sorted(before - set(found[0])))
        loops.add(Loop(self.jit_fn.fn.__name__, self.begin_line + node.lineno, tuple(found[0]), dropped))
        return found

    CodeGenerator._find_carries, CodeGenerator.set_value = carrying, assigning
    try:
        yield loops
    finally:
        CodeGenerator._find_carries, CodeGenerator.set_value = find_carries, set_value


def loops_of(configuration: Configuration) -> set[Loop]:
    """The loops of a kernel and of the functions that it calls."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend

    types, attributes = signature(configuration)
    source = ASTSource(configuration.kernel, types, constexprs=dict(configuration.constants), attrs=attributes)
    target = GPUTarget("cuda", 80, 32)
    backend = make_backend(target)
    options = backend.parse_options(dict(configuration.options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    with watched() as loops:
        source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
    return loops


def forms() -> Iterator[Configuration]:
    """Of each kernel and type one form for each choice of the constants that switch something on or off."""
    seen = set()
    for one in configurations():
        switches = tuple(pair for pair in one.constants if isinstance(pair[1], bool))
        key = (one.kernel, one.dtype, one.others, switches)
        if key not in seen:
            seen.add(key)
            yield one


@triton.jit(do_not_specialize=["count"])
def alias_kernel(result: tl.tensor, count: tl.int32) -> None:
    """Two names for one tensor: ``previous`` stays 0."""
    value = tl.zeros([32], tl.float32)
    previous = value
    for _ in range(count):
        previous = value
        value += 1.0
    tl.store(result + tl.arange(0, 32), previous)


@triton.jit(do_not_specialize=["count"])
def conditional_alias_kernel(result: tl.tensor, count: tl.int32) -> None:
    """The same in an ``if`` in a ``while``."""
    value = tl.zeros([32], tl.float32)
    previous = value
    k = 0
    while k < count:
        if k > 2:
            previous = value
        value += 1.0
        k += 1
    tl.store(result + tl.arange(0, 32), previous)


@triton.jit(do_not_specialize=["count"])
def distinct_kernel(result: tl.tensor, count: tl.int32) -> None:
    """As :func:`alias_kernel`, with a tensor for each name."""
    value = tl.zeros([32], tl.float32)
    previous = tl.zeros([32], tl.float32)
    for _ in range(count):
        previous = value
        value += 1.0
    tl.store(result + tl.arange(0, 32), previous)


SAMPLES = (alias_kernel, conditional_alias_kernel, distinct_kernel)


def main() -> None:
    """A line of JSON for each loop: the kernel, whether it is a sample, and the fields of :class:`Loop`."""
    samples = [Configuration.of(kernel, {}, num_warps=1) for kernel in SAMPLES]
    for one in [*samples, *forms()]:
        for loop in sorted(loops_of(one)):
            print(json.dumps({"kernel": one.kernel.__name__, "sample": one in samples, **loop._asdict()}), flush=True)


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        sys.exit("An interpreted kernel is not compiled: unset TRITON_INTERPRET.")
    main()
