"""The four situations of an installation: no compiler, a compiler, nvcc too, and a request that cannot be met."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md", "csrc", "svdrd"]

# Compiles in a quarter of the time; the optimised build is the one that all other tests run on.
UNOPTIMISED = {"CMAKE_BUILD_TYPE": "Debug"}

SITE_PACKAGES = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX") or "c++", "g++", "clang++")),
    reason="no C++ compiler on this machine",
)


def copy_sources(folder: Path) -> Path:
    """What a user downloads: the tracked files that a build reads, nothing that an earlier build left."""
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            leftovers = shutil.ignore_patterns("_native*", "_cuda*", "_build_info.json", "__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=leftovers)
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("build") / "svdrd")


@pytest.fixture
def empty_path(tmp_path: Path) -> str:
    """A PATH without compiler and nvcc; cmake and ninja come from the build requirements."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return str(folder)


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A CUDA toolkit as far as the build asks it, and a `shim` folder with a script that calls its nvcc."""
    toolkit = tmp_path / "cuda-99.1"
    nvcc = toolkit / "bin" / "nvcc"
    shim = tmp_path / "shim" / "nvcc"
    for script, lines in [
        (
            nvcc,
            f'case "$1" in\n--version) echo "Cuda compilation tools, release 99.1, V99.1.7" ;;\n'
            f"--list-gpu-arch) echo compute_80; echo compute_90 ;;\n"
            f'*) echo "#$ TOP={toolkit}/bin/.." >&2 ;;\nesac',
        ),
        (shim, f'exec {nvcc} "$@"'),
    ]:
        script.parent.mkdir(parents=True)
        script.write_text(f"#!/bin/sh\n{lines}\n")
        script.chmod(0o755)
    return toolkit


DRIVER = """
static int gpus[] = {%s};
int cuInit(unsigned flags) { return flags; }
int cuDeviceGetCount(int *count) { *count = sizeof gpus / sizeof *gpus - 1; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? gpus[device] / 10 : gpus[device] %% 10;
  return attribute != 75 && attribute != 76;
}
"""


@pytest.fixture
def driver(tmp_path: Path) -> Callable[..., str]:
    """Makes a folder with a libcuda.so.1 that knows GPUs of these compute capabilities."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("no C compiler to make a driver library with")

    def make(*gpus: str) -> str:
        folder = tmp_path / "driver"
        folder.mkdir()
        (folder / "driver.c").write_text(DRIVER % ", ".join([*gpus, "0"]))
        command = [compiler, "-shared", "-fPIC", "driver.c", "-o", "libcuda.so.1"]
        subprocess.run(command, cwd=folder, check=True)
        return str(folder)

    return make


def pip_wheel(source: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("SVDRD_BUILD", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST")
    }
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-v",
            "--no-build-isolation",
            "--no-deps",
            "--no-index",
            "-w",
            folder,
            source,
        ],
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def build(source: Path, folder: Path, **environment: str) -> tuple[Path, dict[str, object], str]:
    """Builds a wheel; returns it, its build record and what the build printed."""
    result = pip_wheel(source, folder, **environment)
    assert result.returncode == 0, result.stdout
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return wheel, json.loads(archive.read("svdrd/_build_info.json")), result.stdout


def native_modules(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.startswith("svdrd/_native")]


