"""Programs in a Python that has imported PyTorch and CompressAI before: a fresh one takes 12 CPU seconds for that.

Of these, 9 go into the imports, and 3 into taking everything apart at the end. Here a process of its own imports both
and waits. For each program it forks, and the child is that program's process, with its own arguments, folder, streams
and session. svdrd is not imported before. What depends on how Python or PyTorch start (encodings, numbers of threads,
warnings at import) has to name its variables to ``Warm``, or wants a fresh Python.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What tests/conftest.py sets for the kernels of GPUs that are not here, and no user has.
OF_THE_TESTS = ("TRITON_INTERPRET", "SVDRD_CUDA_EMULATION")
ANSWER = 10  # bytes: the number of a process, then an exit code
IMPORTED = ("torch", "torchvision", "compressai.models", "matplotlib.pyplot")


def as_bytes(text: str) -> str:
    """As it stands on a command line: there a program may decode it in another locale."""
    return os.fsencode(text).decode("latin-1")


def from_bytes(text: str) -> str:
    return os.fsdecode(text.encode("latin-1"))


class Process:
    """A program that was begun; as ``subprocess.Popen`` has them."""

    def __init__(self, connection: socket.socket, args: Sequence[str]) -> None:
        self.connection, self.args = connection, args
        self.pid = int(self._answer())
        self.returncode: int | None = None

    def _answer(self) -> str:
        answer = self.connection.recv(ANSWER).decode()
        if not answer:
            raise RuntimeError("the process that waits with everything imported has ended")
        return answer

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.connection.settimeout(timeout)
            try:
                self.returncode = int(self._answer())
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
            finally:
                self.connection.settimeout(None)
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(1e-6)
        except subprocess.TimeoutExpired:
            return None


class Warm:
    """The process that waits; it runs one program at a time."""

    def __init__(self, **environment: str) -> None:
        self.connection, there = socket.socketpair()
        self.last: Process | None = None
        inherited = {name: value for name, value in os.environ.items() if name not in OF_THE_TESTS}
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with there:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm", str(there.fileno())],
                cwd=ROOT,
                env=inherited | {"PYTHONPATH": path} | environment,
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,  # Python's stream would seek in what began as a file, and be a pipe by then
                start_new_session=True,
            )

    def start(
        self,
        args: Sequence[object],
        *,
        stdout: Any,
        stderr: Any,
        cwd: Path | None = None,
        temporary: Path | None = None,
        session: bool = False,
    ) -> Process:
        """Begins ``python ARGS``: ``-m MODULE ...`` or ``FILE ...``; its temporary files go to ``temporary``."""
        words = [str(word) for word in args]
        request = {
            "args": [as_bytes(word) for word in words],
            "cwd": as_bytes(str(cwd or Path.cwd())),
            "temporary": temporary and as_bytes(str(temporary)),
            "session": session,
        }
        descriptors = [stream if isinstance(stream, int) else stream.fileno() for stream in (stdout, stderr)]
        if self.last is not None:
            self.last.wait()
        socket.send_fds(self.connection, [json.dumps(request).encode()], descriptors)
        self.last = Process(self.connection, words)
        return self.last

    def run(
        self, args: Sequence[object], folder: Path, *, stdout: Any = None, cwd: Path | None = None, timeout: float = 600
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs it to its end; what it says, and its temporary files, are kept in ``folder`` meanwhile."""
        names = [folder / f".warm-{stream}" for stream in ("stdout", "stderr")]
        with names[0].open("wb") as out, names[1].open("wb") as error:
            process = self.start(
                args, stdout=out if stdout is None else stdout, stderr=error, cwd=cwd, temporary=folder
            )
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                raise
        said = [name.read_bytes() for name in names]
        for name in names:
            name.unlink()
        return subprocess.CompletedProcess(process.args, code, *said)

    def close(self) -> None:
        self.connection.close()
        self.process.communicate()


def serve(connection: socket.socket) -> list[str]:
    """Returns in the processes of the programs alone, with their arguments."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 2**20, 2)
        if not message:
            os._exit(0)
        child = os.fork()
        if child:
            for descriptor in descriptors:
                os.close(descriptor)
            connection.send(f"{child:{ANSWER}}".encode())
            _, status = os.waitpid(child, 0)
            connection.send(f"{os.waitstatus_to_exitcode(status):{ANSWER}}".encode())
            continue
        request = json.loads(message)
        for number, descriptor in enumerate(descriptors, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        connection.close()
        if request["session"]:
            os.setsid()
        os.chdir(from_bytes(request["cwd"]))
        if request["temporary"] is not None:
            os.environ["TMPDIR"] = from_bytes(request["temporary"])
            tempfile.tempdir = None  # what an import asked for
        return [from_bytes(word) for word in request["args"]]


def run_to_the_end(args: list[str]) -> int:
    """As Python does: an exit code from what was raised, the functions of atexit, and 120 where output is lost."""
    code = 0
    try:
        if args[0] == "-m":
            sys.argv[:] = args[1:]
            runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv[:] = args
            sys.path[0] = str(Path(args[0]).parent)
            runpy.run_path(args[0], run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        traceback.print_exc()
        code = 120
    return code


def main() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CompressAI's, which is for a fresh Python
        for name in IMPORTED:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    args = serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(run_to_the_end(args))


if __name__ == "__main__":
    main()
