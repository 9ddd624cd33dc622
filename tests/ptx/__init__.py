"""An emulator of PTX: runs compiled GPU kernels on the CPU and checks every access, barrier and shuffle.

``docs/design/emulator.md`` says what it models and what not. From text to results:

- :mod:`~tests.ptx.parser` reads PTX, :mod:`~tests.ptx.blocks` cuts it into basic blocks, :mod:`~tests.ptx.emission`
  writes Python for each instruction, :mod:`~tests.ptx.translation` makes functions of that, one a block;
- :mod:`~tests.ptx.machine` runs programs side by side, :mod:`~tests.ptx.control` leads a group of lanes from block to
  block, :mod:`~tests.ptx.group` has what instructions do to memory and to one another;
- :mod:`~tests.ptx.arithmetic`, :mod:`~tests.ptx.lanes`, :mod:`~tests.ptx.tensor_cores`, :mod:`~tests.ptx.warpgroup`:
  what numpy lacks;
- :mod:`~tests.ptx.memory`, :mod:`~tests.ptx.shared_memory`, :mod:`~tests.ptx.accesses`: memory with its checks, and
  :mod:`~tests.ptx.findings`, what they find;
- :mod:`~tests.ptx.triton_launch` and :mod:`~tests.ptx.cuda_launch` bring kernels here from Triton and from nvcc,
  :mod:`~tests.ptx.poison` fills what is allocated, :mod:`~tests.ptx.cases` has calls of the project's launchers and
  says what their results have to be;
- :mod:`~tests.ptx.counts` counts what kernels take.
"""

import os
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).parent


def _name_compilations() -> None:
    """Gives each state of the compiled files a folder of its own.

    numba keeps compiled functions by their file; it does not see that a function of another file has changed.
    """
    texts = [path.read_bytes() for path in sorted(HERE.glob("*.py"))]
    state = sha256(b"".join(text for text in texts if b"numba" in text or b"POISON" in text)).hexdigest()[:16]
    folder = Path(os.environ.get("NUMBA_CACHE_DIR", HERE / "__pycache__"))
    if folder.name != state:
        os.environ["NUMBA_CACHE_DIR"] = str(folder / state)


_name_compilations()
