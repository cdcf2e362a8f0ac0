"""NVIDIA's own plugin: a plain ``nvidia.com/gpu`` is a whole card.

By default such pods are left alone, since NVIDIA's plugin may serve other nodes of the same cluster. Where Tessera has
taken over, ``nvidia: {whole: true}`` makes them whole GPUs of ours. MIG instances and DRA claims are never touched.
"""

from __future__ import annotations

from typing import Final

from tessera.dialects.dialect import Context, Dialect, Reading
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.model.config import DialectOptions
from tessera.model.request import container_request

COUNT: Final = "nvidia.com/gpu"


class NvidiaOptions(DialectOptions, frozen=True, kw_only=True):
    """Whether plain cards are ours.

    Attributes:
        whole: true reads ``nvidia.com/gpu: N`` as N whole GPUs.
    """

    whole: bool = False


def _container(container: ContainerReader, _pod: PodReader, context: Context) -> Reading | None:
    if not context.option(NvidiaOptions).whole:
        return None
    gpus = container.count(COUNT, fix=f"write whole GPUs; a share is {context.names.gpu_compute}")
    request = container_request(container=container.name, gpus=gpus, init=container.role == "init")
    return None if request is None else Reading(request=request, resources=(COUNT,))


DIALECT: Final = Dialect(
    name="nvidia",
    about="NVIDIA's device plugin",
    options=NvidiaOptions,
    resources=frozenset({COUNT}),
    container=_container,
)
