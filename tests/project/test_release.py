"""What .ci/release.py refuses, and the text that it makes; what the workflows of a release promise."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import script

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / ".ci" / "release.py"
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"

if not SCRIPT.exists():
    pytest.skip("this is no checkout: .ci/ is not beside these tests", allow_module_level=True)


@pytest.fixture(scope="module")
def release() -> ModuleType:
    return script(SCRIPT)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nversion = "9"\n\n[project]\nname = "svdrd"\nversion = "1.2.0"\n\n[tool.x]\nversion = "3"\n'
    )
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.0\nlicense: MIT\n")
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## 1.2.0 (2027-01-31)\n\nWords.\n\n### Added\n\n- a thing\n\n## 1.1.0 (2026-12-01)\n\n- old\n"
    )
    return tmp_path


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_this_checkout_agrees(release: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    release.main(["check"])
    assert capsys.readouterr().out == f"svdrd {release.version_of(ROOT)}: all agree\n"
    release.main(["notes"])
    assert "### Added" in capsys.readouterr().out


def test_the_text_is_the_section(release: ModuleType, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release.main(["check", "--tag", "v1.2.0"], project)
    assert capsys.readouterr().out == "svdrd 1.2.0: all agree\n"
    release.main(["notes"], project)
    assert capsys.readouterr().out == "Words.\n\n### Added\n\n- a thing\n"


@pytest.mark.parametrize(
    ("file", "old", "new", "tag", "message"),
    [
        ("CITATION.cff", "version: 1.2.0\nlicense", "version: 1.1.0\nlicense", None, "write 'version: 1.2.0' there"),
        (
            "CHANGELOG.md",
            "1.2.0",
            "1.3.0",
            None,
            "no heading '## 1.2.0 (YYYY-MM-DD)'; its first are '1.3.0",
        ),
        ("CHANGELOG.md", "2027-01-31", "unreleased", "v1.2.0", "write its date: '## 1.2.0 (YYYY-MM-DD)'"),
        ("CHANGELOG.md", "Words.\n\n### Added\n\n- a thing\n", "", None, "says nothing under"),
        ("pyproject.toml", "x", "x", "v1.2.1", "the tag must be 'v1.2.0'"),
        ("pyproject.toml", "x", "x", "1.2.0", "the tag must be 'v1.2.0'"),
        ("pyproject.toml", 'version = "1.2.0"\n', "", None, "0 lines with a version"),
    ],
)
def test_what_disagrees_is_named(
    release: ModuleType, project: Path, file: str, old: str, new: str, tag: str | None, message: str
) -> None:
    replace(project / file, old, new)
    with pytest.raises(SystemExit, match=re.escape(message)):
        release.main(["check", *(["--tag", tag] if tag else [])], project)


def test_a_version_before_its_release_is_enough_for_a_dry_run(release: ModuleType, project: Path) -> None:
    replace(project / "CHANGELOG.md", "2027-01-31", "unreleased")
    release.main(["check"], project)


def test_the_workflow_publishes_on_a_tag_alone_and_holds_no_secret() -> None:
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load(WORKFLOW.read_text())
    triggers = workflow[True]  # YAML 1.1 reads "on" so
    assert triggers == {"push": {"tags": ["v*"]}, "workflow_dispatch": None}
    assert "secrets." not in WORKFLOW.read_text()
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"]
    for name, job in jobs.items():
        writes = {permission for permission, level in job.get("permissions", {}).items() if level == "write"}
        assert not writes or job["if"] == "startsWith(github.ref, 'refs/tags/v')", name
    assert jobs["publish"]["permissions"]["id-token"] == "write"
    assert jobs["publish"]["needs"] == "attest"
    assert set(jobs["attest"]["needs"]) == {"check", "sdist", "wheels"}


def test_cibuildwheel_covers_what_the_package_says() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    (oldest,) = re.findall(r'^requires-python = ">=3\.(\d+)"$', pyproject, re.MULTILINE)
    (builds,) = re.findall(r'^build = "(.*)"$', pyproject, re.MULTILINE)
    assert builds.split() == [f"cp3{minor}-*" for minor in range(int(oldest), 14)]
    assert 'manylinux-x86_64-image = "manylinux_2_28"' in pyproject
    assert 'manylinux-aarch64-image = "manylinux_2_28"' in pyproject
