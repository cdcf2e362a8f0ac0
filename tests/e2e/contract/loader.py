"""Takes test functions that were written against a fake, to run them against the real thing.

A test module beside the fake states what the real thing does too, by way of its fixtures. Here the same functions are
collected again, below a conftest whose fixtures give the real thing. Nothing in the functions changes.
"""

from __future__ import annotations

import importlib.util
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


def contract_of(path: str, *, apart: Collection[str] = ()) -> dict[str, object]:
    """Return the tests and fixtures of a module.

    Args:
        path: the module, below the tests' folder.
        apart: names of tests that can't be asked of the real thing; docs/fakes.md says why.

    Raises:
        LookupError: there is no such test (any more).
    """
    module = load(path)
    found: dict[str, object] = {}
    left = set(apart)
    for name, each in vars(module).items():
        if name in left:
            left.remove(name)
        elif name.startswith("Test"):
            own = left & set(vars(each))
            left -= own
            found[name] = type(name, (each,), dict.fromkeys(own)) if own else each
        elif name.startswith("test_") or type(each).__name__ == "FixtureFunctionDefinition":
            found[name] = each
    if left:
        message = f"{path} has no {', '.join(sorted(left))}"
        raise LookupError(message)
    return found
