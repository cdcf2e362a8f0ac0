"""YAML as kubectl reads it, one document at a time, with lines, and bounded whatever is in it.

PyYAML's own loader resolves scalars by other rules than the API server's clients do (`12:30` is a number to it and `y` is
not a boolean), lets the last of two equal keys win, shares what an alias names, and recurses as deep as the text goes.
So only its scanner and parser are used, and values are made here from their events. Rules of scalars:
sigs.k8s.io/yaml, goyaml.v2/resolve.go; keys become texts as in its yaml.go.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

import yaml

from tessera.model.errors import TesseraError
from tessera.report.plaintext import short
from webhook.admission.patch import Json

DEEPEST: Final = 100
"""Levels of nesting; pod templates inside the deepest CRD have about 20."""
MOST_NODES: Final = 500_000
"""Values in one document, what aliases stand for counted each time."""
MOST_DOCUMENTS: Final = 20_000
_SHOWN: Final = 60

Object = dict[str, Json]


class YamlError(TesseraError):
    """A document that can't be read.

    Attributes:
        line: in its text, from 1.
        document: which one in its text, from 1.
        ends: nothing after it can be read either.
    """

    def __init__(self, problem: str, *, line: int, document: int, ends: bool = False) -> None:
        """Keep the parts: whoever knows the file's name writes the sentence."""
        self.line = line
        self.document = document
        self.ends = ends
        super().__init__(problem)


@dataclass(frozen=True, slots=True)
class Document:
    """One document that is not empty.

    Attributes:
        number: which one in its text, from 1.
        line: where it begins, from 1.
        value: plain, made of mappings with texts as keys, lists, texts, numbers, booleans and None; nothing in it is shared.
    """

    number: int
    line: int
    value: Json


def documents(text: str) -> Iterator[Document | YamlError]:
    """Read the documents of a text, YAML or JSON.

    Args:
        text: one or more documents; a JSON text may hold several objects one after the other, as kubectl takes it.

    Yields:
        In order, what was read, or why it was not. After a mistake in the syntax nothing follows.
    """
    if text.lstrip()[:1] == "{":
        found = _json(text)
        if found is not None:
            yield from found
            return
    yield from _Reader(text).documents()


class _Reader:
    def __init__(self, text: str) -> None:
        self._events = yaml.parse(text, Loader=_LOADER)
        self._text = text
        self._number = 0
        self._nodes = 0
        self._anchors: dict[str, _Anchor] = {}

    def documents(self) -> Iterator[Document | YamlError]:
        try:
            for event in self._events:
                if not isinstance(event, yaml.DocumentStartEvent):
                    continue
                self._begin(event)
                first = next(self._events)
                try:
                    value, _ = self._value(first, 0)
                except YamlError as error:
                    error.ends = error.ends or not self._skip()
                    yield error
                    if error.ends:
                        return
                    continue
                if value is not None:
                    yield Document(self._number, _line(first), value)
        except YamlError as error:
            yield error
        except yaml.reader.ReaderError as error:
            yield YamlError(
                f"not YAML: holds a character that YAML does not take (#x{_code(error):02x})",
                line=self._line_of(chr(_code(error))),
                document=max(self._number, 1),
                ends=True,
            )
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = "not YAML: " + ", ".join(part for part in (error.context, error.problem) if part)
            line = mark.line + 1 if mark else 1
            yield YamlError(problem, line=line, document=max(self._number, 1), ends=True)

    def _begin(self, event: yaml.Event) -> None:
        self._number += 1
        self._nodes = 0
        self._anchors = {}
        if self._number > MOST_DOCUMENTS:
            self._refuse(event, f"more than {MOST_DOCUMENTS} documents", ends=True)

    def _skip(self) -> bool:
        """Go on to the end of a document whose reading was given up; False where that is not to be had for little."""
        depth = 0
        try:
            for count, event in enumerate(self._events):
                if isinstance(event, yaml.DocumentEndEvent):
                    return True
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                if depth > DEEPEST or count > MOST_NODES:
                    return False
        except yaml.YAMLError:
            return False
        return False

    def _value(self, event: yaml.Event, depth: int) -> tuple[Json, int]:
        """What begins with an event, and how many levels it has."""
        before = self._nodes
        self._count(1, event)
        if depth > DEEPEST:
            self._refuse(event, f"is nested more than {DEEPEST} levels deep", ends=True)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        value: Json
        if isinstance(event, yaml.ScalarEvent):
            value, height = self._scalar(event), 0
        elif isinstance(event, yaml.SequenceStartEvent):
            value, height = self._sequence(depth)
        else:
            value, height = self._mapping(depth)
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            self._anchors[anchor] = _Anchor(value, self._nodes - before, height)
        return value, height

    def _sequence(self, depth: int) -> tuple[list[Json], int]:
        items: list[Json] = []
        height = 0
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            item, below = self._value(event, depth + 1)
            items.append(item)
            height = max(height, below + 1)
        return items, height

    def _mapping(self, depth: int) -> tuple[Object, int]:
        members: Object = {}
        merged: list[Json] = []
        height = 0
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            merge = isinstance(event, yaml.ScalarEvent) and event.value == "<<" and bool(event.implicit[0])
            key = None if merge else self._key(event)
            if key in members:
                self._refuse(event, f"the key {_cut(key or '')} stands twice")
            value, below = self._value(next(self._events), depth + 1)
            height = max(height, below + 1)
            if key is not None:
                members[key] = value
            else:
                merged += value if isinstance(value, list) else [value]
                if not all(isinstance(each, dict) for each in merged):
                    self._refuse(event, "<< takes a mapping, or a list of them")
        if not merged:
            return members, height
        # Members of its own win over merged ones, and earlier merged ones over later ones.
        whole: Object = {}
        for each in (*reversed(merged), members):
            whole.update(each if isinstance(each, dict) else {})
        return whole, height

    def _key(self, event: yaml.Event) -> str:
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._anchors:
            value = self._anchors[event.anchor].value
        elif isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
            if event.anchor is not None:
                self._anchors[event.anchor] = _Anchor(value, 1, 0)
        else:
            self._refuse(event, "a key is no plain value (is this a template that still has to be rendered?)")
        self._count(1, event)
        if isinstance(value, str):
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int | float):
            return f"{value:g}" if isinstance(value, float) else str(value)
        return self._refuse(event, "a key is empty" if value is None else "a key is no plain value")

    def _alias(self, event: yaml.AliasEvent, depth: int) -> tuple[Json, int]:
        name = event.anchor or ""
        anchor = self._anchors.get(name)
        if anchor is None:
            self._refuse(event, f"*{_cut(name)} is not defined before it is used")
        if depth + anchor.height > DEEPEST:
            self._refuse(event, f"is nested more than {DEEPEST} levels deep")
        self._count(anchor.size, event)
        return _copy(anchor.value), anchor.height

    def _scalar(self, event: yaml.ScalarEvent) -> Json:
        text, tag = event.value, event.tag
        if tag is None and not event.implicit[0]:
            return text
        short = "" if tag is None else tag.removeprefix("tag:yaml.org,2002:")
        if short not in _RESOLVED:
            return text
        value = resolve(text)
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(event, f"{_cut(text)} is no number that JSON has")
        if short and not isinstance(value, _RESOLVED[short]):
            self._refuse(event, f"{_cut(text)} is no {short}")
        return value

    def _count(self, nodes: int, event: yaml.Event) -> None:
        self._nodes += nodes
        if self._nodes > MOST_NODES:
            self._refuse(event, f"has more than {MOST_NODES} values, or aliases that stand for as many", ends=True)

    def _refuse(self, event: yaml.Event, problem: str, *, ends: bool = False) -> NoReturn:
        """Give a document up; where its size or depth is the reason, nobody reads on to find where it ends.

        (The scanner's time grows with the square of the depth: 100,000 brackets take it 20 s.)
        """
        raise YamlError(problem, line=_line(event), document=self._number, ends=ends)

    def _line_of(self, character: str) -> int:
        # libyaml counts the position in bytes, PyYAML's own reader in characters.
        return self._text.count("\n", 0, max(self._text.find(character), 0)) + 1


