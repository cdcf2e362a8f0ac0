"""KAI Scheduler's classic GPU sharing, which Run:ai shares: a fraction of a card's memory, or MiB, in pod annotations.

Sources: NVIDIA/KAI-Scheduler docs/gpu-sharing, pkg/common/constants; Run:ai's manual "Dynamic GPU fractions". It speaks
for the first container unless another (init containers too) is named. KAI refuses what is refused here: a fraction beside
``nvidia.com/gpu`` in the pod, both forms, a fraction outside (0, 1). Memory a container may borrow beyond what it asked
for (``gpu-fraction.limit``; Run:ai's RUNAI_GPU_MEMORY_LIMIT) is somebody else's here: see `KaiOptions`.

The names have no prefix, so other people's annotations may be called the same (``gpu-memory: high``). In a pod that has no
other sign of KAI or Run:ai, a value that is no quantity asks for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Final, Literal

from tessera.dialects.amounts import fraction_percent, memory_of, text_count
from tessera.dialects.dialect import Baggage, Context, Dialect, ForeignOptions, Reading
from tessera.dialects.hami import COUNT as CARDS
from tessera.dialects.nvfractions import SPEAKS
from tessera.dialects.nvfractions import speaks as speaks_nvfractions
from tessera.dialects.reader import ContainerReader, PodReader, is_quantity
from tessera.dialects.trigger import Not, Scheduler, Text, Trigger, Variable, all_of, any_of
from tessera.model.errors import RequestError
from tessera.model.quantity import MIB
from tessera.model.request import ContainerRequest, container_request

FRACTION: Final = "gpu-fraction"
MEMORY: Final = "gpu-memory"
COUNT: Final = "gpu-fraction-num-devices"
CONTAINER: Final = "gpu-fraction-container-name"
PERCENT: Final = "gpu-sm-percentage"
SM_CORES: Final = "gpu-sm-cores"
"""Compute as a number of SMs: a percentage only once the card is known."""
_LIMITS: Final = ("gpu-fraction.limit", "gpu-memory.limit")
RUNAI_LIMIT: Final = "RUNAI_GPU_MEMORY_LIMIT"
_RUNAI: Final = "runai-scheduler"
_SCHEDULERS: Final = ("kai-scheduler", _RUNAI)
_SIGNS: Final = ("kai.scheduler/", "runai/", "runai-", "run.ai/", "project.run.ai/", COUNT, CONTAINER)
"""Beginnings of labels and annotations that only these systems' pods carry."""


class KaiOptions(ForeignOptions, frozen=True, kw_only=True):
    """What to reserve where a pod names more than it asks for.

    Attributes:
        reserve: ``request`` is what the author was promised there, ``limit`` what the container may grow to.
    """

    reserve: Literal["request", "limit"] = "request"


def is_runai(pod: PodReader) -> bool:
    """Whether a fraction in this pod was written for Run:ai rather than for KAI itself."""
    return pod.scheduler == _RUNAI or any(
        container.container.variable(RUNAI_LIMIT) is not None for container in pod.containers
    )


def read(pod: PodReader, *, reserve_limit: bool) -> Mapping[str, Reading]:
    """Read the annotations of a pod.

    Args:
        pod: with at least one of the two amounts.
        reserve_limit: reserve the limit where one is there.
    """
    fraction, memory = _meant(pod, FRACTION), _meant(pod, MEMORY)
    if (fraction is None and memory is None) or speaks_nvfractions(pod):
        return {}
    container = pod.container(pod.annotations.get(CONTAINER) or None, by=f"annotation {CONTAINER}")
    if fraction is not None and memory is not None:
        raise RequestError(
            f"annotations {FRACTION}: {fraction[:32]} and {MEMORY}: {memory[:32]} both ask",
            container=container.name,
            fix="keep one of the two",
        )
    for other in pod.containers:
        if other.has(CARDS):
            raise RequestError(
                f"asks for {CARDS} in a pod whose annotations ask for a fraction of a GPU",
                container=other.name,
                fix=f"keep the annotation or {CARDS}",
            )
    request = _request(pod, container, fraction, memory, reserve_limit=reserve_limit)
    return {} if request is None else {container.name: Reading(request=request)}


def _meant(pod: PodReader, name: str) -> str | None:
    """An annotation's value, unless it is somebody else's annotation of that name."""
    text = pod.annotations.get(name)
    if text is None or is_quantity(text.strip()) or _is_ours(pod):
        return text
    return None


def _is_ours(pod: PodReader) -> bool:
    return (
        pod.scheduler in _SCHEDULERS
        or any(name.startswith(_SIGNS) for texts in (pod.labels, pod.annotations) for name in texts)
        or is_runai(pod)
    )


