"""The daemons' console scripts: each part has its extra, and whoever lacks that is told in one line.

A part is loaded by name when it is called, so that none costs the others' memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import MappingProxyType
from typing import Final

PARTS: Final = MappingProxyType(
    {
        "webhook": ("webhook.admission.main", "webhook"),
        "extender": ("webhook.extender.main", "webhook"),
        "node": ("deviceplugin.main", "node"),
    }
)
"""By name: the part's module, which has a `main`, and the extra with what it needs."""

FAILED: Final = 2


def webhook() -> int:
    """``tessera-webhook``."""
    return _enter("webhook")


def extender() -> int:
    """``tessera-extender``."""
    return _enter("extender")


def node() -> int:
    """``tessera-node``."""
    return _enter("node")


def _enter(name: str) -> int:
    module, extra = PARTS[name]
    try:
        main: Callable[[], int] = import_module(module).main
        return main()
    except ModuleNotFoundError as error:
        sys.stderr.write(f"tessera-{name}: {error}; in a checkout: pip install '.[{extra}]'\n")
        return FAILED
