"""What a pod asks for in all dialects together.

Resources of a container win over what annotations and labels ask for the whole pod. Two dialects in one container have to
ask for the same; two containers may speak two dialects. A plain ``nvidia.com/gpu`` beside them can only be meant of our
nodes, since NVIDIA's plugin does not serve those: in the same container it has to agree, in another one it is whole cards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from tessera.dialects import acs, cce, gke, hami, nvidia
from tessera.dialects.dialect import Baggage, Context, Dialect, ForeignOptions, Reading, no_baggage, no_pod
from tessera.dialects.native import native, tickets
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.dialects.registry import FOREIGN, OPTIONS
from tessera.model.config import Config
from tessera.model.errors import AnnotationError, RequestError
from tessera.model.pod import Manifest
from tessera.model.request import VERSION, ContainerRequest, PodRequest, container_request, decode
from tessera.model.tickets import DIALECT as TICKETS
from tessera.model.tickets import asks, describe

_MIRROR: Final = "kubernetes.io/config.mirror"
_OF_NVIDIA: Final = frozenset(dialect.DIALECT.name for dialect in (gke, cce, hami, nvidia))
"""Dialects that read ``nvidia.com/gpu``, which on a virtual node is its vendor's."""
_FOREIGN: Final = frozenset(dialect.name for dialect in FOREIGN)

Said = dict[str, list[tuple[str, Reading]]]
"""By container: (dialect, reading), which all have to agree."""


class Recognition(msgspec.Struct, frozen=True, kw_only=True):
    """What a pod asks for, and what of it is to be taken away or added once it has been understood.

    Attributes:
        request: what goes into the request annotation.
        containers: all of the pod's, as they were read.
        resources: by container name, resource names that said so.
        annotations: of ours, that translate wishes of other systems.
        selectors: keys of other systems in nodeSelector and required node affinity.
        foreign: another system's dialect was spoken: what ties the pod to that system no longer holds.
        warnings: for the pod's author, each at most 120 characters.
    """

    request: PodRequest
    containers: tuple[ContainerReader, ...]
    resources: Mapping[str, tuple[str, ...]]
    annotations: Mapping[str, str]
    selectors: tuple[str, ...]
    foreign: bool
    warnings: tuple[str, ...]


