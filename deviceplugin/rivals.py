"""NVIDIA's own device plugin beside ours: two programs that give away the same GPU without knowing of each other.

What it serves shows in PodResources as ``nvidia.com/…`` with GPU or MIG UUIDs as IDs (time-slicing adds ``::`` and a number).
Such GPUs are withheld as a whole, and the node is not ready and says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NoReturn, Protocol

from deviceplugin.board import Board
from deviceplugin.errors import KubeletError
from tessera.kube.clock import Clock
from tessera.model.errors import AnnotationError
from tessera.model.inventory import gpu_id

_log = logging.getLogger(__name__)

PREFIX: Final = "nvidia.com/"
INTERVAL: Final = 15.0


class Allocatable(Protocol):
    """The kubelet's list of healthy devices; asking for it disturbs nothing."""

    async def allocatable(self) -> Mapping[str, frozenset[str]]:
        """IDs by resource."""
        ...


def served(devices: Mapping[str, Iterable[str]], instances: Mapping[str, str]) -> dict[str, str]:
    """Which GPUs others serve.

    Args:
        devices: IDs by resource.
        instances: GPU id by the UUID of a MIG instance.

    Returns:
        A resource by GPU id.
    """
    found: dict[str, str] = {}
    for resource, ids in devices.items():
        if not resource.startswith(PREFIX):
            continue
        for device in ids:
            uuid = device.partition("::")[0]
            gpu = instances.get(uuid)
            if gpu is None and uuid.startswith("GPU-"):
                try:
                    gpu = gpu_id(uuid)
                except AnnotationError:
                    continue
            if gpu is not None:
                found[gpu] = resource
    return found


class Rivals:
    """Looks for other plugins on our GPUs."""

    def __init__(
        self, board: Board, kubelet: Allocatable, *, instances: Callable[[], Mapping[str, str]], clock: Clock
    ) -> None:
        """Look nowhere yet.

        Args:
            board: our GPUs; those that others serve are withheld there.
            kubelet: who serves what.
            instances: GPU id by the UUID of a MIG instance, as it is now.
            clock: paces.
        """
        self._board = board
        self._kubelet = kubelet
        self._instances = instances
        self._clock = clock
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """Which of our GPUs somebody else serves, for readiness; None where none is."""
        return self._problem

    async def run(self) -> NoReturn:
        """Look until cancelled."""
        while True:
            await self.step()
            await self._clock.sleep(INTERVAL)

    async def step(self) -> None:
        """Look once; a kubelet that doesn't answer changes nothing."""
        if not self._board.gpus:
            return
        try:
            devices = await self._kubelet.allocatable()
        except KubeletError as error:
            _log.debug("%s", error)
            return
        found = served(devices, self._instances())
        self._board.withhold(found)
        ours = sorted(self._board.elsewhere)
        problem = None
        if ours:
            problem = (
                f"another device plugin serves GPU {', '.join(ours)} as {found[ours[0]]}, so it is withheld here; remove that "
                "plugin from this node, or keep its GPUs from it"
            )
        if problem != self._problem:
            if problem:
                _log.error("%s", problem)
            else:
                _log.info("no other device plugin serves our GPUs any more")
        self._problem = problem
