"""What a dialect is: how to know it, how to read it, and what its pods carry that only its own system understands.

A foreign system is one file with one `DIALECT`. What triggers it is data (resource names, annotations, labels), so that
the registration's match conditions can be generated from the same table that the code uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from tessera.dialects.reader import ContainerReader, PodReader
from tessera.dialects.trigger import ZERO, Resource, Text, Trigger, any_of
from tessera.model.config import DialectOptions
from tessera.model.names import Names
from tessera.model.request import ContainerRequest

Options = TypeVar("Options", bound=DialectOptions)


class ForeignOptions(DialectOptions, frozen=True, kw_only=True):
    """What every foreign dialect can be told.

    Attributes:
        drop_node_selectors: take away the nodeSelector keys that only nodes of its own system have.
    """

    drop_node_selectors: bool = True


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What one container asks in one dialect.

    Attributes:
        request: amounts per GPU.
        resources: names in the container's limits and requests that said so; they are taken away.
        warnings: what its author should know, each at most 120 characters.
    """

    request: ContainerRequest
    resources: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Baggage(msgspec.Struct, frozen=True, kw_only=True):
    """What else a pod of a dialect carries.

    Attributes:
        annotations: ours to set, unless the pod has them: wishes translated.
        selectors: keys of labels that only nodes of the other system carry; taken away from nodeSelector and required
            node affinity, with a warning.
        resources: resource names that ask for nothing and that no node has; taken away from every container, also from
            one that asks for nothing else, since the pod would wait for them for ever.
        warnings: what its author should know.
    """

    annotations: Mapping[str, str] = {}
    selectors: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """What a dialect may need beside the pod: the installation's names and its own options."""

    names: Names
    options: DialectOptions

    def option(self, kind: type[Options]) -> Options:
        """The options as their own type."""
        return self.options if isinstance(self.options, kind) else kind()


ContainerRule = Callable[[ContainerReader, PodReader, Context], Reading | None]
PodRule = Callable[[PodReader, Context], Mapping[str, Reading]]
BaggageRule = Callable[[PodReader, Context], Baggage]
TriggerRule = Callable[[Context], Trigger]


def no_baggage(_pod: PodReader, _context: Context) -> Baggage:
    """Nothing else is carried."""
    return Baggage()


def no_container(_container: ContainerReader, _pod: PodReader, _context: Context) -> Reading | None:
    """Nothing is asked in a container's resources."""
    return None


def no_pod(_pod: PodReader, _context: Context) -> Mapping[str, Reading]:
    """Nothing is asked for the whole pod."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One dialect.

    Attributes:
        name: as config and the request annotation write it.
        about: the system, for documentation.
        options: what config may tell it.
        resources: resource names (in limits or requests) that may ask in it.
        prefixes: beginnings of resource names that may.
        annotations: pod annotations that may ask in it.
        annotation_prefixes: beginnings of annotations that may.
        labels: pod labels that may ask in it.
        switch: the resource whose zero says that the container gets no GPU, whatever amounts stand beside it.
        container: reads one container's resources.
        pod: reads what is asked for the whole pod (annotations, labels); counts only for containers that ask nothing in
            their own resources.
        baggage: what else such a pod carries; asked of every foreign dialect that is on where any of them was spoken,
            since systems build on one another (HAMi's annotations on Volcano's pods, GKE's selectors on anybody's).
        trigger: which pods ask in it, where its names alone don't say so (``nvidia.com/gpu`` is four dialects'); None is
            any of the names with an amount.
    """

    name: str
    about: str
    options: type[DialectOptions] = ForeignOptions
    resources: frozenset[str] = field(default=frozenset())
    prefixes: tuple[str, ...] = ()
    annotations: frozenset[str] = field(default=frozenset())
    annotation_prefixes: tuple[str, ...] = ()
    labels: frozenset[str] = field(default=frozenset())
    switch: str = ""
    container: ContainerRule = no_container
    pod: PodRule = no_pod
    baggage: BaggageRule = no_baggage
    trigger: TriggerRule | None = None

    def owns(self, resource: str) -> bool:
        """Whether a resource name may ask in this dialect."""
        return resource in self.resources or (bool(self.prefixes) and resource.startswith(self.prefixes))

    def triggers(self, context: Context) -> Trigger:
        """Which pods ask in this dialect, as data; what is generated from it has to reach every pod that is read here."""
        parts: list[Trigger] = []
        if self.switch:
            # What a number of zero makes meaningless is taken away.
            parts.append(Resource(names=self.resources - {self.switch}, off=self.switch))
        if self.trigger is not None:
            return any_of(*parts, self.trigger(context))
        if self.resources:
            parts.append(Resource(names=self.resources))
        parts += [Resource(prefix=prefix) for prefix in self.prefixes]
        if self.pod is not no_pod:
            parts += [Text(where="annotations", names=self.annotations, unless=ZERO)] if self.annotations else []
            parts += [Text(where="annotations", prefix=prefix) for prefix in self.annotation_prefixes]
            parts += [Text(where="labels", names=self.labels, unless=ZERO)] if self.labels else []
        return any_of(*parts)
