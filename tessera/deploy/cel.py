"""Pieces of CEL (the expression language of the API server's admission) that conditions and policies are put together from."""

from __future__ import annotations

import json
from collections.abc import Iterable


def text(value: str) -> str:
    """A string literal."""
    return "'" + json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("'", "\\'") + "'"


def listed(values: Iterable[str]) -> str:
    """A list of string literals, in a fixed order."""
    return f"[{', '.join(text(value) for value in sorted(set(values)))}]"


def either(path: str, empty: str) -> str:
    """What stands at a path, or something empty: ``spec.containers`` is null where a client sent none."""
    return f"(has({path}) && {path} != null ? {path} : {empty})"
