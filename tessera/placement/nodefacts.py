"""What a Node object says to placement: its GPUs, its agent's report, and why it takes no pods now.

Pure: an object in, facts out. An annotation that has not changed since is not read again (a node's status changes every
few seconds, its inventory hardly ever).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tessera.model import inventory as inventories
from tessera.model import plan as plans
from tessera.model.cpu import milli
from tessera.model.errors import AnnotationError, QuantityError
from tessera.model.inventory import Inventory
from tessera.model.names import Names
from tessera.model.node import Node
from tessera.model.plan import Drift
from tessera.model.quantity import Raw, parse
from tessera.placement.reasons import Reason

_NO_DRIFT: Final[Drift] = {}


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node, as placement sees it.

    Attributes:
        inventory: its GPUs, or None.
        drift: what its agent gave beside the plans.
        closed: why it takes no pods, or None.
        problems: annotations that can't be read, for the log.
        texts: the annotations that were read.
        cpu: thousandths of a core that its pods may request in all, None where it does not say.
    """

    inventory: Inventory | None
    drift: Drift = field(default_factory=dict)
    closed: Reason | None = None
    problems: tuple[str, ...] = ()
    texts: tuple[str | None, str | None] = (None, None)
    cpu: int | None = None


def read(node: Node, names: Names, before: NodeFacts | None = None) -> NodeFacts:
    """Read a Node.

    Args:
        node: as the cache has it.
        names: of this installation.
        before: what was read of it last.
    """
    texts = (node.metadata.annotation(names.inventory), node.metadata.annotation(names.drift))
    if before is not None and before.texts == texts:
        inventory, drift, problems = before.inventory, before.drift, before.problems
    else:
        inventory, drift, problems = _annotations(*texts)
    return NodeFacts(inventory, drift, _closed(node, names, inventory, texts[0]), problems, texts, _cpu(node))


def _annotations(inventory: str | None, drift: str | None) -> tuple[Inventory | None, Drift, tuple[str, ...]]:
    problems = []
    found: Inventory | None = None
    told = _NO_DRIFT
    if inventory is not None:
        try:
            found = inventories.decode(inventory)
        except AnnotationError as error:
            problems.append(str(error))
    if drift is not None:
        try:
            told = plans.decode_drift(drift)
        except AnnotationError as error:
            # What the node gave can't be told, so nothing more is given there: the inventory is not believed either.
            problems.append(str(error))
            found = None
    return found, told, tuple(problems)


def _closed(node: Node, names: Names, inventory: Inventory | None, text: str | None) -> Reason | None:
    if inventory is None:
        return Reason.NO_GPU if text is None and not any(_tickets(node, names)) else Reason.UNREADABLE
    if inventory.unit != names.memory_unit:
        return Reason.OTHER_UNIT
    if not node.ready:
        return Reason.NOT_READY
    if inventory.state != "serving":
        return Reason.DRAINING
    if inventory.gpus and _gone(node, names):
        return Reason.AGENT_AWAY
    # Last, because a pod may tolerate this one.
    if node.spec.unschedulable:
        return Reason.CORDONED
    return None


def _gone(node: Node, names: Names) -> bool:
    """Whether the kubelet has every ticket of ours at 0, which it does when the agent's stream has ended.

    Absent is something else: a new node's kubelet writes its status up to 10 s after it knows the agent, and the agent says
    in its inventory whether it is known.
    """
    tickets = _tickets(node, names)
    return bool(tickets) and not any(tickets)


def _tickets(node: Node, names: Names) -> list[bool]:
    """For each ticket of ours in allocatable, whether there is any of it."""
    return [_positive(raw) for name, raw in (node.status.allocatable or {}).items() if names.is_ticket(name)]


def _cpu(node: Node) -> int | None:
    raw = (node.status.allocatable or {}).get("cpu")
    try:
        return milli(raw) if raw is not None else None
    except QuantityError:
        return None


def _positive(raw: Raw) -> bool:
    try:
        return parse(raw) > 0
    except QuantityError:
        return False
