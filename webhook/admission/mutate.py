"""What admission does to a pod: its request understood, written as tickets, and all that follows from it.

One parse, one patch built by hand, no API call, no clock, no state but the config: a second pass over what this wrote
changes nothing. Whatever is not ours to change stays as it is, unknown fields included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from tessera.dialects.reader import ContainerReader, PodReader
from tessera.dialects.recognise import Dialects, Recognition
from tessera.model.config import Config
from tessera.model.errors import QuantityError, RequestError
from tessera.model.names import Names
from tessera.model.pod import Manifest
from tessera.model.quantity import parse
from tessera.model.request import PodRequest, encode
from tessera.model.tickets import Ask, describe, tickets
from tessera.placement.shape import Shape, shape_of
from tessera.placement.wishes import Wishes, wishes
from tessera.report.plaintext import short
from webhook.admission.again import restoring
from webhook.admission.cni import repair
from webhook.admission.environment import clean
from webhook.admission.limits import check_limits
from webhook.admission.patch import Edit, Operation, operations, put, remove
from webhook.admission.profiles import REQUIRED, place
from webhook.admission.unbind import unbind

LONGEST_WARNING: Final = 120
"""Characters that clients show in full."""
LONGEST_AUDIT: Final = 4096
"""Characters of one audit annotation; a pod of 512 containers would fill forty thousand."""
_DEFAULT: Final = "default-scheduler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was decided about a pod that may be created.

    Attributes:
        request: what it asks for, or None.
        operations: the patch.
        warnings: for its author.
        audit: what was changed, for the API server's audit log.
    """

    request: PodRequest | None = None
    operations: tuple[Operation, ...] = ()
    warnings: tuple[str, ...] = ()
    audit: Mapping[str, str] = field(default_factory=dict)


def unknown_capacity(_shape: Shape) -> str:
    """Nothing is known of any node."""
    return ""


