"""How long pods stay, by how many whole GPUs they hold: a mixture that comes is not the one that stays.

There is no clock here, so time is counted in pods that come. A pod that still runs counts for as long as it has, which a mean
over ended ones alone would miss. What is told is a factor: how much longer pods of a kind stay than all do, with one pod's
end of the average as what is supposed before any was seen (the mean of a gamma distribution after Poisson events). While no
pod has ended the factor is exactly 1.
"""

from __future__ import annotations

from typing import Final

_SUPPOSED: Final = 1.0
"""Ends of the average rate that every kind is credited with."""


class _Kind:
    """Pods of one kind: how many run, how many have ended, and how long all of them have stayed together."""

    __slots__ = ("ended", "running", "since", "stayed")

    def __init__(self, now: int) -> None:
        self.running = 0
        self.ended = self.stayed = 0.0
        self.since = now

    def at(self, now: int) -> float:
        """How long all have stayed until now."""
        return self.stayed + self.running * (now - self.since)

    def step(self, now: int, change: int) -> None:
        self.stayed = self.at(now)
        self.since = now
        self.running += change


class Stays:
    """What is known of how long pods stay; kinds are as few as GPUs of a node."""

    def __init__(self, *, half_life: int = 20_000) -> None:
        """Nothing is known yet; `half_life` is the number of pods after which what was seen counts half."""
        self._half_life = half_life
        self._now = 0
        self._kinds: dict[int, _Kind] = {}

    def came(self, gpus: int) -> None:
        """A pod has its place, with so many whole GPUs for one container; 0 for slices."""
        self._now += 1
        self._kinds.setdefault(gpus, _Kind(self._now)).step(self._now, 1)
        if self._now % self._half_life == 0:
            for kind in self._kinds.values():
                kind.step(self._now, 0)
                kind.stayed /= 2
                kind.ended /= 2

    def went(self, gpus: int) -> None:
        """Such a pod has ended."""
        kind = self._kinds.setdefault(gpus, _Kind(self._now))
        kind.step(self._now, -1)
        kind.ended += 1

    def factor(self, gpus: int) -> float:
        """How much longer such pods stay than all do."""
        ended = sum(kind.ended for kind in self._kinds.values())
        stayed = sum(kind.at(self._now) for kind in self._kinds.values())
        kind = self._kinds.get(gpus)
        if kind is None or not ended or not stayed:
            return 1.0
        return (kind.at(self._now) * ended / stayed + _SUPPOSED) / (kind.ended + _SUPPOSED)
