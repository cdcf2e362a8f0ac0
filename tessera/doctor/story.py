"""The life of one pod: what was asked, what admission wrote, where it is planned, what it got, why it waits, what helps.

Everything is told from objects: the pod, the nodes, the other pods, its Events. What a person reads in them one by one with
kubectl is put beside each other here, by the rules that the parts themselves follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from tessera.dialects.recognise import Dialects
from tessera.doctor.advice import Surroundings, Told, advice
from tessera.doctor.capacity import Capacity, Verdict, asked_of
from tessera.doctor.objects import Event, LookedNode, LookedPod
from tessera.doctor.refusing import refusals
from tessera.doctor.times import age, ago, last_seen
from tessera.model import inventory as inventories
from tessera.model import plan as plans
from tessera.model import request as requests
from tessera.model.config import Config
from tessera.model.errors import AnnotationError, RequestError, TesseraError
from tessera.model.guarantee import Guarantee
from tessera.model.inventory import Gpu
from tessera.model.names import Names
from tessera.model.plan import Plan, PlannedSlice
from tessera.model.quantity import binary
from tessera.model.tickets import Ask, containers, describe, ticket_counts
from tessera.placement.claims import planned_places

_ROUTINE: Final = frozenset({"Pulling", "Pulled", "Created", "Started", "Killing"})
_MOST_EVENTS: Final = 8
_MOST_NODES: Final = 8


class SliceTold(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One container's slice of one GPU, in words: amount and where."""

    container: str
    gpu: str
    model: str
    amount: str


