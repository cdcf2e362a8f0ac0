"""Takes test functions that were written against a fake, to run them against the real thing.

A test module beside the fake states what the real thing does too, by way of its fixtures. Here the same functions are
collected again, below a conftest whose fixtures give the real thing. Nothing in the functions changes.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).resolve().parents[2]


def load(path: str) -> ModuleType:
    """Import a module of the tests' folder by its path, with pytest's assertion rewriting."""
    file = TESTS / path
    name = f"contract_of.{file.parent.name}.{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    # Finders look for the last part of the name in the folder given; pytest's rewrites what looks like a test.
    specs = (finder.find_spec(name, [str(file.parent)], None) for finder in sys.meta_path)
    spec = next(each for each in specs if each is not None)
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def contract_of(path: str, *, without: Collection[str] = ()) -> dict[str, object]:
    """Return the tests and fixtures of a module, except tests that take certain fixtures of the fake alone."""
    found: dict[str, object] = {}
    for name, each in vars(load(path)).items():
        if name.startswith("test_"):
            if not set(without) & set(inspect.signature(each).parameters):
                found[name] = each
        elif name.startswith("Test") or type(each).__name__ == "FixtureFunctionDefinition":
            found[name] = each
    return found
