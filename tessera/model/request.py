"""What a pod asks for, after its dialect has been understood: amounts per GPU, in one shape for every dialect.

The webhook writes it into the pod's request annotation; everything later (placement, the node, `explain`) reads that or
derives the same from the tickets. Meaning of the amounts is fixed here, in `container_request`, and nowhere else.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from tessera.model.errors import AnnotationError, RequestError
from tessera.model.quantity import binary

T = TypeVar("T")

VERSION: Final = 1
LONGEST_ANNOTATION: Final = 256 * 1024
"""The API server holds at most 256 KiB of annotations on an object."""
MOST_GPUS: Final = 64
"""No node holds more; a limit keeps a typo from becoming a pod that waits for ever."""


class ContainerRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """What one container asks for, on each of `gpus` different GPUs of one node.

    Exactly one of the memory forms is set. A whole GPU is exclusive: all its memory and all its compute.

    Attributes:
        gpus: number of different GPUs, at least 1.
        memory: bytes of device memory on each GPU.
        memory_percent: 1..100 percent of each GPU's memory.
        whole: each GPU is taken whole.
        mig: profile of an existing MIG instance, such as ``1g.10gb``.
        compute: 1..100 percent of each GPU's SMs; None asks nothing (best effort).
        init: a plain init container asks (its pod keeps all slices on one GPU).
        dialect: set where it differs from the pod's.
    """

    gpus: int
    memory: int | None = None
    memory_percent: int | None = None
    whole: bool = False
    mig: str | None = None
    compute: int | None = None
    init: bool = False
    dialect: str | None = None

    def amounts(self) -> tuple[int, int | None, int | None, bool, str | None, int | None]:
        """The amounts alone: two requests with equal amounts ask for the same, whichever dialect they came in."""
        return (self.gpus, self.memory, self.memory_percent, self.whole, self.mig, self.compute)


class PodRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The request annotation: which containers ask for what.

    Attributes:
        v: version of this format.
        dialect: the dialect of the first container that asks.
        containers: by container name, init containers and sidecars included.
    """

    v: int
    dialect: str
    containers: dict[str, ContainerRequest]


def container_request(
    *,
    container: str,
    gpus: int | None = None,
    memory: int | None = None,
    memory_percent: int | None = None,
    compute: int | None = None,
    init: bool = False,
) -> ContainerRequest | None:
    """Give amounts their meaning (contract, section 1).

    Compute without memory means that percent of both; GPUs alone mean whole ones; a hundred percent of memory and of
    compute is a whole GPU. Amounts are per GPU; 0 and None both mean "not asked".

    Args:
        container: named in errors.
        gpus: number of GPUs.
        memory: bytes on each GPU.
        memory_percent: percent of each GPU's memory.
        compute: percent of each GPU's SMs.
        init: a plain init container asks.

    Returns:
        The request, or None where nothing is asked.

    Raises:
        RequestError: amounts that contradict each other or are out of range.
    """
    for label, amount in (("GPUs", gpus), ("memory", memory), ("memory percent", memory_percent), ("compute", compute)):
        if amount is not None and amount < 0:
            raise RequestError(f"asks for {amount} {label}", container=container, fix="ask for a positive amount")
    if not (gpus or memory or memory_percent or compute):
        return None
    for label, percent in (("memory", memory_percent), ("compute", compute)):
        if percent is not None and percent > 100:
            raise RequestError(
                f"asks for {percent} percent of one GPU's {label}",
                container=container,
                fix="ask for 1 to 100 percent, or for several GPUs",
            )
    if memory and memory_percent:
        raise RequestError(
            f"asks for {binary(memory)} of GPU memory and for {memory_percent} percent of it",
            container=container,
            fix="keep one of the two",
        )
    count = gpus or 1
    if count > MOST_GPUS:
        raise RequestError(
            f"asks for {count} GPUs on one node", container=container, fix=f"ask for at most {MOST_GPUS}"
        )
    if not memory and not memory_percent:
        memory_percent = compute or 100
        compute = compute or 100
    if memory_percent == 100 and compute == 100:
        return ContainerRequest(gpus=count, whole=True, init=init)
    return ContainerRequest(
        gpus=count, memory=memory or None, memory_percent=memory_percent or None, compute=compute or None, init=init
    )


def mig_request(*, container: str, profile: str, instances: int, init: bool = False) -> ContainerRequest:
    """A request for existing MIG instances of one profile, bounded as GPUs are.

    Args:
        container: named in errors.
        profile: of the instances, such as ``1g.10gb``.
        instances: how many, at least 1.
        init: a plain init container asks.

    Raises:
        RequestError: more instances than a request annotation may hold (`decode` would not believe it).
    """
    if instances > MOST_GPUS:
        raise RequestError(
            f"asks for {instances} MIG instances of {profile} on one node",
            container=container,
            fix=f"ask for at most {MOST_GPUS}",
        )
    return ContainerRequest(gpus=instances, mig=profile, init=init)


def encode(request: PodRequest) -> str:
    """Write the request annotation: compact JSON, sorted keys."""
    return msgspec.json.encode(request, order="sorted").decode()


def decode(text: str) -> PodRequest:
    """Read a request annotation and check that every request in it could have been written by us.

    Raises:
        AnnotationError: not such JSON, another version, or amounts out of range.
    """
    request = read_annotation(text, _DECODER, "request")
    if request.v != VERSION:
        raise AnnotationError(f"request annotation has version {request.v}; this program knows {VERSION}")
    for name, asked in request.containers.items():
        forms = sum((asked.memory is not None, asked.memory_percent is not None, asked.whole, asked.mig is not None))
        in_range = (
            1 <= asked.gpus <= MOST_GPUS
            and (asked.memory is None or asked.memory > 0)
            and (asked.memory_percent is None or 1 <= asked.memory_percent <= 100)
            and (asked.compute is None or 1 <= asked.compute <= 100)
        )
        if forms != 1 or not in_range or (asked.compute is not None and (asked.whole or asked.mig is not None)):
            raise AnnotationError(f'request annotation: container "{name}" holds amounts that no request has')
    return request


def read_annotation(text: str, decoder: msgspec.json.Decoder[T], what: str) -> T:
    """Decode one of our JSON annotations, bounded in size; errors name the annotation.

    Raises:
        AnnotationError: too long, or not the JSON that `what` has.
    """
    if len(text) > LONGEST_ANNOTATION:
        raise AnnotationError(f"{what} annotation of {len(text)} characters; at most {LONGEST_ANNOTATION} can be ours")
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise AnnotationError(f"{what} annotation can't be read: {error}") from error


_DECODER: Final = msgspec.json.Decoder(PodRequest)
