"""Running the stages of a study: in order, each in a process of its own, one study at a time in a folder."""

import fcntl
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from svdrd.compress.errors import BadInput, Stopped
from svdrd.compress.showing import show
from svdrd.compress.study.stages import DONE, TO_DO, ChangedStage, Stage
from svdrd.compress.train.interruption import HANDLED

# Runs the words of a command and returns its exit code.
Run = Callable[[Sequence[str]], int]


class OwnProcess:
    """Runs ``svdrd`` commands, one at a time, each in a process of its own.

    SIGINT and SIGTERM are passed on to it, so that ``finetune`` saves and ends; the first one is kept in ``signal``.
    The process is not in our group: Ctrl-C would reach it twice, and a second signal acts at once. It inherits
    ``lock``, so that a stage that outlives a killed experiment still holds the study's folder.
    """

    def __init__(self, lock: IO[str]) -> None:
        self.lock = lock
        self.signal: int | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, command: Sequence[str]) -> int:
        with self._passing_signals_on():
            if self.signal is None:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "svdrd", *command], start_new_session=True, pass_fds=[self.lock.fileno()]
                )
                self._repeat_early_signal(self.process)
                code = self.process.wait()
                self.process = None
                if self.signal is None:
                    return code
            return 128 + self.signal

    def _repeat_early_signal(self, process: "subprocess.Popen[bytes]") -> None:
        """For a signal that came while the process was being started."""
        if self.signal is not None:
            process.send_signal(self.signal)

    @contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        before: dict[int, Any] = {}

        def pass_on(number: int, _frame: Any) -> None:
            self.signal = self.signal or number
            if self.process is not None:
                self.process.send_signal(number)

        for number in HANDLED:
            before[number] = signal.signal(number, pass_on)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def check(stages: Sequence[Stage]) -> list[str]:
    """The state of every stage.

    Raises:
        BadInput: stages whose results another configuration made; a line for all of them, before anything runs.
    """
    states, changed = [], []
    for stage in stages:
        try:
            states.append(stage.state())
        except ChangedStage as error:
            changed.append(str(error))
    if changed:
        more = f" ({len(changed) - 1} other stages changed, too)" if len(changed) > 1 else ""
        raise ChangedStage(changed[0] + more)
    return states


def run_stages(stages: Sequence[Stage], run_command: Run) -> int:
    """Runs what is not done, in order; returns 0 or the exit code of an interruption.

    Raises:
        Stopped: a stage failed.
        ChangedStage: an earlier stage was made anew, and this one began with the weights of before.
    """
    for number, stage in enumerate(stages, 1):
        heading = f"[{number}/{len(stages)}] {stage.name}"
        state = stage.state()
        if state == DONE:
            show(f"{heading}: done")
            continue
        show(f"\n{heading}{'' if state == TO_DO else f': {state}'}\n{shown(stage)}")
        stage.begin()
        code = run_command(stage.command)
        if code > 128:
            show(f"interrupted in {stage.name}; the same command continues the study", file=sys.stderr)
            return code
        if code != 0 or stage.state() != DONE:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise Stopped(f"{stage.name} {how}; what it said stands above, and the same command continues from there")
    return 0


def shown(stage: Stage) -> str:
    return f"$ svdrd {shlex.join(stage.command)}"


@contextmanager
def locked(output: Path) -> Iterator[IO[str]]:
    """The study's folder, for this process and those it starts alone."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        file = (output / ".lock").open("a")
    except OSError as error:
        raise BadInput(f"--output {output}: not writable ({error.strerror}); choose another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadInput(
                f"--output {output}: another svdrd experiment, or a stage of one that was killed, works there; wait "
                "for it, end it, or choose another folder"
            ) from error
        yield file