def _request(
    pod: PodReader, container: ContainerReader, fraction: str | None, memory: str | None, *, reserve_limit: bool
) -> ContainerRequest | None:
    limit = _limit(pod, container, fraction=fraction is not None) if reserve_limit else None
    count = pod.annotations.get(COUNT)
    percent, size = None, None
    if fraction is not None:
        asked = _fraction(pod, fraction, FRACTION, container.name)
        percent = fraction_percent(max(asked, limit or asked))
    elif memory is not None:
        number = text_count(pod, memory, f"annotation {MEMORY}", container=container.name)
        if number is None:
            return None
        size = max(memory_of(number, MIB, f"annotation {MEMORY}", container.name), int(limit or 0))
    compute = pod.annotations.get(PERCENT)
    return container_request(
        container=container.name,
        gpus=None if count is None else text_count(pod, count, f"annotation {COUNT}", container=container.name),
        memory=size,
        memory_percent=percent,
        compute=None
        if compute is None
        else text_count(pod, compute, f"annotation {PERCENT}", container=container.name),
        init=container.role == "init",
    )


def _fraction(pod: PodReader, text: str, name: str, container: str) -> Fraction:
    found = pod.text_amount(text, f"annotation {name}", container=container)
    if found is None or found >= 1:
        raise RequestError(
            f"annotation {name} is {text[:32]!r}, not between 0 and 1",
            container=container,
            fix=f"write a fraction such as 0.5; whole GPUs are {CARDS}",
        )
    return found


def _limit(pod: PodReader, container: ContainerReader, *, fraction: bool) -> Fraction | None:
    """What the container may grow to: a fraction of the card, or bytes."""
    text = container.container.variable(RUNAI_LIMIT) or next(
        (pod.annotations[name] for name in _LIMITS if name in pod.annotations), None
    )
    found = None if text is None else pod.text_amount(text, RUNAI_LIMIT, container=container.name)
    if found is None or (fraction and found > 1):
        return None
    if not fraction and found.denominator == 1 and RUNAI_LIMIT not in {e.name for e in container.container.env or ()}:
        return Fraction(memory_of(found, MIB, "annotation gpu-memory.limit", container.name))
    return found


def burst_warning(pod: PodReader) -> tuple[str, ...]:
    """What is said where a pod hoped to borrow memory."""
    borrowed: list[str] = [name for name in _LIMITS if name in pod.annotations]
    if any(container.container.variable(RUNAI_LIMIT) is not None for container in pod.containers):
        borrowed.append(RUNAI_LIMIT)
    if not borrowed:
        return ()
    return (f"{borrowed[0]}: memory beyond the request is not lent here; see the dialect's option 'reserve'",)


def _pod(pod: PodReader, context: Context) -> Mapping[str, Reading]:
    return {} if is_runai(pod) else read(pod, reserve_limit=context.option(KaiOptions).reserve == "limit")


def _baggage(pod: PodReader, context: Context) -> Baggage:
    if _meant(pod, FRACTION) is None and _meant(pod, MEMORY) is None:
        return Baggage()
    silent = is_runai(pod) or context.option(KaiOptions).reserve == "limit"
    warnings = [] if silent else [*burst_warning(pod)]
    if SM_CORES in pod.annotations:
        warnings.append(f"{SM_CORES} is not honoured: how many SMs a card has is not known yet; write {PERCENT}")
    return Baggage(selectors=("run.ai/fake.gpu",), warnings=tuple(warnings))


RUNAI: Final = any_of(Scheduler(frozenset({_RUNAI})), Variable(RUNAI_LIMIT))
"""`is_runai`, as data."""
_AMOUNTS: Final = frozenset({FRACTION, MEMORY})
_SIGNED: Final = any_of(
    Scheduler(frozenset(_SCHEDULERS)),
    RUNAI,
    *(Text(where="labels", prefix=sign) for sign in _SIGNS),
    *(Text(where="annotations", prefix=sign) for sign in _SIGNS),
)
"""`_is_ours`, as data."""
ASKS: Final = all_of(
    any_of(
        Text(where="annotations", names=_AMOUNTS, value=r"\s*[-+.0-9].*"),
        all_of(Text(where="annotations", names=_AMOUNTS), _SIGNED),
    ),
    Not(SPEAKS),
)
"""The pod has an amount (one that begins like a quantity is looked at), and NvFractions don't overrule it."""


def _trigger(_context: Context) -> Trigger:
    return all_of(ASKS, Not(RUNAI))


DIALECT: Final = Dialect(
    name="kai",
    about="KAI Scheduler, classic fractions",
    options=KaiOptions,
    annotations=frozenset({FRACTION, MEMORY}),
    pod=_pod,
    baggage=_baggage,
    trigger=_trigger,
)
