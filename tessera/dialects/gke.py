"""Google's GKE: nodeSelectors that change what ``nvidia.com/gpu: 1`` means, and name the card.

Source: GKE's manual "Share GPUs with multiple workloads using GPU time-sharing", "NVIDIA MPS", "multi-instance GPUs". With a
sharing strategy, one ``nvidia.com/gpu`` is one of ``gke-max-shared-clients-per-gpu`` clients of a card; GKE takes one per
container, and makes nodes for 2 clients where the number is not said. MPS gives each client an equal share of memory and
compute; time-sharing caps neither, so only the memory that all clients need side by side is reserved. A partition size is
a MIG instance: left alone unless the dialect `nvidia` turns MIG requests into tickets.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Annotated, Final

import msgspec

from tessera.dialects.amounts import text_count
from tessera.dialects.dialect import Baggage, Context, Dialect, ForeignOptions, Reading
from tessera.dialects.hami import COUNT
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.dialects.trigger import VIRTUAL, Not, Resource, Text, Trigger, all_of, any_of
from tessera.model.errors import RequestError
from tessera.model.request import container_request, mig_request

STRATEGY: Final = "cloud.google.com/gke-gpu-sharing-strategy"
CLIENTS: Final = "cloud.google.com/gke-max-shared-clients-per-gpu"
PARTITION: Final = "cloud.google.com/gke-gpu-partition-size"
ACCELERATOR: Final = "cloud.google.com/gke-accelerator"
_PREFIX: Final = "cloud.google.com/gke-"
_PROFILE: Final = re.compile(r"[1-7]g\.[0-9]{1,3}gb", re.ASCII)
_NOISE: Final = re.compile(r"^nvidia-|\btesla-|-[0-9]+gb$|-mega\b", re.ASCII)
"""What is not part of a product's name as NVML gives it: ``nvidia-h100-mega-80gb`` is an "NVIDIA H100 80GB HBM3"."""


_SHORT: Final = MappingProxyType({"l4": "L4,-L40", "p4": "P4,-P40"})
"""Names that are the beginning of another card's."""


class GkeOptions(ForeignOptions, frozen=True, kw_only=True):
    """What the pod may leave open.

    Attributes:
        clients: sharing a card, where the pod does not say how many (GKE's own default).
        partitions: turn a partition size into our ticket of that MIG instance.
    """

    clients: Annotated[int, msgspec.Meta(ge=1, le=100)] = 2
    partitions: bool = False


def _container(container: ContainerReader, pod: PodReader, context: Context) -> Reading | None:
    options = context.option(GkeOptions)
    selector = pod.selector
    shared = STRATEGY in selector or CLIENTS in selector
    if not shared and not (options.partitions and PARTITION in selector):
        return None
    gpus = container.count(COUNT)
    if gpus is None:
        return None
    init = container.role == "init"
    if not shared or PARTITION in selector:
        if not options.partitions:
            return None
        profile = selector[PARTITION]
        if not _PROFILE.fullmatch(profile):
            raise RequestError(
                f"nodeSelector {PARTITION}: {profile[:32]!r} is no MIG profile", fix="write one as 1g.5gb"
            )
        instances = mig_request(container=container.name, profile=profile, instances=gpus, init=init)
        return Reading(request=instances, resources=(COUNT,))
    if gpus > 1:
        raise RequestError(
            f"{COUNT}: {gpus} of a shared GPU", container=container.name, fix="ask for 1, as GKE itself demands"
        )
    text = selector.get(CLIENTS)
    clients = (
        options.clients
        if text is None
        else text_count(pod, text, f"nodeSelector {CLIENTS}", container=container.name) or options.clients
    )
    percent = max(1, 100 // clients)
    alone = clients == 1
    request = container_request(
        container=container.name,
        memory_percent=percent,
        compute=percent if alone or selector.get(STRATEGY, "").lower() == "mps" else None,
        init=init,
    )
    return None if request is None else Reading(request=request, resources=(COUNT,))


def _baggage(pod: PodReader, context: Context) -> Baggage:
    if PARTITION in pod.selector and not context.option(GkeOptions).partitions:
        return Baggage()  # `nvidia.com/gpu` stays an instance of GKE's, and these keys are what says so
    keys = tuple(sorted(key for key in pod.label_keys if key.startswith(_PREFIX)))
    models = ",".join(_model(accelerator) for accelerator in pod.choices(ACCELERATOR))
    return Baggage(annotations={context.names.gpu_models: models} if models else {}, selectors=keys)


def _trigger(context: Context) -> Trigger:
    """An instance, also of a shared one, is left to GKE unless the options say otherwise."""
    shared = Text(where="nodeSelector", names=frozenset({STRATEGY, CLIENTS}))
    instance = Text(where="nodeSelector", names=frozenset({PARTITION}))
    chosen = any_of(shared, instance) if context.option(GkeOptions).partitions else all_of(shared, Not(instance))
    return all_of(chosen, Resource(names=frozenset({COUNT})), Not(VIRTUAL))


def _model(accelerator: str) -> str:
    """The part of a product's name that GKE's name for a card means."""
    model = _NOISE.sub("", accelerator)
    while (shorter := _NOISE.sub("", model)) != model:
        model = shorter
    return _SHORT.get(model, model.upper())


DIALECT: Final = Dialect(
    name="gke",
    about="GKE shared GPUs",
    options=GkeOptions,
    resources=frozenset({COUNT}),
    container=_container,
    baggage=_baggage,
    trigger=_trigger,
)
