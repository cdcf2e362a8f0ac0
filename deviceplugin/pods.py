"""The pods of this node, from whoever knows them: our own watch, the kubelet's GET /pods, one GET from the API.

The watch is the rule. It can be milliseconds behind the kubelet's own, and an edge node may be cut off from the API
server altogether; then the kubelet is asked, then the API once with a short deadline. What was found that way is kept
beside the watch until the watch has it too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Final, Literal, Protocol

import msgspec

from deviceplugin.errors import KubeletError
from deviceplugin.podresources import PodKey
from tessera.kube.changes import Added, Change, Deleted
from tessera.kube.client import ApiClient
from tessera.kube.clock import Clock
from tessera.kube.errors import KubeError
from tessera.kube.reader import Reader
from tessera.kube.resources import PODS
from tessera.kube.watch import WatchCache
from tessera.model.pod import Pod

_log = logging.getLogger(__name__)

MIRROR: Final = "kubernetes.io/config.mirror"
"""On the API's copy of a static pod: the UID by which the kubelet knows it."""
API_DEADLINE: Final = 0.5
"""Seconds for the one GET; the admission of every pod on the node waits meanwhile."""
MOST_FETCHED: Final = 512

State = Literal["live", "ended", "gone", "unknown"]
DECODER: Final = msgspec.json.Decoder(Pod)


class PodsEndpoint(Protocol):
    """The kubelet's GET /pods."""

    async def pods(self) -> Sequence[Pod]:
        """Every pod that the kubelet was told of."""
        ...


def uid_of(pod: Pod) -> str:
    """The UID by which the kubelet knows a pod; a mirror pod is the API's picture of a static one.

    A kubelet never runs an ordinary pod that carries the mirror annotation; whether it may speak for another is a question
    for `NodePods.stands_for`.
    """
    return pod.metadata.annotation(MIRROR) or pod.metadata.uid


def key_of(pod: Pod) -> PodKey:
    """Namespace and name."""
    return (pod.metadata.namespace, pod.metadata.name)


def watch_of(client: ApiClient | None, node: str, *, clock: Clock, rng: Random) -> WatchCache[Pod] | None:
    """A watch of the pods bound to a node; None without an API server."""
    if client is None:
        return None
    return WatchCache(client, PODS, DECODER, clock=clock, rng=rng, fields=f"spec.nodeName={node}")


