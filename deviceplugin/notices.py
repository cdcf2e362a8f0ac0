"""What people are told with `kubectl describe pod`: the slice and its guarantee, a refusal, use above the slice."""

from __future__ import annotations

from typing import Final, Protocol

from deviceplugin.ledger import Grant, Owner
from deviceplugin.pods import NodePods, uid_of
from deviceplugin.slices import Given
from tessera.kube.events import Regarding
from tessera.model.names import Names
from tessera.model.quantity import gib

MOST_TOLD: Final = 1024


class Recorder(Protocol):
    """Takes Events; `tessera.kube.events.EventRecorder` does."""

    def emit(self, regarding: Regarding, *, reason: str, message: str, warning: bool = False) -> None:
        """Put one down; never waits, never fails."""
        ...


class Notices:
    """Says things once."""

    def __init__(self, recorder: Recorder | None, pods: NodePods, names: Names) -> None:
        """Write to `recorder`, or nowhere."""
        self._recorder = recorder
        self._pods = pods
        self._names = names
        self._told: dict[Owner, None] = {}

    def started(self, given: Given) -> None:
        """A container starts with its slice: say how much, where, and how firmly it is held to it."""
        if given.pod is None or self._recorder is None:
            return
        owner = Owner(uid_of(given.pod), given.container)
        if owner in self._told:
            return
        while len(self._told) >= MOST_TOLD:
            del self._told[next(iter(self._told))]
        self._told[owner] = None
        metadata = given.pod.metadata
        self._emit(
            Regarding(kind="Pod", name=metadata.name, namespace=metadata.namespace, uid=metadata.uid),
            "SliceGranted",
            describe(given, self._names),
        )

    def failed(self, grant: Grant, message: str) -> None:
        """A container may not start."""
        self._about(grant.uid, grant.namespace, grant.name, "SliceRefused", message, warning=True)

    def excess(self, uid: str, namespace: str, name: str, message: str) -> None:
        """A container uses more than its slice."""
        self._about(uid, namespace, name, "SliceExceeded", message, warning=True)

    def mps_ended(self, grant: Grant) -> None:
        """The MPS daemon that a container's programs ran through is gone."""
        message = (
            "the node's MPS daemon has ended, and most likely what ran through it on the GPU; "
            "restart the container if it does not notice by itself"
        )
        self._about(grant.uid, grant.namespace, grant.name, "MpsEnded", message, warning=True)

    def _about(self, uid: str, namespace: str, name: str, reason: str, message: str, *, warning: bool) -> None:
        if not name:
            return
        pod = self._pods.by_uid(uid)
        api_uid = pod.metadata.uid if pod is not None else uid
        self._emit(Regarding(kind="Pod", name=name, namespace=namespace, uid=api_uid), reason, message, warning=warning)

    def _emit(self, regarding: Regarding, reason: str, message: str, *, warning: bool = False) -> None:
        if self._recorder is not None:
            self._recorder.emit(regarding, reason=reason, message=message, warning=warning)


def describe(given: Given, names: Names) -> str:
    """Say a slice in one sentence."""
    parts = []
    for piece in given.slices:
        if piece.instance is not None:
            parts.append(f"MIG instance {piece.instance} of GPU {piece.gpu.id} ({piece.gpu.model})")
            continue
        amount = "all" if piece.whole else gib((piece.units or 0) * names.memory_unit)
        compute = f" and {piece.compute} % of compute" if piece.compute and not piece.whole else ""
        guarantee = piece.gpu.guarantee
        parts.append(
            f"{amount}{compute} of GPU {piece.gpu.id} ({piece.gpu.model}), guarantee: memory {guarantee.memory.value}, "
            f"compute {guarantee.compute.value}"
        )
    return f'container "{given.container}" has {"; ".join(parts)}'
