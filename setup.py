"""Decides what to compile, nothing else: the metadata is in pyproject.toml, the build in csrc/CMakeLists.txt.

``svdrd._native`` holds the C++ kernels, ``svdrd._cuda`` those for NVIDIA's GPUs: two modules, so that either can be
missing.
``SVDRD_BUILD`` in the environment chooses:

- ``auto`` (default): compile what this machine can run. The CUDA kernels only where there is a GPU, for that GPU. Where
  something cannot be compiled, say why and install the rest.
- ``none``: compile nothing.
- ``cpu``: compile the C++ kernels, or stop with the reason.
- ``cuda``: compile the C++ and the CUDA kernels, or stop with the reason. The CUDA kernels are then for every
  generation of GPUs that the compiler knows, the newest also as PTX, which the driver compiles for later ones.

``TORCH_CUDA_ARCH_LIST`` names the GPUs to compile for, as for torch's own extensions: ``"8.0;9.0+PTX"``, ``"9.0a"``,
``Hopper``, ``native`` (those that are here), ``All``. Where it is set, ``auto`` and ``cuda`` compile for these GPUs,
whether one is here or not.

``SVDRD_OLD_GLIBC=ON`` makes a module for older systems than this one, for wheels (``make wheel``).

What was built, and why the rest was not, is written to ``svdrd/_build_info.json``, which ``python -m svdrd`` shows.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

MODES = ("auto", "none", "cpu", "cuda")
ROOT = Path(__file__).resolve().parent
# What TORCH_CUDA_ARCH_LIST may say in words: torch/utils/cpp_extension.py, _get_cuda_arch_flags.
GENERATIONS = {
    "Kepler+Tesla": "3.7",
    "Kepler": "3.5+PTX",
    "Maxwell+Tegra": "5.3",
    "Maxwell": "5.0 5.2+PTX",
    "Pascal": "6.0 6.1+PTX",
    "Volta+Tegra": "7.2",
    "Volta": "7.0+PTX",
    "Turing": "7.5+PTX",
    "Ampere+Tegra": "8.7",
    "Ampere": "8.0 8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell+Tegra": "11.0",
    "Blackwell": "10.0 10.3 12.0 12.1+PTX",
    "Rubin": "10.7+PTX",
}
EXTENSION_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


class BuildError(Exception):
    """Why a module cannot be built, in one line."""


def build_mode() -> str:
    mode = os.environ.get("SVDRD_BUILD", "auto")
    if mode not in MODES:
        raise SystemExit(f"svdrd: SVDRD_BUILD is {mode!r}; it must be one of {', '.join(MODES)}, e.g. SVDRD_BUILD=auto")
    return mode


def run(command: list[str], *, show: bool = False) -> str:
    """The output of a command; BuildError with the decisive line of it when the command fails.

    ``show``: print each line as it comes, so that minutes of compiling are not silent (``pip install -v`` shows them).
    """
    english = {**os.environ, "LC_ALL": "C"}
    lines = []
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=english
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if show:
                    print(line, end="", flush=True)
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error.strerror}") from error
    output = "".join(lines)
    if process.returncode != 0:
        if not show:
            print(output, file=sys.stderr)
        raise BuildError(f"{Path(command[0]).name} failed: {decisive_line(output)}")
    return output


def decisive_line(output: str) -> str:
    """The line of a failed build that names the cause: the compiler's first error, else CMake's, else the last line."""
    compiler_error = re.search(r"^.*\berror: .*$", output, re.MULTILINE)
    if compiler_error:
        return compiler_error.group().strip()
    cmake_error = re.search(r"^CMake Error.*\n((?:[ \t].*\n|\n)+)", output, re.MULTILINE)
    if cmake_error:
        return " ".join(cmake_error.group(1).split())
    lines = output.split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def cuda_compiler() -> tuple[str, str, Path]:
    """nvcc, its release and the folder of its toolkit; BuildError where there is none.

    CUDA_HOME, then CUDA_PATH, then the PATH. The nvcc on the PATH is often a script or a link in another folder than
    the toolkit's, so the folder is asked of nvcc itself.
    """
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable)
        if home:
            nvcc = shutil.which("nvcc", path=str(Path(home, "bin")))
            if nvcc is None:
                raise BuildError(f"{variable} is {home!r}, where there is no bin/nvcc")
            break
    else:
        nvcc = shutil.which("nvcc")
        if nvcc is None:
            raise BuildError("there is no nvcc on the PATH, and neither CUDA_HOME nor CUDA_PATH is set")
    release = re.search(r"release (\d+\.\d+)", run([nvcc, "--version"]))
    if release is None:
        raise BuildError(f"{nvcc} --version names no release, so it is not NVIDIA's compiler")
    if int(release.group(1).partition(".")[0]) < 12:
        raise BuildError(f"{nvcc} is of release {release.group(1)}; the kernels need 12 or later")
    top = re.search(r"^#\$ TOP=(.+)$", run([nvcc, "--dryrun", "-x", "cu", os.devnull]), re.MULTILINE)
    folder = Path(top.group(1).strip().strip('"')) if top else Path(nvcc).resolve().parents[1]
    inside = folder.resolve() / "bin" / Path(nvcc).name
    return str(inside if inside.is_file() else nvcc), release.group(1), folder.resolve()


def refuse_fast_math() -> None:
    """Of a C++ compiler csrc/CMakeLists.txt takes such options back; nvcc has none that takes --use_fast_math back."""
    fast = r"-Ofast|-f[\w-]*fast-math|-+use_fast_math|-+(?:ftz|fmad)[= ]true|-+prec-(?:div|sqrt)[= ]false"
    for variable in ("CUDAFLAGS", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"):
        found = re.search(fast, os.environ.get(variable, ""))
        if found:
            raise BuildError(
                f"{variable} has {found.group()}, with which the kernels' results are wrong (NaN, denormal numbers, "
                f"rounding); take it out, e.g. {variable}='' pip install ."
            )


def gpus_here() -> list[int]:
    """The compute capabilities of this machine's GPUs, 90 for 9.0; of the driver, so that torch is not needed."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return []
    count, capabilities = ctypes.c_int(), set()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    for device in range(count.value):  # of a device, the handle is its number
        numbers = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
            number = ctypes.c_int()
            if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device) != 0:
                return []
            numbers.append(number.value)
        capabilities.add(10 * numbers[0] + numbers[1])
    return sorted(capabilities)


