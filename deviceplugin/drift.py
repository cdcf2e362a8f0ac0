"""What this node gave otherwise than planned, for the extender's books (contract, section 3).

A pod that never saw our extender (spec.nodeName, static pods, other schedulers) has no plan, and until it shows up here the
extender assumes the worst of it. So drift is computed from ledger and pods as they are, never kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from deviceplugin.board import Board
from deviceplugin.identity import Identity
from deviceplugin.ledger import UNKNOWN
from deviceplugin.placing import Placing
from deviceplugin.pods import NodePods
from deviceplugin.slices import planned_slices
from tessera.model.plan import Drift, PlannedSlice


def drift(board: Board, pods: NodePods, identity: Identity, placing: Placing) -> Drift:
    """By the pod's UID in the API and by container, what was given to pods without a plan or beside it.

    A slice is told when all its tickets are there: the kubelet allocates them one by one, and half a slice would be booked
    as one.
    """
    found: dict[str, dict[str, tuple[PlannedSlice, ...]]] = {}
    for grant in board.ledger:
        if grant.uid.startswith(UNKNOWN):
            continue
        pod = pods.by_uid(grant.uid)
        caller = identity.caller(pod, grant.container) if pod is not None else None
        if caller is not None and not caller.counts.keys() <= grant.devices.keys():
            continue
        if pod is None and grant.planned:
            continue
        slices = planned_slices(grant, board)
        if slices and not (caller is not None and _equal(placing.planned(caller), slices, board)):
            uid = pod.metadata.uid if pod is not None else grant.uid
            found.setdefault(uid, {})[grant.container] = slices
    return found


def _equal(planned: Sequence[PlannedSlice] | None, given: Sequence[PlannedSlice], board: Board) -> bool:
    """Whether a plan says the same places and amounts, as far as the node still has its GPUs."""
    if planned is None:
        return False
    known = [_comparable(piece) for piece in planned if piece.gpu in board.gpus]
    return sorted(known) == sorted(map(_comparable, given))


def _comparable(piece: PlannedSlice) -> tuple[str, str, int, int]:
    """A whole GPU is one whatever its units are: the headroom may have changed since it was planned."""
    if piece.whole:
        return (piece.gpu, "whole", 0, 0)
    return (piece.gpu, piece.instance or "", piece.units or 0, piece.compute or 0)
