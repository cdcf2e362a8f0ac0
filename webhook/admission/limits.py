"""The most that one pod of a namespace may ask for, by config: a clear no at once instead of a pod that starves others.

GPUs are counted as Kubernetes counts a pod's resources: plain init containers run one after the other and are over when
the rest starts, sidecars run from their place in the list on. The largest slice is held against each container by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tessera.dialects.reader import ContainerReader
from tessera.model.config import Limit
from tessera.model.errors import RequestError
from tessera.model.quantity import binary
from tessera.model.request import ContainerRequest, PodRequest

ANY: Final = "*"
"""The entry for namespaces without one of their own."""


class LimitError(RequestError):
    """A pod asks for more than its namespace may have: not malformed, but forbidden."""


def check_limits(
    request: PodRequest,
    limits: Mapping[str, Limit],
    *,
    containers: Sequence[ContainerReader],
    namespace: str,
    unit: int,
) -> None:
    """Hold a pod's request against its namespace's limit.

    Args:
        request: of the pod.
        limits: by namespace, ``*`` for the others.
        containers: all of the pod's, init containers first, in their order.
        namespace: of the pod.
        unit: bytes of one memory unit; a limit is as coarse as what is handed out.

    Raises:
        LimitError: more than the limit, with both numbers.
    """
    limit = limits.get(namespace) or limits.get(ANY)
    if limit is None:
        return
    gpus = most_gpus(request, containers)
    if limit.gpus is not None and gpus > limit.gpus:
        raise LimitError(
            f'asks for {gpus} GPUs in all; namespace "{namespace}" allows {limit.gpus} per pod',
            fix="ask for fewer, or have limits in Tessera's config raised",
        )
    for name, asked in request.containers.items():
        _check_container(asked, limit, name, namespace, unit)


def most_gpus(request: PodRequest, containers: Sequence[ContainerReader]) -> int:
    """GPUs that a pod holds at most at one time (component-helpers' PodRequests counts any resource so).

    Args:
        request: of the pod.
        containers: all of the pod's, init containers first, in their order.
    """
    staying = starting = 0
    for container in containers:
        asked = request.containers.get(container.name)
        gpus = asked.gpus if asked is not None else 0
        if container.role == "init":
            starting = max(starting, staying + gpus)
        else:
            staying += gpus
    return max(starting, staying)


def _check_container(asked: ContainerRequest, limit: Limit, name: str, namespace: str, unit: int) -> None:
    fix = "ask for less, or have limits in Tessera's config raised"
    if limit.compute is not None:
        compute = 100 if asked.whole else asked.compute or 0
        if compute > limit.compute:
            raise LimitError(
                f'asks for {compute} percent of compute; namespace "{namespace}" allows {limit.compute}',
                container=name,
                fix=fix,
            )
    if limit.memory is not None:
        if asked.memory is None:
            raise LimitError(
                f"asks for a share of a card whose size is not known yet; "
                f'namespace "{namespace}" allows {binary(limit.memory)} on each GPU',
                container=name,
                fix="ask in bytes (gpu-memory), which can be held against the limit",
            )
        if asked.memory > -(-limit.memory // unit) * unit:
            raise LimitError(
                f'asks for {binary(asked.memory)} of GPU memory; namespace "{namespace}" allows '
                f"{binary(limit.memory)} on each GPU",
                container=name,
                fix=fix,
            )
