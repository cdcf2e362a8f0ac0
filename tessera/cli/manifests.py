"""Files of manifests, as people write and pipe them: their bytes, their documents, and the objects in these.

One mistake doesn't hide the rest: what can be read is yielded, what can't is an error that names file, document and line.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from tessera.cli.yamlreader import DEEPEST, Document, Object, YamlError, documents
from tessera.model.errors import TesseraError

LARGEST: Final = 16 * 1024 * 1024
"""Bytes of one file. An object in etcd has at most 1.5 MiB; rendered charts hold many."""
MOST_FILES: Final = 10_000
STDIN: Final = "-"
_SUFFIXES: Final = (".yaml", ".yml", ".json")
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class ManifestError(TesseraError):
    """Something is no manifest: the message names the file, the document and the line."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object of a file; a List has been taken apart.

    Attributes:
        where: for messages: ``app.yaml: document 2 (line 14)``.
        value: the object, which is the caller's to change.
    """

    where: str
    value: Object

    @property
    def kind(self) -> str:
        """The object's kind."""
        return str(self.value["kind"])

    @property
    def name(self) -> str:
        """The object's name, or the beginning of it that the API server will complete, or ""."""
        return self._text("name") or self._text("generateName")

    @property
    def namespace(self) -> str:
        """The namespace that the object names, or ""."""
        return self._text("namespace")

    def _text(self, field: str) -> str:
        metadata = self.value.get("metadata")
        found = metadata.get(field) if isinstance(metadata, dict) else None
        return found if isinstance(found, str) else ""


def read(name: str, *, stdin: BinaryIO) -> Iterator[Manifest | ManifestError]:
    """Read what a command line names.

    Args:
        name: a file, a folder (its .yaml, .yml and .json files in order of name) or ``-``.
        stdin: read for ``-``.

    Yields:
        In order, objects and what could not be read.
    """
    try:
        for title, path in _files(name):
            yield from _objects(_text(title, path, stdin), title)
    except ManifestError as error:
        yield error


def _files(name: str) -> Iterator[tuple[str, str]]:
    if name == STDIN or not os.path.isdir(name):
        yield ("standard input" if name == STDIN else name), name
        return
    try:
        found = sorted(entry for entry in os.listdir(name) if entry.endswith(_SUFFIXES))
    except OSError as error:
        raise ManifestError(f"{name} can't be read: {error.strerror}") from error
    if not found or len(found) > MOST_FILES:
        raise ManifestError(f"{name} holds {len(found)} files named *{', *'.join(_SUFFIXES)}; name 1 to {MOST_FILES}")
    for entry in found:
        path = os.path.join(name, entry)
        yield path, path


def _text(title: str, path: str, stdin: BinaryIO) -> str:
    try:
        if path == STDIN:
            data = stdin.read(LARGEST + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # a name with a NUL in it is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise ManifestError(f"{title} can't be read: {reason}") from error
    if len(data) > LARGEST:
        raise ManifestError(f"{title}: more than {LARGEST} bytes; split it into files of less")
    try:
        # PowerShell redirects into UTF-16, with a mark in front.
        return data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{title}: line {line}: not UTF-8") from error


def _objects(text: str, title: str) -> Iterator[Manifest | ManifestError]:
    for found in documents(text):
        if isinstance(found, YamlError):
            rest = "; nothing after it is read" if found.ends else ""
            yield ManifestError(f"{title}: document {found.document}, line {found.line}: {found}{rest}")
        else:
            yield from _taken_apart(found, f"{title}: document {found.number} (line {found.line})")


def _taken_apart(document: Document, where: str) -> Iterator[Manifest | ManifestError]:
    if not isinstance(document.value, dict):
        what = "list" if isinstance(document.value, list) else "single value"
        yield ManifestError(f"{where} is a {what}; write an object with apiVersion, kind and metadata")
        return
    yield from _items(document.value, where, 0)


def _items(value: Object, where: str, depth: int) -> Iterator[Manifest | ManifestError]:
    kind, items = value.get("kind"), value.get("items")
    if not isinstance(kind, str) or not kind:
        yield ManifestError(f"{where} has no kind; write what it is, such as kind: Pod")
        return
    if not kind.endswith("List") or not isinstance(items, list):
        yield Manifest(where, value)
        return
    for number, item in enumerate(items):
        within = f"{where}: items[{number}]"
        if not isinstance(item, dict) or depth > DEEPEST:
            yield ManifestError(f"{within} is no object")
            continue
        if kind != "List":
            # The API server leaves both out where the list says them already, as in a PodList.
            item = {"apiVersion": value.get("apiVersion", "v1"), "kind": kind.removesuffix("List")} | item  # noqa: PLW2901
        yield from _items(item, within, depth + 1)
