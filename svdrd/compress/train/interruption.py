"""SIGINT and SIGTERM as a request that the training answers at the end of its step."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HANDLED = (int(signal.SIGINT), int(signal.SIGTERM))


@contextmanager
def interrupt_flag() -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM append their number.

    A second signal acts as it would have without us, except under torchrun: there Ctrl-C reaches a process twice, from
    the terminal and from torchrun, which itself ends processes that do not stop.
    """
    received: list[int] = []
    before: dict[int, Any] = {}
    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ

    def note(number: int, _frame: Any) -> None:
        received.append(number)
        if not under_torchrun:
            for handled, handler in before.items():
                signal.signal(handled, handler)

    for number in HANDLED:
        before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def let_loaders_die_quietly() -> None:
    """After a loader has started its workers: their end shows in the next batch only.

    torch's handler raises where the main thread happens to be, which may be in the middle of an optimizer's step, and
    half a step must not be saved.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def ignore_signals(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; the training process answers it and ends its workers itself."""
    for number in HANDLED:
        signal.signal(number, signal.SIG_IGN)
