"""Installs a wheel where there is no compiler, and runs the README's example and the operators' tests on it.

    python -m tests.project.prove_wheel dist/svdrd-*.whl

PyTorch and pytest are those of this Python's environment. ``--torch FOLDER`` puts another PyTorch in front of them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A part that takes two minutes; --tests tests/ops tests/dispatch is the whole.
TESTS = (
    "tests/ops/test_svd.py",
    "tests/ops/test_polar_factor.py",
    "tests/ops/test_basis_loss.py",
    "tests/ops/test_recompose.py",
    "tests/dispatch/test_automatic.py",
    "tests/dispatch/test_routes.py",
    "tests/backends/test_threads.py",
)
SECONDS_TO_INSTALL = 10
# Run in the new environment: what is imported, and whose OpenMP is loaded.
LOOK = """
import pathlib, sys, sysconfig
import torch, svdrd
from svdrd.backends import availability
from svdrd.environment import environment

assert pathlib.Path(svdrd.__file__).is_relative_to(sysconfig.get_path("purelib")), svdrd.__file__
assert availability.native is not None, availability.describe()
try:
    availability.native.svd("float32", 0, 1, 1, 1, 0, 0, 0, 1)
except ValueError as error:
    assert "null pointer" in str(error)
else:
    raise AssertionError("an exception of the kernels does not arrive")
answer = environment()
print(f"torch {torch.__version__}, {svdrd.__file__}")
print(f"cpp: {answer.instruction_set}, {answer.build['compiler']}, threads: {answer.threads['cpp']}")
if sys.platform == "linux":
    assert availability.native.threads_of() == "OpenMP", answer.threads
    loaded = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}
    folder = pathlib.Path(torch.__file__).parents[1]
    assert len(loaded) == 1 and pathlib.Path(*loaded).is_relative_to(folder), loaded
    print("OpenMP:", *loaded)
"""


def without_compiler(folder: Path) -> str:
    """A PATH with what tests of Linux need and no compiler."""
    folder.mkdir()
    for name in ("sh", "uname"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return str(folder)


def install(wheel: Path, site_packages: str) -> float:
    """The CPU seconds that pip takes, without what the package depends on."""
    before = os.times()
    # --target: with --python, pip would find the svdrd that is installed beside the requirements, and keep it.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site_packages]
    subprocess.run([*command, wheel], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def prove(wheel: Path, torch: Path | None, tests: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        python = scripts / "python"
        site_packages = sysconfig.get_path("purelib", vars={"base": str(folder / "venv")})
        # Its packages, not its .pth files: the editable svdrd of a checkout stays unknown.
        Path(site_packages, "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
        seconds = install(wheel, site_packages)
        with zipfile.ZipFile(wheel) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, {unpacked / 1e6:.2f} MB unpacked", end=", ")
        print(f"installed in {seconds:.1f} CPU seconds", flush=True)
        if seconds > SECONDS_TO_INSTALL:
            raise SystemExit(f"pip took {seconds:.1f} CPU seconds; at most {SECONDS_TO_INSTALL} are promised")

        environment = {key: value for key, value in os.environ.items() if not key.startswith(("SVDRD_", "PYTHON"))}
        environment |= {"PATH": without_compiler(folder / "programs"), "CXX": "/nowhere/c++"}
        if torch is not None:
            environment["PYTHONPATH"] = str(torch)

        def run(*arguments: str | Path) -> None:
            done = subprocess.run([python, *arguments], cwd=folder, env=environment, check=False)
            if done.returncode != 0:
                raise SystemExit(f"the wheel does not pass: python {' '.join(map(str, arguments))[:80]}")

        (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
        run("-c", LOOK)
        run("-c", f"{example}\nassert torch.isfinite(x_hat.grad).all()")
        run("-m", "svdrd", "info")
        shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        options = ["-q", "-p", "no:cacheprovider", "--backends=torch,cpp"]
        run("-m", "pytest", *options, *tests)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.project.prove_wheel", description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", type=Path, help="a folder with another PyTorch")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), help="files and folders of tests")
    arguments = parser.parse_args(argv)
    prove(arguments.wheel.resolve(), arguments.torch, arguments.tests)


if __name__ == "__main__":
    main()
