"""The verb preempt: what kube-scheduler's choice of victims would mean for our slices.

kube-scheduler chooses by what it counts itself (CPU, memory); our tickets are not among that. For each node that it
proposes, its victims go anyway; where the pod's slices would then lie there, its choice stands. Where they would not, those
whose going frees a slice are added (newer kube-schedulers ask with no victims at all where only the extender refused), and
where nobody's going helps, the node is struck: ending pods there would be in vain.

Most slices are freed without this verb, by the preemptor, since a kube-scheduler for which a pod fits asks nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tessera.model.config import Config
from tessera.model.errors import RequestError
from tessera.placement.fit import place
from tessera.placement.keeping import Kept
from tessera.placement.reasons import Reason, Rejection
from tessera.placement.victims import Victims
from webhook.extender.candidates import TOGETHER, Candidates, through
from webhook.extender.cluster import Cluster
from webhook.extender.filter import Asked, read_asked
from webhook.extender.preferences import tolerates_cordon
from webhook.extender.wire import MetaPod, MetaVictims, PreemptArgs, PreemptResult


async def preempt(
    args: PreemptArgs, cluster: Cluster, config: Config, candidates: Candidates, *, gone: Callable[[], bool]
) -> PreemptResult:
    """Answer kube-scheduler's preempt call.

    Args:
        args: the pod, and on which nodes whom kube-scheduler would end.
        cluster: who holds what.
        config: in force.
        candidates: looks for more victims.
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
        more = await _more(asked, node, chosen, cluster, candidates, may=config.preemption.enabled)
        if more is not None:
            added = [MetaPod(each.key) for each in more]
            kept[node] = MetaVictims([*(chosen.Pods or ()), *added], chosen.NumPDBViolations) if added else chosen
    return PreemptResult(kept)


async def _more(
    asked: Asked, node: str, chosen: MetaVictims, cluster: Cluster, candidates: Candidates, *, may: bool
) -> Victims | None:
    """Who has to go beside those chosen; None where the node is no choice."""
    gone = [pod.UID for pod in chosen.Pods or ()]
    closed = cluster.ledger.closed(node)
    if closed is not None and not (closed is Reason.CORDONED and asked.shape.cordoned):
        return None
    states = cluster.keeper.states(node, uid=asked.uid, priority=asked.priority, gone=gone)
    if not isinstance(place(asked.asks, asked.shape, states), Rejection):
        return ()
    if not may:
        return None
    kept = Kept(asked.asks, asked.shape)
    return await through(candidates.on(kept, node, uid=asked.uid, priority=asked.priority, gone=gone))
