"""Preempt, first form: which of the nodes that kube-scheduler would make room on would have room for us.

kube-scheduler chooses victims by what it counts itself (CPU, memory); our tickets are not among that. So its choice is
passed on unchanged for each node on which, once those victims are gone, the pod's slices would lie; other nodes are struck,
since killing pods there would not help. Victims that free a slice are chosen by a task of ours, not here.
"""

from __future__ import annotations

from tessera.model.config import Config
from tessera.model.errors import RequestError
from tessera.placement.fit import place
from tessera.placement.reasons import Reason, Rejection
from webhook.extender.cluster import Cluster
from webhook.extender.filter import read_asked
from webhook.extender.preferences import tolerates_cordon
from webhook.extender.wire import PreemptArgs, PreemptResult


def preempt(args: PreemptArgs, cluster: Cluster, config: Config) -> PreemptResult:
    """Answer kube-scheduler's preempt call."""
    victims = args.victims()
    if args.Pod is None:
        return PreemptResult({})
    try:
        asked = read_asked(args.Pod, config, cordoned=tolerates_cordon(args.Pod))
    except RequestError:
        return PreemptResult({})
    if asked is None:
        return PreemptResult(victims)
    kept = {}
    for node, chosen in victims.items():
        closed = cluster.ledger.closed(node)
        if closed is not None and not (closed is Reason.CORDONED and asked.shape.cordoned):
            continue
        gone = [pod.UID for pod in chosen.Pods or ()]
        states = cluster.ledger.states(node, without=(*gone, asked.uid))
        if not isinstance(place(asked.asks, asked.shape, states), Rejection):
            kept[node] = chosen
    return PreemptResult(kept)
