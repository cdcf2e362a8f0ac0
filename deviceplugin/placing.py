"""On which GPUs a container's IDs have to lie: where the plan says, else where the node's own ledger has room.

The order of precedence: what the container has already of another resource, what an init container of the pod left for
it, the plan, and last our own choice by the extender's placement code. A plan that can't be followed (made for another
node, its GPU sick or taken meanwhile) is doubt, not certainty: another GPU is taken and published as drift. A container
whose first resource is given can't go elsewhere with the second: that is certain to be wrong and refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from deviceplugin.board import Board
from deviceplugin.devices import FULL, View, device_id, gpu_of, parse
from deviceplugin.errors import RefusedError
from deviceplugin.identity import Caller
from deviceplugin.ledger import Owner
from tessera.model.config import Placement
from tessera.model.errors import AnnotationError, RequestError
from tessera.model.plan import Plan, PlannedSlice
from tessera.model.plan import decode as decode_plan
from tessera.model.pod import Pod
from tessera.model.quantity import size
from tessera.model.request import ContainerRequest
from tessera.model.tickets import Ask, asks
from tessera.placement.company import ANYBODY, Company, company
from tessera.placement.fit import judge, place
from tessera.placement.gpustate import GpuState, Place, Places
from tessera.placement.holding import hold
from tessera.placement.reasons import Rejection
from tessera.placement.shape import shape_of
from tessera.placement.wishes import wishes

_log = logging.getLogger(__name__)

MOST_REMEMBERED: Final = 512

Offered = Mapping[str, Sequence[str]]
"""By GPU, the IDs of one resource that the kubelet offers and no other pod holds, in the order of their numbers."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a container's IDs have to lie.

    Attributes:
        places: one for each GPU (or MIG instance), in the plan's order.
        planned: they are the plan's.
    """

    places: tuple[Place, ...]
    planned: bool


class Placing:
    """Chooses; remembers its choices only so that a pod's later containers agree with the first."""

    def __init__(
        self, board: Board, node: str, placement: Callable[[], Placement], *, pods: Callable[[str], Pod | None]
    ) -> None:
        """Choose among the board's GPUs.

        Args:
            board: the GPUs and the ledger.
            node: this node's name, which a plan has to carry.
            placement: the config's defaults, as they are now.
            pods: a pod by the UID that the ledger has, for whom it keeps apart from.
        """
        self._board = board
        self._ledger = board.ledger
        self._names = board.names
        self._node = node
        self._placement = placement
        self._pods = pods
        self._targets: dict[Owner, Target] = {}
        self._own: dict[str, Places] = {}

    # What is written.

    def planned(self, caller: Caller) -> tuple[PlannedSlice, ...] | None:
        """The caller's slices in its pod's plan; None where there is none, or it was made for another node."""
        text = caller.pod.metadata.annotation(self._names.plan)
        if text is None:
            return None
        try:
            plan = _plan(text)
        except AnnotationError as error:
            _log.warning("%s: %s", caller, error)
            return None
        if plan.node != self._node:
            _log.warning("%s: its plan is for node %s, not for %s", caller, plan.node, self._node)
            return None
        return plan.containers.get(caller.container)

    def order(self, owner: Owner) -> tuple[Place, ...] | None:
        """The places of a container in the plan's order, as long as they are remembered."""
        target = self._targets.get(owner)
        return target.places if target else None

    def is_planned(self, caller: Caller, gpus: Sequence[str]) -> bool:
        """Whether these are exactly the GPUs of the caller's plan."""
        slices = self.planned(caller)
        return slices is not None and sorted({piece.gpu for piece in slices}) == sorted(set(gpus))

    # Choosing.

    def target(
        self, caller: Caller, request: ContainerRequest, size: int, offered: Offered, must: Sequence[str]
    ) -> Target:
        """Where `size` IDs of one resource have to lie.

        Args:
            caller: the container.
            request: what it asks for.
            size: how many IDs.
            offered: see `Offered`; `must` included.
            must: IDs that have to be among them.

        Raises:
            RefusedError: nowhere; the message says what the container needs and what there is.
        """
        if size % request.gpus:
            raise RefusedError(f"{caller}: {size} device IDs don't spread evenly over {request.gpus} GPUs")
        per = size // request.gpus
        target = (
            self._followed(caller, request, per, offered)
            or self._left_by_init(caller, request, per, offered, must)
            or self._by_plan(caller, request, per, offered)
            or self._by_ourselves(caller, request, per, offered)
        )
        while len(self._targets) >= MOST_REMEMBERED:
            del self._targets[next(iter(self._targets))]
        self._targets[caller.owner] = target
        return target

    def _followed(self, caller: Caller, request: ContainerRequest, per: int, offered: Offered) -> Target | None:
        given = self._ledger.get(caller.owner)
        if given is None:
            return None
        remembered = self._targets.get(caller.owner)
        places = tuple(Place(gpu) for gpu in given.gpus)
        if remembered is not None and sorted(each.gpu for each in remembered.places) == list(given.gpus):
            places = remembered.places
        problem = self._problem(caller, request, places, per, offered)
        if problem is not None:
            raise RefusedError(f"{caller}: its other resource is on GPU {', '.join(given.gpus)} and {problem}")
        return Target(places, given.planned)

    def _left_by_init(
        self, caller: Caller, request: ContainerRequest, per: int, offered: Offered, must: Sequence[str]
    ) -> Target | None:
        if request.mig is not None:
            if not must:
                return None
            kept = tuple(Place(gpu_of(device), f"g{parse(device).index}") for device in must)
            more = [device for ids in offered.values() for device in ids if device not in must]
            rest = [Place(gpu_of(device), f"g{parse(device).index}") for device in more[: request.gpus - len(kept)]]
            places = (*kept, *rest)
            return Target(places, planned=False) if len(places) == request.gpus else None
        left = {gpu for grant in self._ledger.of_pod(caller.uid) if grant.init for gpu in grant.gpus}
        left |= {gpu_of(device) for device in must}
        if not left:
            return None
        places = tuple(Place(gpu) for gpu in sorted(left))
        problem = (
            f"its init containers left IDs on {len(left)} GPUs"
            if len(left) > request.gpus
            else self._problem(caller, request, places, per, offered)
        )
        if problem is not None or len(left) < request.gpus:
            raise RefusedError(
                f"{caller}: {problem or f'it asks for {request.gpus} GPUs'}; all slices of a pod whose init container "
                "asks have to be on one GPU: make that init container a sidecar (restartPolicy Always)"
            )
        return Target(places, self.is_planned(caller, sorted(left)))

    def _by_plan(self, caller: Caller, request: ContainerRequest, per: int, offered: Offered) -> Target | None:
        slices = self.planned(caller)
        if slices is None:
            return None
        places = tuple(Place(piece.gpu, piece.instance) for piece in slices)
        problem = self._problem(caller, request, places, per, offered)
        if problem is not None:
            _log.warning("%s: its plan can't be followed: %s", caller, problem)
            return None
        return Target(places, planned=True)

    def _by_ourselves(self, caller: Caller, request: ContainerRequest, per: int, offered: Offered) -> Target:
        """Choose for all containers of the pod that have nothing yet, so that the later ones have room too."""
        own = self._own.get(caller.uid, {}).get(caller.container)
        if own is not None and self._problem(caller, request, own, per, offered) is None:
            return Target(own, planned=False)
        found = self._placed(caller, per, offered)
        if isinstance(found, Rejection):
            raise RefusedError(f"{caller}: no GPU of this node can serve it: {found.text}")
        while len(self._own) >= MOST_REMEMBERED:
            del self._own[next(iter(self._own))]
        self._own[caller.uid] = found
        return Target(found[caller.container], planned=False)

    def _placed(self, caller: Caller, per: int, offered: Offered) -> Places | Rejection:
        try:
            waiting = self._waiting(caller)
            wanted = wishes(caller.pod.metadata.annotations, self._names, self._placement())
            shape = shape_of(waiting, unit=self._names.memory_unit, wishes=wanted)
        except RequestError as error:
            raise RefusedError(f"{caller}: {error}") from error
        mig = any(ask.container == caller.container and ask.request.mig is not None for ask in waiting)
        companies = self._companies(caller.uid)
        states = [
            GpuState(
                gpu,
                self._ledger.held(gpu.id) + self._board.foreign(gpu.id),
                self._instances_taken(gpu.id),
                companies.get(gpu.id, ()),
            )
            for gpu in self._board.gpus.values()
            if gpu.id not in self._board.elsewhere
        ]
        offering = [state for state in states if mig or len(offered.get(state.gpu.id, ())) >= per]
        found = place(waiting, shape, offering)
        # What is missing is said of all GPUs: one that is full has no IDs to offer either.
        return (judge(shape, states) or found) if isinstance(found, Rejection) else found

    def _companies(self, uid: str) -> dict[str, set[Company]]:
        """Who is on each GPU beside a pod, as far as it matters to anybody."""
        found: dict[str, set[Company]] = {}
        for grant in self._ledger:
            pod = self._pods(grant.uid) if grant.uid != uid else None
            try:
                told = company(pod.metadata.annotations, self._names) if pod is not None else ANYBODY
            except RequestError:
                continue
            for gpu in grant.gpus if told else ():
                found.setdefault(gpu, set()).add(told)
        return found

    def _waiting(self, caller: Caller) -> tuple[Ask, ...]:
        return tuple(
            ask
            for ask in asks(caller.pod, self._names)
            if ask.container == caller.container or self._ledger.get(Owner(caller.uid, ask.container)) is None
        )

    def _instances_taken(self, gpu: str) -> frozenset[str]:
        taken = set()
        for resource, offer in self._board.offers.items():
            if offer.view is View.MIG:
                held = self._ledger.taken(resource) | self._ledger.barred(resource)
                taken |= {f"g{parse(device).index}" for device in held if gpu_of(device) == gpu}
        return frozenset(taken)

    def _problem(
        self, caller: Caller, request: ContainerRequest, places: Sequence[Place], per: int, offered: Offered
    ) -> str | None:
        """Why a container can't be at these places, or None."""
        if len(places) != request.gpus:
            return f"that is {len(places)} GPUs where it asks for {request.gpus}"
        for each in places:
            gpu = each.gpu
            if not self._board.serving(gpu):
                return self._board.why_not(gpu)
            free = offered.get(gpu, ())
            if each.instance is not None or request.mig is not None:
                if f"{gpu}-{each.instance}" not in free:
                    return f"MIG instance {each.instance} of GPU {gpu} is not free"
                continue
            capacity = self._ledger.capacity(gpu)
            piece = hold(request, capacity=capacity, unit=self._names.memory_unit)
            total = self._ledger.held_with(gpu, caller.owner, piece, init=caller.role == "init")
            if not self._board.fits(gpu, total):
                held = self._ledger.held(gpu, without=caller.uid)
                unit = self._names.memory_unit
                return (
                    f"GPU {gpu} has no room: {size(held.all_units * unit)} of {size(capacity * unit)} and {held.compute} % of "
                    f"compute are given, it needs {size(piece.all_units * unit)} and {piece.compute} %"
                )
            if len(free) < per:
                return f"the kubelet offers {len(free)} of the {per} device IDs that it needs on GPU {gpu}"
        return None

    def guess(self, resource: str, size: int, offered: Offered, *, near: Sequence[str]) -> Target:
        """Where IDs for a pod that can't be told go: on as few GPUs as hold them, the fullest that have room.

        Args:
            resource: which tickets.
            size: how many IDs.
            offered: see `Offered`.
            near: GPUs of the call right before, which likely was for the same container.

        Raises:
            RefusedError: no number of GPUs holds so many.
        """
        view = self._board.offers[resource].view
        if view is View.MIG:
            flat = [device for ids in offered.values() for device in ids]
            return Target(tuple(Place(gpu_of(d), f"g{parse(d).index}") for d in flat[:size]), planned=False)
        order = sorted(offered, key=lambda gpu: (gpu not in near, len(offered[gpu])))
        order = [gpu for gpu in order if self._board.serving(gpu)]
        largest = max((self._ledger.capacity(gpu) for gpu in order), default=0) if view is View.UNITS else FULL
        fewest = -(-size // largest) if largest else 1
        for count in range(fewest, len(order) + 1):
            if size % count:
                continue
            fitting = [gpu for gpu in order if len(offered[gpu]) >= size // count]
            if len(fitting) >= count:
                return Target(tuple(Place(gpu) for gpu in fitting[:count]), planned=False)
        best = max((len(ids) for ids in offered.values()), default=0)
        raise RefusedError(
            f"a pod asks for {size} of {resource}; no GPU of this node has room, the emptiest has {best}"
        )


@lru_cache(maxsize=MOST_REMEMBERED)
def _plan(text: str) -> Plan:
    """Read a plan; every pod's is looked at again whenever drift is computed."""
    return decode_plan(text)


def pick(target: Target, size: int, offered: Offered, must: Sequence[str]) -> list[str]:
    """The IDs to answer: `must` first, then the lowest numbers, the same count on each place."""
    if any(each.instance is not None for each in target.places):
        return [device_id(each.gpu, View.MIG, int((each.instance or "g0")[1:])) for each in target.places]
    per = size // len(target.places)
    chosen: list[str] = []
    for each in target.places:
        kept = [device for device in must if gpu_of(device) == each.gpu][:per]
        others = (device for device in offered.get(each.gpu, ()) if device not in kept)
        chosen += kept
        chosen += [device for device, _ in zip(others, range(per - len(kept)), strict=False)]
    return chosen
