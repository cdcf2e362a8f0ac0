"""Time, passed in: whatever waits or measures takes a `Clock`, so that tests need no sleeping.

Deadlines of single requests are the exception: they belong to the event loop (`asyncio.timeout`), which is the only
thing that can interrupt a socket.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What kube's parts need to know of time."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, as other machines see it; may jump."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait, letting others run."""
        ...


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since 1970."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait, letting others run."""
        await asyncio.sleep(seconds)


def rfc3339(wall: float, *, micro: bool = False) -> str:
    """Write a moment as the API does: ``metav1.Time`` in whole seconds, ``metav1.MicroTime`` where `micro`."""
    moment = datetime.fromtimestamp(wall, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


def parse_rfc3339(text: str) -> float:
    """Read a moment that the API wrote, as seconds since 1970.

    Raises:
        ValueError: the text is no moment, or it names no offset.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no offset from UTC")
    return moment.timestamp()