@dataclass(frozen=True, slots=True)
class _Anchor:
    value: Json
    size: int
    height: int


def resolve(text: str) -> Json:
    """What a plain (unquoted) scalar means to kubectl."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    plain = text.replace("_", "") if text[0] != "." else text
    number = _INTEGER.fullmatch(plain)
    if number is not None:
        sign, base, digits = number.group(1), number.group(2).lower(), number.group(3)
        radix = {"0x": 16, "0b": 2, "0o": 8, "0": 8, "": 10}[base]
        if all(character in "0123456789abcdef"[:radix] for character in digits.lower()) and len(digits) <= _DIGITS:
            value = int(sign + digits, radix)
            if -(1 << 63) <= value < 1 << 64:
                return value
    if _FLOAT.fullmatch(plain):
        found = float(plain)
        return found if math.isfinite(found) else text
    return text


def _json(text: str) -> list[Document] | None:
    r"""The documents of a text that is JSON through and through; None where it is not, or where a key stands twice.

    YAML takes nearly all of JSON, but not the pairs of ``\ud83d\ude00`` that JSON writes for one character.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)
    found: list[Document] = []
    at, line = 0, 1
    try:
        while (start := _blank_until(text, at)) < len(text):
            value, end = decoder.raw_decode(text, start)
            if not _bounded(value) or len(found) == MOST_DOCUMENTS:
                return None
            if "\\ud" in text[start:end].lower():
                json.dumps(value, ensure_ascii=False).encode()  # half a pair is refused here
            line += text.count("\n", at, start)
            found.append(Document(len(found) + 1, line, value))
            line += text.count("\n", start, end)
            at = end
    except (ValueError, RecursionError):
        return None
    return found


def _blank_until(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _once(pairs: list[tuple[str, Json]]) -> Object:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _bounded(value: Json) -> bool:
    """Whether a value keeps to the limits of depth and size."""
    nodes, level, here = 0, 0, [value]
    while here:
        nodes += len(here)
        if level > DEEPEST or nodes > MOST_NODES:
            return False
        level += 1
        here = [
            below
            for each in here
            if isinstance(each, dict | list)
            for below in (each.values() if isinstance(each, dict) else each)
        ]
    return True


def _copy(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _copy(below) for key, below in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _line(event: yaml.Event) -> int:
    mark = event.start_mark
    return mark.line + 1 if mark is not None else 1


def _code(error: yaml.reader.ReaderError) -> int:
    character = error.character
    return ord(character) if isinstance(character, str) else int(character)


def _cut(text: str) -> str:
    return repr(short(text, _SHOWN))


_LOADER: Final[type[yaml.SafeLoader]] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS: Final[dict[str, Json]] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}  # fmt: skip
_RESOLVED: Final[dict[str, tuple[type, ...]]] = {
    "": (object,), "bool": (bool,), "int": (int,), "float": (int, float), "null": (type(None),), "timestamp": (str,),
}  # fmt: skip
_INTEGER: Final = re.compile(r"([-+]?)(0[xX]|0[bB]|0[oO]|0(?=[0-9])|)([0-9a-fA-F]+)", re.ASCII)
_DIGITS: Final = 64
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_BLANK: Final = re.compile(r"[ \t\r\n]*")