def architectures_for(gpus: list[int], known: set[str], nvcc: str) -> str:
    """The GPUs of this machine as CMake writes them; for one that is newer than nvcc, the newest PTX that it runs."""
    chosen = set()
    for gpu in gpus:
        if str(gpu) in known:
            chosen.add(f"{gpu}-real")
            continue
        older = [int(name) for name in known if name.isdigit() and int(name) < gpu]
        if not older:
            raise BuildError(f"{nvcc} does not compile for this machine's GPU, of compute capability {gpu / 10}")
        chosen.add(f"{max(older)}-virtual")
    return ";".join(sorted(chosen))


def cuda_architectures(nvcc: str) -> str:
    """The GPUs to compile for as CMake writes them, ``80-real;90``: without ``-real`` there is PTX too."""
    known = set(re.findall(r"compute_(\d+[af]?)", run([nvcc, "--list-gpu-arch"])))
    wanted = re.split(r"[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip(";, "))
    if wanted in (["native"], ["Auto"]) and not gpus_here():
        raise BuildError(
            f"TORCH_CUDA_ARCH_LIST is {wanted[0]!r}, and there is no NVIDIA GPU here; name them, e.g. '9.0'"
        )
    if wanted in (["native"], ["Auto"]) or (wanted == [""] and MODE == "auto"):
        return architectures_for(gpus_here(), known, nvcc)
    if wanted in ([""], ["Common"]):
        # Code for the first GPU of a generation runs on the others of it.
        default = [name for name in ("60", "70", "75", "80", "90", "100", "120") if name in known]
        if "70" in default:
            default.remove("75")
        if not default:
            raise BuildError(f"{nvcc} --list-gpu-arch names no architecture that the kernels are made for")
        return ";".join([*(f"{name}-real" for name in default[:-1]), default[-1]])
    if wanted == ["All"]:
        every = sorted((name for name in known if name.isdigit()), key=int)
        return ";".join([*(f"{name}-real" for name in every[:-1]), every[-1]])
    architectures: dict[str, bool] = {}  # whether with PTX
    for word in wanted:
        for name in GENERATIONS.get(word, word).split():
            parsed = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
            if parsed is None or not compiles(parsed.group(1) + parsed.group(2), parsed.group(3), known):
                raise BuildError(unknown_architecture(word, name, known))
            architecture = "".join(parsed.group(1, 2, 3))
            architectures[architecture] = architectures.get(architecture, False) or parsed.group(4) is not None
    return ";".join(name + ("" if ptx else "-real") for name, ptx in architectures.items())


def compiles(number: str, suffix: str, known: set[str]) -> bool:
    """Whether nvcc compiles for this GPU. It lists those with a suffix or not, by release, and knows the suffixes.

    ``a``: with what this GPU alone has, from 9.0 on; ``f``: what its family has, from 10.0 on.
    """
    first = {"": 0, "a": 90, "f": 100}
    return number + suffix in known or (number in known and int(number) >= first[suffix])


def unknown_architecture(word: str, name: str, known: set[str]) -> str:
    listed = ", ".join(sorted((f"{entry[:-1]}.{entry[-1]}" for entry in known if entry.isdigit()), key=float))
    what = repr(word) if word == name else f"{word!r}, which is {GENERATIONS[word]}"
    return (
        f"TORCH_CUDA_ARCH_LIST names {what}; this nvcc knows {listed}, each also with +PTX, "
        f"from 9.0 on also as 9.0a; the words {', '.join(GENERATIONS)}; and alone Common, All, native. "
        "For example TORCH_CUDA_ARCH_LIST='8.0;9.0+PTX'"
    )


def tool(package: str, folder_attribute: str) -> str:
    """The executable of cmake or ninja: from the build requirement of that name, else from the PATH."""
    folders = os.environ.get("PATH", os.defpath)
    if importlib.util.find_spec(package):
        folders = getattr(importlib.import_module(package), folder_attribute) + os.pathsep + folders
    executable = shutil.which(package, path=folders)
    if executable is None:
        raise BuildError(f"{package} is missing: pip install {package}, or build with pip's isolation")
    return executable


def compiler_command() -> str:
    """What CMake will call; checked here because CMake's own account of a missing compiler takes a screen."""
    chosen = os.environ.get("CXX")
    if chosen:
        if shutil.which(shlex.split(chosen)[0]) is None:
            raise BuildError(f"CXX is {chosen!r}, which is not an executable here")
        return chosen
    for name in ("c++", "g++", "clang++", "cl"):
        if shutil.which(name):
            return name
    raise BuildError("there is no C++ compiler: CXX is not set, and none of c++, g++, clang++, cl is on the PATH")


def stamped(file: Path) -> str | None:
    """What an earlier build wrote there."""
    return file.read_text() if file.exists() else None


def compile_module(version: str, target: Path, name: str, settings: dict[str, str], made_with: list[str]) -> Path:
    """Builds the CMake target ``name`` and puts the module at ``target``; returns the folder of the build.

    ``made_with``: the compilers; the folder is thrown away when one changes.
    """
    cmake, ninja = tool("cmake", "CMAKE_BIN_DIR"), tool("ninja", "BIN_DIR")
    if importlib.util.find_spec("pybind11") is None:
        raise BuildError("pybind11 is missing: pip install pybind11, or build with pip's isolation")
    import pybind11

    # One folder per module and Python, kept between builds, so that only what changed is compiled again.
    folder = ROOT / "build" / f"{name.strip('_')}{EXTENSION_SUFFIX.removesuffix('.so').removesuffix('.pyd')}"
    variables = ("CXXFLAGS", "LDFLAGS", "CMAKE_BUILD_TYPE", "CUDAFLAGS", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")
    flags = [os.environ.get(variable, "") for variable in variables]
    compilers = "\n".join([*made_with, *flags])
    if folder.exists() and stamped(folder / "built_with.txt") != compilers:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "built_with.txt").write_text(compilers)
    # Of another environment CMake holds the paths, ninja only the commands: without CMake's memory the objects that are
    # made by the same command are kept. pip's isolated build has a new environment each time.
    environment = "\n".join([sys.executable, cmake, ninja, pybind11.get_cmake_dir()])
    if stamped(folder / "environment.txt") != environment:
        for memory in (folder / "CMakeCache.txt", *folder.glob("CMakeFiles/[0-9]*")):
            if memory.is_dir():
                shutil.rmtree(memory)
            else:
                memory.unlink(missing_ok=True)
    (folder / "environment.txt").write_text(environment)

    settings = {
        "CMAKE_MAKE_PROGRAM": ninja,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "SVDRD_VERSION": version,
        **settings,
    }
    definitions = [f"-D{key}={value}" for key, value in settings.items()]
    print(f"svdrd: compiling {name} in {folder}", flush=True)
    run([cmake, "-S", str(ROOT / "csrc"), "-B", str(folder), "-G", "Ninja", *definitions])
    run([cmake, "--build", str(folder), "--target", name, "--parallel", str(os.cpu_count() or 1)], show=True)
    # Replaced, not overwritten: a process that has the earlier module open would crash.
    new = target.with_suffix(".new")
    shutil.copy2(folder / target.name, new)
    new.replace(target)
    return folder


def compile_native(version: str, target: Path) -> str:
    """Builds ``_native`` into ``target``; returns the compiler's name and version."""
    compiler = compiler_command()
    path = str(shutil.which(shlex.split(compiler)[0]))
    settings = {"SVDRD_OLD_GLIBC": os.environ.get("SVDRD_OLD_GLIBC", "OFF")}
    return (compile_module(version, target, "_native", settings, [compiler, path]) / "compiler.txt").read_text()


def compile_cuda(version: str, target: Path) -> str:
    """Builds ``_cuda`` into ``target``; returns what with and for which GPUs."""
    if MODE == "auto" and not os.environ.get("TORCH_CUDA_ARCH_LIST") and not gpus_here():
        raise BuildError("there is no NVIDIA GPU here; SVDRD_BUILD=cuda compiles them for every generation of GPUs")
    refuse_fast_math()
    nvcc, release, folder = cuda_compiler()
    found = f"nvcc {release} in {folder}"
    try:
        architectures = cuda_architectures(nvcc)
        print(f"svdrd: the CUDA kernels for {architectures.replace(';', ' ')}, with {found}", flush=True)
        compiler = compiler_command()
        settings = {
            "SVDRD_PYTHON_MODULE": "OFF",
            "SVDRD_CUDA": "ON",
            "SVDRD_CUDA_ARCHITECTURES": architectures,
            "CMAKE_CUDA_COMPILER": nvcc,
        }
        compile_module(version, target, "_cuda", settings, [compiler, nvcc, release, architectures])
    except BuildError as error:
        raise BuildError(f"found {found}, but {error}") from error
    return f"{found}, for {architectures.replace(';', ' ')}"


def record(package: Path, *, native: bool, reason: str, compiler: str, cuda: bool, cuda_reason: str) -> None:
    """Writes ``_build_info.json`` into the package; a module of an earlier build is removed where there is none now."""
    package.mkdir(parents=True, exist_ok=True)
    for built, name in ((native, "_native"), (cuda, "_cuda")):
        if not built:
            (package / f"{name}{EXTENSION_SUFFIX}").unlink(missing_ok=True)
    build_info = {
        "mode": MODE,
        "native": native,
        "reason": reason,
        "compiler": compiler,
        "cuda": cuda,
        "cuda_reason": cuda_reason,
    }
    (package / "_build_info.json").write_text(json.dumps(build_info, indent=2) + "\n")


class BuildModules(build_ext):
    """Compiles through CMake. Where `auto` compiles nothing the wheel keeps its platform tag, which is fixed before."""

    def run(self) -> None:
        package = ROOT / "svdrd" if self.inplace else Path(self.build_lib, "svdrd")
        package.mkdir(parents=True, exist_ok=True)
        version = self.distribution.get_version()
        # CUDA first: where it is asked for and cannot be, that is known before minutes of compiling.
        cuda, cuda_reason = False, f"SVDRD_BUILD={MODE}"
        if MODE in ("auto", "cuda"):
            try:
                cuda_reason = compile_cuda(version, package / f"_cuda{EXTENSION_SUFFIX}")
                cuda = True
            except BuildError as error:
                if MODE == "cuda":
                    raise SystemExit(
                        f"svdrd: SVDRD_BUILD=cuda, but the CUDA kernels cannot be built: {error}"
                    ) from error
                cuda_reason = str(error)
                print(f"svdrd: without CUDA kernels: {error}", file=sys.stderr)
        native, reason, compiler = True, "", ""
        try:
            compiler = compile_native(version, package / f"_native{EXTENSION_SUFFIX}")
        except BuildError as error:
            if MODE in ("cpu", "cuda"):
                raise SystemExit(
                    f"svdrd: SVDRD_BUILD={MODE}, but the native module cannot be built: {error}"
                ) from error
            native, reason = False, str(error)
            print(
                f"svdrd: THE NATIVE MODULE WAS NOT BUILT: {error}\n"
                "svdrd: on the CPU this installation computes with the torch backend only. "
                "SVDRD_BUILD=cpu turns this into an error, SVDRD_BUILD=none into a choice.",
                file=sys.stderr,
            )
        record(package, native=native, reason=reason, compiler=compiler, cuda=cuda, cuda_reason=cuda_reason)


class BuildPure(build_py):
    """SVDRD_BUILD=none: a wheel for any platform, with the record that nothing was compiled."""

    def run(self) -> None:
        super().run()
        package = ROOT / "svdrd" if self.editable_mode else Path(self.build_lib, "svdrd")
        reason = "SVDRD_BUILD=none"
        record(package, native=False, reason=reason, compiler="", cuda=False, cuda_reason=reason)


MODE = build_mode()
if MODE == "none":
    setup(cmdclass={"build_py": BuildPure})
else:
    # One extension stands for both modules: it makes the wheel one for a platform.
    setup(ext_modules=[Extension("svdrd._native", sources=[])], cmdclass={"build_ext": BuildModules})