class Mutator:
    """Admission by one config. Make it once per config."""

    def __init__(self, config: Config, *, capacity: Callable[[Shape], str] = unknown_capacity) -> None:
        """Prepare the dialects.

        Args:
            config: in force.
            capacity: says of a shape why no node could hold it; "" where one could, or where that isn't known.
        """
        self._config = config
        self._capacity = capacity
        self._names = config.names
        self._dialects = Dialects(config)
        names = config.names
        self._wish_names = frozenset(
            (
                names.gpu_models,
                names.gpu_uuids,
                names.gpu_placement,
                names.gpu_topology,
                names.gpu_class,
                names.gpu_avoid_class,
                names.guarantee,
            )
        )
        self._no_wishes = wishes(None, names, config.placement)

    def mutate(self, pod: Manifest, *, namespace: str) -> Outcome:
        """Decide about one pod.

        Args:
            pod: as it came, decoded from the review.
            namespace: of the request; the pod's own may be absent at creation.

        Raises:
            RequestError: it may not be created; the message names container, value and fix.
        """
        config, names = self._config, self._names
        mended = repair(pod, cni=config.cni, namespace=namespace)
        edits = list(mended)
        warnings: list[str] = []
        audit: dict[str, str] = {"cni": "repaired"} if mended else {}
        found = self._dialects.recognise(pod)
        stripped = _stripped(pod, names, asks=found is not None)
        edits += stripped
        if stripped:
            keys = ", ".join(str(edit.path[-1]) for edit in stripped)
            warnings.append(f"removed what only Tessera may write: {keys}")
            audit["stripped"] = keys
        if found is None:
            idle = self._dialects.idle(pod)
            edits += _without(pod, idle)
            warnings += [
                f'container "{name[:40]}": its number of GPUs is 0, so it gets none; removed what stood beside it'
                for name in idle
            ]
            if idle:
                audit["removed"] = "; ".join(f"{name}: {', '.join(gone)}" for name, gone in idle.items())
            if pod.metadata.annotation(names.placement_profile) is not None:
                edits += self._placed(pod, namespace, warnings, audit, asks=False)
        else:
            wished = self._wishes(pod, found)
            if config.limits:
                check_limits(
                    found.request,
                    config.limits,
                    containers=found.containers,
                    namespace=namespace,
                    unit=names.memory_unit,
                )
            told = len(warnings)
            edits += self._converted(pod, found, namespace, warnings, audit)
            if len(warnings) > told:
                audit["replaced"] = "; ".join(warnings[told:])
            if self._capacity is not unknown_capacity and (problem := self._misfit(found, wished)):
                warnings.append(problem)
                audit["fits"] = problem
            warnings += found.warnings
            audit["request"] = "; ".join(
                f"{name}: {describe(asked)} ({asked.dialect or found.request.dialect})"
                for name, asked in found.request.containers.items()
            )
            if pod.spec.node_name:
                warnings.append("spec.nodeName is set: no scheduler plans this pod, its node chooses the GPU")
        return Outcome(
            request=found.request if found else None,
            operations=operations(pod, edits),
            warnings=tuple(short(warning, LONGEST_WARNING) for warning in warnings),
            audit={name: short(text, LONGEST_AUDIT) for name, text in audit.items()},
        )

    def update(self, pod: Manifest, old: Manifest, *, namespace: str) -> Outcome:
        """Decide about a change of a pod that was converted: what only says again what it asked is brought back.

        Nothing else of an update is touched, and none is refused: a pod's spec is immutable, so whatever really changes
        is the API server's to refuse.

        Args:
            pod: after the update.
            old: before it.
            namespace: of the request.
        """
        names = self._names
        request = old.metadata.annotation(names.request)
        if request is None or pod.metadata.annotation(names.request) != request or pod.spec == old.spec:
            return Outcome()
        # As it was when it was created: nobody had bound it.
        unbound = msgspec.structs.replace(pod, spec=msgspec.structs.replace(pod.spec, node_name=""))
        try:
            found = self._dialects.recognise(unbound)
            if found is None or encode(found.request) != request:
                return Outcome()
            edits = list(self._converted(unbound, found, namespace, [], {}))
        except RequestError:
            return Outcome()
        kept = restoring(edits, pod, old)
        return Outcome(
            request=found.request,
            operations=operations(pod, kept),
            audit={"update": "what admission had replaced was brought back"} if kept else {},
        )

    def _wishes(self, pod: Manifest, found: Recognition) -> Wishes:
        """Which GPUs the pod would like.

        Raises:
            RequestError: a wish that means nothing.
        """
        own = pod.metadata.annotations or {}
        if self._wish_names.isdisjoint(own) and self._wish_names.isdisjoint(found.annotations):
            return self._no_wishes
        return wishes({**found.annotations, **own}, self._names, self._config.placement)

    def _misfit(self, found: Recognition, wished: Wishes) -> str:
        """Why no node there is could hold the pod, or ""."""
        asks = [
            Ask(container=container.name, role=container.role, request=found.request.containers[container.name])
            for container in found.containers
            if container.name in found.request.containers
        ]
        try:
            return self._capacity(shape_of(asks, unit=self._names.memory_unit, wishes=wished))
        except RequestError:
            return ""  # what makes no sense to the scheduler is its to say

    def _converted(
        self, pod: Manifest, found: Recognition, namespace: str, warnings: list[str], audit: dict[str, str]
    ) -> Iterator[Edit]:
        """What becomes of a pod that asks for GPUs, beside what is only ours to write."""
        yield from _rewritten(pod, found, self._names)
        variables, said = clean(found.containers, found.request.containers, self._config.guard)
        yield from variables
        warnings += said
        yield from self._scheduled(pod, found, warnings)
        free, edits = unbind(pod, found.selectors)
        chosen = pod.spec.node_selector or {}
        warnings += [
            f"{'nodeSelector' if key in chosen else 'node affinity'} {key} names nodes of another system; removed"
            for key in edits
        ]
        placed = self._placed(free, namespace, warnings, audit, asks=True)
        narrowed = any(edit.path == REQUIRED for edit in placed)
        yield from (edit for each in edits.values() for edit in each if not (narrowed and edit.path[1] == "affinity"))
        yield from placed

    def _placed(
        self, pod: Manifest, namespace: str, warnings: list[str], audit: dict[str, str], *, asks: bool
    ) -> tuple[Edit, ...]:
        placed = place(pod, profiles=self._config.profiles, names=self._names, namespace=namespace)
        if placed is None:
            return ()
        if asks and placed.serverless:
            raise RequestError(
                f"asks for a GPU of ours, and profile {placed.profile} can send it to virtual nodes only, which have none",
                fix="ask for whole cards (nvidia.com/gpu), or loosen the pod's selectors",
            )
        warnings += placed.warnings
        audit["profile"] = placed.profile
        return placed.edits

    def _scheduled(self, pod: Manifest, found: Recognition, warnings: list[str]) -> Iterator[Edit]:
        """The scheduler and the runtime class: a foreign scheduler of a converted pod would leave it Pending for ever."""
        config, there = self._config, pod.spec.scheduler_name
        wanted = config.scheduler_name
        if there in ("", _DEFAULT):
            if wanted:
                yield put(("spec", "schedulerName"), wanted)
        elif (
            there != wanted and found.foreign and (not config.replace_schedulers or there in config.replace_schedulers)
        ):
            yield put(("spec", "schedulerName"), wanted or _DEFAULT)
            warnings.append(f"schedulerName {there} knows nothing of these GPUs; replaced by {wanted or _DEFAULT}")
        if config.runtime_class_name and not pod.spec.runtime_class_name:
            yield put(("spec", "runtimeClassName"), config.runtime_class_name)