def python(program: str, *path: str | Path) -> str:
    """What a fresh interpreter prints for the program, importing from ``path`` alone.

    Without site (-S): the finder of an editable installation would add the modules that the package on the path lacks.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-S", "-c", program]
    result = subprocess.run(command, env=environment, cwd=path[0], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


COMPUTE = """
import torch, svdrd
from svdrd.ops import polar_factor
from svdrd.backends import availability
a = torch.arange(24, dtype=torch.float64).reshape(2, 4, 3).sin()
with svdrd.use_backend("torch"):
    expected = polar_factor(a)
{body}
"""


@needs_compiler
def test_with_a_compiler_the_native_module_is_built_and_computes(source: Path, tmp_path: Path, toolkit: Path) -> None:
    # An nvcc that compiles nothing is no reason for auto to stop.
    asked = {"SVDRD_BUILD": "auto", "CUDA_HOME": str(toolkit), "TORCH_CUDA_ARCH_LIST": "9.0"}
    wheel, info, printed = build(source, tmp_path / "wheel", **asked, **UNOPTIMISED)
    assert info["native"] is True
    assert info["reason"] == ""
    assert str(info["compiler"]).startswith(("GNU ", "Clang ", "AppleClang "))
    assert info["cuda"] is False
    assert str(info["cuda_reason"]).startswith(f"found nvcc 99.1 in {toolkit}, but cmake failed: ")
    assert f"without CUDA kernels: {info['cuda_reason']}" in printed
    assert len(native_modules(wheel)) == 1

    package = tmp_path / "package"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(package)
    body = """
with svdrd.use_backend("cpp"):
    computed = polar_factor(a)
info = availability.native.build_info()
print(svdrd.__file__, (computed - expected).abs().max().item() < 1e-14, "baseline" in info["flags"], info["version"])
"""
    version = wheel.name.split("-")[1]
    expected = f"{package / 'svdrd' / '__init__.py'} True True {version}"
    assert python(COMPUTE.format(body=body), package, *SITE_PACKAGES).strip() == expected


@needs_compiler
def test_the_native_module_needs_no_torch(source: Path, tmp_path: Path) -> None:
    wheel, _, _ = build(source, tmp_path / "wheel", SVDRD_BUILD="cpu", **UNOPTIMISED)
    (name,) = native_modules(wheel)
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(name, tmp_path)
    program = """
import ctypes, sys
import _native
a = (ctypes.c_double * 4)(0, 2, -3, 0)
p = (ctypes.c_double * 4)()
_native.polar_factor("float64", ctypes.addressof(a), 1, 2, 2, 1e-15, 0.0, ctypes.addressof(p), 0, 0, 0, 1)
print([round(value) for value in p], max(abs(value - round(value)) for value in p) < 1e-14, "torch" in sys.modules)
"""
    assert python(program, tmp_path / "svdrd").strip() == "[0, 1, -1, 0] True False"


def test_without_a_compiler_the_torch_backend_is_installed_and_says_why(
    source: Path, tmp_path: Path, empty_path: str
) -> None:
    wheel, info, printed = build(source, tmp_path / "wheel", PATH=empty_path, CXX="")
    reason = "there is no C++ compiler"
    assert info["native"] is False
    assert reason in str(info["reason"])
    assert f"THE NATIVE MODULE WAS NOT BUILT: {reason}" in printed
    # Also where a build with a compiler came before in the same folder.
    assert native_modules(wheel) == []

    package = tmp_path / "package"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(package)
    body = """
print(torch.equal(polar_factor(a), expected))
try:
    with svdrd.use_backend("cpp"):
        pass
except RuntimeError as error:
    print(error)