class EventTold(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One Event: seconds since it was last seen (None: unknown), how often, and what it says."""

    age: float | None
    count: int
    type: str
    reason: str
    message: str


class WhyNot(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A reason why nodes do not take the pod; `never`: nothing that other pods do changes it."""

    reason: str
    nodes: tuple[str, ...]
    never: bool


class Story(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The whole of it.

    Attributes:
        pod: ``namespace/name``. state: in words. node: where it is bound, "" where it isn't.
        dialect: in which it asked, "" where it asks nothing. asked: by container, in words.
        wishes: annotations that narrow the choice. tickets: by container, what admission wrote.
        planned, given: slices; `given` is what the node reports or, as planned, what a running pod has.
        plan_problem: why its plan is not believed. drifted: what it was given is not what was planned.
        unit: of the placement profile that it went to, with its region where it has one.
        guarantee: how firmly memory and compute are held. least: the memory guarantee that it insists on.
        fits, why_not: nodes with room, and reasons of the others, where it waits. scheduler_says: kube-scheduler's own words.
        refusing: by node, what the extender says of one that it leaves alone for some pods now, where this one waits.
        events: routine ones last, else the latest first. next: what helps.
    """

    pod: str
    uid: str
    state: str
    node: str
    scheduler: str
    dialect: str
    asked: dict[str, str]
    wishes: dict[str, str]
    tickets: dict[str, dict[str, int]]
    planned: tuple[SliceTold, ...]
    plan_problem: str
    given: tuple[SliceTold, ...]
    drifted: bool
    guarantee: str
    least: str
    unit: str
    fits: tuple[str, ...]
    why_not: tuple[WhyNot, ...]
    scheduler_says: str
    refusing: dict[str, str]
    events: tuple[EventTold, ...]
    next: tuple[str, ...]


def tell(pod: LookedPod, around: Surroundings) -> Story:
    """Tell a pod's story."""
    config, names = around.config, around.config.names
    asked = asked_of(pod, config)
    node = next((n for n in around.nodes or () if n.metadata.name == pod.spec.node_name), None)
    gpus = _gpus(node, names)
    plan, plan_problem = _plan(pod, asked, names)
    reported = _reported(node, pod, names)
    planned = _slices(plan.containers if plan else {}, gpus, names)
    running = pod.spec.node_name and pod.status.phase in ("Running", "Succeeded")
    given = _slices(reported, gpus, names) if reported else planned if running and plan else ()
    waits = bool(asked) and not pod.spec.node_name and not pod.ended
    verdict = _verdict(pod, around) if waits else None
    dialect, words = _asked(pod, asked, config)
    scheduled = pod.condition("PodScheduled")
    return Story(
        pod=pod.key,
        uid=pod.metadata.uid,
        state=_state(pod, around.now),
        node=pod.spec.node_name,
        scheduler=pod.spec.scheduler_name or "default-scheduler",
        dialect=dialect,
        asked=words,
        wishes=_wishes(pod, names),
        tickets=_tickets(pod, names),
        planned=planned,
        plan_problem=plan_problem,
        given=given,
        drifted=reported is not None,
        guarantee=_guarantee(plan, given, gpus),
        least=pod.metadata.annotation(names.guarantee) or "",
        unit="/".join(
            value for name in (names.unit, names.region) if (value := (pod.metadata.labels or {}).get(name, ""))
        ),
        fits=verdict.fits if verdict else (),
        why_not=tuple(
            WhyNot(reason=why, nodes=where, never=why in verdict.never) for why, where in verdict.rejected.items()
        )
        if verdict
        else (),
        scheduler_says=scheduled.message if scheduled and not pod.spec.node_name else "",
        refusing={node: said for node, (_, said) in sorted(refusals(around.refusals, around.now).items())}
        if waits
        else {},
        events=_events(around.events or (), around.now),
        next=tuple(
            advice(pod, Told(asked, dialect, verdict, planned=plan is not None, reported=reported is not None), around)
        ),
    )


def _gpus(node: LookedNode | None, names: Names) -> dict[str, Gpu]:
    text = node.metadata.annotation(names.inventory) if node else None
    try:
        return {gpu.id: gpu for gpu in inventories.decode(text).gpus} if text else {}
    except AnnotationError:
        return {}


def _plan(pod: LookedPod, asked: Sequence[Ask], names: Names) -> tuple[Plan | None, str]:
    """The pod's plan, and why it is none where it is none although it is written."""
    text = pod.metadata.annotation(names.plan)
    if text is None:
        return None, ""
    try:
        plan = plans.decode(text)
    except AnnotationError as error:
        return None, str(error)
    if plan.node != pod.spec.node_name:
        return None, f"it was made for node {plan.node}, the pod is on {pod.spec.node_name or 'no node'}"
    if planned_places(pod, asked, names) is None:
        return None, "it does not say what the pod's tickets say, so nobody goes by it"
    return plan, ""


def _reported(node: LookedNode | None, pod: LookedPod, names: Names) -> dict[str, tuple[PlannedSlice, ...]] | None:
    """What the node says it gave otherwise than planned; None where it says nothing of this pod."""
    text = node.metadata.annotation(names.drift) if node else None
    try:
        return plans.decode_drift(text).get(pod.metadata.uid) if text else None
    except AnnotationError:
        return None


def _slices(found: dict[str, tuple[PlannedSlice, ...]], gpus: dict[str, Gpu], names: Names) -> tuple[SliceTold, ...]:
    return tuple(
        SliceTold(
            container=container,
            gpu=piece.gpu,
            model=gpus[piece.gpu].model if piece.gpu in gpus else "",
            amount=_amount(piece, names),
        )
        for container, pieces in found.items()
        for piece in pieces
    )


def _amount(piece: PlannedSlice, names: Names) -> str:
    if piece.instance is not None:
        return f"MIG instance {piece.instance} ({piece.mig})"
    if piece.whole:
        return "the whole GPU"
    compute = f" and {piece.compute} % of compute" if piece.compute else ""
    return f"{binary((piece.units or 0) * names.memory_unit)} of memory{compute}"


def _asked(pod: LookedPod, asked: Sequence[Ask], config: Config) -> tuple[str, dict[str, str]]:
    """The dialect and, by container, what is asked: as admission noted it, by the tickets, or as it would be read."""
    names = config.names
    if asked:
        text = pod.metadata.annotation(names.request)
        try:
            dialect = requests.decode(text).dialect if text else "tickets"
        except AnnotationError:
            dialect = "tickets"
        return dialect, {ask.container: describe(ask.request) for ask in asked}
    try:
        found = Dialects(config).recognise(pod)
    except RequestError as error:
        return "", {error.container or "pod": f"what no dialect can mean: {error.problem}"}
    except TesseraError:
        return "", {}
    if found is None:
        return "", {}
    return found.request.dialect, {name: describe(each) for name, each in found.request.containers.items()}


def _wishes(pod: LookedPod, names: Names) -> dict[str, str]:
    wanted = (
        names.gpu_models, names.gpu_uuids, names.gpu_placement, names.gpu_topology, names.guarantee,
        names.placement_profile, names.resize,
    )  # fmt: skip
    return {name: value for name in wanted if (value := pod.metadata.annotation(name)) is not None}


def _tickets(pod: LookedPod, names: Names) -> dict[str, dict[str, int]]:
    found = {}
    for container, _ in containers(pod):
        try:
            counts = ticket_counts(container, names)
        except RequestError:
            continue
        if counts:
            found[container.name] = dict(sorted(counts.items()))
    return found


def _guarantee(plan: Plan | None, given: Iterable[SliceTold], gpus: dict[str, Gpu]) -> str:
    if plan is not None:
        return f"memory {plan.guarantee.memory.value}, compute {plan.guarantee.compute.value}"
    found = [gpus[piece.gpu].guarantee for piece in given if piece.gpu in gpus]
    if not found:
        return ""
    order = list(Guarantee)
    memory = max((each.memory for each in found), key=order.index)
    compute = max((each.compute for each in found), key=order.index)
    return f"memory {memory.value}, compute {compute.value}"


def _state(pod: LookedPod, now: float) -> str:
    made = f"made {ago(age(pod, now))} ago"
    if pod.metadata.deletion_timestamp:
        return f"being deleted, {made}"
    reason = f" ({pod.status.reason})" if pod.status.reason else ""
    if not pod.spec.node_name and not pod.ended:
        gated = (scheduled := pod.condition("PodScheduled")) is not None and scheduled.reason == "SchedulingGated"
        return f"{'held by its scheduling gates' if gated else 'waits for a node'}, {made}"
    return f"{pod.status.phase or 'Pending'}{reason}, {made}"


def _verdict(pod: LookedPod, around: Surroundings) -> Verdict | None:
    if around.nodes is None or around.pods is None:
        return None
    return Capacity(around.nodes, around.pods, around.config).judge(pod)


def _events(events: Iterable[Event], now: float) -> tuple[EventTold, ...]:
    told = [
        EventTold(
            age=None if (when := last_seen(event)) is None else max(0.0, now - when),
            count=event.count or 1,
            type=event.type,
            reason=event.reason,
            message=event.message,
        )
        for event in events
    ]
    # What every container's start says is of use only where nothing else is told.
    told.sort(key=lambda each: (each.reason in _ROUTINE, each.age if each.age is not None else float("inf")))
    return tuple(told[:_MOST_EVENTS])