def _rewritten(pod: Manifest, found: Recognition, names: Names) -> Iterator[Edit]:
    """Tickets in limits and requests instead of what was asked, the request annotation, and translated wishes."""
    for container in found.containers:
        gone = found.resources.get(container.name, ())
        asked = found.request.containers.get(container.name)
        if not gone and asked is None:
            continue
        where = ("spec", "initContainers" if container.init else "containers", container.index, "resources")
        limits, requests = (*where, "limits"), (*where, "requests")
        for name in gone:
            for side in _sides(container, name):
                yield remove((*where, side, name))
        for name, count in tickets(asked, names).items() if asked else ():
            text = str(count)
            if not _holds(container, "limits", name, count):
                yield put((*limits, name), text)
            if not _holds(container, "requests", name, count):
                yield put((*requests, name), text)
    yield put(("metadata", "annotations", names.request), encode(found.request))
    for key, value in found.annotations.items():
        if pod.metadata.annotation(key) is None:
            yield put(("metadata", "annotations", key), value)


def _without(pod: Manifest, names: Mapping[str, tuple[str, ...]]) -> Iterator[Edit]:
    """Resource names to take away, by container."""
    for container in PodReader(pod).containers if names else ():
        where = ("spec", "initContainers" if container.init else "containers", container.index, "resources")
        for name in names.get(container.name, ()):
            for side in _sides(container, name):
                yield remove((*where, side, name))


def _sides(container: ContainerReader, name: str) -> Iterator[str]:
    resources = container.container.resources
    if resources is not None:
        if name in (resources.limits or {}):
            yield "limits"
        if name in (resources.requests or {}):
            yield "requests"


def _holds(container: ContainerReader, side: str, name: str, count: int) -> bool:
    """Whether a ticket stands there already, however it is written."""
    resources = container.container.resources
    amounts = None if resources is None else resources.limits if side == "limits" else resources.requests
    raw = (amounts or {}).get(name)
    if raw is None or raw in (str(count), count):
        return raw is not None
    try:
        return parse(raw) == count  # the API server writes 2000 as 2k
    except QuantityError:
        return False


def _stripped(pod: Manifest, names: Names, *, asks: bool) -> list[Edit]:
    """Annotations and labels that only our parts write; dumps of live pods carry them, forgers too."""
    found = pod.metadata.annotations or {}
    labels = pod.metadata.labels or {}
    ours = (names.plan, names.inventory, names.drift, names.wake)
    edits = [remove(("metadata", "annotations", key)) for key in ours if key in found]
    if not asks and names.request in found:
        edits.append(remove(("metadata", "annotations", names.request)))
    return edits + [remove(("metadata", "labels", key)) for key in (names.unit, names.region) if key in labels]


__all__ = ["Mutator", "Outcome", "RequestError"]
