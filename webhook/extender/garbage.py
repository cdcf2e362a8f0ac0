"""Python's garbage collector in a process that keeps most of what it makes.

A full collection looks at every object that may be part of a cycle: 0.9 s over 40,000 pods, in which nobody is answered.
What a full cache holds is no garbage, and what leaves it is freed at once by its reference count. So the cache is set aside
(`gc.freeze`) when it is full, and again whenever what has come since makes a collection slow.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any, Final

from tessera.kube.clock import Clock

SLOW: Final = 0.01
"""Seconds of a full collection, above which its survivors are set aside."""
_FULL: Final = 2
"""The generation of a full collection (CPython's `gc` module)."""
_log = logging.getLogger(__name__)


class Collector:
    """Collects rarely, and nothing twice.

    What is set aside and becomes a cycle later stays in memory; our caches have none, and the objects of a connection,
    which might, are few at any moment.
    """

    def __init__(self, clock: Clock, *, freeze: Callable[[], None] = gc.freeze) -> None:
        """Stop collecting: what fills a cache is looked through again and again otherwise, for a third of the start.

        Args:
            clock: measures collections.
            freeze: sets aside all objects there are.
        """
        self._clock, self._freeze = clock, freeze
        self._began = 0.0
        gc.collect()
        gc.disable()

    def settle(self) -> None:
        """The caches are full: set them aside, and collect from now on.

        Garbage among it stays, but there is next to none: to look for it takes half a second of the start.
        """
        self._freeze()
        if self.seen not in gc.callbacks:
            gc.callbacks.append(self.seen)
        gc.enable()

    def seen(self, phase: str, info: dict[str, Any]) -> None:
        """Hear of a collection (`gc.callbacks`)."""
        if info.get("generation") != _FULL:
            return
        if phase == "start":
            self._began = self._clock.monotonic()
        elif (took := self._clock.monotonic() - self._began) >= SLOW:
            self._freeze()
            _log.debug("a full collection took %.0f ms; its survivors are set aside", 1000 * took)

    def close(self) -> None:
        """Leave the collector as Python has it."""
        if self.seen in gc.callbacks:
            gc.callbacks.remove(self.seen)
        gc.enable()
