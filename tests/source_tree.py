"""The source tree around the tests, for those that are about it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "setup.py").exists():
    pytest.skip("the tests run without the source tree", allow_module_level=True)


def load(name: str) -> ModuleType:
    """A module beside setup.py, or setup.py itself."""
    spec = importlib.util.spec_from_file_location(f"softreg_{name}", ROOT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
