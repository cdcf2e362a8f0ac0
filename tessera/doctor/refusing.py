"""Nodes that the extender leaves alone right now, because their kubelet has refused pods that it bound there.

Which nodes these are is in the extender's memory and in no object's state: it lasts for seconds, and a new extender
starts with every node open. The extender says it by an Event on the Node, and that is what is read here. An Event is a
word about the past, so it counts only for as long as the extender may go by it, and its age is told with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tessera.doctor.check import Seen
from tessera.doctor.evidence import Evidence
from tessera.doctor.finding import Finding, Severity, counted
from tessera.doctor.objects import Event
from tessera.doctor.times import ago, last_seen
from tessera.model.names import KUBELET_REFUSES

FIELDS: Final = f"involvedObject.kind=Node,reason={KUBELET_REFUSES}"
"""Which Events these are; those about Nodes stand in the namespace `NAMESPACE`."""
NAMESPACE: Final = "default"
_LASTS: Final = 90.0
"""Seconds: a node is closed for up to 30, and then takes one pod at a time for up to 60, if nobody comes."""


def refusals(events: Iterable[Event], now: float) -> dict[str, tuple[float, str]]:
    """By node, how many seconds ago the extender last said that it leaves the node alone, and its words."""
    found: dict[str, tuple[float, str]] = {}
    for event in events:
        when, node = last_seen(event), event.involved_object.name
        if when is None or now - when > _LASTS:
            continue
        age = max(0.0, now - when)
        if node not in found or age < found[node][0]:
            found[node] = (age, event.message)
    return found


def refusing(evidence: Evidence) -> Seen:
    """No kubelet has just refused pods."""
    events = evidence.refusals.need()
    findings = [
        Finding(
            severity=Severity.WARNING,
            object=f"node/{node}",
            seen=f"{said} (told {ago(age)} ago)",
            why="The pods that it names wait, and go there one at a time until one is admitted.",
            mend="The agent's pod on that node and its log; kubectl describe one of the refused pods has the kubelet's words.",
        )
        for node, (age, said) in sorted(refusals(events, evidence.now).items())
    ]
    return Seen(findings, counted(len(events), "Event"))
