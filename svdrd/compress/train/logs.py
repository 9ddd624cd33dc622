"""What a run writes for people: metrics.csv, TensorBoard events, faults.jsonl, config.json, summary.json.

None of it is needed to go on, so a full disk costs lines here and never the training.
"""

import csv
import functools
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """The files of the run in ``folder``; with ``None`` nothing is written."""

    def __init__(self, folder: Path | None, step: int) -> None:
        self.folder = folder
        self.writer: SummaryWriter | None = None
        self.complained = False
        if folder is not None:
            # Events of steps that a resumed run takes again are dropped by TensorBoard.
            self._try(lambda: setattr(self, "writer", SummaryWriter(str(folder), purge_step=step)))

    def scalars(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self._to_tensorboard(functools.partial(_add_scalar, f"{prefix}{key}", value, step))

    def image(self, name: str, image: Tensor, step: int) -> None:
        """``image`` (3, H, W), shown as far as it lies in [0, 1]."""
        self._to_tensorboard(lambda writer: writer.add_image(name, image.clamp(0, 1), step))

    def metrics(self, history: Sequence[Mapping[str, float]]) -> None:
        columns = list(dict.fromkeys(key for row in history for key in row))
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows(history)
        self._write("metrics.csv", text.getvalue())

    def json(self, name: str, value: Mapping[str, Any]) -> None:
        self._write(name, json.dumps(value, indent=2) + "\n")

    def append_fault(self, fault: Mapping[str, Any]) -> None:
        if self.folder is None:
            return

        def append(folder: Path = self.folder) -> None:
            with (folder / "faults.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(fault) + "\n")

        self._try(append)

    def close(self) -> None:
        if self.writer is not None:
            self._try(self.writer.close)

    def _to_tensorboard(self, write: Callable[[SummaryWriter], object]) -> None:
        if self.writer is None:
            return
        writer = self.writer
        if not self._try(lambda: write(writer)):
            # Its thread is dead after an error, and every further call would raise it again.
            self.writer = None

    def _write(self, name: str, text: str) -> None:
        if self.folder is None:
            return
        path = self.folder / name
        temporary = path.with_name(name + ".tmp")

        def write() -> None:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
            temporary.replace(path)

        if not self._try(write):
            self._try(lambda: temporary.unlink(missing_ok=True))

    def _try(self, write: Callable[[], object]) -> bool:
        try:
            write()
        # TensorBoard takes no folder whose name is not UTF-8.
        except (OSError, UnicodeError) as error:
            if not self.complained:
                self.complained = True
                reason = error.strerror if isinstance(error, OSError) else error
                print(
                    f"{self.folder}: cannot be written to ({reason}); the training goes on, its logs have gaps",
                    file=sys.stderr,
                )
            return False
        return True


def _add_scalar(name: str, value: float, step: int, writer: SummaryWriter) -> None:
    writer.add_scalar(name, value, step)