class Dialects:
    """The dialects of one config. Make it once per config: it holds the triggers as sets."""

    def __init__(self, config: Config) -> None:
        """Take the dialects that the config leaves on."""
        self._names = config.names
        self._tickets = tickets(self._names)
        table = (self._tickets, native(self._names), *FOREIGN)
        options = {dialect.name: config.dialects.get(dialect.name) or dialect.options() for dialect in table}
        self.active: tuple[Dialect, ...] = tuple(d for d in table if options[d.name].enabled)
        self._contexts = {dialect.name: Context(self._names, options[dialect.name]) for dialect in self.active}
        self._prefixes = tuple(prefix for dialect in self.active for prefix in dialect.prefixes)
        self._text_prefixes = tuple(prefix for dialect in self.active for prefix in dialect.annotation_prefixes)
        self._by_resource: dict[str, tuple[int, ...]] = {}
        self._by_text: dict[str, tuple[int, ...]] = {}
        for at, dialect in enumerate(self.active):
            for name in dialect.resources:
                self._by_resource[name] = (*self._by_resource.get(name, ()), at)
            for name in dialect.annotations | dialect.labels if dialect.pod is not no_pod else ():
                self._by_text[name] = (*self._by_text.get(name, ()), at)
        self._own = frozenset(self._names.asks)
        self._by_speech = tuple(dialect for dialect in self.active if dialect.name != TICKETS)
        self._carriers = tuple(dialect for dialect in self.active if dialect.baggage is not no_baggage)

    def recognise(self, pod: Manifest) -> Recognition | None:
        """Read a pod in every dialect that is on.

        Returns:
            None where it asks for no GPU, or asks for one that is not ours to give: mirror pods, virtual nodes, plain
            cards of NVIDIA's plugin.

        Raises:
            RequestError: what it asks contradicts itself or is out of range.
        """
        reader = PodReader(pod)
        owners = {container.name: self._owners(container) for container in reader.containers}
        speakers = self._speakers(reader)
        if not (speakers or any(owners.values())) or _MIRROR in reader.annotations:
            return None
        virtual = reader.virtual
        said = self._resource_level(pod, reader, owners, virtual=bool(virtual))
        for name, found in self._pod_level(reader, speakers).items():
            said.setdefault(name, found)
        if not said:
            return None
        if virtual:
            _refuse_virtual(said, virtual)
        else:
            self._plain_cards(reader, said)
        order = [container for container in reader.containers if container.name in said]
        spoken = {dialect for container in order for dialect, _ in said[container.name]}
        first = said[order[0].name][0][0]
        request = PodRequest(
            v=VERSION,
            dialect=first,
            containers={container.name: _labelled(said[container.name], first) for container in order},
        )
        _one_gpu_with_init(order, request)
        reader.check_names()
        reader.check_choice()
        converted = not spoken.isdisjoint(_FOREIGN)
        baggage = self._baggage(reader) if converted else Baggage()
        readings = [reading for found in said.values() for _, reading in found]
        return Recognition(
            request=request,
            containers=reader.containers,
            resources=self._taken(reader, said, owners, baggage.resources),
            annotations=baggage.annotations,
            selectors=baggage.selectors,
            foreign=converted,
            warnings=tuple(dict.fromkeys((*(w for each in readings for w in each.warnings), *baggage.warnings))),
        )

    def idle(self, pod: Manifest) -> dict[str, tuple[str, ...]]:
        """Names in the resources of a pod that asks for no GPU, by container, that a number of zero makes meaningless.

        No node has them, so the pod would wait for ever for what it doesn't want.
        """
        if _MIRROR in (pod.metadata.annotations or {}):
            return {}
        reader = PodReader(pod)
        found = {
            container.name: self._switched_off(container, self._owners(container)) for container in reader.containers
        }
        return {name: tuple(sorted(names)) for name, names in found.items() if names}

    @staticmethod
    def _switched_off(container: ContainerReader, owners: Iterable[Dialect]) -> set[str]:
        """Names that mean nothing because their dialect's number of GPUs is zero; none where nothing stands beside it."""
        names: set[str] = set()
        for dialect in owners:
            if is_off(dialect, container):
                owned = {name for name in container.resources if dialect.owns(name)}
                if any(container.amount(name) is not None for name in owned):
                    names |= owned
        return names

    def _owners(self, container: ContainerReader) -> list[Dialect]:
        """The dialects that own a name in the container's resources, in the table's order."""
        found: set[int] = set()
        for name in container.resources:
            if at := self._by_resource.get(name):
                found.update(at)
            if name.startswith(self._prefixes):
                found.update(at for at, dialect in enumerate(self.active) if dialect.owns(name))
        return [self.active[at] for at in sorted(found)] if found else []

    def _speakers(self, reader: PodReader) -> list[Dialect]:
        """The dialects that own an annotation or a label of the pod, in the table's order."""
        found: set[int] = set()
        for texts in (reader.annotations, reader.labels):
            for name in texts:
                if at := self._by_text.get(name):
                    found.update(at)
                elif self._text_prefixes and name.startswith(self._text_prefixes):
                    found.update(
                        at
                        for at, dialect in enumerate(self.active)
                        if dialect.annotation_prefixes and name.startswith(dialect.annotation_prefixes)
                    )
        return [self.active[at] for at in sorted(found)] if found else []

    def _resource_level(
        self, pod: Manifest, reader: PodReader, owners: Mapping[str, list[Dialect]], *, virtual: bool
    ) -> Said:
        """What the containers' resources say."""
        said: Said = {}
        # First in the table, so first of any owners; comparing dialects by value would compare all of their fields.
        if any(found[0] is self._tickets for found in owners.values() if found):
            known = _annotated(pod, self._names.request)
            for ask in asks(pod, self._names):
                plain = msgspec.structs.replace(ask.request, dialect=None)
                said[ask.container] = [(_dialect_of(ask.container, ask.request, known), Reading(request=plain))]
        for container in reader.containers:
            read: set[str] = set()
            for dialect in owners[container.name]:
                # A name that one dialect has read as its own (nvidia.com/gpu) is not read again by the next.
                if (
                    (virtual and dialect.name in _OF_NVIDIA)
                    or (read and not any(dialect.owns(name) and name not in read for name in container.resources))
                    or is_off(dialect, container)
                ):
                    continue
                reading = dialect.container(container, reader, self._contexts[dialect.name])
                if reading is not None:
                    read.update(reading.resources)
                    _agree(said.setdefault(container.name, []), dialect.name, reading, container.name)
        return said

    def _pod_level(self, reader: PodReader, speakers: list[Dialect]) -> Said:
        """What annotations and labels say."""
        said: Said = {}
        for dialect in speakers:
            for name, reading in dialect.pod(reader, self._contexts[dialect.name]).items():
                _agree(said.setdefault(name, []), dialect.name, reading, name)
        return said

    def _plain_cards(self, reader: PodReader, said: Said) -> None:
        """Cards of NVIDIA's plugin in a pod that asks for ours as well."""
        asking = [container for container in reader.containers if nvidia.COUNT in container.resources]
        if not asking or nvidia.DIALECT.name not in self._contexts or nvidia.is_replica(reader):
            return
        for container in asking:
            there = said.get(container.name, [])
            if any(nvidia.COUNT in reading.resources for _, reading in there):
                continue
            request = container_request(
                container=container.name,
                gpus=container.count(nvidia.COUNT, fix="write whole GPUs"),
                init=container.role == "init",
            )
            if request is None:
                continue
            warning = f'container "{container.name[:40]}": {nvidia.COUNT} becomes whole GPUs of ours beside slices'
            reading = Reading(request=request, resources=(nvidia.COUNT,), warnings=() if there else (warning,))
            _agree(said.setdefault(container.name, []), nvidia.DIALECT.name, reading, container.name)

    def _baggage(self, reader: PodReader) -> Baggage:
        """What every foreign dialect carries; the first one's wish counts."""
        annotations: dict[str, str] = {}
        selectors: dict[str, None] = {}
        resources: list[str] = []
        warnings: list[str] = []
        keys = reader.label_keys
        for dialect in self._carriers:
            context = self._contexts[dialect.name]
            found = dialect.baggage(reader, context)
            annotations = {**found.annotations, **annotations}
            warnings += found.warnings
            resources += found.resources
            if context.option(ForeignOptions).drop_node_selectors:
                selectors.update(dict.fromkeys(key for key in found.selectors if key in keys))
        return Baggage(
            annotations=annotations,
            selectors=tuple(selectors),
            resources=tuple(resources),
            warnings=tuple(warnings),
        )

    def _taken(
        self, reader: PodReader, said: Said, owners: Mapping[str, list[Dialect]], carried: tuple[str, ...]
    ) -> dict[str, tuple[str, ...]]:
        """Names to take away: those read, our own, those that are only carried, and what was left unread at zero."""
        taken = {}
        always = self._own.union(carried) if carried else self._own
        spoken = {dialect for found in said.values() for dialect, _ in found}
        dialects = [dialect for dialect in self._by_speech if dialect.name in spoken]
        for container in reader.containers:
            names = {name for _, reading in said.get(container.name, ()) for name in reading.resources}
            names |= self._switched_off(container, owners[container.name])
            for name in container.resources:
                if name in always or (any(d.owns(name) for d in dialects) and container.amount(name) is None):
                    names.add(name)
            if names:
                taken[container.name] = tuple(sorted(names))
        return taken