"""
    computed, message = python(COMPUTE.format(body=body), package, *SITE_PACKAGES).splitlines()
    assert computed == "True"
    assert reason in message


def test_a_compiler_that_is_not_there_is_named(source: Path, tmp_path: Path) -> None:
    _, info, _ = build(source, tmp_path / "wheel", CXX="/nowhere/g++")
    assert info["reason"] == "CXX is '/nowhere/g++', which is not an executable here"


@needs_compiler
def test_a_compile_error_is_recorded_by_auto_and_stops_cpu(tmp_path: Path) -> None:
    broken = copy_sources(tmp_path / "broken")
    for name in ("svdrd.cpp", "dense/kernels.cpp", "lanes/kernels.cpp", "module.cpp"):
        (broken / "csrc" / "cpu" / name).write_text("#error this compiler is too old\n")
    wheel, info, _ = build(broken, tmp_path / "auto", CUDA_HOME=str(tmp_path / "no_cuda"))
    assert info["native"] is False
    assert "error: #error this compiler is too old" in str(info["reason"])
    assert native_modules(wheel) == []

    result = pip_wheel(broken, tmp_path / "cpu", SVDRD_BUILD="cpu")
    assert result.returncode != 0
    assert "SVDRD_BUILD=cpu, but the native module cannot be built" in result.stdout
    assert "error: #error this compiler is too old" in result.stdout


def test_cpu_without_a_compiler_stops(source: Path, tmp_path: Path, empty_path: str) -> None:
    result = pip_wheel(source, tmp_path / "wheel", SVDRD_BUILD="cpu", PATH=empty_path, CXX="")
    assert result.returncode != 0
    assert "SVDRD_BUILD=cpu, but the native module cannot be built: there is no C++ compiler" in result.stdout


def test_none_gives_a_wheel_for_any_platform(source: Path, tmp_path: Path) -> None:
    wheel, info, printed = build(source, tmp_path / "wheel", SVDRD_BUILD="none")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert native_modules(wheel) == []
    assert (info["native"], info["reason"]) == (False, "SVDRD_BUILD=none")
    assert "NOT BUILT" not in printed


NO_GPU = "there is no NVIDIA GPU here; SVDRD_BUILD=cuda compiles them for every generation of GPUs"


def test_auto_leaves_the_cuda_kernels_out_where_there_is_no_gpu(
    source: Path, tmp_path: Path, toolkit: Path, driver: Callable[..., str]
) -> None:
    """In a line, that says how to have them."""
    for folder in (driver(), str(tmp_path)):  # a driver without a GPU, no driver
        found = {"CUDA_HOME": str(toolkit), "LD_LIBRARY_PATH": folder, "CXX": "/nowhere/g++"}
        (tmp_path / "wheel").mkdir(exist_ok=True)
        _, info, printed = build(source, tmp_path / "wheel", **found)
        assert (info["cuda"], info["cuda_reason"]) == (False, NO_GPU)
        assert f"svdrd: without CUDA kernels: {NO_GPU}" in printed


@pytest.mark.parametrize(
    ("gpus", "listed", "architectures"),
    [
        (["90"], "", "90-real"),
        (["90", "80", "90"], "", "80-real 90-real"),
        (["103"], "", "90-virtual"),  # newer than nvcc: its driver compiles the PTX
        (["90"], "8.0+PTX", "80"),
        ([], "8.0", "80-real"),
        (["90"], "native", "90-real"),
    ],
)
def test_auto_compiles_for_the_gpus_that_are_here_or_listed(
    source: Path, tmp_path: Path, toolkit: Path, driver: Callable[..., str],
    gpus: list[str], listed: str, architectures: str,
) -> None:  # fmt: skip
    found = {"CUDA_HOME": str(toolkit), "LD_LIBRARY_PATH": driver(*gpus), "TORCH_CUDA_ARCH_LIST": listed}
    _, info, printed = build(source, tmp_path / "wheel", **found, CXX="/nowhere/g++")
    assert f"svdrd: the CUDA kernels for {architectures}, with nvcc 99.1 in {toolkit}" in printed
    assert str(info["cuda_reason"]).startswith(f"found nvcc 99.1 in {toolkit}, but CXX is ")


def test_auto_names_a_gpu_that_nvcc_does_not_compile_for(
    source: Path, tmp_path: Path, toolkit: Path, driver: Callable[..., str]
) -> None:
    found = {"CUDA_HOME": str(toolkit), "LD_LIBRARY_PATH": driver("61")}
    _, info, _ = build(source, tmp_path / "wheel", **found, CXX="/nowhere/g++")
    assert "does not compile for this machine's GPU, of compute capability 6.1" in str(info["cuda_reason"])


def configured(folder: Path, *settings: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """CMake's answer, without setup.py and without compiling."""
    import cmake
    import ninja
    import pybind11

    command = [str(Path(cmake.CMAKE_BIN_DIR, "cmake")), "-S", str(ROOT / "csrc"), "-B", str(folder), "-G", "Ninja"]
    command += [f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR, 'ninja')}", f"-DPython_EXECUTABLE={sys.executable}"]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *settings]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


