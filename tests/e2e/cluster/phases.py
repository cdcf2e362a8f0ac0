"""Progress on the terminal: each phase with the time it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """Shows phases as they run; keeps their times."""

    def __init__(self, *, quiet: bool = False) -> None:
        """Start the clock."""
        self._quiet = quiet
        self._began = time.monotonic()
        self.times: list[tuple[str, float]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show a phase and how long it took, also where it failed."""
        began = time.monotonic()
        self._say(f"{began - self._began:7.1f} s  {name:<44}")
        ending = "failed"
        try:
            yield
            ending = ""
        finally:
            took = time.monotonic() - began
            self.times.append((name, took))
            self._say(f"{took:6.1f} s  {ending}\n")

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def _say(self, text: str) -> None:
        if not self._quiet:
            sys.stdout.write(text)
            sys.stdout.flush()
