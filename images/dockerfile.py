"""Reads the Dockerfiles that this repository has: the instructions they use, and no others.

There is one list of steps for an image, the Dockerfile. Whoever has an engine gives it to the engine; `stages` runs the same
instructions without one. What isn't understood here is refused, never skipped: else the two images would differ.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from images.errors import ImageError

_FLAG: Final = re.compile(r"--([a-z]+)=(\S+)\s*")
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class Run:
    """A shell command; `caches` are folders that are kept from build to build and are no part of the image."""

    command: str
    caches: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Copy:
    """Files and folders, from the repository or from another stage.

    Attributes:
        sources: relative to the repository, or absolute in `stage`.
        target: absolute; ends in a slash where it is a folder.
        stage: "" for the repository.
    """

    sources: tuple[str, ...]
    target: str
    stage: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """One FROM and what follows it.

    Attributes:
        name: "" where nobody refers to it.
        base: name of an earlier stage, or "" for the base image.
        steps: what changes files, in order.
        config: of the image, as its configuration names it: Env, User, Entrypoint, Labels.
    """

    name: str
    base: str
    steps: tuple[Run | Copy, ...]
    config: Mapping[str, object]


def parse(text: str, *, name: str) -> tuple[Stage, ...]:
    """Read a Dockerfile.

    Args:
        text: of the file.
        name: of the file, for messages.

    Raises:
        ImageError: an instruction, or a form of one, that isn't known here.
    """
    return _Reader(name).read(text)


class _Reader:
    def __init__(self, name: str) -> None:
        self._name = name
        self._done: list[Stage] = []
        self._stage: tuple[str, str] | None = None
        self._steps: list[Run | Copy] = []
        self._config: dict[str, object] = {}

    def read(self, text: str) -> tuple[Stage, ...]:
        for line, instruction in _instructions(text):
            keyword, _, rest = instruction.partition(" ")
            try:
                self._take(keyword, rest.strip())
            except ValueError as error:
                raise ImageError(f"{self._name}:{line}: {error}") from None
        self._finish()
        if not self._done:
            raise ImageError(f"{self._name}: no FROM in it")
        return tuple(self._done)

    def _take(self, keyword: str, rest: str) -> None:
        if keyword == "FROM":
            self._finish()
            self._stage = self._from(rest)
            return
        if keyword == "ARG" and self._stage is None and rest == "BASE":
            return
        if self._stage is None:
            raise ValueError(f"{keyword} {rest} before the first FROM; only ARG BASE may stand there")
        match keyword:
            case "RUN":
                self._steps.append(_run(rest))
            case "COPY":
                self._steps.append(self._copy(rest))
            case "ENV":
                given = self._config.setdefault("Env", [])
                assert isinstance(given, list)  # noqa: S101  set here alone
                given += [f"{key}={value}" for key, value in _pairs(rest)]
            case "LABEL":
                self._config["Labels"] = dict(_pairs(rest))
            case "USER":
                self._config["User"] = rest
            case "ENTRYPOINT":
                self._config["Entrypoint"] = _words(rest)
            case _:
                raise ValueError(f"{keyword} is not known to this builder")

    def _from(self, rest: str) -> tuple[str, str]:
        words = rest.split()
        if len(words) not in (1, 3) or (len(words) == 3 and words[1] != "AS"):
            raise ValueError(f"FROM {rest} is neither 'FROM BASE' nor 'FROM BASE AS NAME'")
        stage = words[2] if len(words) == 3 else ""
        if words[0] == "${BASE}":
            return stage, ""
        if words[0] not in self._names:
            raise ValueError(f"FROM {words[0]}: no such stage; the only image that may be named is ${{BASE}}")
        return stage, words[0]

    def _copy(self, rest: str) -> Copy:
        flags, rest = _flags(rest)
        stage = flags.pop("from", "")
        if flags:
            raise ValueError(f"COPY --{next(iter(flags))} is not known to this builder")
        if stage and stage not in self._names:
            raise ValueError(f"COPY --from={stage}: no such stage before this one")
        *sources, target = rest.split()
        if not sources or not target.startswith("/"):
            raise ValueError(f"COPY {rest}: needs a source, and an absolute target")
        if len(sources) > 1 and not target.endswith("/"):
            raise ValueError(f"COPY {rest}: several sources need a target that ends in a slash")
        return Copy(tuple(sources), target, stage)

    @property
    def _names(self) -> set[str]:
        return {stage.name for stage in self._done if stage.name}

    def _finish(self) -> None:
        if self._stage is not None:
            name, base = self._stage
            self._done.append(Stage(name, base, tuple(self._steps), self._config))
        self._stage, self._steps, self._config = None, [], {}


def _instructions(text: str) -> list[tuple[int, str]]:
    """Lines joined where they end in a backslash, without comments; each with the number of its first line."""
    found: list[tuple[int, str]] = []
    parts: list[str] = []
    first = 0
    for number, line in enumerate(text.splitlines(), 1):
        plain = line.strip()
        if plain.startswith("#") or not plain:
            continue
        first = first if parts else number
        parts.append(plain.removesuffix("\\").rstrip())
        if not plain.endswith("\\"):
            found.append((first, " ".join(parts)))
            parts = []
    if parts:
        found.append((first, " ".join(parts)))
    return found


def _run(rest: str) -> Run:
    caches: list[str] = []
    while rest.startswith("--"):
        found = _FLAG.match(rest)
        options = dict(part.partition("=")[::2] for part in found[2].split(",")) if found else {}
        if found is None or found[1] != "mount" or set(options) != {"type", "target"} or options["type"] != "cache":
            raise ValueError(
                f"RUN {rest.partition(' ')[0]}: only --mount=type=cache,target=FOLDER is known to this builder"
            )
        caches.append(options["target"])
        rest = rest[found.end() :]
    if not rest or rest.startswith("["):
        raise ValueError(f"RUN {rest}: a shell command is expected")
    return Run(rest, tuple(caches))


def _flags(rest: str) -> tuple[dict[str, str], str]:
    flags: dict[str, str] = {}
    while found := _FLAG.match(rest):
        flags[found[1]] = found[2]
        rest = rest[found.end() :]
    return flags, rest


def _pairs(rest: str) -> Sequence[tuple[str, str]]:
    pairs = [word.partition("=") for word in shlex.split(rest)]
    for key, equals, value in pairs:
        if not equals or _VARIABLE.search(value) or "$" in value:
            raise ValueError(f"{key}: write KEY=VALUE, without variables")
    return [(key, value) for key, _, value in pairs]


def _words(rest: str) -> list[str]:
    try:
        words = json.loads(rest)
    except ValueError:
        words = None
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise ValueError(f'{rest} is no list of words such as ["program"]')
    return words
