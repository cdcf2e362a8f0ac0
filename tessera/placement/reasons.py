"""Why a node does not take a pod: one list that the filter's answer, events, metrics and `explain` share.

kube-scheduler adds equal texts up ("0/9 nodes are available: 7 needs 32 units (8 GiB), best GPU has 20 (5 GiB), ...") and
cuts the sum at 1024 characters, so a text is short, starts with what the pod needs and names no node. Whether a reason can
pass by itself decides in which map of the extender's answer it stands: `FailedNodes` (too little now) or
`FailedAndUnresolvableNodes` (never, so that preemption is not tried there).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final, NamedTuple

from tessera.model.quantity import size


class Reason(Enum):
    """One way in which a node can't take a pod; the members stand in the order in which they are looked for.

    Attributes:
        slug: what metrics and JSON call it.
        never: nothing that happens to other pods makes the node fit.
        template: the text, with ``{need}``, ``{have}``, ``{what}``, the sizes ``{asked}`` and ``{there}`` that these are
            in units, and what agrees with a number: ``{s}`` with the need, ``{are}`` and ``{have_}`` with what there is.
    """

    UNKNOWN_NODE = ("unknown_node", False, "node is not known to the extender yet")
    NOT_READY = ("not_ready", False, "node is not ready")
    CORDONED = ("cordoned", False, "node is cordoned")
    UNREADABLE = ("unreadable_inventory", False, "node's GPU inventory can't be read")
    DRAINING = ("draining", False, "node's agent is draining")
    AGENT_AWAY = ("agent_away", False, "node's agent does not serve GPUs now")
    OTHER_UNIT = ("other_unit", True, "node counts GPU memory in units of another size")
    NO_GPU = ("no_gpu", True, "no GPU")
    INVALID = ("invalid_request", True, "{what}")
    NO_UUID = ("no_such_uuid", True, "needs GPU {what}")
    NO_MODEL = ("no_such_model", True, "needs a GPU of model {what}")
    WEAK_GUARANTEE = ("weak_guarantee", True, "needs the memory guarantee {what} or a firmer one")
    SMALL_GPUS = ("gpus_too_small", True, "needs {need} unit{s}{asked}, largest GPU has {have}{there}")
    SMALL_TOGETHER = ("gpu_too_small_together", True, "needs one GPU for all its containers, none is large enough")
    FEW_GPUS = ("too_few_gpus", True, "needs {need} such GPU{s}, node has {have}")
    NO_LINKS = ("no_such_links", True, "needs {need} GPU{s} joined by {what}")
    NO_MIG = ("no_such_mig", True, "needs {need} MIG instance{s} of {what}, node has {have}")
    SICK = ("sick_gpus", False, "needs {need} healthy GPU{s}, node has {have}")
    NEIGHBOURS = ("neighbours", False, "needs {need} GPU{s} free of classes to keep apart from, node has {have}")
    UNITS = ("memory_units", False, "needs {need} unit{s}{asked}, best GPU has {have}{there}")
    PERCENT = ("memory_percent", False, "needs {need} % of memory, best GPU has {have} %")
    COMPUTE = ("compute_percent", False, "needs {need} % of compute, best GPU has {have} %")
    BOTH = ("memory_and_compute", False, "memory and compute are free, but not on one GPU")
    FREE_GPUS = ("free_gpus", False, "needs {need} GPU{s} with room for its slice, {have} {have_} it")
    WHOLE_GPUS = ("whole_gpus", False, "needs {need} whole GPU{s}, {have} {are} free")
    TOGETHER = ("together", False, "needs one GPU for all its containers, none has room for all")
    ARRANGEMENT = ("arrangement", False, "its slices fit one by one, but not all at once")
    FREE_LINKS = ("free_links", False, "needs {need} GPU{s} joined by {what} with room")
    MIG_TAKEN = ("mig_taken", False, "needs {need} MIG instance{s} of {what}, {have} {are} free")
    SCALE_POD = ("scale_pod", True, "a scale pod asks for a new node, it runs on none")
    KEPT = ("kept", False, "its room is kept for a pod of priority {need}")
    REFUSING = ("refusing", False, "node's kubelet refused pods (its agent's log says why), {what}")

    def __init__(self, slug: str, never: bool, template: str) -> None:
        """Take the parts of the value apart."""
        self.slug = slug
        self.never = never
        self.template = template

    @property
    def code(self) -> int:
        """A small number for arrays, from 1; 0 says that nothing is in the way."""
        return _CODES[self]

    @property
    def in_units(self) -> bool:
        """Whether its numbers are memory units, whose size the text says too."""
        return "{asked}" in self.template

    @property
    def is_graded(self) -> bool:
        """Whether one node has a little more of it than the next, so that many nodes may have as many texts."""
        return "GPU has {have}" in self.template


REASONS: Final = tuple(Reason)
MOST_AMOUNTS: Final = 5
"""Amounts that are told of one reason; kube-scheduler's event has room for some twenty texts of all reasons."""
_CODES: Final = {reason: code for code, reason in enumerate(REASONS, 1)}


def by_code(code: int) -> Reason:
    """The reason of a code above 0."""
    return REASONS[code - 1]


class Rejection(NamedTuple):
    """A reason with its numbers.

    Attributes:
        reason: which.
        need: how much the pod needs, in the reason's own unit.
        have: how much there is.
        what: a name or a list, where the text has one.
        unit: bytes of a memory unit, where the numbers are units; 0 tells no size.
    """

    reason: Reason
    need: int = 0
    have: int = 0
    what: str = ""
    unit: int = 0

    @property
    def text(self) -> str:
        """The sentence that people see."""
        return self.reason.template.format(
            need=self.need,
            have=self.have,
            what=self.what,
            s="" if self.need == 1 else "s",
            are="is" if self.have == 1 else "are",
            have_="has" if self.have == 1 else "have",
            asked=self._size(self.need),
            there=self._size(self.have),
        )

    def _size(self, units: int) -> str:
        amount = units * self.unit
        if not amount:
            return ""
        return f" ({size(amount)})"


def texts(rejections: Iterable[Rejection]) -> dict[Rejection, str]:
    """What is said of each, where many nodes refuse: beyond `MOST_AMOUNTS` the largest amount speaks for all."""
    found = dict.fromkeys(rejections, "")
    alike: dict[Rejection, list[Rejection]] = {}
    for rejection in found:
        alike.setdefault(rejection._replace(have=0) if rejection.reason.is_graded else rejection, []).append(rejection)
    for group in alike.values():
        if len(group) <= MOST_AMOUNTS:
            found |= {each: each.text for each in group}
        else:
            found |= dict.fromkeys(group, f"{max(group, key=lambda each: each.have).text} or less")
    return found
