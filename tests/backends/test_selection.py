"""Choosing a backend: automatic may fall back, explicit may not."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

import svdrd
from svdrd.backends import availability, selection
from svdrd.dispatch import registration, routes
from svdrd.ops import polar_factor

pytestmark = pytest.mark.automatic


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_describe_names_every_backend_and_a_reason() -> None:
    records = availability.describe()
    assert tuple(record.name for record in records) == availability.NAMES
    assert all(record.reason for record in records)
    assert records[0].available


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"'tritn'.*torch, cpp, triton, cuda"), svdrd.use_backend("tritn"):
        pass


def test_explicit_choice_raises_with_the_recorded_reason() -> None:
    missing = [record for record in availability.describe() if not record.available]
    for record in missing:
        with pytest.raises(RuntimeError) as raised, svdrd.use_backend(record.name):
            pass
        assert record.reason in str(raised.value)


def test_choice_nests_and_ends() -> None:
    automatic = selection.select(torch.device("cpu"))
    with svdrd.use_backend("torch"):
        assert selection.select(torch.device("cpu")) == "torch"
        with pytest.raises(ZeroDivisionError), svdrd.use_backend("torch"):
            raise ZeroDivisionError
        assert selection.select(torch.device("cpu")) == "torch"
    assert selection.select(torch.device("cpu")) == automatic


def test_the_backend_really_computes(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is out of reach for the compiled kernels, and they for it."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the other backend was called")

    for name, operator in registration.OPERATORS.items():
        rows = routes.ROUTES.get(name, ())
        if backend != "torch" and any(backend in row.backends and row.computer != "products" for row in rows):
            monkeypatch.setitem(registration.OPERATORS, name, replace(operator, default=refuse))
    usual = routes.kernel
    monkeypatch.setattr(routes, "kernel", lambda who, name: usual(who, name) if who.startswith(backend) else refuse)
    a = torch.rand(3, 4, 4, requires_grad=True)
    polar_factor(a).sum().backward()
    svdrd.ops.svd(a)
    svdrd.ops.basis_loss(a, a.detach()).backward()


def test_cpp_refuses_another_device() -> None:
    if availability.native is None:
        pytest.skip("no compiled module")
    with svdrd.use_backend("cpp"), pytest.raises(RuntimeError, match=r"'cpp' computes on the CPU.*meta.*\.cpu\(\)"):
        selection.select(torch.device("meta"))


def test_triton_without_a_cuda_device_and_without_the_interpreter() -> None:
    code = "import svdrd; svdrd.use_backend('triton').__enter__()"
    result = python(code, TRITON_INTERPRET="", CUDA_VISIBLE_DEVICES="")
    assert result.returncode != 0
    assert "'triton', which is not here: no CUDA device" in result.stderr


def test_interpreted_triton_refuses_another_device() -> None:
    code = """
import torch, svdrd
from svdrd.backends import availability, selection
with svdrd.use_backend("triton"):
    print(selection.select(torch.device("cpu")))
    selection.select(torch.device("cuda"))
