"""``svdrd finetune`` whose second process is killed after as many steps as $SVDRD_TEST_KILL says."""

import os
import signal
import sys
from typing import Any

from svdrd.__main__ import main
from svdrd.compress.train import loop

train_step = loop.Training.train_step


def killed_step(self: loop.Training, batch: Any) -> dict[str, float] | None:
    if self.processes.rank == 1 and self.state.step == int(os.environ["SVDRD_TEST_KILL"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(self, batch)


loop.Training.train_step = killed_step
sys.exit(main(["finetune", *sys.argv[1:]]))