FAST = (
    "-Ofast -ffast-math -funsafe-math-optimizations -ffinite-math-only -fno-signed-zeros -fassociative-math "
    "-freciprocal-math"
)
# What a compiler may assume with one of them, and may not.
STRICT = """
#include <cstdio>
#include <limits>
volatile double zero = 0, one = 1, tiny = std::numeric_limits<double>::denorm_min(), huge = 1e300;
int main() {
  double nan = zero / zero, minus = -zero, sum = 0, terms[4] = {1, 1e-16, 1e-16, -1};
  for (double term : terms) sum += term * one;
  std::printf("%d %d %d %d %d", nan != nan, tiny * one > 0, 1 / (minus + -0.0) < 0, sum == 0,
              huge * huge == std::numeric_limits<double>::infinity());
}
"""


@needs_compiler
def test_fast_math_of_the_environment_is_taken_back(tmp_path: Path) -> None:
    """Neither the kernels nor the process that loads them: GCC links what flushes denormal numbers at load."""
    import ninja

    debug = "-DCMAKE_BUILD_TYPE=Debug"  # no -O3 that would come after -Ofast
    result = configured(tmp_path / "build", debug, CXXFLAGS=FAST, LDFLAGS=FAST)
    assert result.returncode == 0, result.stderr
    entries = json.loads((tmp_path / "build" / "compile_commands.json").read_text())
    assert any(entry["file"].endswith("lanes/kernels.cpp") for entry in entries)
    (tmp_path / "strict.cpp").write_text('#include "strict_math.h"\n' + STRICT)
    commands = {tuple(shlex.split(entry["command"])) for entry in entries}
    # Only the instruction set differs from one to the next: those of the first are enough to run.
    options = [word for word in min(commands, key=len) if word.startswith(("-f", "-O", "-m", "-I", "-std"))]
    assert [word for word in options if "fast-math" in word or word == "-Ofast"][-1] == "-fno-fast-math"
    ninja_command = [str(Path(ninja.BIN_DIR, "ninja")), "-t", "commands", "_native"]
    commands_of_ninja = subprocess.run(
        ninja_command, cwd=tmp_path / "build", capture_output=True, text=True, check=True
    )
    link = shlex.split(commands_of_ninja.stdout.splitlines()[-1])
    linker_options = [word for word in link if word.startswith(("-f", "-O", "-m"))]
    compiler = link[link.index("&&") + 1]
    program = [compiler, *options, "strict.cpp", *linker_options, "-o", "strict"]
    subprocess.run(program, cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "strict"], capture_output=True, text=True).stdout == "1 1 1 1 1"
    # The program asks for enough, and the header stops what our options do not reach.
    subprocess.run(
        [compiler, *FAST.split(), "-xc++", "-", "-o", "fast"], input=STRICT, text=True, cwd=tmp_path, check=True
    )
    assert subprocess.run([tmp_path / "fast"], capture_output=True, text=True).stdout != "1 1 1 1 1"
    program = [compiler, *FAST.split(), "-I", str(ROOT / "csrc"), "strict.cpp", "-o", "fast"]
    refused = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert "svdrd's kernels need NaN" in refused.stderr
    shown = subprocess.run([*link[link.index("&&") + 1 : link.index("&&", 2)], "-###"], capture_output=True, text=True)
    assert "crtfastmath" not in shown.stderr


