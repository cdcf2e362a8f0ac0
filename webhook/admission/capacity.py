"""What the nodes there are could hold, were they empty: so that a pod which fits none of them is told so at once.

A warning, never a refusal: an autoscaler may bring a larger node. It comes from a copy of the nodes' inventories that is
kept current beside the reviews; while there is none (no API server, no right to list nodes), nothing is said. Nodes that
are alike are counted as one, and what was found for a shape of pod is kept until the nodes change.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from tessera.kube.changes import Change, Deleted
from tessera.model.errors import AnnotationError
from tessera.model.guarantee import Guarantees
from tessera.model.inventory import Gpu, MigInstance, decode
from tessera.model.names import Names
from tessera.model.quantity import binary
from tessera.placement.fit import judge
from tessera.placement.gpustate import GpuState
from tessera.placement.reasons import Reason, Rejection
from tessera.placement.shape import Shape
from tessera.report.plaintext import short

MOST_SHAPES: Final = 512
"""Shapes of pods for which the answer is kept; a cluster sees few, a hostile user as many as he likes."""
MOST_KINDS: Final = 64
"""Kinds of nodes; a cluster buys a handful. Where there are more, nothing is said: looking at all would take too long."""
_LONGEST_WHY: Final = 50
_LONGEST_MODEL: Final = 22
"""With these the whole fits into the 120 characters of a warning."""

_log = logging.getLogger(__name__)


class _Meta(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    annotations: dict[str, str] | None = None


class GpuNode(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a node: who it is, and its annotations."""

    metadata: _Meta = _Meta()


class _Card(NamedTuple):
    """What of a GPU is the same for all nodes of a kind."""

    model: str
    memory: int
    units: int
    guarantee: Guarantees
    mig: tuple[MigInstance, ...]


_Kind = tuple[_Card, ...]
"""The GPUs of nodes that are alike."""


class Capacity:
    """What the nodes there are could hold."""

    def __init__(self, names: Names, *, synced: Callable[[], bool]) -> None:
        """Know no nodes yet.

        Args:
            names: of this installation.
            synced: whether all nodes are known.
        """
        self._names = names
        self._synced = synced
        self._texts: dict[str, str] = {}
        self._kinds: dict[str, _Kind] = {}
        self._counts: Counter[_Kind] = Counter()
        self._known: dict[Shape, str] = {}

    def changed(self, change: Change[GpuNode]) -> None:
        """Take notice of a node; a subscriber of the watch cache."""
        gone = isinstance(change, Deleted)
        meta = change.old.metadata if isinstance(change, Deleted) else change.new.metadata
        text = "" if gone else (meta.annotations or {}).get(self._names.inventory, "")
        if text == self._texts.get(meta.name, ""):
            return
        if text:
            self._texts[meta.name] = text
        else:
            del self._texts[meta.name]
        kind = self._kind(text, meta.name)
        before = self._kinds.pop(meta.name, None)
        if kind is not None:
            self._kinds[meta.name] = kind
        if kind == before:
            return  # an inventory changes with every process on the node; what it could hold does not
        if before is not None:
            self._counts[before] -= 1
            if not self._counts[before]:
                del self._counts[before]
        if kind is not None:
            self._counts[kind] += 1
        self._known.clear()

    def warning(self, shape: Shape) -> str:
        """Say why no node could ever hold a pod, with the largest slice there is; "" where one could, or none is known.

        Args:
            shape: of the pod. GPUs that it names by UUID are not looked for.
        """
        if not self._synced() or not 0 < len(self._counts) <= MOST_KINDS:
            return ""
        if shape.wishes.uuids:
            shape = msgspec.structs.replace(shape, wishes=msgspec.structs.replace(shape.wishes, uuids=()))
        found = self._known.get(shape)
        if found is None:
            if len(self._known) >= MOST_SHAPES:
                self._known.clear()
            found = self._known[shape] = self._judge(shape)
        return found

    def _judge(self, shape: Shape) -> str:
        nearest: Rejection | None = None
        for kind in self._counts:
            rejection = judge(shape, [_empty(card, at) for at, card in enumerate(kind)])
            if rejection is None:
                return ""
            if nearest is None or _nearness(rejection) > _nearness(nearest):
                nearest = rejection
        if nearest is None:
            return ""
        why = nearest.text.replace("node has", "a node has")
        if nearest.reason is Reason.SMALL_GPUS:
            why = f"needs {binary(nearest.need * shape.unit)} on one GPU"
        return f"fits no node, even empty: {short(why, _LONGEST_WHY)}{self._largest(shape)}"

    def _largest(self, shape: Shape) -> str:
        largest = max(
            (card for kind in self._counts for card in kind if not card.mig), key=lambda c: c.units, default=None
        )
        if largest is None or not largest.units:
            return ""
        return f"; largest slice {binary(largest.units * shape.unit)} ({short(largest.model, _LONGEST_MODEL)})"

    def _kind(self, text: str, node: str) -> _Kind | None:
        """What a node with this inventory could hold; None where it counts in other units or can't be read."""
        if not text:
            return None
        try:
            inventory = decode(text)
        except AnnotationError as error:
            _log.warning("node %s: %s", node, error)
            return None
        if inventory.unit != self._names.memory_unit:
            return None
        return tuple(_Card(gpu.model, gpu.memory, gpu.units, gpu.guarantee, gpu.mig) for gpu in inventory.gpus)


def _empty(card: _Card, at: int) -> GpuState:
    """A GPU as it is when nothing runs on it and nothing ails it."""
    gpu = Gpu(
        id=f"{at:012x}",
        uuid="",
        index=at,
        model=card.model,
        memory=card.memory,
        units=card.units,
        guarantee=card.guarantee,
        mig=card.mig,
    )
    return GpuState(gpu)


def _nearness(rejection: Rejection) -> tuple[int, int]:
    """How little is missing: reasons stand in the order in which they are looked for."""
    return rejection.reason.code, rejection.have
