"""KubeShare 2: fractions of a GPU's compute and bytes of its memory in pod labels.

Source: NTHU-LSALAB/KubeShare README and pkg/scheduler. ``gpu_request`` is guaranteed, ``gpu_limit`` a ceiling for time that
nobody else uses; above 1 the request counts whole cards. Memory absent is the same share of the card as the request. A
request of 0 guarantees no compute (an opportunistic pod), and none is reserved.
Labels stay: a workload may select its pods by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Final, Literal

from tessera.dialects.amounts import first_container, fraction_percent, memory_of
from tessera.dialects.dialect import Baggage, Context, Dialect, ForeignOptions, Reading
from tessera.dialects.reader import PodReader, as_count
from tessera.model.errors import RequestError
from tessera.model.request import container_request

REQUEST: Final = "sharedgpu/gpu_request"
LIMIT: Final = "sharedgpu/gpu_limit"
MEMORY: Final = "sharedgpu/gpu_mem"
MODEL: Final = "sharedgpu/gpu_model"


class KubeShareOptions(ForeignOptions, frozen=True, kw_only=True):
    """Which of the two fractions becomes the slice's compute.

    Attributes:
        compute: ``request`` reserves what is guaranteed there; ``limit`` reserves the ceiling.
    """

    compute: Literal["request", "limit"] = "request"


def _pod(pod: PodReader, context: Context) -> Mapping[str, Reading]:
    request, limit, memory = (_amount(pod, label) for label in (REQUEST, LIMIT, MEMORY))
    if request is None and limit is None:
        return {}
    container = first_container(pod)
    if request is not None and request > 1:
        cards = as_count(request, f"label {REQUEST}", container=container.name, fix="write at most 1, or whole cards")
        whole = container_request(container=container.name, gpus=cards)
        return {} if whole is None else {container.name: Reading(request=whole)}
    if limit is not None and (limit > 1 or (request is not None and limit < request)):
        raise RequestError(
            f"labels {REQUEST}: {float(request or 0):g} and {LIMIT}: {float(limit):g} do not fit together",
            container=container.name,
            fix="write a limit between the request and 1",
        )
    compute = limit if limit and context.option(KubeShareOptions).compute == "limit" else request
    size = None if memory is None else memory_of(memory, 1, f"label {MEMORY}", container.name)
    asked = container_request(
        container=container.name,
        gpus=1,
        memory=size,
        memory_percent=None if size else fraction_percent(request or limit or Fraction(1)),
        compute=None if compute is None else fraction_percent(compute),
    )
    return {} if asked is None else {container.name: Reading(request=asked)}


def _amount(pod: PodReader, label: str) -> Fraction | None:
    text = pod.labels.get(label)
    return None if text is None else pod.text_amount(text, f"label {label}", container=first_container(pod).name)


def _baggage(pod: PodReader, context: Context) -> Baggage:
    if REQUEST not in pod.labels:
        return Baggage()
    model = pod.labels.get(MODEL, "").strip()
    burst = pod.labels.get(LIMIT, pod.labels[REQUEST]) != pod.labels[REQUEST]
    warnings = (f"{LIMIT} above {REQUEST}: compute beyond the request is free only where the node caps none",)
    return Baggage(
        annotations={context.names.gpu_models: model} if model else {},
        warnings=warnings if burst and context.option(KubeShareOptions).compute == "request" else (),
    )


DIALECT: Final = Dialect(
    name="kubeshare",
    about="KubeShare",
    options=KubeShareOptions,
    labels=frozenset({REQUEST, LIMIT}),
    pod=_pod,
    baggage=_baggage,
)
