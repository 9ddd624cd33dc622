"""Whether what is to be released agrees with itself, and the text of its release.

    python .ci/release.py check              # version, CITATION.cff and CHANGELOG.md agree: the dry run
    python .ci/release.py check --tag v0.1.0 # and the tag with them; the changelog's section has a date
    python .ci/release.py notes              # the changelog's section of this version

The version stands in pyproject.toml alone. What repeats it is compared.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Disagreement(Exception):
    """What does not agree, in one line, with what would."""


def version_of(root: Path) -> str:
    """``project.version`` of pyproject.toml; Python 3.10 has no tomllib."""
    project = re.split(
        r"^\[(?!project\])", (root / "pyproject.toml").read_text().partition("\n[project]\n")[2], flags=re.M
    )
    found = re.findall(r'^version = "(.+)"$', project[0], re.MULTILINE)
    if len(found) != 1:
        raise Disagreement(f"pyproject.toml has {len(found)} lines with a version in [project]; it must have one")
    return str(found[0])


def section(root: Path, version: str) -> tuple[str, str]:
    """When the changelog says that ``version`` was released ("unreleased" before that), and its section."""
    sections = re.split(r"^## ", (root / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    for text in sections:
        heading, _, body = text.partition("\n")
        if parsed := re.fullmatch(rf"{re.escape(version)} \((\d{{4}}-\d\d-\d\d|unreleased)\)", heading.strip()):
            if not body.strip():
                raise Disagreement(f"CHANGELOG.md says nothing under {heading!r}")
            return parsed.group(1), body.strip() + "\n"
    headings = ", ".join(repr(text.partition("\n")[0]) for text in sections[:3]) or "none"
    raise Disagreement(f"CHANGELOG.md has no heading '## {version} (YYYY-MM-DD)'; its first are {headings}")


def check(root: Path, tag: str | None) -> str:
    """The version, where everything agrees."""
    version = version_of(root)
    if f"\nversion: {version}\n" not in (root / "CITATION.cff").read_text():
        raise Disagreement(
            f"pyproject.toml has version {version}, CITATION.cff another; write 'version: {version}' there"
        )
    date, _ = section(root, version)
    if tag is not None and tag != f"v{version}":
        raise Disagreement(
            f"the tag is {tag!r}, but pyproject.toml has version {version}; the tag must be 'v{version}'"
        )
    if tag is not None and date == "unreleased":
        raise Disagreement(f"CHANGELOG.md calls {version} unreleased; write its date: '## {version} (YYYY-MM-DD)'")
    return version


def main(argv: list[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(prog=".ci/release.py", description="Checks a release, and prints its text.")
    parser.add_argument("what", choices=["check", "notes"])
    parser.add_argument("--tag", help="the tag that is released, such as v0.1.0")
    arguments = parser.parse_args(argv)
    try:
        version = check(root, arguments.tag)
        print(f"svdrd {version}: all agree\n" if arguments.what == "check" else section(root, version)[1], end="")
    except Disagreement as error:
        sys.exit(f"release: {error}")


if __name__ == "__main__":
    main()