def _refuse_virtual(said: Said, virtual: str) -> None:
    """A virtual node has no device plugin of ours: whole cards of its vendor stay as they are, slices can't be.

    ACS's own sharing is the exception: every pod that asks in it carries such a label, whichever cluster it comes to.
    """
    for container, found in said.items():
        if any(dialect != acs.DIALECT.name for dialect, _ in found):
            raise RequestError(
                f"asks for a slice, but {virtual} sends the pod to a virtual node, where no device plugin runs",
                container=container,
                fix=f"ask for whole cards ({nvidia.COUNT}), or remove the label",
            )


def is_off(dialect: Dialect, container: ContainerReader) -> bool:
    """Whether a container says in a dialect that it gets no GPU: its number of GPUs is there, and zero."""
    return dialect.switch in container.resources and container.amount(dialect.switch) is None


def _agree(said: list[tuple[str, Reading]], dialect: str, reading: Reading, container: str) -> None:
    for other, before in said:
        if before.request.amounts() != reading.request.amounts():
            raise RequestError(
                f"asks for {describe(before.request)} in the dialect {other} and for {describe(reading.request)} in {dialect}",
                container=container,
                fix="keep one of the two",
            )
    said.append((dialect, reading))


def _labelled(said: list[tuple[str, Reading]], first: str) -> ContainerRequest:
    dialect, reading = said[0]
    return msgspec.structs.replace(reading.request, dialect=None if dialect == first else dialect)


def _annotated(pod: Manifest, name: str) -> PodRequest | None:
    text = pod.metadata.annotation(name)
    try:
        return decode(text) if text is not None else None
    except AnnotationError:
        return None


def _dialect_of(container: str, request: ContainerRequest, known: PodRequest | None) -> str:
    """The dialect that tickets came from: an earlier pass noted it, if the request is the one it noted."""
    noted = known.containers.get(container) if known else None
    if known is None or noted is None or noted != request:
        return TICKETS
    dialect = noted.dialect or known.dialect
    return dialect if dialect in OPTIONS else TICKETS


def _one_gpu_with_init(order: list[ContainerReader], request: PodRequest) -> None:
    """The kubelet hands a plain init container's IDs on at random, so all of its pod has to be on one GPU."""
    init = next((container for container in order if container.role == "init"), None)
    if init is None:
        return
    fix = "make it a sidecar (restartPolicy: Always), or ask nothing in the init container"
    memory = compute = 0
    for container in order:
        asked = request.containers[container.name]
        if asked.gpus > 1:
            raise RequestError(
                f'asks for {asked.gpus} GPUs in a pod whose init container "{init.name}" asks for a GPU too',
                container=container.name,
                fix=fix,
            )
        if container.role != "init":
            memory += 100 if asked.whole else asked.memory_percent or 0
            compute += 100 if asked.whole else asked.compute or 0
    if memory > 100 or compute > 100:
        raise RequestError(
            f"asks for {max(memory, compute)} percent of one GPU in all, and its init container keeps it to one",
            container=init.name,
            fix=fix,
        )
