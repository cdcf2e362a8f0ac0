"""The verb preempt: what kube-scheduler's choice of victims would mean for our slices.

kube-scheduler chooses by what it counts itself (CPU, memory); our tickets are not among that. For each node that it
proposes, its victims go anyway; where the pod's slices would then lie there, its choice stands. Where they would not, it
stands if the preemptor could free the rest, and where nobody's going helps, the node is struck: ending pods there would be
in vain.

Nobody is added: kube-scheduler deletes its victims, which heeds no PodDisruptionBudget. It has weighed budgets for those whom
it chose itself, and would not for ours. Once its own are gone the pod comes to the filter, is rejected for the slice alone,
and the preemptor ends whoever holds it by an eviction, for which the API server asks the budgets. A node for which
kube-scheduler has no victims of its own (newer ones ask of such, too) is the preemptor's from the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tessera.model.config import Config
from tessera.model.errors import RequestError
from tessera.placement.fit import place
from tessera.placement.keeping import Kept
from tessera.placement.reasons import Reason, Rejection
from webhook.extender.candidates import TOGETHER, Candidates, through
from webhook.extender.cluster import Cluster
from webhook.extender.filter import Asked, read_asked
from webhook.extender.preferences import tolerates_cordon
from webhook.extender.wire import MetaVictims, PreemptArgs, PreemptResult


async def preempt(
    args: PreemptArgs, cluster: Cluster, config: Config, candidates: Candidates, *, gone: Callable[[], bool]
) -> PreemptResult:
    """Answer kube-scheduler's preempt call.

    Args:
        args: the pod, and on which nodes whom kube-scheduler would end.
        cluster: who holds what.
        config: in force.
        candidates: tells whether the preemptor could free the rest.
        gone: tells whether the client has gone away; kube-scheduler asks anew after ten seconds.
    """
    proposed = args.victims()
    pod = args.Pod
    if pod is None:
        return PreemptResult({})
    try:
        asked = read_asked(pod, config, cordoned=tolerates_cordon(pod))
    except RequestError:
        return PreemptResult({})
    if asked is None:
        return PreemptResult(proposed)
    kept = {}
    for count, (node, chosen) in enumerate(proposed.items(), 1):
        if count % TOGETHER == 0:
            await asyncio.sleep(0)
            if gone():
                return PreemptResult({})
        if cluster.refusals.on(node, pod) is not None:
            continue
        if await _stands(asked, node, chosen, cluster, candidates, may=config.preemption.enabled):
            kept[node] = chosen
    return PreemptResult(kept)


async def _stands(
    asked: Asked, node: str, chosen: MetaVictims, cluster: Cluster, candidates: Candidates, *, may: bool
) -> bool:
    """Whether the pod would get its slices there once those chosen have gone, and whom the preemptor may end."""
    gone = [pod.UID for pod in chosen.Pods or ()]
    closed = cluster.ledger.closed(node)
    if closed is not None and not (closed is Reason.CORDONED and asked.shape.cordoned):
        return False
    states = cluster.keeper.states(node, uid=asked.uid, priority=asked.priority, gone=gone)
    if not isinstance(place(asked.asks, asked.shape, states), Rejection):
        return True
    if not (may and gone):
        return False
    kept = Kept(asked.asks, asked.shape)
    search = candidates.on(kept, node, uid=asked.uid, priority=asked.priority, gone=gone, smaller=False)
    return await through(search) is not None