class NodePods:
    """The pods bound to this node."""

    def __init__(
        self,
        node: str,
        *,
        cache: WatchCache[Pod] | None = None,
        reader: Reader | None = None,
        kubelet: PodsEndpoint | None = None,
    ) -> None:
        """Gather pods from what there is.

        Args:
            node: the node's name.
            cache: the watch with the field selector ``spec.nodeName=NODE``, run by somebody else.
            reader: for the one GET.
            kubelet: the kubelet's /pods, where it may be asked.
        """
        self._node = node
        self._cache = cache
        self._reader = reader
        self._kubelet = kubelet
        self._mirrors: dict[str, str] = {}
        self._fetched: dict[PodKey, Pod] = {}
        self._subscribers: list[Callable[[Pod, bool], None]] = []
        if cache is not None:
            cache.subscribe(self._changed, replay=True)

    # Looking.

    @property
    def synced(self) -> bool:
        """The watch has listed once."""
        return self._cache is not None and self._cache.synced.is_set()

    @property
    def current(self) -> bool:
        """The watch works, so a pod that it doesn't have isn't there."""
        return self._cache is not None and self._cache.synced.is_set() and self._cache.last_error is None

    def get(self, key: PodKey) -> Pod | None:
        """The newest known pod of that name."""
        fetched = self._fetched.get(key)
        watched = self._cache.get(key[1], key[0]) if self._cache is not None else None
        if fetched is None or (watched is not None and uid_of(watched) == uid_of(fetched)):
            return watched
        return fetched

    def by_uid(self, uid: str) -> Pod | None:
        """The pod that the kubelet knows by this UID."""
        if self._cache is not None:
            # The pod itself first: anybody may write another's UID into an annotation.
            watched = self._cache.by_uid(uid) or self._cache.by_uid(self._mirrors.get(uid, uid))
            if watched is not None:
                return watched
        return next((pod for pod in self._fetched.values() if uid_of(pod) == uid), None)

    def stands_for(self, pod: Pod) -> bool:
        """Whether a pod is the one that `uid_of` says; one that calls itself the mirror of another's is not."""
        other = self.by_uid(uid_of(pod))
        return other is None or other.metadata.uid == pod.metadata.uid

    def state(self, uid: str) -> State:
        """What is known of a pod: ``unknown`` as long as its absence proves nothing."""
        pod = self.by_uid(uid)
        if pod is not None:
            return "ended" if pod.ended else "live"
        return "gone" if self.current else "unknown"

    def all(self) -> list[Pod]:
        """Every pod that is known, one of each name."""
        watched = {key_of(pod): pod for pod in self._cache} if self._cache is not None else {}
        return [self.get(key) or pod for key, pod in (self._fetched | watched).items()]

    # Hearing.

    def subscribe(self, callback: Callable[[Pod, bool], None]) -> None:
        """Call back with every pod that changed and whether its object is gone now."""
        self._subscribers.append(callback)

    def _changed(self, change: Change[Pod]) -> None:
        gone = isinstance(change, Deleted)
        pod = change.final if isinstance(change, Deleted) else change.new
        mirrored = pod.metadata.annotation(MIRROR)
        if mirrored is not None:
            first = self._cache.by_uid(self._mirrors.get(mirrored, "")) if self._cache is not None else None
            if gone and self._mirrors.get(mirrored) == pod.metadata.uid:
                del self._mirrors[mirrored]
            elif not gone and first is None:
                self._mirrors[mirrored] = pod.metadata.uid
        fetched = self._fetched.get(key_of(pod))
        if fetched is not None and (isinstance(change, Added) or uid_of(fetched) == uid_of(pod)):
            del self._fetched[key_of(pod)]
        for callback in self._subscribers:
            callback(pod, gone)

    # Asking.

    async def fetch(self, keys: Iterable[PodKey]) -> None:
        """Look for pods that the watch doesn't have, or has an older one of: the kubelet first, then the API.

        Never fails: what can't be found stays as it was.
        """
        wanted = set(keys)
        if wanted and self._kubelet is not None:
            try:
                found = await self._kubelet.pods()
            except KubeletError as error:
                _log.warning("pods of the node: %s", error)
            else:
                wanted -= self._take(found, wanted)
        if wanted and self._reader is not None:
            try:
                async with asyncio.timeout(API_DEADLINE):
                    self._take(await self._from_api(self._reader, wanted), wanted)
            except (KubeError, TimeoutError) as error:
                _log.warning("pods of the node could not be read from the API: %s", str(error) or "no answer in time")

    async def _from_api(self, reader: Reader, wanted: set[PodKey]) -> list[Pod]:
        if len(wanted) == 1:
            ((namespace, name),) = wanted
            return [await reader.get(PODS, name, decoder=DECODER, namespace=namespace, timeout=API_DEADLINE)]
        page = await reader.page(
            PODS, decoder=DECODER, fields=f"spec.nodeName={self._node}", limit=0, timeout=API_DEADLINE
        )
        return page.items

    def _take(self, pods: Iterable[Pod], wanted: set[PodKey]) -> set[PodKey]:
        """Keep those that are wanted and new; returns the keys that were found."""
        found = set()
        for pod in pods:
            key = key_of(pod)
            if key not in wanted or pod.ended or pod.spec.node_name not in ("", self._node):
                continue
            known = self._cache.get(key[1], key[0]) if self._cache is not None else None
            if known is not None and uid_of(known) == uid_of(pod):
                continue
            while len(self._fetched) >= MOST_FETCHED:
                del self._fetched[next(iter(self._fetched))]
            self._fetched[key] = pod
            found.add(key)
        return found

    def forget_fetched(self, listed: Callable[[PodKey], bool]) -> None:
        """Drop what was fetched and the kubelet doesn't list any more."""
        for key in [key for key in self._fetched if not listed(key)]:
            del self._fetched[key]
