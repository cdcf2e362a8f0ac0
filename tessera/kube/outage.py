"""Saying once that something fails, and once that it works again, however many attempts lie between."""

from __future__ import annotations

import logging
from typing import Final

from tessera.kube.clock import Clock
from tessera.kube.errors import KubeError

_log = logging.getLogger(__name__)

_QUIET: Final = 60.0
"""Seconds between two warnings of one outage's kind."""


class Outage:
    """Follows one thing that is tried again and again."""

    def __init__(self, what: str, clock: Clock) -> None:
        """Begin in working order.

        Args:
            what: the thing, for the log: ``watch of pods (spec.nodeName=n1)``.
            clock: measures how long it lasts.
        """
        self._what = what
        self._clock = clock
        self._since = 0.0
        self._attempts = 0
        self._said_at = float("-inf")
        self.error: KubeError | None = None
        """Why it fails right now, or None where it works."""

    def failed(self, error: KubeError) -> None:
        """One more attempt failed."""
        now = self._clock.monotonic()
        if self.error is None:
            self._since, self._attempts = now, 0
            # A server that takes every stream and drops it at once is one outage, too.
            if now - self._said_at >= _QUIET:
                self._said_at = now
                _log.warning("%s: %s; trying again until it works", self._what, error)
        self.error = error
        self._attempts += 1

    def recovered(self) -> None:
        """It works."""
        if self.error is None:
            return
        self.error = None
        if self._said_at >= self._since:
            took = self._clock.monotonic() - self._since
            _log.info("%s: works again after %.1f s and %d attempts", self._what, took, self._attempts)
