"""The CUDA module itself: what it says where it cannot run, and, on a GPU, devices, streams, graphs and bits.

Results over the zoo are the business of all other tests, through the ``backend`` fixture.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import svdrd
from svdrd.backends import availability
from svdrd.ops import basis_loss, polar_factor, svd
from tests.zoo import ZOO

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def module() -> ModuleType:
    """The compiled kernels, or their emulation; both have one interface."""
    module = availability.cuda_module()
    if module is None:
        pytest.skip(next(record.reason for record in availability.describe() if record.name == "cuda"))
    return module


@pytest.fixture
def gpu() -> torch.device:
    """A GPU that the compiled kernels run on."""
    record = next(record for record in availability.describe() if record.name == "cuda")
    if not torch.cuda.is_available() or not record.available:
        pytest.skip("no GPU" if not torch.cuda.is_available() else record.reason)
    return torch.device("cuda", torch.cuda.device_count() - 1)


@pytest.fixture
def emulation() -> ModuleType:
    """The same algorithms with the lanes played on the CPU, as ``make emulation`` has built them."""
    built = list((ROOT / "build" / "emulation").glob("_cuda_emulated*.so"))
    if not built:
        pytest.skip("make emulation has not been run")
    spec = importlib.util.spec_from_file_location("_cuda_emulated", built[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_module_loads_and_says_why_it_cannot_run_without_a_gpu() -> None:
    """In a process of its own, which has no emulation: neither loading nor asking may need a driver."""
    if importlib.util.find_spec("svdrd._cuda") is None:
        pytest.skip(f"no CUDA module was built: {availability.build_record().get('cuda_reason')}")
    program = """
