"""The scripts in examples/, as modules."""

from pathlib import Path
from types import ModuleType

from tests.scripts import script

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> ModuleType:
    return script(EXAMPLES / f"{name}.py")
