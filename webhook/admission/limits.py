"""The most that one pod of a namespace may ask for, by config: a clear no at once instead of a pod that starves others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tessera.model.config import Limit
from tessera.model.errors import RequestError
from tessera.model.quantity import binary, whole
from tessera.model.request import ContainerRequest, PodRequest

ANY: Final = "*"
"""The entry for namespaces without one of their own."""


def check_limits(request: PodRequest, limits: Mapping[str, Limit], *, namespace: str, unit: int) -> None:
    """Hold a pod's request against its namespace's limit.

    Args:
        request: of the pod.
        limits: by namespace, ``*`` for the others.
        namespace: of the pod.
        unit: bytes of one memory unit; a limit is as coarse as what is handed out.

    Raises:
        RequestError: more than the limit, with both numbers.
    """
    limit = limits.get(namespace) or limits.get(ANY)
    if limit is None:
        return
    gpus = sum(asked.gpus for asked in request.containers.values())
    if limit.gpus is not None and gpus > limit.gpus:
        raise RequestError(
            f'asks for {gpus} GPUs in all; namespace "{namespace}" allows {limit.gpus} per pod',
            fix="ask for fewer, or have limits in Tessera's config raised",
        )
    for name, asked in request.containers.items():
        _check_container(asked, limit, name, namespace, unit)


def _check_container(asked: ContainerRequest, limit: Limit, name: str, namespace: str, unit: int) -> None:
    fix = "ask for less, or have limits in Tessera's config raised"
    if limit.compute is not None:
        compute = 100 if asked.whole else asked.compute or 0
        if compute > limit.compute:
            raise RequestError(
                f'asks for {compute} percent of compute; namespace "{namespace}" allows {limit.compute}',
                container=name,
                fix=fix,
            )
    if limit.memory is not None:
        most = whole(limit.memory)
        if asked.memory is None:
            raise RequestError(
                f'asks for a share of a card whose size is not known yet; namespace "{namespace}" allows {limit.memory}',
                container=name,
                fix="ask in bytes (gpu-memory), which can be held against the limit",
            )
        if asked.memory > -(-most // unit) * unit:
            raise RequestError(
                f'asks for {binary(asked.memory)} of GPU memory; namespace "{namespace}" allows {limit.memory}',
                container=name,
                fix=fix,
            )
