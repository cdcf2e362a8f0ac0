"""When a slice is free: one rule with the extender (contract, "When is a slice free?"), from the node's side.

A terminal phase frees at once. A pod that vanished without one keeps its slice as long as the node sees it: the kubelet
lists it as active, or a process of it runs. Such pods are *lingering*; the annotation names them so that the extender waits
too. With the API server away nothing vanishes; then a pod is free when neither the kubelet nor /proc knows it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Literal, NoReturn

from deviceplugin.errors import KubeletError
from deviceplugin.ledger import UNKNOWN, Grant, Ledger
from deviceplugin.metrics import NodeMetrics
from deviceplugin.podresources import Lister, Listing
from deviceplugin.pods import NodePods, State, uid_of
from tessera.kube.clock import Clock
from tessera.model.pod import Pod

_log = logging.getLogger(__name__)

SURE_AFTER: Final = 2.0
"""Seconds for which a pod has to be in doubt before it is freed: our watch may be behind the kubelet's."""
UNKNOWN_AFTER: Final = 10.0
"""Seconds after which IDs that nobody has are free; admission is over long before."""
SOON: Final = 1.0
LATER: Final = 5.0
"""Seconds between looks while pods are in doubt: at first, and after a while. Lingering is published within 10 s."""
REST: Final = 30.0
"""Seconds between looks while nothing is in doubt."""

Verdict = Literal["keep", "linger", "free"]


def judge(state: State, *, unknown: bool, listed: bool | None, seen: bool, blind: bool, age: float) -> Verdict:
    """What becomes of a pod's slices.

    Args:
        state: of the pod's object.
        unknown: the pod could never be told.
        listed: the kubelet counts it as active; None where it did not answer.
        seen: a process of it runs.
        blind: processes of other pods can't be seen here, so not being seen says nothing.
        age: seconds since it came into doubt.
    """
    if state == "ended":
        return "free"
    if unknown:
        return "free" if listed is False and age >= UNKNOWN_AFTER else "keep"
    if state == "live":
        return "keep"
    if seen or listed:
        return "linger" if state == "gone" else "keep"
    if listed is None or age < SURE_AFTER:
        return "keep"
    if state == "gone":
        return "free"
    return "keep" if blind else "free"


class Settler:
    """Frees what has ended, and says what lingers."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        pods: NodePods,
        lister: Lister,
        quiet_in: Callable[[], float],
        look: Callable[[], Awaitable[frozenset[str]]],
        trustworthy: Callable[[], bool],
        adopt: Callable[[str, frozenset[str], Listing], Awaitable[object]],
        clock: Clock,
        metrics: NodeMetrics,
    ) -> None:
        """Settle these.

        Args:
            ledger: what is held.
            pods: the node's pods.
            lister: the kubelet.
            quiet_in: seconds until a List does no harm.
            look: UIDs of pods with processes.
            trustworthy: whether not being seen means not being there.
            adopt: tells by a listing whose IDs of a resource are, of a pod that could not be told.
            clock: measures doubt.
            metrics: counts lingering pods.
        """
        self._ledger = ledger
        self._pods = pods
        self._lister = lister
        self._quiet_in = quiet_in
        self._look = look
        self._trustworthy = trustworthy
        self._adopt = adopt
        self._clock = clock
        self._metrics = metrics
        self._since: dict[str, float] = {}
        self._wake = asyncio.Event()
        pods.subscribe(self._changed)
        ledger.subscribe(self._given)

    async def run(self) -> NoReturn:
        """Settle until cancelled."""
        while True:
            self._wake.clear()
            wait = await self.step()
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
                # Deletions come in groups.
                await self._clock.sleep(SOON)
            except TimeoutError:
                continue

    def _changed(self, pod: Pod, gone: bool) -> None:
        uid = uid_of(pod)
        if not self._pods.stands_for(pod):
            return
        if pod.ended:
            for grant in self._ledger.free([uid]):
                _log.info(
                    "pod %s, container %s: freed, the pod has ended (%s)", grant.pod, grant.container, pod.status.phase
                )
        elif gone and uid in self._ledger.pods:
            self._wake.set()

    def _given(self) -> None:
        if any(uid.startswith(UNKNOWN) for uid in self._ledger.pods):
            self._wake.set()

    async def step(self) -> float:
        """Settle once.

        Returns:
            Seconds until the next look.
        """
        now = self._clock.monotonic()
        states: dict[str, State] = {
            uid: "unknown" if uid.startswith(UNKNOWN) else self._pods.state(uid) for uid in self._ledger.pods
        }
        doubtful = {uid for uid, state in states.items() if state in ("gone", "unknown")}
        self._since = {uid: self._since.get(uid, now) for uid in doubtful}
        ended = [uid for uid, state in states.items() if state == "ended"]
        listing = await self._listing() if doubtful else None
        seen = await self._look() if doubtful else frozenset[str]()
        blind = bool(doubtful) and not self._trustworthy()
        verdicts = {
            uid: judge(
                states[uid],
                unknown=uid.startswith(UNKNOWN),
                listed=_listed(self._ledger.of_pod(uid), listing),
                seen=uid in seen,
                blind=blind,
                age=now - self._since[uid],
            )
            for uid in doubtful
        }
        free = [*ended, *(uid for uid, verdict in verdicts.items() if verdict == "free")]
        for grant in self._ledger.free(free):
            _log.info("pod %s, container %s: freed, nothing of it is on the node any more", grant.pod, grant.container)
        self._ledger.linger(
            uid
            for uid, verdict in verdicts.items()
            # What lingers goes on lingering while there is no answer.
            if verdict == "linger" or (verdict == "keep" and uid in self._ledger.lingering and states[uid] == "gone")
        )
        for uid in doubtful:
            # In admission and before its start the kubelet did not answer; now it does.
            if uid.startswith(UNKNOWN) and verdicts[uid] == "keep" and listing is not None:
                await self._tell(uid, listing)
        self._metrics.lingering.set(len(self._ledger.lingering))
        if listing is not None:
            self._pods.forget_fetched(listing.__contains__)
        if not doubtful:
            return REST
        return SOON if any(now - self._since[uid] < UNKNOWN_AFTER for uid in doubtful) else LATER

    async def _tell(self, uid: str, listing: Listing) -> None:
        for grant in self._ledger.of_pod(uid):
            for resource, ids in grant.devices.items():
                await self._adopt(resource, frozenset(ids), listing)

    async def _listing(self) -> Listing | None:
        if self._quiet_in() > 0:
            return None
        try:
            return await self._lister.list()
        except KubeletError as error:
            _log.warning("%s", error)
            return None


def _listed(grants: tuple[Grant, ...], listing: Listing | None) -> bool | None:
    """Whether the kubelet counts a pod as active: by name where it is known, and by its IDs."""
    if listing is None:
        return None
    for grant in grants:
        for resource, ids in grant.devices.items():
            holder = listing.holder(resource, ids)
            if holder is not None and (not grant.name or holder[0] == (grant.namespace, grant.name)):
                return True
    return False
