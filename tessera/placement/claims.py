"""What a pod that is bound holds on its node's GPUs, told from the objects alone: tickets, plan, drift.

How much a pod holds is always counted from its tickets, by the arithmetic of `holding`; plan and drift only say *where*.
So a plan that claims less than the pod's tickets, or names a GPU that the node never had, gains nothing: it is treated as
no plan. A container whose place nobody has told yet could be on any GPU of the node, so its slice is withheld on every
one of them until the node agent has reported it as drift (it does within seconds).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from tessera.model.errors import AnnotationError, RequestError
from tessera.model.guarantee import Guarantee, Guarantees
from tessera.model.inventory import Gpu
from tessera.model.names import Names
from tessera.model.plan import VERSION, Plan, PlannedSlice, decode
from tessera.model.pod import Pod, role
from tessera.model.request import ContainerRequest
from tessera.model.tickets import Ask, asks, containers, ticket_counts, units_of
from tessera.placement.company import ANYBODY, Company, company
from tessera.placement.gpustate import Place, Places
from tessera.placement.holding import Holding, hold, pod_holdings
from tessera.placement.shape import profile_name

_NOWHERE: Final[Places] = {}


class Claim(msgspec.Struct, frozen=True, gc=False):
    """What one pod holds on its node.

    Attributes:
        asks: its containers that ask.
        places: where they are; a container that is absent could be anywhere on the node.
        company: the pod's classes, and those it avoids.
    """

    asks: tuple[Ask, ...]
    places: Places = _NOWHERE
    company: Company = ANYBODY


class Taken(msgspec.Struct, frozen=True, gc=False):
    """What a claim comes to on the GPUs that a node has now: by GPU id, what is held and which MIG instances."""

    holdings: dict[str, Holding]
    instances: dict[str, frozenset[str]]
    company: Company = ANYBODY


def taken(
    claim: Claim,
    gpus: Mapping[str, Gpu],
    *,
    unit: int,
    reported: Mapping[str, tuple[PlannedSlice, ...]] | None = None,
    known: Collection[str] = (),
) -> Taken:
    """Count a claim on a node's GPUs.

    Args:
        claim: of the pod.
        gpus: the node's GPUs as they are now, by id.
        unit: bytes of one unit.
        reported: the node's drift for this pod, by container; it wins over the claim's places.
        known: ids of GPUs that the node had at some time; a place on one that is away now holds nothing, a place on one
            that never was is no place.
    """
    reports = reported or {}
    where: dict[str, tuple[Place, ...]] = {}
    anywhere: list[Ask] = []
    for ask in claim.asks:
        told = reports.get(ask.container)
        places = tuple(Place(s.gpu, s.instance) for s in told) if told else claim.places.get(ask.container)
        if places is None or (not told and any(p.gpu not in gpus and p.gpu not in known for p in places)):
            anywhere.append(ask)
        else:
            where[ask.container] = tuple(place for place in places if place.gpu in gpus)
    instances = _instances(claim.asks, where, anywhere, gpus)
    on = {name: tuple(dict.fromkeys(place.gpu for place in places)) for name, places in where.items()}
    if anywhere:
        sliced = tuple(gpu.id for gpu in gpus.values() if not gpu.mig)
        on |= {ask.container: sliced for ask in anywhere}
    capacity = {gpu: gpus[gpu].units for used in on.values() for gpu in used}
    holdings = pod_holdings(claim.asks, on, capacity=capacity, unit=unit)
    asked = {ask.container for ask in claim.asks}
    _add_unasked({name: told for name, told in reports.items() if name not in asked}, gpus, holdings, instances)
    return Taken(holdings, {gpu: frozenset(ids) for gpu, ids in instances.items()}, claim.company)


def _instances(
    asked: Iterable[Ask], where: Places, anywhere: Collection[Ask], gpus: Mapping[str, Gpu]
) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for ask in asked:
        for place in where.get(ask.container, ()):
            if place.instance is not None:
                found.setdefault(place.gpu, set()).add(place.instance)
    for ask in anywhere:
        if ask.request.mig is None:
            continue
        profile = profile_name(ask.request.mig)
        for gpu in gpus.values():
            ids = {i.id for i in gpu.mig if profile_name(i.profile) == profile}
            if ids:
                found.setdefault(gpu.id, set()).update(ids)
    return found


def _add_unasked(
    reports: Mapping[str, tuple[PlannedSlice, ...]],
    gpus: Mapping[str, Gpu],
    holdings: dict[str, Holding],
    instances: dict[str, set[str]],
) -> None:
    """What the node reports of containers of which we know no request: taken as it stands."""
    for told in reports.values():
        for piece in told:
            if piece.gpu not in gpus:
                continue
            if piece.instance is not None:
                instances.setdefault(piece.gpu, set()).add(piece.instance)
                continue
            more = Holding(units=piece.units or 0, compute=piece.compute or 0)
            holdings[piece.gpu] = holdings.get(piece.gpu, Holding()) + more


def claim_of(pod: Pod, names: Names) -> Claim | None:
    """The claim of a pod that is bound; None where it holds no tickets.

    Tickets that make no sense (written by hand, past our webhook) can't be counted, so such a container counts as one
    that has a whole GPU, wherever it is.
    """
    try:
        asked = asks(pod, names)
    except RequestError:
        asked = _senseless(pod, names)
    if not asked:
        return None
    try:
        beside = company(pod.metadata.annotations, names)
    except RequestError:
        beside = ANYBODY
    return Claim(asked, planned_places(pod, asked, names) or _NOWHERE, beside)


def planned_places(pod: Pod, asked: Sequence[Ask], names: Names) -> Places | None:
    """Where the pod's plan says its containers are; None where there is no plan that can be its own.

    A plan is the pod's own if it was made for this node and says for exactly the containers that ask exactly as many
    GPUs and as much as their tickets.
    """
    text = pod.metadata.annotation(names.plan)
    if text is None:
        return None
    try:
        plan = decode(text)
    except AnnotationError:
        return None
    if plan.node != pod.spec.node_name or plan.containers.keys() != {ask.container for ask in asked}:
        return None
    if not all(_agrees(plan.containers[ask.container], ask.request, names.memory_unit) for ask in asked):
        return None
    places = {name: tuple(Place(s.gpu, s.instance) for s in slices) for name, slices in plan.containers.items()}
    tied = any(ask.role == "init" and ask.request.mig is None for ask in asked)
    if tied and len({p.gpu for a in asked if a.request.mig is None for p in places[a.container]}) > 1:
        return None
    return places


def _agrees(slices: tuple[PlannedSlice, ...], request: ContainerRequest, unit: int) -> bool:
    if len(slices) != request.gpus:
        return False
    if request.mig is not None:
        return all(s.mig is not None and profile_name(s.mig) == profile_name(request.mig) for s in slices)
    units = units_of(request.memory, unit) if request.memory is not None else None
    compute = 100 if request.whole else request.compute or 0
    return all(
        s.mig is None and s.whole == request.whole and s.compute == compute and (units is None or s.units == units)
        for s in slices
    )


def _senseless(pod: Pod, names: Names) -> tuple[Ask, ...]:
    found = []
    for container, init in containers(pod):
        try:
            counts = ticket_counts(container, names)
        except RequestError:
            counts = {container.name: 1}
        if counts:
            request = ContainerRequest(gpus=1, whole=True)
            found.append(Ask(container=container.name, role=role(container, init=init), request=request))
    return tuple(found)


def plan_of(asked: Sequence[Ask], places: Places, gpus: Mapping[str, Gpu], *, node: str, unit: int) -> Plan:
    """Write down what `place` chose, with the weakest guarantee among its GPUs.

    Args:
        asked: the pod's containers that ask.
        places: where they are.
        gpus: the node's GPUs by id.
        node: its name.
        unit: bytes of one unit.
    """
    used = {place.gpu for chosen in places.values() for place in chosen}
    return Plan(
        v=VERSION,
        node=node,
        guarantee=Guarantees(
            memory=_weakest(gpus[gpu].guarantee.memory for gpu in used),
            compute=_weakest(gpus[gpu].guarantee.compute for gpu in used),
        ),
        containers={
            ask.container: tuple(_slice(ask.request, place, gpus[place.gpu], unit) for place in places[ask.container])
            for ask in asked
        },
    )


def _slice(request: ContainerRequest, place: Place, gpu: Gpu, unit: int) -> PlannedSlice:
    if place.instance is not None:
        profile = next(i.profile for i in gpu.mig if i.id == place.instance)
        return PlannedSlice(gpu=gpu.id, mig=profile, instance=place.instance)
    piece = hold(request, capacity=gpu.units, unit=unit)
    return PlannedSlice(gpu=gpu.id, units=piece.all_units, compute=piece.compute, whole=request.whole)


def _weakest(guarantees: Iterable[Guarantee]) -> Guarantee:
    order = list(Guarantee)
    return max(guarantees, key=order.index, default=Guarantee.NONE)
