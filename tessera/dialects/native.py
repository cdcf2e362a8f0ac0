"""Our own words: limits or pod annotations ``tessera.dev/gpu…`` (contract, section 1), and tickets written by hand.

Their names hang on the configured domain, so these two dialects are made for an installation; the others are constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from tessera.dialects.dialect import Context, Dialect, Reading
from tessera.dialects.reader import ContainerReader, PodReader, as_bytes, as_count
from tessera.model.names import Names
from tessera.model.request import container_request
from tessera.model.tickets import DIALECT as TICKETS

NATIVE = "tessera"


@lru_cache(maxsize=16)
def native(names: Names) -> Dialect:
    """The dialect of our own names."""
    return Dialect(
        name=NATIVE,
        about="Tessera's own names",
        resources=frozenset(names.asks),
        annotations=frozenset((*names.asks, names.container)),
        container=_container,
        pod=_pod,
    )


@lru_cache(maxsize=16)
def tickets(names: Names) -> Dialect:
    """The dialect of tickets that are there already: written by hand, or by an earlier pass.

    It has triggers only; what tickets say is read for the whole pod at once, by `tessera.model.tickets.asks`.
    """
    return Dialect(
        name=TICKETS,
        about="tickets, as nodes advertise them",
        resources=frozenset(names.tickets),
        prefixes=(names.mig_prefix,),
    )


def _container(container: ContainerReader, _pod: PodReader, context: Context) -> Reading | None:
    names = context.names
    request = container_request(
        container=container.name,
        gpus=container.count(names.gpu, fix=f"write whole GPUs; a share is {names.gpu_compute} or {names.gpu_memory}"),
        memory=container.scaled(names.gpu_memory, 1),
        memory_percent=container.percent(names.gpu_memory_percent),
        compute=container.percent(names.gpu_compute),
        init=container.role == "init",
    )
    if request is None:
        return None
    return Reading(request=request, resources=tuple(name for name in names.asks if name in container.resources))


def _pod(pod: PodReader, context: Context) -> Mapping[str, Reading]:
    """Annotations of the same names; they speak for the container that another annotation names."""
    names = context.names
    named = pod.annotations.get(names.container)
    present = [name for name in names.asks if name in pod.annotations]
    if named is None and not present:
        return {}
    container = pod.container(named, by=f"annotation {names.container}")
    amounts = {
        name: pod.text_amount(pod.annotations[name], f"annotation {name}", container=container.name) for name in present
    }
    whole = {
        name: None if amount is None else as_count(amount, f"annotation {name}", container=container.name)
        for name, amount in amounts.items()
        if name != names.gpu_memory
    }
    memory = amounts.get(names.gpu_memory)
    request = container_request(
        container=container.name,
        gpus=whole.get(names.gpu),
        memory=None if memory is None else as_bytes(memory, names.gpu_memory, container=container.name),
        memory_percent=whole.get(names.gpu_memory_percent),
        compute=whole.get(names.gpu_compute),
        init=container.role == "init",
    )
    return {} if request is None else {container.name: Reading(request=request)}
