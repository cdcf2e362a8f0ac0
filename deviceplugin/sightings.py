"""Which pods still have processes on this node, whatever the API and the kubelet say of them.

A pod that was deleted by force, or whose node was cut off for long, is gone as an object while its containers run on. Its
units can't be given away before they have ended, and /proc is the one witness that needs neither the API nor the kubelet.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

from deviceplugin.processes import ContainerRef, ProcessMap

MOST_PROCESSES: Final = 65_536


class Sightings:
    """Looks through /proc. A look at 2,000 processes takes about 30 ms, so it is made only when there is a doubt."""

    def __init__(self, processes: ProcessMap, *, on_gpus: Callable[[], frozenset[str]] = frozenset) -> None:
        """Look below one /proc.

        Args:
            processes: where it is.
            on_gpus: UIDs of pods that NVML has seen on a GPU.
        """
        self._processes = processes
        self._on_gpus = on_gpus

    @property
    def trustworthy(self) -> bool:
        """Whether not being seen means not being there: the host's processes are visible."""
        return self._processes.problem() is None

    def now(self) -> frozenset[str]:
        """UIDs of the pods that have processes, looked at right now."""
        return self._on_gpus() | frozenset(self._walk())

    async def look(self) -> frozenset[str]:
        """The same, in a thread."""
        return self._on_gpus() | await asyncio.to_thread(self._walk)

    def _walk(self) -> frozenset[str]:
        try:
            names = os.listdir(self._processes.root)
        except OSError:
            return frozenset()
        pids = [int(name) for name in names[:MOST_PROCESSES] if name.isascii() and name.isdecimal()]
        places = (self._processes.locate(pid) for pid in pids)
        return frozenset(place.pod for place in places if isinstance(place, ContainerRef))
