"""When a leaving agent may go: nobody sends pods here any more, and those that were on their way have all their tickets.

From the end of our streams to the newcomer's first one the kubelet has nothing to give, and a pod admitted in between fails
for good. So the Node says ``draining`` first, and what was bound before everybody had heard it is still served.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

from deviceplugin.identity import Identity, admitted
from deviceplugin.ledger import Ledger, Owner
from deviceplugin.pods import uid_of
from tessera.kube.clock import Clock
from tessera.model.pod import Pod

_log = logging.getLogger(__name__)

WITHIN: Final = 10.0
"""Seconds after which a leaving agent goes in any case."""
QUIET: Final = 1.0
"""Seconds without an awaited pod after which it goes: whoever bound one as we said so shows it in our watch by then."""
LOOK_EVERY: Final = 0.1


def awaited(pods: Iterable[Pod], identity: Identity, ledger: Ledger) -> list[str]:
    """Pods that the kubelet has yet to let in; of a container's two tickets it asks for one after the other."""

    def served(owner: Owner, tickets: Iterable[str]) -> bool:
        grant = ledger.get(owner)
        return grant is not None and grant.devices.keys() >= set(tickets)

    return [
        pod.key
        for pod in pods
        if not pod.ended
        and not admitted(pod)
        and pod.metadata.deletion_timestamp is None
        and any(not served(Owner(uid_of(pod), each.name), each.counts) for each in identity.wanting(pod))
    ]


async def drain(waiting: Callable[[], list[str]], *, told: Callable[[], bool], clock: Clock) -> None:
    """Wait until it is calm, or for `WITHIN` seconds.

    Args:
        waiting: pods that are still awaited.
        told: whether the Node says by now that we leave.
        clock: paces.
    """
    end = clock.monotonic() + WITHIN
    calm_since: float | None = None
    while (now := clock.monotonic()) < end:
        if waiting() or not told():
            calm_since = None
        else:
            calm_since = now if calm_since is None else calm_since
            if now - calm_since >= QUIET:
                return
        await clock.sleep(LOOK_EVERY)
    if left := waiting():
        _log.warning("leaving before %s were admitted", ", ".join(left))
