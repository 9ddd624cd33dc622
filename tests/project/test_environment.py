"""``svdrd info`` and ``svdrd info --json`` say the same of this machine, and what is wrong in it does not stop them."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

import svdrd
from svdrd import environment
from svdrd.__main__ import main
from svdrd.backends import availability, selection
from svdrd.dispatch import routes

ROOT = Path(__file__).resolve().parents[2]


def as_json(capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["info", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.automatic
@pytest.mark.parametrize("argv", [[], ["info"]])
def test_the_text(argv: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert f"svdrd {svdrd.__version__}, torch {torch.__version__}" in out
    for backend in availability.describe():
        assert f"backend {backend.name}: {'available' if backend.available else 'missing'}, {backend.reason}" in out
    assert f"basis_loss on cpu, n x n, 8 to 256: {routes.route('basis_loss', 8, 8)}\n" in out
    assert ("instruction set of cpp: " in out) == (availability.native is not None)
    assert ("; no C++ kernels: " in out) == (availability.native is None)


@pytest.mark.automatic
def test_the_json(capsys: pytest.CaptureFixture[str]):
    said = as_json(capsys)
    assert said["versions"]["svdrd"] == svdrd.__version__
    assert said["versions"]["torch"] == torch.__version__
    assert [(b["name"], b["available"], b["reason"]) for b in said["backends"]] == availability.describe()
    assert {row["operator"] for row in said["routes"]} == {"svd", "polar_factor", "basis_loss", "recompose"}
    for row in said["routes"]:
        for n, computer in row["computers"].items():
            assert computer == routes.route(row["operator"], int(n), int(n), device=row["device"])
    assert said["threads"]["torch"] == torch.get_num_threads()
    native = availability.native
    assert said["instruction_set"] == (None if native is None else native.instruction_set())
    assert said["build"].get("native_module") == (None if native is None else native.build_info())
    assert said["build"].items() >= availability.build_record().items()


def test_the_text_has_what_the_json_has(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """One structure makes both; a field that the text forgets would be missing in reports."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with svdrd.use_backend("torch"):
        said = as_json(capsys)
        assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert said["chosen_backend"] == "torch"
    assert "backend asked for: torch\n" in out
    assert "OMP_NUM_THREADS=2\n" in out
    for name in ("numpy", "triton", *environment.EXTRA):
        assert f"{name} {said['versions'][name]}" in out or said["versions"][name] is None
    assert all(
        route["operator"] in out and set(route["computers"].values()) <= {"reference"} for route in said["routes"]
    )
    assert all(device["description"] in out for device in said["devices"])


def test_where_the_chosen_backend_computes_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def select(device: torch.device) -> str:
        raise RuntimeError("it computes on CUDA devices")

    monkeypatch.setattr(selection, "select", select)
    assert main(["info"]) == 0
    assert "svd on cpu: it computes on CUDA devices\n" in capsys.readouterr().out
    row = as_json(capsys)["routes"][0]
    assert (row["error"], row["computers"]) == ("it computes on CUDA devices", {})


def test_a_name_of_no_backend_is_part_of_the_answer():
    """Who asks why nothing works is told."""
    command = [sys.executable, "-m", "svdrd", "info"]
    variables = os.environ | {"SVDRD_BACKEND": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "\nbackend asked for: cpu\n" in done.stdout
    assert "\nsvd on cpu: SVDRD_BACKEND=cpu names no backend" in done.stdout
    assert "\nSVDRD_BACKEND=cpu\n" in done.stdout


def test_packages_that_are_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(environment, "version", version)
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "compressai: missing, pip install 'svdrd[compress]'" in out
    assert "\nno numpy, no triton\n" in out
    assert as_json(capsys)["versions"]["compressai"] is None


def test_without_a_record_of_the_build(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(availability, "__file__", str(tmp_path / "svdrd" / "backends" / "availability.py"))
    assert main([]) == 0
    reason = "_build_info.json is missing: the package was not installed by pip"
    assert (
        f"build: SVDRD_BUILD=unknown; no C++ kernels: {reason}; no CUDA kernels: {reason}\n" in capsys.readouterr().out
    )


@pytest.mark.parametrize("template", ["bug.yml", "speed.yml"])
def test_the_issue_templates_ask_for_it(template: str):
    path = ROOT / ".github" / "ISSUE_TEMPLATE" / template
    if not path.exists():
        pytest.skip("the templates are not beside these tests")
    assert "`svdrd info` prints" in path.read_text()
