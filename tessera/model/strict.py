"""Strict YAML: text into a struct, every refusal with the key's path, its line and what would be valid.

msgspec checks types but knows neither lines nor neighbours of a misspelt key; PyYAML knows lines. Here they meet.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from tessera.model.errors import ConfigError, QuantityError
from tessera.model.quantity import whole

if TYPE_CHECKING:
    import yaml

LONGEST: Final = 1 << 20
"""A ConfigMap holds at most 1 MiB."""

Steps = tuple[str | int, ...]
"""A path into the document: keys of mappings and indices of lists."""

_S = TypeVar("_S", bound=msgspec.Struct)


class Document:
    """One YAML document: its plain value, and where in the text each part of it stands."""

    def __init__(self, text: str) -> None:
        """Read the text; an empty one is an empty mapping.

        Raises:
            ConfigError: too long, not YAML, a key that stands twice, or no mapping at the top.
        """
        if len(text) > LONGEST:
            raise ConfigError(f"config of {len(text)} characters; at most {LONGEST} fit into a ConfigMap")
        self._root: yaml.Node | None = None
        self.plain: dict[object, object] = {}
        if text.strip():
            self._read(text)

    def _read(self, text: str) -> None:
        import yaml  # noqa: PLC0415 - a MiB that an agent without a config file saves

        try:
            self._root = yaml.compose(text, Loader=yaml.SafeLoader)
            _refuse_twice(self._root)
            plain = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise ConfigError(f"config is not YAML: {' '.join(str(error).split())}") from error
        if plain is None:
            plain = {}
        if not isinstance(plain, dict):
            raise ConfigError(
                f"config is a {type(plain).__name__} at the top; write keys with values, such as 'domain: …'"
            )
        self.plain = plain

    def refusal(self, steps: Steps, problem: str) -> ConfigError:
        """The error for the value at a path: path, line, problem."""
        return ConfigError(f"{_dotted(steps) or 'config'}{self._at(steps)}: {problem}")

    def amount(self, steps: Steps, raw: object) -> int:
        """Read bytes at a path: a whole quantity, not negative, as the text has it (YAML itself would read 1_0 as 10)."""
        text = self._scalar(steps)
        value = raw if text is None else text
        try:
            found = whole(value if isinstance(value, str | int | float) else repr(value))
        except QuantityError as error:
            raise self.refusal(steps, str(error)) from error
        if found < 0:
            raise self.refusal(steps, f"{value!r} is negative")
        return found

    def convert(self, plain: object, kind: type[_S], above: Steps = ()) -> _S:
        """Turn the plain value at the path `above` into a struct.

        Raises:
            ConfigError: an unknown key, or a value of the wrong type or range.
        """
        try:
            return msgspec.convert(plain, kind, strict=True)
        except msgspec.ValidationError as error:
            text = str(error)
            found = _PATH.search(text)
            below = _steps(found.group(1), plain) if found else ()
            problem = _PATH.sub("", text)
            unknown = _UNKNOWN.fullmatch(problem)
            valid = _type_at(kind, below)
            if unknown:
                below = (*below, unknown.group(1))
                keys = [f.encode_name for f in valid.fields] if isinstance(valid, msgspec.inspect.StructType) else []
                problem = f"unknown key{nearest(unknown.group(1), keys)}"
            elif isinstance(valid, msgspec.inspect.LiteralType):
                problem += f"; valid are {', '.join(str(value) for value in valid.values)}"
            elif isinstance(valid, msgspec.inspect.EnumType):
                problem += f"; valid are {', '.join(str(member.value) for member in valid.cls)}"
            raise self.refusal((*above, *below), problem) from error

    def _scalar(self, steps: Steps) -> str | None:
        import yaml  # noqa: PLC0415 - as above

        node = self._find(steps)[0]
        return node.value if isinstance(node, yaml.ScalarNode) else None

    def _at(self, steps: Steps) -> str:
        """The line of the deepest part of a path that stands in the text, as `` (line 7)``."""
        line = self._find(steps)[1]
        return "" if line is None else f" (line {line + 1})"

    def _find(self, steps: Steps) -> tuple[yaml.Node | None, int | None]:
        import yaml  # noqa: PLC0415 - as above

        node, line = self._root, None
        for step in steps:
            if isinstance(node, yaml.MappingNode):
                pair = next(((k, v) for k, v in node.value if k.value == str(step)), None)
                if pair is None:
                    return None, line
                line, node = pair[0].start_mark.line, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                line = node.start_mark.line
            else:
                return None, line
        return node, line


def nearest(name: object, valid: Iterable[str]) -> str:
    """What to say after an unknown name: the closest valid one, else all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; valid are {', '.join(names)}" if names else ""


_PATH: Final = re.compile(r" - at `(?:key in )?\$([^`]*)`$")
_STEP: Final = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `([^`]*)`")


def _steps(text: str, plain: object) -> tuple[str | int, ...]:
    """Turn msgspec's ``.profiles[0].units`` into steps; ``[...]`` stands for some key of a mapping."""
    steps: list[str | int] = []
    here = plain
    for match in _STEP.finditer(text.replace("[...]", ".\0")):
        step: str | int = int(match.group(2)) if match.group(2) else match.group(1)
        if step == "\0":
            # msgspec does not say which key; with one key there is no doubt.
            if not isinstance(here, dict) or len(here) != 1:
                break
            step = next(iter(here))
        steps.append(step)
        if isinstance(here, dict):
            here = here.get(step)
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
    return tuple(steps)


def _type_at(kind: type[msgspec.Struct], steps: Steps) -> msgspec.inspect.Type:
    """The type that is valid at a path below `kind`."""
    info: msgspec.inspect.Type = msgspec.inspect.type_info(kind)
    for step in (*steps, None):
        while isinstance(info, msgspec.inspect.UnionType | msgspec.inspect.Metadata):
            info = info.types[0] if isinstance(info, msgspec.inspect.UnionType) else info.type
        if step is None:
            break
        if isinstance(info, msgspec.inspect.StructType):
            info = next(field.type for field in info.fields if field.encode_name == step)
        elif isinstance(info, msgspec.inspect.DictType):
            info = info.value_type
        elif isinstance(info, msgspec.inspect.VarTupleType):
            info = info.item_type
    return info


def _refuse_twice(root: yaml.Node | None) -> None:
    """A key that stands twice is a mistake that PyYAML forgives: the last one would win."""
    import yaml  # noqa: PLC0415 - as above

    todo, visited = [root], set[int]()
    while todo:
        node = todo.pop()
        if id(node) in visited:  # an alias leads to a node seen before, or back into itself
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = next((key for at, key in enumerate(keys) if key.value in {k.value for k in keys[:at]}), None)
            if twice is not None:
                raise ConfigError(f"{twice.value} (line {twice.start_mark.line + 1}): this key stands twice")
            todo += [value for _, value in node.value]


def _dotted(steps: tuple[str | int, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