"""
    result = python(code, TRITON_INTERPRET="1")
    assert result.stdout.strip() == "triton"
    assert (
        "is interpreted on the CPU (TRITON_INTERPRET), but the tensor is on cuda. Move it with .cpu()" in result.stderr
    )


def test_automatic_order_on_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """triton, cuda, torch: each where those before it are missing or refuse the device."""
    present = {"torch", "cpp", "triton", "cuda"}
    device = torch.device("cuda", 0)
    capability = [(9, 0)]
    monkeypatch.setattr(selection, "_chosen", None)
    monkeypatch.setattr(availability, "interpreted", lambda: False)
    monkeypatch.setattr(availability, "emulation", lambda: "")
    monkeypatch.setattr(availability, "cuda_refusal", lambda index: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(
        availability,
        "describe",
        lambda: [availability.Backend(name, name in present, "") for name in availability.NAMES],
    )
    assert selection.select(device) == "triton"
    capability[0] = (7, 5)
    assert selection.select(device) == "cuda"
    present.discard("cuda")
    assert selection.select(device) == "torch"
    capability[0] = (8, 0)
    assert selection.select(device) == "triton"
    present.discard("triton")
    assert selection.select(device) == "torch"


def test_amds_gpus_are_left_to_the_torch_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch for ROCm calls them "cuda" and has a compute capability for them."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 4))
    monkeypatch.setattr(selection, "_chosen", None)
    monkeypatch.setattr(availability, "interpreted", lambda: False)
    monkeypatch.setattr(availability, "emulation", lambda: "")
    monkeypatch.setattr(availability, "_load_cuda", lambda: (ModuleType("_cuda"), "CUDA kernels"))
    monkeypatch.setattr(availability, "_load_triton", availability._load_triton.__wrapped__)
    device = torch.device("cuda", 0)
    assert selection.select(device) == "torch"
    for name in selection.ON_CUDA:
        with (
            pytest.raises(RuntimeError, match=r"for ROCm.*on AMD's the torch backend computes"),
            svdrd.use_backend(name),
        ):
            pass
    # What the torch backend does there beyond LAPACK's kin is made of PyTorch's own products.
    assert routes.route("polar_factor", 64, 64, device=device) == "products"
    assert routes.route("svd", 8, 8, device=device) == routes.DEFAULT


def test_triton_compiles_for_amds_gpus() -> None:
    """Waves of 64 threads instead of warps of 32, and other tensor cores: the kernels assume neither."""
    code = """
from svdrd.backends.triton import aot
kinds = {}
for one in aot.configurations():
    if one.name.startswith(("loss_kernel fp32 M=4 N=4", "symmetric_kernel fp32", "product_kernel fp64")):
        kinds.setdefault((one.kernel.__name__, one.dtype), one)
for one in kinds.values():
    resources = aot.compile_ahead(one, "gfx942")
    print(one.kernel.__name__, resources.problem(), 0 < resources.registers <= 512)
"""
    pytest.importorskip("triton.backends.amd")
    result = python(code, TRITON_INTERPRET="")
    kernels = ("loss_kernel", "symmetric_kernel", "product_kernel")
    assert result.stdout.splitlines() == [f"{name} None True" for name in kernels], result.stderr


def test_environment_variable() -> None:
    code = "import torch, svdrd; from svdrd.backends import selection; print(selection.select(torch.device('cpu')))"
    assert python(code, SVDRD_BACKEND="torch").stdout.strip() == "torch"
    absent = python(code, SVDRD_BACKEND="cuda", SVDRD_CUDA_EMULATION="", CUDA_VISIBLE_DEVICES="")
    assert absent.returncode != 0
    assert "SVDRD_BACKEND=cuda" in absent.stderr
    assert "'cuda', which is not here: no CUDA " in absent.stderr  # device, or kernels
    assert "names no backend: 'fast'" in python(code, SVDRD_BACKEND="fast").stderr


def test_a_compiled_module_that_is_refused_is_no_secret() -> None:
    code = """
import sys, types
sys.modules["svdrd._native"] = types.ModuleType("svdrd._native")  # as one of before use_openmp
from svdrd.dispatch.routes import route
print(route("svd", 8, 8))
"""
    result = python(code, SVDRD_BACKEND="")
    assert result.stdout.strip() == "reference"
    assert (
        "RuntimeWarning: svdrd computes with plain PyTorch, which is much slower: the compiled module" in result.stderr
    )


def test_ops_need_nothing_but_torch() -> None:
    code = """
import sys
before = set(sys.modules)
import torch
allowed = set(sys.modules)
import svdrd.ops
print(sorted({name.partition('.')[0] for name in set(sys.modules) - allowed - set(sys.stdlib_module_names)}))
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert set(eval(result.stdout)) - set(sys.stdlib_module_names) <= {"svdrd", "torch"}, result.stdout
