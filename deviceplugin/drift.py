"""What this node gave otherwise than planned, for the extender's books (contract, section 3).

A pod that never saw our extender (spec.nodeName, static pods, other schedulers) has no plan, and until it shows up here the
extender assumes the worst of it. So drift is computed from ledger and pods as they are, never kept.
"""

from __future__ import annotations

from deviceplugin.board import Board
from deviceplugin.identity import Identity
from deviceplugin.ledger import UNKNOWN, Grant
from deviceplugin.placing import Placing
from deviceplugin.pods import NodePods
from deviceplugin.slices import planned_slices
from tessera.model.plan import Drift, PlannedSlice


def drift(board: Board, pods: NodePods, identity: Identity, placing: Placing) -> Drift:
    """By the pod's UID in the API and by container, what was given to pods without a plan or beside it."""
    found: dict[str, dict[str, tuple[PlannedSlice, ...]]] = {}
    for grant in board.ledger:
        if grant.uid.startswith(UNKNOWN) or _as_planned(grant, pods, identity, placing):
            continue
        slices = planned_slices(grant, board)
        if slices:
            pod = pods.by_uid(grant.uid)
            uid = pod.metadata.uid if pod is not None else grant.uid
            found.setdefault(uid, {})[grant.container] = slices
    return found


def _as_planned(grant: Grant, pods: NodePods, identity: Identity, placing: Placing) -> bool:
    pod = pods.by_uid(grant.uid)
    if pod is None:
        return grant.planned
    caller = identity.caller(pod, grant.container)
    return caller is not None and placing.is_planned(caller, grant.gpus)
