"""NVIDIA's own plugin: whole cards, replicas of a shared card, MIG instances.

By default such pods are left alone, since NVIDIA's plugin may serve other nodes of the same cluster, what a replica holds is
known to its node only, and a MIG instance can't be cut further. Where Tessera has taken over, options turn each of them
into ours. DRA claims are never touched.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec

from tessera.dialects.dialect import Baggage, Context, Dialect, ForeignOptions, Reading
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.dialects.trigger import TOLERATES_VIRTUAL, VIRTUAL, Not, Resource, Text, Trigger, all_of, any_of
from tessera.model.errors import RequestError
from tessera.model.request import ContainerRequest, container_request, mig_request

COUNT: Final = "nvidia.com/gpu"
SHARED: Final = "nvidia.com/gpu.shared"
PRODUCT: Final = "nvidia.com/gpu.product"
MIG: Final = "nvidia.com/mig-"
_GKE: Final = "cloud.google.com/gke-gpu-"
_SHARED: Final = "-SHARED"
"""What GPU feature discovery adds to the product where a card is time-sliced; no node of ours has it."""
_MIG: Final = re.compile(r"nvidia\.com/mig-([1-7]g\.[0-9]{1,3}gb(?:\.[a-z0-9.]{1,16})?)", re.ASCII)


class NvidiaOptions(ForeignOptions, frozen=True, kw_only=True):
    """What of NVIDIA's plugin is ours.

    Attributes:
        whole: true reads ``nvidia.com/gpu: N`` as N whole GPUs.
        shared_percent: percent of a card's memory that one replica stands for (``nvidia.com/gpu.shared``, and
            ``nvidia.com/gpu`` where the pod selects a ``-SHARED`` product); 0 leaves replicas alone.
        mig: true reads ``nvidia.com/mig-…`` as our ticket of the same instance.
    """

    whole: bool = False
    shared_percent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    mig: bool = False


def is_replica(pod: PodReader) -> bool:
    """Whether ``nvidia.com/gpu`` in this pod is a replica of a shared card or a MIG instance rather than a card."""
    selector = pod.selector
    product = selector.get(PRODUCT, "")
    return product.endswith(_SHARED) or "-MIG-" in product or any(key.startswith(_GKE) for key in selector)


def _container(container: ContainerReader, pod: PodReader, context: Context) -> Reading | None:
    options = context.option(NvidiaOptions)
    found = [
        reading
        for reading in (
            _replicas(container, pod, options),
            _cards(container, pod, options),
            _instances(container, options),
        )
        if reading is not None
    ]
    if len(found) > 1:
        raise RequestError(
            "asks for " + " and ".join(name for reading in found for name in reading.resources),
            container=container.name,
            fix="ask for one kind of GPU in one container",
        )
    return found[0] if found else None


def _cards(container: ContainerReader, pod: PodReader, options: NvidiaOptions) -> Reading | None:
    if not options.whole or is_replica(pod) or pod.tolerates_virtual:
        return None
    gpus = container.count(COUNT, fix="write whole GPUs")
    request = container_request(container=container.name, gpus=gpus, init=container.role == "init")
    return None if request is None else Reading(request=request, resources=(COUNT,))


def _replicas(container: ContainerReader, pod: PodReader, options: NvidiaOptions) -> Reading | None:
    name = COUNT if pod.selector.get(PRODUCT, "").endswith(_SHARED) and COUNT in container.resources else SHARED
    replicas = container.count(name) if options.shared_percent else None
    if replicas is None:
        return None
    # More replicas give no more of a card than one: NVIDIA's plugin may take them all from the same.
    request = ContainerRequest(gpus=1, memory_percent=options.shared_percent, init=container.role == "init")
    return Reading(request=request, resources=(name,))


def _instances(container: ContainerReader, options: NvidiaOptions) -> Reading | None:
    asked = [
        (name, count, match.group(1))
        for name in container.resources
        if options.mig and (match := _MIG.fullmatch(name)) and (count := container.count(name)) is not None
    ]
    if len(asked) > 1:
        raise RequestError(
            "asks for " + " and ".join(name for name, _, _ in asked),
            container=container.name,
            fix="ask for instances of one MIG profile in one container",
        )
    if not asked:
        return None
    name, count, profile = asked[0]
    init = container.role == "init"
    request = mig_request(container=container.name, profile=profile, instances=count, init=init)
    return Reading(request=request, resources=(name,))


def _baggage(pod: PodReader, context: Context) -> Baggage:
    product = pod.selector.get(PRODUCT, "")
    if not product.endswith(_SHARED) or not context.option(NvidiaOptions).shared_percent:
        return Baggage()  # a replica that is left to NVIDIA's plugin stays where that is
    return Baggage(annotations={context.names.gpu_models: product.removesuffix(_SHARED)}, selectors=(PRODUCT,))


def _trigger(context: Context) -> Trigger:
    """What the options make ours; nothing where NVIDIA's plugin keeps everything."""
    options = context.option(NvidiaOptions)
    cards = Resource(names=frozenset({COUNT}))
    shared = Text(where="nodeSelector", names=frozenset({PRODUCT}), value=f".*{_SHARED}")
    replica = any_of(
        shared,
        Text(where="nodeSelector", names=frozenset({PRODUCT}), value=".*-MIG-.*"),
        Text(where="nodeSelector", prefix=_GKE),
    )
    parts: list[Trigger] = []
    if options.whole:
        parts.append(all_of(cards, Not(TOLERATES_VIRTUAL), Not(replica)))
    if options.shared_percent:
        parts += [Resource(names=frozenset({SHARED})), all_of(cards, shared)]
    if options.mig:
        parts.append(Resource(prefix=MIG, pattern=_MIG.pattern))
    return all_of(Not(VIRTUAL), any_of(*parts))


DIALECT: Final = Dialect(
    name="nvidia",
    about="NVIDIA's device plugin",
    options=NvidiaOptions,
    resources=frozenset({COUNT, SHARED}),
    prefixes=(MIG,),
    container=_container,
    baggage=_baggage,
    trigger=_trigger,
)
