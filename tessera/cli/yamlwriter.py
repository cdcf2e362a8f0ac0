"""YAML as kubectl will read it again: keys in their order, no aliases, and texts in quotes that it would take for others.

PyYAML quotes what its own loader would resolve. kubectl's resolves more (`y`, `1e3`, `0o17`), so these are told to it here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Final

import yaml

from tessera.cli.yamlreader import Object

try:
    from yaml import CSafeDumper as _Base
except ImportError:  # PyYAML was built without libyaml: the same, some ten times slower
    from yaml import SafeDumper as _Base  # type: ignore[assignment]

_BOOLEAN: Final = re.compile(r"[yYnN]")
_NUMBER: Final = re.compile(r"[-+]?(0[xXbBoO][0-9a-fA-F_]+|\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")


class _Dumper(_Base):
    def ignore_aliases(self, _data: object) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    # Scripts stay legible: kubectl writes texts of several lines as blocks too.
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(_BOOLEAN.pattern + "$"), list("yYnN"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_NUMBER.pattern + "$"), list("-+.0123456789"))


def dump(value: Object) -> str:
    """Write one object."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=4096)


def diff(before: str, after: str, *, title: str, colour: bool) -> Iterator[str]:
    """The lines of a unified diff of two texts; none where they are equal.

    Args:
        before: as it was.
        after: as it is.
        title: of both, the second one's with what made the difference.
        colour: write escape sequences for a terminal.
    """
    for line in difflib.unified_diff(
        before.splitlines(), after.splitlines(), title, f"{title} (admitted)", lineterm=""
    ):
        code = _COLOURS.get(line[0]) if colour and line else None
        yield line if code is None else f"\x1b[{code}m{line}\x1b[0m"


_COLOURS: Final = {"+": 32, "-": 31, "@": 36}
