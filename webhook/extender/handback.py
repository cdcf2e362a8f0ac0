"""GPUs on which a node agent is just handing back what it had withheld.

A slice in percent withholds memory units of its GPU, and a slice in units percents: two views of one memory (contract,
section 2). When a pod has ended, its kubelet frees the device IDs it had; those that were withheld come back by a message of
the agent, which learns of the end when we do. A pod of the other view that is faster than that message is refused by its
kubelet, for good. So its Binding is written a moment later: nothing else waits for it, and its slice is reserved.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from tessera.kube.clock import Clock
from tessera.placement.claims import Claim

MOMENT: Final = 0.3
"""Seconds. An agent sends the message within milliseconds; on a machine with 2 busy cores it took up to 60."""


class _Seen(NamedTuple):
    node: str
    gpu: str
    in_units: bool


class Handback:
    """Remembers which GPUs were just left, and in which view."""

    def __init__(self, clock: Clock) -> None:
        """Remember nothing yet."""
        self._clock = clock
        self._until: dict[_Seen, float] = {}

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._until)

    def left(self, node: str, claim: Claim) -> None:
        """A pod that held this on a node has ended."""
        until = self._clock.monotonic() + MOMENT
        for seen in _seen(node, claim):
            # At the end, so that the dict stays in the order of time.
            self._until.pop(seen, None)
            self._until[seen] = until

    def wait(self, node: str, claim: Claim) -> float:
        """Seconds after which a pod may be bound to this place."""
        if not self._until:
            return 0.0
        now = self._clock.monotonic()
        others = (seen._replace(in_units=not seen.in_units) for seen in _seen(node, claim))
        return max(0.0, max((self._until.get(each, now) - now for each in others), default=0.0))

    def tick(self) -> None:
        """Forget what is long enough ago."""
        now = self._clock.monotonic()
        while self._until and next(iter(self._until.values())) <= now:
            del self._until[next(iter(self._until))]


def _seen(node: str, claim: Claim) -> Iterator[_Seen]:
    """The GPUs of a claim; a MIG instance withholds nothing."""
    for ask in claim.asks:
        if ask.request.mig is None:
            for place in claim.places.get(ask.container, ()):
                yield _Seen(node, place.gpu, ask.request.memory is not None)
