"""Why a pod finds no GPU, told from the objects by the placement's own rules, node by node.

What the extender has in its ledger beside the objects (reservations of this moment, slices of vanished pods) is not known
here, so a node that fits here may have been full a second ago; the numbers are otherwise the extender's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tessera.model.config import Config
from tessera.model.errors import RequestError
from tessera.model.node import Node
from tessera.model.pod import Manifest, Pod, Toleration
from tessera.model.tickets import Ask, asks
from tessera.placement.claims import claim_of
from tessera.placement.fit import place
from tessera.placement.gpustate import GpuState
from tessera.placement.nodebook import NodeBook
from tessera.placement.nodefacts import NodeFacts, read
from tessera.placement.reasons import Reason, Rejection
from tessera.placement.shape import shape_of
from tessera.placement.wishes import wishes

_CORDON = "node.kubernetes.io/unschedulable"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What placement says of one pod.

    Attributes:
        fits: names of nodes that have room for it.
        rejected: by reason text, the nodes of which it is said; most nodes first.
        never: texts among these that no other pod's end changes.
        problem: why its request makes no sense, "" where it does.
    """

    fits: tuple[str, ...] = ()
    rejected: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    never: frozenset[str] = frozenset()
    problem: str = ""

    @property
    def text(self) -> str:
        """All of it in one line: ``3 nodes: needs 32 units (8 GiB), best GPU has 20 (5 GiB); 1 node: ...``."""
        if self.problem:
            return self.problem
        if self.fits:
            return f"room on {len(self.fits)} node{'' if len(self.fits) == 1 else 's'} by GPUs alone"
        if not self.rejected:
            return "no node has GPUs"
        return "; ".join(
            f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}: {why}" for why, nodes in self.rejected.items()
        )


class Capacity:
    """The GPUs of all nodes with what the pods hold of them."""

    def __init__(self, nodes: Iterable[Node], pods: Iterable[Pod], config: Config) -> None:
        """Count once; questions are cheap then."""
        names = config.names
        self._config = config
        self.facts: dict[str, NodeFacts] = {}
        self._books: dict[str, NodeBook] = {}
        for node in nodes:
            facts = self.facts[node.metadata.name] = read(node, names)
            book = self._books[node.metadata.name] = NodeBook(node.metadata.name, 0)
            book.become(facts.inventory, closed=facts.closed, drift=facts.drift)
        for pod in pods:
            found = self._books.get(pod.spec.node_name) if pod.spec.node_name and not pod.ended else None
            claim = claim_of(pod, names) if found is not None else None
            if found is not None and claim is not None:
                found.book(pod.metadata.uid or pod.key, claim)
        # Asked for every kind of pod that waits; nothing is booked any more, so it is made once.
        self._states = {
            name: (book.closed, book.states(without=(), soft=False)) for name, book in sorted(self._books.items())
        }
        alike: dict[object, list[str]] = {}
        for name, (closed, states) in self._states.items():
            alike.setdefault((closed, tuple(map(_looks, states))), []).append(name)
        self._alike = tuple(map(tuple, alike.values()))

    def judge(self, pod: Manifest) -> Verdict:
        """Where an unbound pod could go by GPUs alone, and why not elsewhere."""
        config = self._config
        try:
            asked = asks(pod, config.names)
            wished = wishes(pod.metadata.annotations, config.names, config.placement)
            cordoned = tolerates_cordon(pod.spec.tolerations or ())
            shape = shape_of(asked, unit=config.memory_unit, wishes=wished, cordoned=cordoned)
        except RequestError as error:
            return Verdict(problem=str(error))
        fits: list[str] = []
        rejected: dict[str, list[str]] = {}
        never: set[str] = set()
        # GPUs that look alike are alike to a pod that names none and has no two that hang together.
        single = not wished.uuids and all(ask.request.gpus == 1 for ask in asked)
        for names in self._alike if single else [(name,) for name in self._states]:
            closed, states = self._states[names[0]]
            if closed is None or (closed is Reason.CORDONED and cordoned):
                found = place(asked, shape, states)
            else:
                found = Rejection(closed)
            if not isinstance(found, Rejection):
                fits += names
                continue
            rejected.setdefault(found.text, []).extend(names)
            if found.reason.never:
                never.add(found.text)
        ordered = sorted(rejected.items(), key=lambda item: (item[0] in never, -len(item[1]), item[0]))
        return Verdict(tuple(sorted(fits)), {why: tuple(sorted(nodes)) for why, nodes in ordered}, frozenset(never))

    def largest(self) -> tuple[int, int]:
        """The most free units on one healthy GPU of an open node, and the units of the largest such GPU."""
        best = largest = 0
        for book in self._books.values():
            for gpu, room in book.room().items():
                best = max(best, room[0])
                largest = max(largest, book.slots[gpu].gpu.units)
        return best, largest


def _looks(state: GpuState) -> object:
    """What of a GPU a pod can see that names none."""
    gpu = state.gpu
    instances = tuple(each.profile for each in gpu.mig if each.id not in state.taken)
    return gpu.model, gpu.units, gpu.health, gpu.guarantee, len(gpu.mig), instances, state.held


def asked_of(pod: Pod, config: Config) -> tuple[Ask, ...]:
    """What a pod with tickets asks; nothing where its tickets make no sense."""
    try:
        return asks(pod, config.names)
    except RequestError:
        return ()


def tolerates_cordon(tolerations: Iterable[Toleration]) -> bool:
    """Whether a pod may go to a cordoned node, as DaemonSet pods do."""
    return any(
        each.key in ("", _CORDON) and each.operator == "Exists" and each.effect in (None, "", "NoSchedule")
        for each in tolerations
    )
