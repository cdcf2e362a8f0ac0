"""Tickets: the extended resources that a request becomes, and what a pod's tickets say it asks for.

A ticket count is what Kubernetes sees (quota, autoscalers, `kubectl describe node`) and what the kubelet hands to the
plugin. It is a total over GPUs, so the number of GPUs comes from the request annotation; that is believed only where it
yields exactly the pod's tickets, since anybody may have written it. Without it the tickets are read as they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from tessera.model.errors import AnnotationError, QuantityError, RequestError
from tessera.model.names import Names
from tessera.model.pod import Container, Pod, Role, role
from tessera.model.quantity import Raw, binary, whole
from tessera.model.request import MOST_GPUS, ContainerRequest, PodRequest, container_request, decode, mig_request

DIALECT: Final = "tickets"
"""The dialect of a pod whose tickets were written by hand."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One container that asks for GPUs, in the order in which the kubelet admits them."""

    container: str
    role: Role
    request: ContainerRequest


def tickets(request: ContainerRequest, names: Names) -> dict[str, int]:
    """Turn a request into ticket counts, totals over its GPUs; bytes are rounded up to units.

    >>> tickets(ContainerRequest(gpus=2, memory=8 * 1024**3, compute=30), names())
    {'tessera.dev/gpu-memory.256Mi': 64, 'tessera.dev/gpu-compute.percent': 60}
    """
    if request.mig is not None:
        return {names.mig(request.mig): request.gpus}
    if request.whole:
        return {names.memory_percent: 100 * request.gpus, names.compute_percent: 100 * request.gpus}
    counts: dict[str, int] = {}
    if request.memory is not None:
        counts[names.memory_units] = units_of(request.memory, names.memory_unit) * request.gpus
    if request.memory_percent is not None:
        counts[names.memory_percent] = request.memory_percent * request.gpus
    if request.compute is not None:
        counts[names.compute_percent] = request.compute * request.gpus
    return counts


def units_of(memory: int, unit: int) -> int:
    """Units that hold so many bytes: rounded up, so that a slice is never smaller than asked."""
    return -(-memory // unit)


def ticket_counts(container: Container, names: Names) -> dict[str, int]:
    """The tickets in a container's limits (requests where a limit is absent), counts above zero only.

    Raises:
        RequestError: a ticket that is no whole number or is negative.
    """
    resources = container.resources
    if resources is None:
        return {}
    both: dict[str, Raw] = (resources.requests or {}) | (resources.limits or {})
    counts: dict[str, int] = {}
    for name, raw in both.items():
        if not names.is_ticket(name):
            continue
        try:
            count = whole(raw)
        except QuantityError as error:
            raise RequestError(f"{name}: {error}", container=container.name, fix="tickets are whole numbers") from error
        if count < 0:
            raise RequestError(f"{name}: {count} is negative", container=container.name, fix="write a positive number")
        if count:
            counts[name] = count
    return counts


def request_of(counts: Mapping[str, int], names: Names, *, container: str, init: bool) -> ContainerRequest | None:
    """Read tickets written by hand: spread evenly over the fewest GPUs that hold them.

    Raises:
        RequestError: both memory views at once, MIG beside slices, too many MIG instances, or totals that don't divide evenly.
    """
    units = counts.get(names.memory_units, 0)
    percent = counts.get(names.memory_percent, 0)
    compute = counts.get(names.compute_percent, 0)
    migs = {name: count for name, count in counts.items() if name.startswith(names.mig_prefix)}
    if migs:
        if len(migs) > 1 or units or percent or compute:
            raise RequestError(
                f"asks for {' and '.join(sorted(counts))} together",
                container=container,
                fix="ask for instances of one MIG profile, or for a slice, in one container",
            )
        name, count = next(iter(migs.items()))
        profile = name.removeprefix(names.mig_prefix)
        return mig_request(container=container, profile=profile, instances=count, init=init)
    fewest = max(1, -(-max(percent, compute) // 100))
    gpus = next(
        (n for n in range(fewest, MOST_GPUS + 1) if units % n == percent % n == compute % n == 0),
        None,
    )
    if gpus is None:
        totals = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
        raise RequestError(
            f"{totals} spread evenly over no number of GPUs from {fewest} to {MOST_GPUS}",
            container=container,
            fix=f"ask with {names.gpu} and amounts per GPU",
        )
    return container_request(
        container=container,
        gpus=gpus if percent or compute or units else 0,
        memory=units // gpus * names.memory_unit,
        memory_percent=percent // gpus,
        compute=compute // gpus,
        init=init,
    )


def asks(pod: Pod, names: Names) -> tuple[Ask, ...]:
    """What a pod with tickets asks for: by its request annotation where that fits its tickets, else by the tickets.

    Returns:
        The containers that hold tickets: init containers in spec order, then the others, as the kubelet admits them.

    Raises:
        RequestError: tickets that make no sense.
    """
    text = pod.metadata.annotation(names.request)
    annotated: PodRequest | None = None
    if text is not None:
        try:
            annotated = decode(text)
        except AnnotationError:
            annotated = None
    found = []
    for container, init in containers(pod):
        counts = ticket_counts(container, names)
        if not counts:
            continue
        part = role(container, init=init)
        known = annotated.containers.get(container.name) if annotated else None
        if known is not None and tickets(known, names) == counts:
            if known.init != (part == "init"):  # tickets don't say it, so anybody may have written anything
                known = msgspec.structs.replace(known, init=part == "init")
            found.append(Ask(container=container.name, role=part, request=known))
            continue
        request = request_of(counts, names, container=container.name, init=part == "init")
        if request is not None:
            found.append(Ask(container=container.name, role=part, request=request))
    return tuple(found)


def containers(pod: Pod) -> tuple[tuple[Container, bool], ...]:
    """Every container of a pod with whether it is an init container, in the kubelet's order of admission."""
    return tuple((c, True) for c in pod.spec.init_containers or ()) + tuple(
        (c, False) for c in pod.spec.containers or ()
    )


def describe(request: ContainerRequest) -> str:
    """Say a request in words: ``2 GPUs, each 8Gi of memory and 30 % of compute``."""
    count = "1 GPU" if request.gpus == 1 else f"{request.gpus} GPUs"
    if request.whole:
        return f"{count}, whole"
    if request.mig is not None:
        return f"{request.gpus} MIG instance{'' if request.gpus == 1 else 's'} of {request.mig}"
    memory = binary(request.memory) if request.memory is not None else f"{request.memory_percent} %"
    compute = f" and {request.compute} % of compute" if request.compute is not None else ""
    return f"{count}, {'each ' if request.gpus > 1 else ''}{memory} of memory{compute}"
