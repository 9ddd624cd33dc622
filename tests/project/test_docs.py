"""README and docs: their Python runs, their tables are those of the CSV, their links and paths lead somewhere."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import svdrd

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
LOSS = ROOT / "docs" / "guide" / "loss.md"

if not LOSS.exists() or not (ROOT / "CONTRIBUTING.md").exists():
    pytest.skip("the documentation is not beside these tests", allow_module_level=True)

PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "demo/**/*.md", ".github/*.md")
    for page in ROOT.glob(pattern)
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# A path of this repository: it begins with one of its folders.
FOLDERS = ("svdrd", "csrc", "docs", "tests", "benchmarks", "examples", "demo", ".github", ".ci")
# Written as a path and meant as a pattern, or made by a command.
MADE = re.compile(r"[*{}<>|]|\.\.\.|[A-Z]{4,}|^demo/(run|.*\.png)|^svdrd/_")


def git(*arguments: str) -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout of git")
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_the_readmes_example() -> None:
    (use,) = blocks(README)
    assert len([line for line in use.splitlines() if line]) == 6
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(use, names)
    assert torch.isfinite(names["loss"])
    assert torch.isfinite(names["x_hat"].grad).all()


def test_where_autograd_of_an_svd_gives_nan() -> None:
    call, loop, lapack = blocks(LOSS)
    torch.manual_seed(0)
    names: dict[str, Any] = {"x_hat": torch.rand(2, 8, 8), "x": torch.rand(2, 8, 8)}
    exec(call, names)
    assert names["loss"] > 0
    names = {}
    exec(loop, names)
    assert all(torch.isfinite(parameter).all() for parameter in names["model"].parameters())

    exec(lapack, names)
    one_step = "\n".join(line for line in loop.splitlines() if not line.startswith("criterion"))
    exec(one_step.replace("range(100)", "range(1)"), names)
    assert all(parameter.isnan().all() for parameter in names["model"].parameters())


def test_one_flat_block_is_enough_for_nan() -> None:
    names: dict[str, Any] = {"torch": torch}
    exec(blocks(LOSS)[2], names)
    torch.manual_seed(0)
    x = torch.rand(1, 3, 64, 64)
    x_hat = (x + 0.01 * torch.randn_like(x)).requires_grad_()
    names["criterion"](x_hat, x).backward()
    assert torch.isfinite(x_hat.grad).all()
    x_hat.data[0, 0, :8, :8] = 0.5
    x_hat.grad = None
    names["criterion"](x_hat, x).backward()
    assert x_hat.grad.isnan().any()
    x_hat.grad = None
    svdrd.BasisLoss(block_size=8)(x_hat, x).backward()
    assert torch.isfinite(x_hat.grad).all()


def photographs(folder: Path) -> None:
    """Four pictures and the study's codecs, where the study's measurement looks for them."""
    from PIL import Image

    (folder / "docs").symlink_to(ROOT / "docs")
    (folder / "photographs" / "cid22").mkdir(parents=True)
    for seed in range(4):
        pixels = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed))
        pixels = torch.nn.functional.interpolate(pixels[None], size=256, mode="bilinear")[0]
        picture = Image.fromarray((255 * pixels).byte().permute(1, 2, 0).contiguous().numpy())
        picture.save(folder / "photographs" / "cid22" / f"{seed}.ppm")


def checkpoint(folder: Path) -> None:
    """One of a training, where the base codec's page takes it from."""
    (folder / "stage3").mkdir()
    state = dict.fromkeys(("epoch", "step", "state_dict", "loss", "versions", "optimizer"), 0)
    torch.save(state, folder / "stage3" / "checkpoint.pth.tar")


def settled(folder: Path) -> None:
    """A checkpoint, where the page about the base codecs of the second study takes one from."""
    from svdrd.compress import load_codec

    (folder / "settled").mkdir()
    codec = load_codec("bmshj2018-hyperprior", init="random", N=8, M=12)
    torch.save({"state_dict": codec.state_dict()}, folder / "settled" / "checkpoint.pth.tar")


# What a page's Python finds in its folder; of what takes long, one round.
FOUND = {
    "docs/studies/compact_codec.md": photographs,
    "docs/studies/compact_codec/start/README.md": checkpoint,
    "docs/studies/dose_response/base/README.md": settled,
}
SHORTER = {"docs/studies/compact_codec.md": ("range(6)", "range(1)")}
# These pages have tests of their own above, which look at what their Python computes.
ABOVE = ("README.md", "docs/guide/loss.md")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(ROOT / page) and page not in ABOVE])
def test_python_on_the_pages_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("compressai", reason="pip install 'svdrd[compress]' brings what these pages are about")
    FOUND.get(page, lambda folder: None)(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"torch": torch}
    threads = torch.get_num_threads()
    try:
        for block in blocks(ROOT / page):
            exec(block.replace(*SHORTER.get(page, ("", ""))) if page in SHORTER else block, names)
    finally:
        torch.set_num_threads(threads)


