"""KAI's NvFractions (NVIDIA's GPU fractioning operator): memory per container in pod annotations that name the container.

Sources: kai-scheduler/gpu-fractioning README; KAI-Scheduler pkg/common/constants. ``nvidia.com/container.<c>.gpu-memory.request``
is reserved there, ``.limit`` is the driver's hard cap, one alone counts for both; both are quantities per GPU. Earlier the
names were ``nvidia.com/gpu-memory.container.<c>.request`` and ``.limit``. Beside them the classic annotations don't count.
What the scheduler writes (``.gpus.devices``, ``.gpu-compute.portion``) is refused from users.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

from tessera.dialects.amounts import text_count
from tessera.dialects.dialect import Baggage, Context, Dialect, ForeignOptions, Reading
from tessera.dialects.reader import PodReader, as_bytes
from tessera.dialects.trigger import Text, Trigger, any_of
from tessera.model.errors import RequestError
from tessera.model.quantity import MIB, binary
from tessera.model.request import container_request

COUNT: Final = "gpu-fraction-num-devices"
_PREFIXES: Final = ("nvidia.com/container.", "nvidia.com/gpu-memory.container.")
_AMOUNT: Final = re.compile(
    r"nvidia\.com/(?:container\.(?P<new>[^/]+)\.gpu-memory|gpu-memory\.container\.(?P<old>[^/]+))\.(?P<bound>request|limit)"
)
_WRITTEN: Final = re.compile(r"nvidia\.com/container\.([^/]+)\.(?:gpus\.devices|gpu-compute\.portion)")
SPEAKS: Final = any_of(*(Text(where="annotations", prefix=prefix, pattern=_AMOUNT.pattern) for prefix in _PREFIXES))
"""The pod has an amount in this dialect; beside it the classic annotations don't count (see `speaks`)."""
_MODE: Final = re.compile(r"nvidia\.com/container\.[^/]+\.gpu-compute\.mode")


class NvFractionsOptions(ForeignOptions, frozen=True, kw_only=True):
    """Which of two bounds becomes the slice.

    Attributes:
        reserve: ``limit`` is what the container may use, so nothing is ever short; ``request`` packs tighter and caps there.
    """

    reserve: Literal["limit", "request"] = "limit"


def speaks(pod: PodReader) -> bool:
    """Whether the pod has an amount in this dialect."""
    return any(name.startswith(_PREFIXES) and _AMOUNT.fullmatch(name) for name in pod.annotations)


def _pod(pod: PodReader, context: Context) -> Mapping[str, Reading]:
    bounds: dict[str, dict[str, int]] = {}
    for name, text in sorted(pod.annotations.items()):
        if not name.startswith(_PREFIXES):
            continue
        if written := _WRITTEN.fullmatch(name):
            raise RequestError(
                f"annotation {name[:100]} is the scheduler's to write", container=written.group(1), fix="remove it"
            )
        if match := _AMOUNT.fullmatch(name):
            container = pod.container(match["new"] or match["old"], by=f"annotation {name[:100]}").name
            bounds.setdefault(container, {}).setdefault(match["bound"], _bytes(pod, text, name, container))
    if not bounds:
        return {}  # a mode alone asks nothing, whatever else the pod says
    reserve = context.option(NvFractionsOptions).reserve
    count = pod.annotations.get(COUNT)
    gpus = None if count is None else text_count(pod, count, f"annotation {COUNT}")
    found = {}
    for container, both in bounds.items():
        request, limit = both.get("request", both.get("limit", 0)), both.get("limit", both.get("request", 0))
        if request > limit:
            raise RequestError(
                f"asks for {binary(request)} of GPU memory with a limit of {binary(limit)}",
                container=container,
                fix="raise the limit",
            )
        asked = container_request(
            container=container,
            gpus=gpus,
            memory=limit if reserve == "limit" else request,
            init=pod.container(container, by="").role == "init",
        )
        if asked is not None:
            found[container] = Reading(request=asked, warnings=_unequal(request, limit, reserve, container))
    return found


def _bytes(pod: PodReader, text: str, name: str, container: str) -> int:
    found = pod.text_amount(text, f"annotation {name[:100]}", container=container)
    memory = 0 if found is None else as_bytes(found, f"annotation {name[:100]}", container=container)
    if memory < MIB:
        raise RequestError(
            f"annotation {name[:100]} is {text[:32]!r}, less than 1Mi",
            container=container,
            fix="write a quantity such as 8Gi",
        )
    return memory


def _unequal(request: int, limit: int, reserve: str, container: str) -> tuple[str, ...]:
    if request == limit:
        return ()
    return (f'container "{container[:40]}": request and limit of GPU memory differ; the {reserve} is reserved',)


def _baggage(pod: PodReader, _context: Context) -> Baggage:
    shared = any(_MODE.fullmatch(name) and text == "sm-sharing" for name, text in pod.annotations.items())
    return Baggage(
        warnings=("gpu-compute.mode: sm-sharing is not honoured; compute is shared as the node's guarantee says",)
        if shared
        else ()
    )


def _trigger(_context: Context) -> Trigger:
    """Amounts, and what only the scheduler may write (refused); a mode alone asks nothing."""
    return any_of(SPEAKS, Text(where="annotations", prefix=_PREFIXES[0], pattern=_WRITTEN.pattern))


DIALECT: Final = Dialect(
    name="nvfractions",
    about="KAI NvFractions",
    options=NvFractionsOptions,
    annotation_prefixes=_PREFIXES,
    pod=_pod,
    baggage=_baggage,
    trigger=_trigger,
)
