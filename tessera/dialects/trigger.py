"""What makes a pod one that asks, as data: the same description is evaluated here and written as CEL for the API server.

A webhook with failurePolicy Fail that is called for too many pods stops a cluster when it is down; one that is called for
too few lets pods through untranslated. So the registration's match conditions can't be a second, hand-written list: they
are generated from these descriptions (`tessera.deploy.conditions`), and tests hold the descriptions equal to the code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tessera.dialects.reader import COMPUTE_CLASS, VIRTUAL_LABELS, VIRTUAL_TAINT, ContainerReader, PodReader
from tessera.model.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A container asks in limits or requests.

    Attributes:
        names: of the resources.
        prefix: resources that begin so count too.
        pattern: what names with that prefix have to match as a whole (both Python's and RE2's syntax); "" is any.
        without: prefixes that no name of the same container may have.
        off: a resource that has to stand beside them in the container, with an amount of zero; "" is none.
        amount: which amounts count; an amount of zero asks for nothing, but the name may be a sign all the same.
    """

    names: frozenset[str] = frozenset()
    prefix: str = ""
    pattern: str = ""
    without: tuple[str, ...] = ()
    off: str = ""
    amount: Literal["any", "positive", "fraction"] = "positive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """An annotation, a label or a nodeSelector key is there.

    Attributes:
        where: which of the three.
        names: of the keys.
        prefix: keys that begin so count too.
        pattern: what keys with that prefix have to match as a whole; "" is any.
        value: what the value has to match as a whole; "" is any.
        unless: what it may not match as a whole; "" is nothing.
    """

    where: Literal["annotations", "labels", "nodeSelector"]
    names: frozenset[str] = frozenset()
    prefix: str = ""
    pattern: str = ""
    value: str = ""
    unless: str = ""


@dataclass(frozen=True, slots=True)
class Scheduler:
    """The pod names one of these schedulers."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Toleration:
    """The pod has a toleration of this key."""

    key: str


@dataclass(frozen=True, slots=True)
class Variable:
    """A container has an environment variable of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one part holds."""

    parts: tuple[Trigger, ...]


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part holds."""

    parts: tuple[Trigger, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Trigger


Trigger = Resource | Text | Scheduler | Toleration | Variable | AnyOf | AllOf | Not

ZERO: Final = r"\s*0+(\.0*)?\s*"
"""An amount that asks for nothing, as a text."""
VIRTUAL: Final = AnyOf(
    (
        Text(where="labels", names=frozenset(VIRTUAL_LABELS), value="true"),
        Text(where="labels", names=frozenset({COMPUTE_CLASS})),
        Text(where="nodeSelector", names=frozenset({"type"}), value="virtual-kubelet"),
    )
)
"""The pod goes to a virtual node and nowhere else (`PodReader.virtual`)."""
TOLERATES_VIRTUAL: Final = Toleration(VIRTUAL_TAINT)


def any_of(*parts: Trigger) -> Trigger:
    """At least one of the parts."""
    return AnyOf(parts)


def all_of(*parts: Trigger) -> Trigger:
    """Every one of the parts."""
    return AllOf(parts)


def holds(trigger: Trigger, pod: PodReader) -> bool:
    """Whether a pod is one that the description speaks of.

    An amount that can't be read counts as asked: the code is what refuses it, so the pod has to reach the code.
    """
    match trigger:
        case Resource():
            return any(_asks(container, trigger) for container in pod.containers)
        case Text():
            return any(_says(trigger, key, value) for key, value in _texts(trigger, pod).items())
        case Scheduler():
            return pod.scheduler in trigger.names
        case Toleration():
            return any(toleration.key == trigger.key for toleration in pod.pod.spec.tolerations or ())
        case Variable():
            return any(container.container.variable(trigger.name) is not None for container in pod.containers)
        case AnyOf():
            return any(holds(part, pod) for part in trigger.parts)
        case AllOf():
            return all(holds(part, pod) for part in trigger.parts)
        case Not():
            return not holds(trigger.part, pod)


def alternatives(trigger: Trigger) -> Iterator[Trigger]:
    """The parts of which any is enough, however they are nested."""
    if isinstance(trigger, AnyOf):
        for part in trigger.parts:
            yield from alternatives(part)
    else:
        yield trigger


def _asks(container: ContainerReader, trigger: Resource) -> bool:
    if trigger.without and any(name.startswith(trigger.without) for name in container.resources):
        return False
    if trigger.off and (trigger.off not in container.resources or _counts(container, trigger.off, "positive")):
        return False
    return any(_among(name, trigger) and _counts(container, name, trigger.amount) for name in container.resources)


def _counts(container: ContainerReader, name: str, which: str) -> bool:
    try:
        amount = container.amount(name)
    except RequestError:
        return True
    if amount is None:
        return which == "any"
    return which != "fraction" or amount.denominator != 1


def _among(key: str, trigger: Resource | Text) -> bool:
    if key in trigger.names:
        return True
    return (
        bool(trigger.prefix)
        and key.startswith(trigger.prefix)
        and (not trigger.pattern or re.fullmatch(trigger.pattern, key, re.ASCII) is not None)
    )


def _says(trigger: Text, key: str, value: str) -> bool:
    return (
        _among(key, trigger)
        and (not trigger.value or re.fullmatch(trigger.value, value, re.ASCII) is not None)
        and (not trigger.unless or re.fullmatch(trigger.unless, value, re.ASCII) is None)
    )


def _texts(trigger: Text, pod: PodReader) -> Mapping[str, str]:
    match trigger.where:
        case "annotations":
            return pod.annotations
        case "labels":
            return pod.labels
        case "nodeSelector":
            return pod.selector
