"""Objects as the fake API server holds them: plain JSON trees, and a few ways to reach into one.

The fake is generic over resources and has to keep fields that it doesn't know, so it works on trees instead of types.
Trees that are stored are never changed in place: a change starts from `copy`.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Object: TypeAlias = "dict[str, Json]"

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder()


def encode(value: Json) -> bytes:
    """Write a tree as compact JSON."""
    return _ENCODER.encode(value)


def decode(body: bytes) -> Json:
    """Read JSON.

    Raises:
        msgspec.DecodeError: it is none.
    """
    found: Json = _DECODER.decode(body)
    return found


def copy(tree: Object) -> Object:
    """Return a deep copy; through JSON, which is the fastest way for plain trees."""
    found: Object = _DECODER.decode(_ENCODER.encode(tree))
    return found


def dig(tree: Json, *path: str) -> Json:
    """Return what stands at the path, None where it doesn't go that far."""
    for part in path:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(part)
    return tree


def text(tree: Json, *path: str) -> str:
    """Return the text at the path, "" where there is none."""
    found = dig(tree, *path)
    return found if isinstance(found, str) else ""


def whole(tree: Json, *path: str) -> int | None:
    """Return the integer at the path, None where there is none."""
    found = dig(tree, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def table(tree: Json, *path: str) -> Object:
    """Return the mapping at the path, an empty one (not attached) where there is none."""
    found = dig(tree, *path)
    return found if isinstance(found, dict) else {}


def rows(tree: Json, *path: str) -> list[Object]:
    """Return the mappings in the list at the path; anything else in it is left out."""
    found = dig(tree, *path)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def texts(tree: Json, *path: str) -> list[str]:
    """Return the texts in the list at the path."""
    found = dig(tree, *path)
    return [row for row in found if isinstance(row, str)] if isinstance(found, list) else []


def labels(tree: Json, *path: str) -> dict[str, str]:
    """Return the texts of the mapping at the path, by name."""
    return {key: value for key, value in table(tree, *path).items() if isinstance(value, str)}


def own(tree: Object, *path: str) -> Object:
    """Return the mapping at the path for writing; what is missing on the way is made."""
    for part in path:
        below = tree.get(part)
        if not isinstance(below, dict):
            below = {}
            tree[part] = below
        tree = below
    return tree


def put(tree: Object, name: str, value: Json) -> None:
    """Set a field, or take it away where there is nothing to set: the API leaves empty fields out."""
    if value is None or value in ({}, [], ""):
        tree.pop(name, None)
    else:
        tree[name] = value
