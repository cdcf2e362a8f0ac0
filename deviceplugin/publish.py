"""What the cluster knows of this node: inventory, drift and labels, kept on its Node object by merge patches.

Never on the way of a kubelet's call: changes are gathered for a moment, written in the background, and tried again with
growing waits while the API server is away. What is written is always the state of that moment, so nothing queues up.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, NoReturn, Protocol

import msgspec

from tessera.kube.client import Patch
from tessera.kube.clock import Clock
from tessera.kube.errors import KubeError
from tessera.kube.outage import Outage
from tessera.kube.resources import NODES, Resource
from tessera.model.inventory import Gpu, Inventory
from tessera.model.inventory import encode as encode_inventory
from tessera.model.names import Names
from tessera.model.plan import Drift, encode_drift
from tessera.model.quantity import MIB

_log = logging.getLogger(__name__)

GATHER: Final = 0.1
"""Seconds for which changes are gathered."""
AGAIN: Final = 300.0
"""Seconds after which everything is written again: a Node can be made anew under our feet."""
FIRST_WAIT: Final = 0.5
LONGEST_WAIT: Final = 30.0
LONGEST_LABEL: Final = 63

_NOT_IN_LABELS: Final = re.compile(r"[^A-Za-z0-9._-]+", re.ASCII)


class NodePatcher(Protocol):
    """Writes to the API; `tessera.kube.client.ApiClient` does."""

    async def patch(self, resource: Resource, name: str, body: bytes, *, kind: Patch) -> bytes:
        """Change a part of an object."""
        ...


def label(text: str) -> str:
    """Make a label's value of any text: blanks and what labels can't hold become ``-``, ends are alphanumeric.

    >>> label("NVIDIA A100-SXM4-80GB (rev 2)")
    'NVIDIA-A100-SXM4-80GB-rev-2'
    """
    cut = _NOT_IN_LABELS.sub("-", text).strip("._-")[:LONGEST_LABEL]
    return cut.rstrip("._-")


def labels(gpus: Sequence[Gpu], names: Names) -> dict[str, str | None]:
    """The node's labels; None removes one. On mixed nodes model and memory are those of most GPUs."""
    if not gpus:
        return dict.fromkeys((names.node_model, names.node_count, names.node_memory, names.node_sharing))
    ((model, memory), _), *_ = Counter((gpu.model, gpu.memory) for gpu in gpus).most_common(1)
    return {
        names.node_model: label(model) or None,
        names.node_count: str(len(gpus)),
        names.node_memory: str(memory // MIB),
        names.node_sharing: "true",
    }


def metadata(inventory: Inventory, drift: Drift, names: Names) -> dict[str, dict[str, str | None]]:
    """Annotations and labels of the Node; None removes one. A node without GPUs has none of ours."""
    return {
        "annotations": {
            names.inventory: encode_inventory(inventory) if inventory.gpus else None,
            names.drift: encode_drift(drift) if drift else None,
        },
        "labels": labels(inventory.gpus, names),
    }


class Publisher:
    """Keeps the Node object up to date."""

    def __init__(
        self,
        patcher: NodePatcher,
        node: str,
        *,
        state: Callable[[], dict[str, dict[str, str | None]]],
        clock: Clock,
        rng: Random,
    ) -> None:
        """Write nothing before `run` runs.

        Args:
            patcher: the API server's door.
            node: our Node.
            state: what its annotations and labels should be now; see `metadata`.
            clock: paces.
            rng: spreads the nodes of a cluster over time.
        """
        self._patcher = patcher
        self._node = node
        self._state = state
        self._clock = clock
        self._rng = rng
        self._changed = asyncio.Event()
        self._written: dict[str, dict[str, str | None]] | None = None
        self._outage = Outage(f"writing to node {node}", clock)
        self._lock = asyncio.Lock()
        self.writes = 0

    @property
    def problem(self) -> str | None:
        """Why the Node is not up to date, or None."""
        return None if self._outage.error is None else str(self._outage.error)

    def wake(self) -> None:
        """Something may have changed."""
        self._changed.set()

    async def run(self) -> NoReturn:
        """Publish until cancelled."""
        wait = FIRST_WAIT
        while True:
            if await self.publish():
                wait = FIRST_WAIT
                await self._next_change()
            else:
                await self._clock.sleep(self._rng.uniform(wait / 2, wait))
                wait = min(LONGEST_WAIT, 2 * wait)

    async def _next_change(self) -> None:
        try:
            async with asyncio.timeout(AGAIN * self._rng.uniform(0.8, 1.2)):
                await self._changed.wait()
            await self._clock.sleep(GATHER)
        except TimeoutError:
            self._written = None

    async def publish(self) -> bool:
        """Write what is not written yet, now; False where it could not be written."""
        async with self._lock:
            self._changed.clear()
            wanted = self._state()
            body = {
                part: {
                    name: value
                    for name, value in values.items()
                    if self._written is None or self._written[part].get(name) != value
                }
                for part, values in wanted.items()
            }
            if not any(body.values()):
                return True
            try:
                await self._patcher.patch(NODES, self._node, msgspec.json.encode({"metadata": body}), kind=Patch.MERGE)
            except KubeError as error:
                self._outage.failed(error)
                return False
            self._outage.recovered()
            self._written = wanted
            self.writes += 1
            return True
