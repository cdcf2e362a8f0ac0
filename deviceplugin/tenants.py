"""The ledger as the monitor sees it: which container may use how much of which GPU."""

from __future__ import annotations

from deviceplugin.board import Board
from deviceplugin.monitor import HeldSlice, Tenant
from deviceplugin.pods import NodePods
from deviceplugin.slices import slices_of


class Tenants:
    """Answers the monitor's questions from ledger and pods."""

    def __init__(self, board: Board, pods: NodePods) -> None:
        """Ask these."""
        self._board = board
        self._pods = pods
        self._made: tuple[tuple[int, int], dict[tuple[str, str], Tenant]] | None = None

    def tenants(self) -> dict[tuple[str, str], Tenant]:
        """All slices of the node, by (pod UID, container name); made anew only after a change."""
        version = (self._board.version, self._board.ledger.version)
        if self._made is None or self._made[0] != version:
            unit = self._board.names.memory_unit
            found = {}
            for grant in self._board.ledger:
                held = tuple(
                    HeldSlice(
                        gpu=piece.gpu.id,
                        memory=(piece.units or 0) * unit,
                        bounded=piece.instance is None and not piece.whole,
                    )
                    for piece in slices_of(grant, self._board, request=None, order=None)
                )
                found[grant.uid, grant.container] = Tenant(namespace=grant.namespace, pod=grant.name, slices=held)
            self._made = (version, found)
        return self._made[1]

    def container(self, uid: str, container_id: str) -> str | None:
        """The name of a container by its ID, from the pod's status."""
        pod = self._pods.by_uid(uid)
        if pod is None:
            return None
        status = pod.status
        for each in (*(status.container_statuses or ()), *(status.init_container_statuses or ())):
            # containerd://0123...
            if each.container_id is not None and each.container_id.rpartition("/")[2] == container_id:
                return each.name
        return None

    def has_object(self, uid: str) -> bool:
        """Whether the pod is there as an object, as far as can be known."""
        return self._pods.state(uid) != "gone"
