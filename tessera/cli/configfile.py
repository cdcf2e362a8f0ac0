"""A config file that a person names on a command line: read within bounds, and what is wrong with it told with its path."""

from __future__ import annotations

from typing import Final

from tessera.dialects.registry import OPTIONS
from tessera.model.config import Config, parse
from tessera.model.errors import ConfigError

LARGEST: Final = 1 << 20
"""Characters. A ConfigMap, where the file ends up, holds 1 MiB."""


def read_config(path: str | None) -> Config:
    """The config of a file, every dialect's options known; no path means the defaults.

    Raises:
        ConfigError: the file can't be read or is refused; the message begins with its path.
    """
    if path is None:
        return parse("", dialects=OPTIONS)
    try:
        with open(path, encoding="utf-8") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"config {path} can't be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or a NUL in the name
        raise ConfigError(f"config {path} can't be read: {error}") from error
    if len(content) > LARGEST:
        raise ConfigError(f"config {path} has more than {LARGEST} characters, so it is no config")
    try:
        return parse(content, dialects=OPTIONS)
    except ConfigError as error:
        raise ConfigError(f"config {path}: {error}") from error
