"""The table of dialects, and what a pod says in all of them together.

A new dialect is one file and one line here. Resources of a container win over what annotations and labels ask for the
whole pod. Two dialects in one container have to ask for the same; two containers may speak two dialects.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from tessera.dialects import aliyun, hami, nvidia
from tessera.dialects.dialect import Context, Dialect, Reading
from tessera.dialects.native import NATIVE, native, tickets
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.model.config import Config, DialectOptions
from tessera.model.errors import AnnotationError, RequestError
from tessera.model.pod import Manifest
from tessera.model.request import VERSION, ContainerRequest, PodRequest, decode
from tessera.model.tickets import DIALECT as TICKETS
from tessera.model.tickets import asks, describe

FOREIGN: Final[tuple[Dialect, ...]] = (hami.DIALECT, aliyun.DIALECT, nvidia.DIALECT)
"""Foreign dialects, in the order in which they are asked."""

OPTIONS: Final[Mapping[str, type[DialectOptions]]] = MappingProxyType(
    {NATIVE: DialectOptions, TICKETS: DialectOptions} | {dialect.name: dialect.options for dialect in FOREIGN}
)
"""The options type of each dialect, for `tessera.model.config.parse`."""

_VIRTUAL_LABELS: Final = ("alibabacloud.com/eci", "alibabacloud.com/acs")
_CLASS: Final = "alibabacloud.com/compute-class"
_MIRROR: Final = "kubernetes.io/config.mirror"


class Recognition(msgspec.Struct, frozen=True, kw_only=True):
    """What a pod asks for, and what of it is to be taken away or added once it has been understood.

    Attributes:
        request: what goes into the request annotation.
        resources: by container name, resource names that said so.
        annotations: of ours, that translate wishes of other systems.
        selectors: nodeSelector keys of other systems.
        foreign: another system's dialect was spoken: what ties the pod to that system no longer holds.
        warnings: for the pod's author, each at most 120 characters.
    """

    request: PodRequest
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
        table = (tickets(self._names), native(self._names), *FOREIGN)
        options = {dialect.name: config.dialects.get(dialect.name) or dialect.options() for dialect in table}
        self.active: tuple[Dialect, ...] = tuple(d for d in table if options[d.name].enabled)
        self._contexts = {dialect.name: Context(self._names, options[dialect.name]) for dialect in self.active}
        self._resources = frozenset().union(*(dialect.resources for dialect in self.active))
        self._prefixes = tuple(prefix for dialect in self.active for prefix in dialect.prefixes)
        self._texts = frozenset().union(*(dialect.annotations | dialect.labels for dialect in self.active))
        self._text_prefixes = tuple(prefix for dialect in self.active for prefix in dialect.annotation_prefixes)

    def recognise(self, pod: Manifest) -> Recognition | None:
        """Read a pod in every dialect that is on.

        Returns:
            None where it asks for no GPU, or asks for one that is not ours to give: mirror pods, virtual nodes, plain
            cards of NVIDIA's plugin.

        Raises:
            RequestError: what it asks contradicts itself or is out of range.
        """
        reader = PodReader(pod)
        if not self._triggered(reader) or _MIRROR in reader.annotations:
            return None
        if virtual := _virtual(reader):
            self._refuse_slices(reader, virtual)
            return None
        said = self._resource_level(pod, reader)
        for name, found in self._pod_level(reader).items():
            said.setdefault(name, found)
        if not said:
            return None
        order = [container for container in reader.containers if container.name in said]
        spoken = {dialect for container in order for dialect, _ in said[container.name]}
        first = said[order[0].name][0][0]
        request = PodRequest(
            v=VERSION,
            dialect=first,
            containers={container.name: _labelled(said[container.name], first) for container in order},
        )
        _one_gpu_with_init(order, request)
        baggage = [d.baggage(reader, self._contexts[d.name]) for d in self.active if d.name in spoken]
        readings = [reading for found in said.values() for _, reading in found]
        return Recognition(
            request=request,
            resources=self._taken(reader, said, spoken),
            annotations={key: value for each in reversed(baggage) for key, value in each.annotations.items()},
            selectors=tuple(key for each in baggage for key in each.selectors if key in reader.selector),
            foreign=any(dialect.name in spoken for dialect in FOREIGN),
            warnings=tuple(w for each in readings for w in each.warnings)
            + tuple(w for each in baggage for w in each.warnings),
        )

    def _triggered(self, reader: PodReader) -> bool:
        """Whether any name in the pod may ask in a dialect: sets first, so that other pods cost nothing."""
        for container in reader.containers:
            names = container.resources.keys()
            if not self._resources.isdisjoint(names) or any(name.startswith(self._prefixes) for name in names):
                return True
        texts = reader.annotations.keys() | reader.labels.keys()
        if not self._texts.isdisjoint(texts) or self._names.container in reader.annotations:
            return True
        return bool(self._text_prefixes) and any(name.startswith(self._text_prefixes) for name in texts)

    def _resource_level(self, pod: Manifest, reader: PodReader) -> dict[str, list[tuple[str, Reading]]]:
        """By container, what its resources say: (dialect, reading), which all have to agree."""
        said: dict[str, list[tuple[str, Reading]]] = {}
        if TICKETS in self._contexts:
            known = _annotated(pod, self._names.request)
            for ask in asks(pod, self._names):
                plain = msgspec.structs.replace(ask.request, dialect=None)
                said[ask.container] = [(_dialect_of(ask.container, ask.request, known), Reading(request=plain))]
        for container in reader.containers:
            for dialect in self.active:
                # A name that one dialect has read as its own (nvidia.com/gpu) is not read again by the next.
                read = {name for _, reading in said.get(container.name, ()) for name in reading.resources}
                if any(dialect.owns(name) and name not in read for name in container.resources):
                    reading = dialect.container(container, reader, self._contexts[dialect.name])
                    if reading is not None:
                        _agree(said.setdefault(container.name, []), dialect.name, reading, container.name)
        return said

    def _pod_level(self, reader: PodReader) -> dict[str, list[tuple[str, Reading]]]:
        """By container, what annotations and labels say."""
        said: dict[str, list[tuple[str, Reading]]] = {}
        for dialect in self.active:
            for name, reading in dialect.pod(reader, self._contexts[dialect.name]).items():
                _agree(said.setdefault(name, []), dialect.name, reading, name)
        return said

    def _taken(
        self, reader: PodReader, said: Mapping[str, list[tuple[str, Reading]]], spoken: set[str]
    ) -> dict[str, tuple[str, ...]]:
        """Names to take away: those that were read, our own, and what the dialects spoken left at zero."""
        taken = {}
        own = frozenset(self._names.asks)
        dialects = [dialect for dialect in self.active if dialect.name in spoken and dialect.name != TICKETS]
        for container in reader.containers:
            names = {name for _, reading in said.get(container.name, ()) for name in reading.resources}
            for name in container.resources:
                if name in own or (any(d.owns(name) for d in dialects) and container.amount(name) is None):
                    names.add(name)
            if names:
                taken[container.name] = tuple(sorted(names))
        return taken

    def _refuse_slices(self, reader: PodReader, virtual: str) -> None:
        """A virtual node has no device plugin of ours: whole cards of its vendor stay as they are, slices can't be."""
        for container in reader.containers:
            if container.has(*self._names.asks):
                raise RequestError(
                    f"asks for a slice, but {virtual} sends the pod to a virtual node, where no device plugin runs",
                    container=container.name,
                    fix=f"ask for whole cards ({nvidia.COUNT}), or remove the label",
                )


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
    return noted.dialect or known.dialect


def _one_gpu_with_init(order: list[ContainerReader], request: PodRequest) -> None:
    """The kubelet hands a plain init container's IDs on at random, so all of its pod has to be on one GPU."""
    init = next((container for container in order if container.role == "init"), None)
    if init is None:
        return
    for name, asked in request.containers.items():
        if asked.gpus > 1 and asked.mig is None:
            raise RequestError(
                f'asks for {asked.gpus} GPUs in a pod whose init container "{init.name}" asks for a GPU too',
                container=name,
                fix="make it a sidecar (restartPolicy: Always), or ask nothing in the init container",
            )


def _virtual(reader: PodReader) -> str:
    """What sends the pod to a virtual node, or ""."""
    for label in _VIRTUAL_LABELS:
        if reader.labels.get(label) == "true":
            return f"label {label}"
    if _CLASS in reader.labels:
        return f"label {_CLASS}"
    return "nodeSelector type=virtual-kubelet" if reader.selector.get("type") == "virtual-kubelet" else ""