def commands(page: str) -> list[list[str]]:
    """The words of each ``svdrd COMMAND ...`` and ``make TARGET ...`` in the blocks of a page."""
    found = []
    for block in re.findall(r"^```\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.search(r"(?:^|-m |^[A-Z_]+=\S+ )((?:svdrd|make) .*)", line)
            if command and not line.rstrip().endswith("..."):
                found.append(shlex.split(command[1], comments=True))
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_on_the_pages_have_these_options(page: str) -> None:
    """They are parsed, not run: most of them train."""
    from svdrd.__main__ import COMMANDS
    from svdrd.compress.commands import OneLineParser

    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, *words in commands(page):
        if program == "make":
            assert {word for word in words if "=" not in word} <= targets, words
            continue
        assert words[0] in COMMANDS
        if words[0] != "info":
            parser = OneLineParser()
            importlib.import_module(f"svdrd.compress.commands.{words[0]}").add_arguments(parser)
            parser.parse_args(words[1:])


def reference(page: str) -> list[str]:
    """The names whose docstrings `make docs` writes into a page of docs/api."""
    text = (ROOT / "docs" / "api" / page).read_text()
    return re.findall(r"^\.\. auto(?:function|class|exception):: (\S+)$", text, re.MULTILINE)


REFERENCE = [*reference("ops.md"), *reference("compress.md")]


def example(name: str) -> str:
    """The code below ``Example::`` in the docstring of a public name; none of an exception."""
    package, _, own = name.rpartition(".")
    docstring = inspect.getdoc(getattr(importlib.import_module(package), own)) or ""
    return textwrap.dedent("".join(re.findall(r"^Example::\n\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)))


@pytest.mark.parametrize("name", [name for name in REFERENCE if name != "svdrd.compress.BadInput"])
def test_the_docstrings_example_runs(name: str) -> None:
    if name.startswith("svdrd.compress"):
        pytest.importorskip("compressai", reason="pip install 'svdrd[compress]' brings what the example is about")
    torch.manual_seed(0)
    a, x = torch.rand(5, 3, dtype=torch.float64), torch.rand(1, 3, 32, 32)
    x_hat = x.flip(-1).requires_grad_()
    net = lambda x: {"x_hat": x_hat * 1.0, "likelihoods": {"y": torch.full((1, 4), 0.5)}}  # noqa: E731
    *statements, last = example(name).strip().splitlines()
    names: dict[str, Any] = {"svdrd": svdrd, "torch": torch, "a": a, "x": x, "x_hat": x_hat, "net": net}
    exec("\n".join([*statements, last]), names)
    if last.endswith(".backward()"):
        assert torch.isfinite(x_hat.grad).all()
        assert x_hat.grad.any()
    if name == "svdrd.ops.polar_factor":
        torch.testing.assert_close(eval(last, names), torch.eye(3, dtype=torch.float64))
    if name == "svdrd.ops.svd":
        torch.testing.assert_close(eval(last, names), a)
    if name == "svdrd.compress.lambda_for":
        assert eval(last, names) == float(last.partition("# ")[2])


def test_the_readme_is_two_screens() -> None:
    assert len(README.read_text().splitlines()) <= 140


@pytest.mark.parametrize("page", PAGES)
def test_lines_break_at_120_characters(page: str) -> None:
    """Tables cannot be broken, and neither can generated lines."""
    text = re.sub(
        r"<!-- \w+ table: begin -->.*?<!-- \w+ table: end -->", "", (ROOT / page).read_text(), flags=re.DOTALL
    )
    long = [line for line in text.splitlines() if len(line) > 120 and not line.lstrip().startswith("|")]
    assert not long


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if "![" in (ROOT / page).read_text()])
def test_figures_have_an_alternative_text(page: str) -> None:
    texts = re.findall(r"!\[([^\]]*)\]\(", (ROOT / page).read_text())
    assert texts
    assert not [text for text in texts if len(text) < 20]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    missing = []
    for target in LINK.findall(FENCE.sub("", path.read_text())):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        to = (path.parent / file).resolve() if file else path
        if not to.exists() or (anchor and anchor not in anchors(to)):
            missing.append(target)
    assert not missing


def paths_named(text: str) -> set[str]:
    """What looks like a path of this repository: in code spans, and in blocks of commands."""
    fences = " ".join(FENCE.findall(text))
    words = " ".join([*CODE.findall(FENCE.sub("", text)), fences]).split()
    candidates = {word.strip("\"'(),:;`").partition("::")[0] for word in words}
    return {
        word
        for word in candidates
        if word.partition("/")[0] in FOLDERS and "/" in word and not MADE.search(word) and "=" not in word
    }


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_paths_exist(page: str) -> None:
    """CHANGELOG.md may name what was."""
    assert not [name for name in paths_named((ROOT / page).read_text()) if not (ROOT / name).exists()]


def test_paths_in_comments_and_docstrings_exist() -> None:
    """A file that is named whole, from the top or, in C++, from csrc. CompressAI has an examples/train.py, too."""
    file = re.compile(r"(?<![\w/.<-])((?:\w+/)+\w+\.(?:py|h|cpp|cuh?|md|yaml))\b")
    missing = set()
    for source in git(
        "ls-files", "*.py", "*.h", "*.cpp", "*.cu", "*.cuh", "*.txt", "*.yml", "*.toml", "Makefile", ".ci"
    ):
        for name in file.findall((ROOT / source).read_text()):
            places = (ROOT, ROOT / "csrc") if source.startswith("csrc/") else (ROOT,)
            named = name.startswith(tuple(f"{folder}/" for folder in FOLDERS)) or source.startswith("csrc/")
            if named and not MADE.search(name) and not any((place / name).exists() for place in places):
                missing.add((source, name))
    assert {entry for entry in missing if entry[1] != "examples/train.py"} == set()


@pytest.mark.parametrize(("package", "page"), [("svdrd.ops", "ops"), ("svdrd", "ops"), ("svdrd.compress", "compress")])
def test_every_public_name_is_in_the_reference(package: str, page: str) -> None:
    """`make docs` writes its docstring there."""
    if package == "svdrd.compress":
        pytest.importorskip("compressai", reason="pip install 'svdrd[compress]' brings what the reference describes")
    names = {f"{package}.{name}" for name in importlib.import_module(package).__all__ if not name.startswith("__")}
    assert names <= set(reference(f"{page}.md"))


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in LINK.findall(index.read_text())}
    assert set((ROOT / "docs").rglob("*.md")) - {index} <= linked


def test_the_citation_has_the_packages_version() -> None:
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_tables_and_facts_are_those_of_the_newest_run() -> None:
    report = pytest.importorskip("benchmarks.report", reason="pip install 'svdrd[bench]' brings what it needs")
    from benchmarks import measure

    rows = report.run_of(measure.read(measure.RESULTS / "cpu.csv"), None)

    def between(page: Path) -> str:
        return page.read_text().split(report.BEGIN)[1].split(report.END)[0].strip()

    assert between(ROOT / "docs" / "benchmarks.md") == report.markdown(rows, report.newest_runs(report.BESIDE))
    assert between(README) == report.headlines(rows)

    def row(provider: str, n: int, kind: str) -> measure.Row:
        wanted = (provider, "basis_loss", "both", "float32", n, n, kind)
        for row in rows:
            key = (row.provider, row.op, row.mode, row.dtype, row.m, row.n, report.kind(row))
            if key == wanted and row.batch > 1:
                return row
        raise LookupError(wanted)

    text = " ".join(README.read_text().split())
    small, whole = (report.ratio(rows, row(report.OURS, n, "natural")) for n in (8, 256))
    assert f"it runs {small:.1f} times as fast" in text
    assert f"and {whole:.1f} times as fast over whole 256 x 256 patches" in text
    ours, theirs = (row(provider, 8, "patches") for provider in (report.OURS, report.BASELINE))
    assert f"Over all {ours.batch} 8 x 8 blocks of {ours.batch // 3072} RGB patches" in text
    assert f"wrong by {theirs.error:.0e}" in text
    assert f"right to {ours.error:.0e}" in text
    ours, theirs = (row(provider, 128, "natural") for provider in (report.OURS, report.BASELINE))
    assert f"within {ours.error:.0e} of float64" in text
    assert f"within {theirs.error:.0e}." in text


def test_nothing_named_is_left_out_of_the_repository() -> None:
    """A file that git ignores would be missing in a clone."""
    named = {name for page in PAGES if page != "CHANGELOG.md" for name in paths_named((ROOT / page).read_text())}
    assert not git("check-ignore", *sorted(named))


def test_the_map_of_the_folders_is_whole() -> None:
    """CONTRIBUTING's tree names what is there, and every folder of Python, C++ and documentation."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (tree,) = re.findall(r"^```\n(svdrd/\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    named: set[str] = set()
    parents: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        if depth > 5:  # a description that goes on
            continue
        name = line.split()[0]
        parents[depth:] = [name]
        named.add("".join(parents))
    assert not [name for name in named if not (ROOT / name).exists()]
    kinds = (".py", ".h", ".cu", ".cpp", ".md", ".csv", ".png", ".yaml")
    folders = {f"{Path(file).parent.as_posix()}/" for file in git("ls-files") if file.endswith(kinds) and "/" in file}
    folders = {folder for folder in folders if not folder.startswith(("docs/studies/", ".github/", "tests/compress/"))}
    assert not folders - named