import svdrd._cuda as cuda, torch
info = cuda.build_info()
assert not info["emulated"] and info["architectures"], info
print(cuda.refusal(0))
from svdrd.backends import availability
print(next(record for record in availability.describe() if record.name == "cuda"))
"""
    environment = {**os.environ, "SVDRD_CUDA_EMULATION": "", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "(cudaError" in result.stdout
    assert "available=False, reason='no CUDA device (CUDA kernels, nvcc" in result.stdout


def test_the_emulation_that_is_not_there_is_named() -> None:
    program = "import svdrd; svdrd.use_backend('cuda').__enter__()"
    environment = {**os.environ, "SVDRD_CUDA_EMULATION": "/nowhere/_cuda_emulated.so"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert "SVDRD_CUDA_EMULATION does not load: /nowhere/_cuda_emulated.so" in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m": 65, "n": 70}, "matrices of 65 x 70; the smaller side must be at most 64"),
        ({"m": 70000}, "the larger one at most 65536"),
        ({"batch": -1}, "batch is -1; it must be at least 0"),
        ({"a": 0}, "a is a null pointer; it must hold 32 elements"),
        ({"dtype": "float16"}, "dtype is 'float16'; it must be 'float32' or 'float64'"),
    ],
)
def test_the_module_refuses_what_it_cannot_take(module: ModuleType, change: dict[str, object], message: str) -> None:
    arguments = {"dtype": "float32", "a": 8, "batch": 2, "m": 4, "n": 4, "u": 8, "s": 8, "vh": 8} | change
    with pytest.raises(ValueError, match=message):
        module.svd(**arguments, workspace=0, device=0, stream=0)


@pytest.mark.parametrize(("m", "n"), [(8, 8), (16, 16), (24, 24), (8, 40), (40, 40)])
def test_the_order_of_the_lanes_changes_no_bit(emulation: ModuleType, m: int, n: int) -> None:
    """Each pair here has lanes of another number; ``make sanitize`` looks for races more closely."""
    a = torch.stack([ZOO[name](m, n) for name in ZOO]).float()
    k, b = min(m, n), len(a)
    results = []
    for device in (0, 1):  # forwards, backwards
        u, s, vh = torch.empty(b, m, k), torch.empty(b, k), torch.empty(b, k, n)
        emulation.svd(
            "float32", a.data_ptr(), b, m, n, u.data_ptr(), s.data_ptr(), vh.data_ptr(),
            workspace=0, device=device, stream=0,
        )  # fmt: skip
        results.append((u, s, vh))
    for forwards, backwards in zip(*results, strict=True):
        assert torch.equal(forwards, backwards)


def test_every_team_fits_every_gpu_or_is_the_largest(module: ModuleType) -> None:
    """The kernels for less than a block have no variant with a workspace: they need no more than every GPU has."""
    for operation in ("svd", "polar_factor", "polar_factor_backward", "basis_loss"):
        for dtype in ("float32", "float64"):
            for m in (1, 3, 8, 16, 31, 64, 128, 1000, 65536):
                for n in range(1, 65):
                    lanes, size = module.team(operation, dtype, m, n)
                    assert lanes in (8, 32, 64, 256)
                    assert lanes == 256 or size <= 48 * 1024


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "svd": lambda a: svd(a).S,
    "polar_factor": polar_factor,
    "basis_loss": lambda a: basis_loss(a, a.flip(-1), reduction="none"),
}


@pytest.mark.parametrize(("m", "n"), [(8, 8), (5, 7), (16, 16), (32, 32), (64, 64), (64, 500)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_gpu_gives_the_bits_of_the_emulation(
    gpu: torch.device, emulation: ModuleType, m: int, n: int, dtype: torch.dtype
) -> None:
    a = torch.stack([ZOO[name](m, n) for name in ZOO]).to(dtype)
    k, b = min(m, n), len(a)
    u, s, vh = a.new_empty(b, m, k), a.new_empty(b, k), a.new_empty(b, k, n)
    name = str(dtype).removeprefix("torch.")
    emulation.svd(
        name, a.data_ptr(), b, m, n, u.data_ptr(), s.data_ptr(), vh.data_ptr(), workspace=0, device=0, stream=0
    )
    with svdrd.use_backend("cuda"):
        results = svd(a.to(gpu))
    for result, expected in zip(results, (u, s, vh), strict=True):
        assert torch.equal(result.cpu(), expected)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_tensors_device_and_stream_are_used(gpu: torch.device, name: str) -> None:
    a = torch.randn(1000, 16, 16, device=gpu)
    stream = torch.cuda.Stream(gpu)
    with svdrd.use_backend("cuda"), torch.cuda.device(0):
        expected = OPERATIONS[name](a)
        torch.cuda.synchronize(gpu)
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            late = a.clone()  # on this stream, after the sleep: another stream would read it unwritten
            result = OPERATIONS[name](late)
        stream.synchronize()
        assert result.device == gpu
        assert torch.equal(result, expected)
        assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [8, 64])
def test_a_cuda_graph_captures_and_replays(gpu: torch.device, name: str, size: int) -> None:
    torch.use_deterministic_algorithms(False)
    with svdrd.use_backend("cuda"), torch.cuda.device(gpu):
        a = torch.randn(100, size, size, device=gpu)
        OPERATIONS[name](a)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = OPERATIONS[name](a)
        a.copy_(torch.randn_like(a))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(result, OPERATIONS[name](a))


def test_a_failed_launch_names_the_operation_and_cudas_error(gpu: torch.device) -> None:
    module = importlib.import_module("svdrd._cuda")
    a = torch.randn(2, 4, 4, device=gpu)
    with pytest.raises(RuntimeError, match=r"svdrd's svd of 2 matrices of 4 x 4, float32, on cuda:99: .*\(cudaError"):
        module.svd(
            "float32", a.data_ptr(), 2, 4, 4, a.data_ptr(), a.data_ptr(), a.data_ptr(),
            workspace=0, device=99, stream=0,
        )  # fmt: skip


def test_more_matrices_than_blocks_of_a_grid(gpu: torch.device) -> None:
    """Offsets beyond 2^31 entries, at a place where their wrapping round would be seen."""
    if torch.cuda.mem_get_info(gpu)[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free memory")
    a = torch.zeros((1 << 31) // 64 + 5, 8, 8, device=gpu)
    a[-1] = 3 * torch.eye(8, device=gpu)
    with svdrd.use_backend("cuda"):
        p = polar_factor(a)
    assert torch.equal(p[-1], torch.eye(8, device=gpu))
    assert not p[:-1].any()


def test_the_report_of_ptxas_is_read() -> None:
    """``make cuda-resources`` compiles for minutes; what it makes of the output is checked here."""
    pytest.importorskip("pybind11")
    path = ROOT / "csrc" / "checks" / "cuda_resources.py"
    if not path.is_file():
        pytest.skip("no sources beside the tests")
    spec = importlib.util.spec_from_file_location("cuda_resources", path)
    assert spec is not None
    assert spec.loader is not None
    resources = importlib.util.module_from_spec(spec)
    sys.modules["cuda_resources"] = resources
    spec.loader.exec_module(resources)
    name = "_ZN5svdrd4cuda3runINS_5teams{}EEELb{}ENS2_{}E1_lPc"
    log = "".join(
        f"ptxas info    : Compiling entry function '{name.format(team, workspace, problem)}' for 'sm_90'\n"
        f"ptxas info    : Function properties for {name.format(team, workspace, problem)}\n"
        f"    16 bytes stack frame, {spill} bytes spill stores, {spill} bytes spill loads\n"
        f"ptxas info    : Used {registers} registers, used 1 barriers\n"
        for team, workspace, problem, spill, registers in [
            ("9BlockTeamILi256", 1, "11LossProblemIfEE", 0, 148),
            ("8WarpTeamILi8", 0, "20PolarBackwardProblemIdEE", 12, 94),
        ]
    )
    assert [tuple(kernel) for kernel in resources.parse(log)] == [
        ("basis_loss", "float32", "block 256, workspace", "90", 148, 16, 0),
        ("polar_factor_backward", "float64", "warp 8", "90", 94, 16, 24),
    ]
