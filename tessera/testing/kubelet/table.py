"""The pods whose objects are there: the kubelet's pod manager, by UID in the order of arrival."""

from __future__ import annotations

from collections.abc import Mapping

from tessera.testing.kubelet.errors import PodError
from tessera.testing.kubelet.pods import KubeletPod, read_pod
from tessera.testing.kubelet.workers import PodState


class PodTable:
    """UID -> what the kubelet knows of the pod."""

    def __init__(self, node: str) -> None:
        """Start empty.

        Args:
            node: the node's name, for messages.
        """
        self._node = node
        self._pods: dict[str, PodState] = {}

    def fresh(self, raw: Mapping[str, object]) -> PodState:
        """Read a pod that is not here yet; it is not added.

        Raises:
            PodError: no pod, or one with a UID that is known already.
        """
        pod = read_pod(raw)
        if pod.uid in self._pods:
            raise PodError(f"pod {pod.key}: UID {pod.uid} is known already; a new pod has a new UID")
        return PodState(pod)

    def add(self, state: PodState) -> None:
        """Add a pod; one that is here already keeps its place."""
        self._pods[state.pod.uid] = state

    def discard(self, uid: str) -> None:
        self._pods.pop(uid, None)

    def known(self, uid: str) -> PodState:
        """Find a pod.

        Raises:
            PodError: unknown UID.
        """
        try:
            return self._pods[uid]
        except KeyError:
            raise PodError(f"the kubelet of {self._node} knows no pod with UID {uid}") from None

    def all(self) -> list[PodState]:
        return list(self._pods.values())

    def active(self) -> list[KubeletPod]:
        """The pods that are not finished."""
        return [state.pod for state in self._pods.values() if state.active]

    def active_uids(self) -> set[str]:
        return {uid for uid, state in self._pods.items() if state.active}

    def is_active(self, uid: str) -> bool:
        """Tell whether a pod is here and not finished."""
        return uid in self._pods and self._pods[uid].active

    def raw(self) -> list[Mapping[str, object]]:
        """The objects as the API server sent them."""
        return [state.pod.raw for state in self._pods.values()]
