"""What helps a pod on: the next step, told from what is known of it and of the cluster around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tessera.doctor.capacity import Capacity, Verdict, asked_of
from tessera.doctor.finding import counted, several
from tessera.doctor.objects import Event, LookedNode, LookedPod
from tessera.doctor.refusing import refusals
from tessera.model.config import Config
from tessera.model.quantity import gib
from tessera.model.tickets import Ask

_MOST_NODES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What beside the pod is known.

    Attributes:
        config: of the installation. now: seconds since 1970.
        nodes, pods: of the cluster; None where they can't be read. events: of the pod; None likewise.
        refusals: Events on Nodes by which the extender says that it leaves them alone.
        served: names of schedulers that ask our extender.
    """

    config: Config
    now: float
    nodes: tuple[LookedNode, ...] | None
    pods: tuple[LookedPod, ...] | None
    events: tuple[Event, ...] | None
    refusals: tuple[Event, ...]
    served: frozenset[str]


@dataclass(frozen=True, slots=True)
class Told:
    """What was found out about the pod.

    Attributes:
        asked: its containers that hold tickets.
        dialect: in which it asks, "" where it asks for nothing of ours.
        verdict: of placement, where it waits and nodes could be read.
        planned: it has a plan of its own.
        reported: its node says that it gave something else.
    """

    asked: Sequence[Ask]
    dialect: str
    verdict: Verdict | None
    planned: bool
    reported: bool


def advice(pod: LookedPod, told: Told, around: Surroundings) -> Iterable[str]:
    """What helps, the nearest first; nothing where nothing has to be done."""
    scheduler = pod.spec.scheduler_name or "default-scheduler"
    if not told.asked:
        yield _not_ours(told.dialect)
    elif pod.status.phase == "Failed":
        why = pod.status.message or pod.status.reason or "its events say why"
        yield f"It has failed: {why}. A pod that failed holds no GPU."
        if pod.status.reason == "UnexpectedAdmissionError":
            yield "Its node refused it; delete it, so that its owner makes it anew and it is placed again."
    elif pod.ended:
        return
    elif not pod.spec.node_name:
        yield from _waiting(pod, told, around, scheduler)
    else:
        yield from _bound(pod, told, scheduler)


def _bound(pod: LookedPod, told: Told, scheduler: str) -> Iterable[str]:
    if told.reported and told.planned:
        yield "It has other GPUs than planned; if it runs well, nothing. Delete it to have it placed anew."
    elif told.reported:
        yield f"It has no plan (scheduler {scheduler}): the node packed it. Leave spec.nodeName and the scheduler to Tessera."
    elif not told.planned:
        yield "It is bound without a plan of its own; until its node reports where it is, its slice is withheld on every GPU there."
    if pod.status.phase == "Pending":
        yield "It has a node and does not run yet: its events, and the node agent's log there, say what it waits for."


def _not_ours(dialect: str) -> str:
    if dialect:
        return (
            f"It asks for GPUs as {dialect} does and admission never translated it: it was made before Tessera was installed "
            "or while the webhook was not called. Delete it, so that its owner makes it anew; tessera mutate shows what "
            "admission does."
        )
    return "It asks for no GPU of Tessera's. tessera mutate -f shows how admission reads a manifest."


def _waiting(pod: LookedPod, told: Told, around: Surroundings, scheduler: str) -> Iterable[str]:
    verdict = told.verdict
    scheduled = pod.condition("PodScheduled")
    if scheduled is not None and scheduled.reason == "SchedulingGated":
        yield "Somebody holds it by scheduling gates (a queue such as Kueue); it is placed when they are taken away."
        return
    if scheduler not in around.served:
        yield f"Its scheduler is {scheduler}; {several(sorted(around.served))} asks Tessera. Take schedulerName out of its manifest."
    if scheduled is None or not scheduled.message:
        yield f"No scheduler has tried it yet. Is {scheduler} running? (tessera doctor)"
    if verdict is None:
        yield "Nodes and pods can't be read with these rights, so why it finds no GPU can't be told."
        return
    if verdict.problem:
        yield f"Its request makes no sense: {verdict.problem}"
        return
    if verdict.fits:
        left = refusals(around.refusals, around.now)
        if alone := [node for node in verdict.fits if node in left]:
            yield f"Nodes left alone are tried again within seconds; where it goes on, look at the agent on {several(alone)}."
        if others := [node for node in verdict.fits if node not in left]:
            where = several(others, most=_MOST_NODES)
            yield f"By GPUs alone {where} would do: look at its CPU and memory, node selectors, taints and affinity."
        return
    if verdict.rejected and set(verdict.rejected) == verdict.never:
        yield "No node will ever do, whoever leaves: change what it asks, or add such GPUs."
        return
    yield from _less(pod, told.asked, around)


def _less(pod: LookedPod, asked: Sequence[Ask], around: Surroundings) -> Iterable[str]:
    config = around.config
    best, largest = Capacity(around.nodes or (), around.pods or (), config).largest()
    free, most = gib(best * config.memory_unit), gib(largest * config.memory_unit)
    if not largest:
        yield "No open node has a healthy GPU now; why stands above, and tessera doctor tells how to mend it."
    elif any(ask.request.whole for ask in asked):
        now = f"a slice of up to {free} would fit now" if best else "no slice would fit now either"
        yield f"A GPU is free as a whole only when every slice on it has ended; {now}."
    elif best:
        yield f"The most that is free on one GPU now is {free} (largest GPU: {most}): ask for less, or wait until pods end."
    else:
        yield f"No GPU has memory left (largest GPU: {most}): wait until pods end, or add GPUs."
    priority = pod.spec.priority or 0
    lower = sum(
        1
        for each in around.pods or ()
        if each.spec.node_name and not each.ended and (each.spec.priority or 0) < priority and asked_of(each, config)
    )
    if lower and pod.spec.preemption_policy != "Never":
        yield f"{counted(lower, 'running pod')} with GPUs {'has' if lower == 1 else 'have'} a lower priority and may be preempted."