def test_loading_the_module_leaves_denormal_numbers_alone() -> None:
    from svdrd.backends import availability

    if availability.native is None:
        pytest.skip("no native module")
    folder = Path(str(availability.native.__file__)).parent
    program = "tiny = 5e-324; before = tiny * 1.0; import _native; print(before > 0, tiny * 1.0 > 0)"
    assert python(program, folder).strip() == "True True"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CUDAFLAGS", "-O3 --use_fast_math"),
        ("CUDAFLAGS", "-Xcompiler -ffast-math"),
        ("NVCC_APPEND_FLAGS", "-use_fast_math"),
        ("NVCC_PREPEND_FLAGS", "--ftz=true"),
        ("NVCC_APPEND_FLAGS", "-prec-div false"),
    ],
)
def test_fast_math_for_nvcc_is_refused(
    setup_script: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setenv(variable, value)
    with pytest.raises(setup_script.BuildError) as raised:
        setup_script.compile_cuda("1.0", toolkit / "_cuda.so")
    assert f"{variable} has {value.removeprefix('-O3 ').removeprefix('-Xcompiler ')}, with which" in str(raised.value)


@needs_compiler
def test_another_environment_compiles_no_kernel_again(source: Path, tmp_path: Path) -> None:
    """pip's isolated build is a new one each time; what knows nothing of Python is kept, the module is made anew."""
    build(source, tmp_path / "first", SVDRD_BUILD="cpu", **UNOPTIMISED)
    (folder,) = (source / "build").glob("native.*")
    (folder / "environment.txt").write_text("another")
    _, _, printed = build(source, tmp_path / "second", SVDRD_BUILD="cpu", **UNOPTIMISED)
    assert "kernels.cpp.o" not in printed
    assert (folder / "environment.txt").read_text() != "another"
    # What another compiler has made is thrown away, here before that compiler fails.
    compiler = tmp_path / "another"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    assert pip_wheel(source, tmp_path / "third", SVDRD_BUILD="cpu", CXX=str(compiler), **UNOPTIMISED).returncode != 0
    assert not list(folder.rglob("kernels.cpp.o"))


def test_nvcc_is_traced_through_a_shim_to_its_toolkit(source: Path, tmp_path: Path, toolkit: Path) -> None:
    path = os.pathsep.join([str(toolkit.parent / "shim"), os.environ["PATH"]])
    _, info, _ = build(source, tmp_path / "wheel", PATH=path, CXX="/nowhere/g++", TORCH_CUDA_ARCH_LIST="9.0")
    assert info["cuda"] is False
    assert (
        info["cuda_reason"]
        == f"found nvcc 99.1 in {toolkit}, but CXX is '/nowhere/g++', which is not an executable here"
    )


def test_cuda_home_comes_before_the_path(source: Path, tmp_path: Path, toolkit: Path) -> None:
    asked = {"CUDA_HOME": str(toolkit), "TORCH_CUDA_ARCH_LIST": "9.0"}
    _, info, _ = build(source, tmp_path / "wheel", **asked, CXX="/nowhere/g++")
    assert f"nvcc 99.1 in {toolkit}" in str(info["cuda_reason"])


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on this machine")
def test_this_machines_nvcc_is_found(source: Path, tmp_path: Path) -> None:
    _, info, _ = build(source, tmp_path / "wheel", CXX="/nowhere/g++", TORCH_CUDA_ARCH_LIST="9.0")
    printed = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    release = printed.partition("release ")[2].partition(",")[0]
    found, _, folder = str(info["cuda_reason"]).partition(",")[0].partition(" in ")
    assert found == f"found nvcc {release}"
    assert (Path(folder) / "bin" / "nvcc").is_file()


def test_cuda_stops_where_nvcc_is_missing(source: Path, tmp_path: Path, empty_path: str) -> None:
    result = pip_wheel(source, tmp_path / "wheel", SVDRD_BUILD="cuda", PATH=empty_path)
    assert result.returncode != 0
    assert "SVDRD_BUILD=cuda, but the CUDA kernels cannot be built: there is no nvcc on the PATH" in result.stdout
    assert not list(tmp_path.rglob("*.whl"))


@needs_compiler
def test_cuda_stops_where_nvcc_compiles_nothing(source: Path, tmp_path: Path, toolkit: Path) -> None:
    result = pip_wheel(source, tmp_path / "wheel", SVDRD_BUILD="cuda", CUDA_HOME=str(toolkit))
    assert result.returncode != 0
    assert "SVDRD_BUILD=cuda, but the CUDA kernels cannot be built: found nvcc 99.1" in result.stdout


LISTED = "75 80 86 87 88 89 90 100 103 110 120 121"  # by nvcc 13.0 --list-gpu-arch


@pytest.fixture(scope="module")
def setup_script() -> Iterator[ModuleType]:
    """setup.py as a module that sets up nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", lambda **options: None)
        patch.delenv("SVDRD_BUILD", raising=False)
        spec = importlib.util.spec_from_file_location("setup_of_svdrd", ROOT / "setup.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize(
    ("listed", "wanted"),
    [
        ("8.9;9.0+PTX", "89-real;90"),
        ("8.0,8.6", "80-real;86-real"),
        (" 8.0 9.0;9.0+PTX; ", "80-real;90"),
        ("9.0a", "90a-real"),
        ("9.0a+PTX", "90a"),
        ("10.0a;12.0f", "100a-real;120f-real"),
        ("Hopper", "90"),
        ("Ampere;Ada", "80-real;86;89"),
        ("Ampere+Tegra Turing", "87-real;75"),
        ("Blackwell", "100-real;103-real;120-real;121"),
        ("All", ";".join([f"{name}-real" for name in LISTED.split()[:-1]] + ["121"])),
        ("Common", "75-real;80-real;90-real;100-real;120"),
    ],
)
def test_what_torchs_extensions_take_is_taken(
    setup_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, wanted: str
) -> None:
    """An nvcc that lists no suffixed names compiles for them all the same."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\nfor a in {LISTED}; do echo compute_$a; done\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert setup_script.cuda_architectures(str(nvcc)) == wanted


def test_the_words_for_generations_are_torchs(setup_script: ModuleType) -> None:
    from torch.utils import cpp_extension

    source = inspect.getsource(cpp_extension._get_cuda_arch_flags)
    theirs = dict(re.findall(r"\('(\w+(?:\+Tegra|\+Tesla)?)', '([\d.;+PTX]+)'\)", source))
    assert theirs["Hopper"].split(";") == setup_script.GENERATIONS["Hopper"].split()
    assert theirs.keys() <= setup_script.GENERATIONS.keys()  # an older torch has fewer


@pytest.mark.parametrize("name", ["7.5", "9.0b", "8.0a", "Blackwell", "Hopper+PTX", "9"])
def test_an_architecture_that_nvcc_does_not_know_is_named(
    setup_script: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", f"8.0;{name}")
    with pytest.raises(setup_script.BuildError, match=f"TORCH_CUDA_ARCH_LIST names {re.escape(repr(name))}") as raised:
        setup_script.cuda_architectures(str(toolkit / "bin" / "nvcc"))
    assert "this nvcc knows 8.0, 9.0, each also with +PTX" in str(raised.value)


def test_native_needs_a_gpu(setup_script: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "native")
    monkeypatch.setattr(setup_script, "gpus_here", list)
    with pytest.raises(setup_script.BuildError, match="'native', and there is no NVIDIA GPU here"):
        setup_script.cuda_architectures(str(toolkit / "bin" / "nvcc"))


def test_an_unknown_choice_names_the_choices(source: Path, tmp_path: Path) -> None:
    result = pip_wheel(source, tmp_path / "wheel", SVDRD_BUILD="gpu")
    assert result.returncode != 0
    assert "SVDRD_BUILD is 'gpu'; it must be one of auto, none, cpu, cuda" in result.stdout


def test_the_source_distribution_holds_the_kernels(source: Path, tmp_path: Path) -> None:
    program = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    kernels = {path.relative_to(source).as_posix() for path in (source / "csrc").rglob("*") if path.is_file()}
    assert kernels | {"setup.py", "pyproject.toml", "LICENSE", "svdrd/py.typed"} <= names
    assert not any("svdrd/_" in name and not name.endswith(".py") for name in names)
