"""Waiting for what a kubelet does by itself, without polling and without sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tessera.testing.kubelet.workers import PodState


class Changes:
    """Wakes those who wait for a condition, and calls those who follow pods."""

    def __init__(self) -> None:
        """Nobody listens yet."""
        self._waiting: set[asyncio.Event] = set()
        self._listeners: list[Callable[[PodState], None]] = []

    def subscribe(self, listener: Callable[[PodState], None]) -> None:
        """Have `listener` called after every change of a pod; it returns at once."""
        self._listeners.append(listener)

    def of_pod(self, state: PodState) -> None:
        """A pod has changed."""
        for listener in self._listeners:
            listener(state)
        self.wake()

    def wake(self) -> None:
        """Something has changed: whoever waits looks again."""
        for event in self._waiting:
            event.set()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds, looking after every change."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            while not condition():
                await event.wait()
                event.clear()
        finally:
            self._waiting.discard(event)
