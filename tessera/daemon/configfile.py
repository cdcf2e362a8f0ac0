"""The config file on disk: read at start, read again when it changes, the last good one kept.

A mounted ConfigMap changes by a swapped symlink, so the file is watched by what `stat` says and not by inotify on one
inode. A broken new file must never take a running daemon's config away: it is reported and the old one stays.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from tessera.model.config import Config
from tessera.model.errors import ConfigError

POLL: Final = 1.0
"""Seconds between looks at the file."""
RESTART_ONLY: Final = ("domain", "memory_unit")
"""Names and IDs that are already out there hang on these; changing them needs a restart of every part."""

_log = logging.getLogger(__name__)
_Stamp = tuple[int, int, int, int]


class ConfigFile:
    """A config that follows its file."""

    def __init__(
        self,
        path: str | None,
        parse: Callable[[str], Config],
        *,
        registry: CollectorRegistry | None = None,
    ) -> None:
        """Read the file for the first time; no path means the defaults.

        Args:
            path: the file, or None.
            parse: text to config, such as `tessera.model.config.parse` with a part's dialects.
            registry: where to count; None counts nowhere.

        Raises:
            ConfigError: the file can't be read or is refused. Only a first read fails; later ones keep what there is.
        """
        self.path = path
        self._parse = parse
        self._subscribers: list[Callable[[Config], None]] = []
        self._good = Gauge(
            "tessera_config_last_reload_successful",
            "1 while the config file in force is the one on disk, 0 while the one on disk is refused.",
            registry=registry,
        )
        self._stamp = self._look()
        self.current = self._read()
        self.problem: str | None = None
        self._good.set(1)

    def subscribe(self, callback: Callable[[Config], None]) -> None:
        """Call back with each new config; the current one is not repeated."""
        self._subscribers.append(callback)

    def reload(self) -> bool:
        """Read the file again, as SIGHUP asks. True where the file was taken (changed or not)."""
        self._stamp = self._look()
        try:
            found = self._read()
            _refuse_restart_only(self.current, found)
        except ConfigError as error:
            self.problem = str(error)
            self._good.set(0)
            _log.error("config %s refused, the last good one stays in force: %s", self.path, error)
            return False
        self.problem = None
        self._good.set(1)
        if found != self.current:
            self.current = found
            _log.info("config %s: changed and in force", self.path)
            for callback in self._subscribers:
                callback(found)
        return True

    async def follow(self, *, poll: float = POLL) -> None:
        """Reload whenever the file changes, until cancelled."""
        while True:
            await asyncio.sleep(poll)
            if self._look() != self._stamp:
                self.reload()

    def _look(self) -> _Stamp | None:
        if self.path is None:
            return None
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)

    def _read(self) -> Config:
        if self.path is None:
            return self._parse("")
        try:
            with open(self.path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"config {self.path} can't be read: {error}") from error
        try:
            return self._parse(text)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from error


def _refuse_restart_only(before: Config, after: Config) -> None:
    for field in RESTART_ONLY:
        was, wanted = getattr(before, field), getattr(after, field)
        if was != wanted:
            raise ConfigError(f"{field} can't change from {was} to {wanted} while running; restart every part")
