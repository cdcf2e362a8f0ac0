"""A node that refuses pods is told to people: in the log, by a metric, and by an Event on the Node.

The extender's read-only JSON says it too (`webhook.extender.snapshot`), but whoever is called at night has kubectl and not
the way to that port: `kubectl describe node` shows the Event, and `tessera doctor` and `tessera explain` read it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol

from tessera.kube.events import Regarding
from tessera.model.names import KUBELET_REFUSES
from tessera.model.pod import Pod
from tessera.report.plaintext import plain
from webhook.extender.admitting import Cause
from webhook.extender.refusals import Refusal

LONGEST: Final = 400
"""Characters of the kubelet's own words; an Event takes 1,024 in all."""

_log = logging.getLogger(__name__)


class Events(Protocol):
    """Where it is said what was done or seen; `tessera.kube.events.EventRecorder` does."""

    def emit(self, regarding: Regarding, *, reason: str, message: str, warning: bool = False) -> None:
        """Put one down; never waits, never fails."""
        ...


class Told:
    """Tells of refusals as they are seen."""

    def __init__(self, events: Events, *, count: Callable[[Cause], None]) -> None:
        """Tell nothing yet.

        Args:
            events: takes an Event for every refusal that keeps somebody from the node; bounds their pace itself.
            count: called with the cause of every refusal.
        """
        self._events = events
        self._count = count

    def refused(self, pod: Pod, refusal: Refusal) -> None:
        """Tell of one pod that was refused."""
        self._count(refusal.cause)
        if refusal.left is None:
            return
        message = f"{refusal.left.text}; last {pod.key}: {plain(pod.status.message or '', longest=LONGEST)}"
        if refusal.seconds:
            _log.warning("node %s: %s", refusal.node, message)
        # As the kubelet's own Events about its node: what describes a Node looks for its name in the place of the UID.
        about = Regarding(kind="Node", name=refusal.node, uid=refusal.node)
        self._events.emit(about, reason=KUBELET_REFUSES, message=message, warning=True)
