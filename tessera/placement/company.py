"""Who may share a GPU with whom: pods name classes of their own, and classes that they won't sit beside.

A pod that answers people in milliseconds and one that trains all night fit on one GPU by every number and still disturb
each other. It works both ways: who avoids a class does not go where it is, and that class does not come where he is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from tessera.model.errors import RequestError
from tessera.model.names import Names

MOST_CLASSES: Final = 16
"""Classes that one pod may have or avoid."""
_CLASS: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)


class Company(msgspec.Struct, frozen=True, gc=False):
    """A pod's classes, and those it avoids; both in order, without repetition."""

    classes: tuple[str, ...] = ()
    avoids: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether it matters to anybody."""
        return bool(self.classes or self.avoids)

    def bears(self, other: Company) -> bool:
        """Whether both may be on one GPU."""
        return not (set(self.avoids) & set(other.classes) or set(other.avoids) & set(self.classes))


ANYBODY: Final = Company()


def company(annotations: Mapping[str, str] | None, names: Names) -> Company:
    """Read a pod's annotations.

    Raises:
        RequestError: a class that is no name, or too many.
    """
    found = annotations or {}
    if names.gpu_class not in found and names.gpu_avoid_class not in found:
        return ANYBODY
    return Company(_classes(found, names.gpu_class), _classes(found, names.gpu_avoid_class))


def _classes(annotations: Mapping[str, str], name: str) -> tuple[str, ...]:
    parts = {part.strip() for part in annotations.get(name, "").split(",")} - {""}
    wrong = next((part for part in sorted(parts) if not _CLASS.fullmatch(part)), None)
    if wrong is not None:
        raise RequestError(
            f"annotation {name} has the class {wrong[:64]!r}",
            fix="write lower-case names of letters, digits and dashes",
        )
    if len(parts) > MOST_CLASSES:
        raise RequestError(f"annotation {name} has {len(parts)} classes", fix=f"write at most {MOST_CLASSES}")
    return tuple(sorted(parts))
