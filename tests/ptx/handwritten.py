"""Runs kernels of a few lines of PTX, written by hand, in the emulator: text and numpy buffers in, a record out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx import machine, parser, translation
from tests.ptx.memory import POISON_WORD, Memory

# Enough registers of each kind for a kernel of a few lines.
REGISTERS = (
    ".reg .pred %p<16>; .reg .b16 %h<64>; .reg .b32 %r<64>; .reg .f32 %f<64>; .reg .b64 %rd<64>; .reg .f64 %d<64>;"
)
WARP = 32


def text_of(body: str, parameters: int, declarations: str = "", module: str = "") -> str:
    """PTX of a kernel with ``parameters`` pointers, that lie in %rd0, %rd1, ...; %r0 is the thread, %r1 the program."""
    names = [f"a{k}" for k in range(parameters)]
    return "\n".join(
        [
            f".version 8.0\n.target sm_80\n.address_size 64\n{module}",
            f".visible .entry handwritten({', '.join(f'.param .u64 {name}' for name in names)})\n{{",
            REGISTERS,
            declarations,
            *(f"ld.param.u64 %rd{k}, [{name}];" for k, name in enumerate(names)),
            "mov.u32 %r0, %tid.x;\nmov.u32 %r1, %ctaid.x;",
            body,
            "ret;\n}\n",
        ]
    )


def translated(text: str, together: bool = False) -> translation.Translated:
    """The only kernel of ``text``. ``together``: lanes wait for one another at warp-wide instructions."""
    (kernel,) = parser.parse(text).values()
    return translation.Translated(kernel, together)


def launch(kernel: translation.Translated, buffers: list[NDArray[Any]], **launching: Any) -> machine.Record:
    """Runs the kernel with the buffers' addresses as its parameters; what it writes is in the buffers afterwards."""
    memory = Memory([(b.ctypes.data, b.nbytes) for b in buffers], kernel.global_variables)
    parameters = b"".join(memory.address(b.ctypes.data).to_bytes(8, "little") for b in buffers)
    record = launch_in(kernel, memory, parameters, **launching)
    memory.copy_back()
    return record


def launch_in(
    kernel: translation.Translated,
    memory: Memory,
    parameters: bytes,
    *,
    threads: int = WARP,
    grid: int = 1,
    shared: int = 0,
    **options: Any,
) -> machine.Record:
    """Runs the kernel in a memory that is there."""
    return machine.launch(kernel, grid, threads, shared, parameters, memory, machine.Options(**options))


def run(
    body: str,
    buffers: list[NDArray[Any]],
    *,
    declarations: str = "",
    module: str = "",
    together: bool = False,
    **launching: Any,
) -> machine.Record:
    """``launch`` of a body alone."""
    return launch(translated(text_of(body, len(buffers), declarations, module), together), buffers, **launching)


def unwritten(count: int) -> NDArray[Any]:
    """``count`` words as ``torch.empty`` leaves them: nobody has written them."""
    return np.full(count, POISON_WORD, np.uint32)


def words_unwritten(buffer: NDArray[Any]) -> int:
    """How many words of an output nobody has written."""
    return int((buffer.view(np.uint32) == POISON_WORD).sum())


def found(record: machine.Record) -> set[str]:
    """The kinds of what the checks reported."""
    return {key if isinstance(key, str) else key[0] for key in record.errors}
