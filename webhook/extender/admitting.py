"""What a pod's status says of its admission by the kubelet: taken, refused, and whose doing a refusal was.

All that is known comes in words that people were meant to read. They are the kubelet's own and have changed with its
versions, so what is read out of them stands here, beside where it was read from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal

from tessera.model.names import Names
from tessera.model.pod import Pod

LONGEST_MESSAGE: Final = 2000
"""Characters of a pod's message that are read."""
REFUSED: Final = "UnexpectedAdmissionError"
"""The kubelet's reason where devices or other resources could not be given (pkg/kubelet/cm/admission/errors.go)."""

Cause = Literal["node", "pod"]
_CODE: Final = re.compile(r"\bcode = (\w+)")
_CUT_OFF: Final = ("Unavailable", "Canceled")
"""What gRPC calls a connection that broke, and one that the kubelet itself closed because its plugin was gone."""


def cause_of(pod: Pod, names: Names) -> Cause:
    """Whose doing a refusal is, by the kubelet's words (pkg/kubelet/cm/devicemanager/manager.go, v1.34.4).

    The node's where devices are missing that we offer (``no healthy devices present; cannot allocate unhealthy devices
    tessera.dev/gpu-memory.256Mi``), or where a call was cut off and could have been to nobody but our agent. What an agent
    says when it refuses comes behind its gRPC code, so nothing that a pod brings can stand before that.

    Args:
        pod: that was refused.
        names: of this installation.
    """
    message = (pod.status.message or "")[:LONGEST_MESSAGE]
    code = _CODE.search(message)
    if code is not None:
        return "node" if code[1] in _CUT_OFF and not any(_foreign(pod, names)) else "pod"
    return "node" if any(names.is_ticket(word.strip(".,;:")) for word in message.split()) else "pod"


def _foreign(pod: Pod, names: Names) -> Iterator[str]:
    """What a pod asks of other device plugins."""
    for container in (*(pod.spec.containers or ()), *(pod.spec.init_containers or ())):
        limits = (container.resources.limits if container.resources is not None else None) or {}
        yield from (name for name in limits if "/" in name and not names.is_ticket(name))


def admitted(pod: Pod) -> bool:
    """The kubelet has taken the pod: it lists a pod's containers only then, long before an image is there."""
    status = pod.status
    there = bool(status.container_statuses or status.init_container_statuses)
    return status.phase in ("Running", "Succeeded") or (there and status.reason != REFUSED)
