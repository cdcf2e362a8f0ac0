"""CPU that pods request and nodes have, in thousandths of a core: placement keeps CPU beside free GPUs."""

from __future__ import annotations

from typing import Final

from tessera.model.errors import QuantityError
from tessera.model.pod import Container, Pod, role
from tessera.model.quantity import Raw, parse

MOST: Final = 1 << 32
"""No node has more; what asks for more is counted as that."""


def milli(raw: Raw) -> int:
    """A quantity of CPU in thousandths of a core, rounded up, as Kubernetes does.

    Raises:
        QuantityError: no quantity, or a negative one.
    """
    amount = -(-1000 * parse(raw) // 1)
    if amount < 0:
        raise QuantityError(f"{raw!r} is negative")
    return int(min(amount, MOST))


def cpu_of(pod: Pod) -> int:
    """What a pod requests, as Kubernetes counts it: the most that runs at once; what can't be read counts as nothing.

    Plain init containers run one by one beside the sidecars that were started before them (KEP-753); containers without a
    request have the limit's, which the API server writes down.
    """
    sidecars = peak = 0
    for container in pod.spec.init_containers or ():
        asked = _asked(container)
        if role(container, init=True) == "sidecar":
            sidecars += asked
        peak = max(peak, sidecars if role(container, init=True) == "sidecar" else sidecars + asked)
    return max(peak, sidecars + sum(_asked(container) for container in pod.spec.containers or ()))


def _asked(container: Container) -> int:
    resources = container.resources
    if resources is None:
        return 0
    raw = (resources.requests or {}).get("cpu")
    if raw is None:
        raw = (resources.limits or {}).get("cpu")
    if raw is None:
        return 0
    if isinstance(raw, str) and raw.isascii():
        # Nearly all are written so; a Fraction costs 5 us, and there are 40,000 pods at a start.
        if raw.isdigit():
            return min(1000 * int(raw), MOST) if len(raw) < 12 else MOST
        if raw.endswith("m") and raw[:-1].isdigit() and len(raw) < 12:
            return int(raw[:-1])
    try:
        return milli(raw)
    except QuantityError:
        return 0
