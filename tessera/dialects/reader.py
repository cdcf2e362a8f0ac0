"""A pod as the dialects read it: amounts by name, limits before requests, zero as not asked.

A mutating webhook runs after decoding and defaulting but before validation, so it sees what the API server would refuse
a moment later: fractions of extended resources, amounts in requests only, requests that differ from limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Final

from tessera.model.errors import QuantityError, RequestError
from tessera.model.pod import Manifest, ManifestContainer, NodeSelectorTerm, Role, role
from tessera.model.quantity import Raw, parse

DEMANDING: Final = ("In", "Exists", "Gt", "Lt")
"""Operators that a node without the label never satisfies."""
MOST_CONTAINERS: Final = 512
"""Containers of one pod; kubelets are tested with 110 pods a node."""
MOST_RESOURCES: Final = 128
"""Names in one container's limits and requests together."""
MOST_LABELS: Final = 128
"""Labels in a nodeSelector, terms in an affinity, expressions in a term."""
_LONGEST: Final = 80
VIRTUAL_LABELS: Final = ("alibabacloud.com/eci", "alibabacloud.com/acs")
COMPUTE_CLASS: Final = "alibabacloud.com/compute-class"
VIRTUAL_TAINT: Final = "virtual-kubelet.io/provider"


class ContainerReader:
    """One container's resources, environment and place in the pod."""

    __slots__ = ("container", "index", "init", "resources", "role")

    def __init__(self, container: ManifestContainer, *, index: int, init: bool) -> None:
        """Merge limits over requests: a name's limit counts where both are there."""
        self.container = container
        self.index = index
        self.init = init
        self.role: Role = role(container, init=init)
        found = container.resources
        self.resources: dict[str, Raw] = {} if found is None else (found.requests or {}) | (found.limits or {})

    @property
    def name(self) -> str:
        """The container's name."""
        return self.container.name

    def amount(self, name: str) -> Fraction | None:
        """What stands under a resource name; None where it is absent or zero (not asked).

        Raises:
            RequestError: not a quantity, or negative.
        """
        raw = self.resources.get(name)
        return None if raw is None else read_amount(raw, name, container=self.name)

    def count(self, name: str, *, fix: str = "write a whole number") -> int | None:
        """What stands under a resource name, which has to be whole; None where it is absent or zero.

        Raises:
            RequestError: not a quantity, negative, or a fraction.
        """
        found = self.amount(name)
        return None if found is None else as_count(found, name, container=self.name, fix=fix)

    def percent(self, name: str) -> int | None:
        """What stands under a resource name, which has to be 1..100; None where it is absent or zero.

        Raises:
            RequestError: not a whole number of percent, or above 100.
        """
        found = self.count(name, fix="write a whole percent of one GPU, 1 to 100")
        if found is not None and found > 100:
            raise RequestError(
                f"{name}: {found} is more than 100 percent of a GPU", container=self.name, fix="write 1 to 100"
            )
        return found

    def scaled(self, name: str, unit: int) -> int | None:
        """What stands under a resource name, times `unit` bytes, in whole bytes; None where it is absent or zero.

        Raises:
            RequestError: not a quantity, negative, or a fraction of a byte.
        """
        found = self.amount(name)
        # Exact arithmetic costs a microsecond even where it changes nothing.
        return None if found is None else as_bytes(found if unit == 1 else found * unit, name, container=self.name)

    def has(self, *names: str) -> bool:
        """Whether any of the names is asked for, with an amount other than zero."""
        return any(name in self.resources and self.amount(name) is not None for name in names)

    def present(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the names that stand in its resources, at zero too."""
        return tuple(name for name in names if name in self.resources)


class PodReader:
    """A pod: its containers in the kubelet's order of admission, annotations and labels."""

    __slots__ = ("annotations", "containers", "labels", "pod")

    def __init__(self, pod: Manifest) -> None:
        """Read a pod once for all dialects.

        Raises:
            RequestError: more containers, or resources of one, than any pod has. The API server bounds a pod's bytes only,
                and eight MiB of containers would keep everybody else waiting for half a minute.
        """
        spec = pod.spec
        there = len(spec.containers or ()) + len(spec.init_containers or ())
        if there > MOST_CONTAINERS:
            raise RequestError(
                f"has {there} containers, of which at most {MOST_CONTAINERS} are read", fix="split it into several pods"
            )
        self.pod = pod
        self.annotations: dict[str, str] = pod.metadata.annotations or {}
        self.labels: dict[str, str] = pod.metadata.labels or {}
        self.containers: tuple[ContainerReader, ...] = tuple(_containers(pod))
        for container in self.containers:
            if len(container.resources) > MOST_RESOURCES:
                raise RequestError(
                    f"asks for {len(container.resources)} resources, of which at most {MOST_RESOURCES} are read",
                    container=container.name,
                    fix="ask for fewer",
                )

    def check_names(self) -> None:
        """See to it that a container's name names one container; the API server would refuse the pod a moment later.

        Raises:
            RequestError: two have the same name.
        """
        seen: set[str] = set()
        for container in self.containers:
            if container.name in seen:
                raise RequestError(f'two containers are called "{container.name[:_LONGEST]}"', fix="rename one of them")
            seen.add(container.name)

    def check_choice(self) -> None:
        """See to it that the pod's choice of nodes is short enough to be looked at.

        Raises:
            RequestError: more labels or terms than any pod has.
        """
        if not self.pod.spec.node_selector and self.pod.spec.affinity is None:
            return
        labels, terms = len(self.selector), len(self.terms)
        expressions = max((len(term.match_expressions or ()) for term in self.terms), default=0)
        if max(labels, terms, expressions) > MOST_LABELS:
            raise RequestError(
                f"chooses its node by {labels} labels and {terms} terms of up to {expressions} expressions",
                fix=f"write at most {MOST_LABELS} of each",
            )

    @property
    def selector(self) -> dict[str, str]:
        """The pod's nodeSelector."""
        return self.pod.spec.node_selector or {}

    @property
    def terms(self) -> tuple[NodeSelectorTerm, ...]:
        """The terms of the pod's required node affinity, any of which has to fit."""
        return self.pod.spec.required_terms

    @property
    def label_keys(self) -> set[str]:
        """Keys of labels that nodes have to carry for the pod to go there, at least in one of its terms."""
        return set(self.pod.spec.node_selector or ()) | {
            each.key for term in self.terms for each in term.match_expressions or () if each.operator in DEMANDING
        }

    def choices(self, key: str) -> tuple[str, ...]:
        """The values of a node label that the pod allows; none where it does not speak of it."""
        chosen = (self.pod.spec.node_selector or {}).get(key)
        if chosen is not None:
            return (chosen,)
        found = [
            each.values or ()
            for term in self.terms
            for each in term.match_expressions or ()
            if each.key == key and each.operator == "In"
        ]
        return (
            tuple(dict.fromkeys(value for values in found for value in values)) if len(found) == len(self.terms) else ()
        )

    @property
    def scheduler(self) -> str:
        """The scheduler that the pod names, or ""."""
        return self.pod.spec.scheduler_name

    @property
    def tolerates_virtual(self) -> bool:
        """Whether the pod may go to a virtual node, where a vendor's ``nvidia.com/gpu`` is the only request understood."""
        return any(toleration.key == VIRTUAL_TAINT for toleration in self.pod.spec.tolerations or ())

    @property
    def virtual(self) -> str:
        """What sends the pod to a virtual node and nowhere else, or ""."""
        labels = self.labels
        if labels:
            for label in VIRTUAL_LABELS:
                if labels.get(label) == "true":
                    return f"label {label}"
            if COMPUTE_CLASS in labels:
                return f"label {COMPUTE_CLASS}"
        return "nodeSelector type=virtual-kubelet" if self.selector.get("type") == "virtual-kubelet" else ""

    def container(self, name: str | None, *, by: str) -> ContainerReader:
        """The container that a pod-wide request speaks for: the one named, else the first that is no init container.

        Args:
            name: of the container, or None.
            by: the annotation that named it.

        Raises:
            RequestError: there is no such container.
        """
        if name is None:
            first = next((container for container in self.containers if not container.init), None)
            if first is None:
                raise RequestError("the pod has no container", fix="write one")
            return first
        found = next((container for container in self.containers if container.name == name), None)
        if found is None:
            known = ", ".join(container.name for container in self.containers)
            raise RequestError(
                f'{by} names container "{name[:_LONGEST]}"', fix=f"name one that is there ({known[:200]})"
            )
        return found

    def text_amount(self, value: str, name: str, *, container: str = "") -> Fraction | None:
        """Read an annotation's or label's value as a quantity; None where it is zero.

        Args:
            value: the text.
            name: what it stands under, for errors.
            container: that it speaks for, for errors.

        Raises:
            RequestError: not a quantity, or negative.
        """
        return read_amount(value.strip(), name, container=container)


def read_amount(raw: Raw, name: str, *, container: str) -> Fraction | None:
    """Read one amount; None where it is zero.

    Raises:
        RequestError: not a quantity, or negative.
    """
    try:
        found = _parsed(raw)
    except QuantityError as error:
        raise RequestError(f"{name}: {error}", container=container, fix="correct it, or leave it out") from error
    if found.numerator < 0:
        raise RequestError(f"{name}: {raw} is negative", container=container, fix="write a positive amount")
    return found or None


def is_quantity(text: str) -> bool:
    """Whether a text can be read as an amount at all."""
    try:
        _parsed(text)
    except QuantityError:
        return False
    return True


@lru_cache(maxsize=1024, typed=True)
def _parsed(raw: Raw) -> Fraction:
    """Remembered, within bounds: exact arithmetic costs microseconds, and pods ask for the same amounts over and over."""
    return parse(raw)


def as_count(found: Fraction, name: str, *, container: str, fix: str = "write a whole number") -> int:
    """A whole number.

    Raises:
        RequestError: a fraction.
    """
    if found.denominator != 1:
        raise RequestError(f"{name}: {float(found):g} is not a whole number", container=container, fix=fix)
    return found.numerator


def as_bytes(found: Fraction, name: str, *, container: str) -> int:
    """Whole bytes.

    Raises:
        RequestError: a fraction of a byte is left.
    """
    if found.denominator != 1:
        raise RequestError(
            f"{name}: comes to {float(found):g} bytes",
            container=container,
            fix="write an amount without a fraction of a byte",
        )
    return found.numerator


def _containers(pod: Manifest) -> Iterator[ContainerReader]:
    for index, container in enumerate(pod.spec.init_containers or ()):
        yield ContainerReader(container, index=index, init=True)
    for index, container in enumerate(pod.spec.containers or ()):
        yield ContainerReader(container, index=index, init=False)
