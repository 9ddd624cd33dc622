"""The house as its imports show it: each layer knows only those below, and no two modules need each other."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the bottom to the top; modules of one row are side by side and do not know each other.
# A name stands for a module, or for a folder with all that is in it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("svdrd.first_use", "svdrd.reference"),
    ("svdrd.backends",),
    ("svdrd.dispatch",),
    ("svdrd.ops",),
    ("svdrd.losses",),
    ("svdrd",),
    ("svdrd.environment",),
    ("svdrd.compress.errors", "svdrd.compress.showing"),
    ("svdrd.compress.options", "svdrd.compress.files", "svdrd.compress.compressai"),
    ("svdrd.compress.devices", "svdrd.compress.versions", "svdrd.compress.criterion"),
    ("svdrd.compress.codecs", "svdrd.compress.images"),
    ("svdrd.compress",),
    ("svdrd.compress.train", "svdrd.compress.evaluation"),
    ("svdrd.compress.comparison",),
    ("svdrd.compress.study",),
    ("svdrd.compress.commands",),
    ("svdrd.__main__",),
)
FOLDERS = sorted({path.parent for path in (ROOT / "svdrd").rglob("*.py")})


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "svdrd").rglob("*.py"))}


def imported(source: str, modules: set[str]) -> Iterator[str]:
    """The modules that ``source`` imports, wherever it does: at its top, in a function, for the type checker."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import of {node.module}"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name in modules:
                    yield name
                elif node.module in modules:
                    yield node.module


def layer(module: str, layers: tuple[tuple[str, ...], ...] = LAYERS) -> tuple[int, str]:
    """Height and name of the layer of a module: the longest name that it begins with."""
    found = [
        (len(name), height, name)
        for height, row in enumerate(layers)
        for name in row
        if module == name or (module.startswith(f"{name}.") and name not in ("svdrd", "svdrd.compress"))
    ]
    assert found, f"{module} is in no layer: give it a place in the table"
    _, height, name = max(found)
    return height, name


def graph(modules: dict[str, str]) -> dict[str, set[str]]:
    """For each module, given with its source, those that it imports."""
    return {name: set(imported(source, set(modules))) - {name} for name, source in modules.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules that need each other, in a row that ends where it began; none where there is no circle."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def upwards(edges: dict[str, set[str]], layers: tuple[tuple[str, ...], ...] = LAYERS) -> list[str]:
    """Imports of a layer above, or beside."""
    said = []
    for module, imports in sorted(edges.items()):
        height, name = layer(module, layers)
        for other in sorted(imports):
            other_height, other_name = layer(other, layers)
            if other_height > height or (other_height == height and other_name != name):
                said.append(f"{module} imports {other}")
    return said


@pytest.fixture(scope="module")
def house() -> dict[str, set[str]]:
    return graph({name: path.read_text() for name, path in MODULES.items()})


def test_no_circle(house: dict[str, set[str]]):
    assert circle(house) == []


def test_no_arrow_upwards(house: dict[str, set[str]]):
    assert upwards(house) == []


def test_every_layer_is_there():
    assert {name for row in LAYERS for name in row} <= set(MODULES)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_folder_says_what_lives_there(folder: Path):
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert docstring is not None
    assert len(docstring) > 40
    assert docstring[0].isupper() or docstring.startswith("svdrd")
    assert docstring.rstrip().endswith((".", ".``"))


def test_one_module_imports_compressai():
    """The others would show the warning that it silences."""
    importing = [
        name for name, path in MODULES.items() if re.search(r"^\s*(from|import) compressai\b", path.read_text(), re.M)
    ]
    assert importing == ["svdrd.compress.compressai"]


def test_a_circle_and_an_arrow_upwards_are_found():
    layers = (("a",), ("b", "c"))
    edges = graph({"a": "def f():\n    from c import d", "b": "import a", "c": "from b import x\nimport a", "c.d": ""})
    assert edges == {"a": {"c.d"}, "b": {"a"}, "c": {"a", "b"}, "c.d": set()}
    assert upwards(edges, layers) == ["a imports c.d", "c imports b"]
    assert circle({"a": {"b"}, "b": {"a"}}) != []
    assert circle(graph({"a": "if TYPE_CHECKING:\n    import b", "b": "from a import x"})) != []
