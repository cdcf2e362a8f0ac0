"""Numbers that foreign dialects have in common: units that have to be guessed, totals, fractions of a card.

The API server hands quantities on in canonical form (``3000`` arrives as ``3k``, ``8192Mi`` as ``8Gi``), so a unit can't be
read off the spelling. It can be read off the size: no card has more than `LARGEST_CARD`, so a number that would be more
in the dialect's own unit was written in a smaller one.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final

from tessera.dialects.reader import ContainerReader, PodReader, as_bytes
from tessera.model.errors import RequestError
from tessera.model.quantity import GIB, MIB, binary

LARGEST_CARD: Final = 400 * GIB
"""Bytes that no card has; the largest sold in 2026 has 288 GB, the least that people write as MiB is 512."""
LARGEST: Final = 2**62
"""Bytes above which a typo is refused rather than left waiting for a node that has them."""
LEAST_USEFUL: Final = 64 * MIB
"""Bytes below which not even a CUDA context fits; whoever asks for less thinks in another unit."""
_SMALLER: Final = (GIB, MIB, 1)


def memory_of(number: Fraction | int, unit: int, name: str, container: str) -> int:
    """Bytes meant by a number for one GPU: in the dialect's unit, or in a smaller one where no card is that large.

    Fractions are understood too: the API server would refuse them only after admission.

    Args:
        number: as written.
        unit: bytes of one.
        name: it stands under.
        container: named in errors.

    Raises:
        RequestError: no whole number of bytes, or more than makes sense in any unit.
    """
    found = Fraction(number)
    for candidate in (unit, *(smaller for smaller in _SMALLER if smaller < unit)):
        if MIB <= found * candidate <= LARGEST_CARD:
            return as_bytes(found * candidate, name, container=container)
    if found * unit > LARGEST:
        raise RequestError(
            f"{name}: {float(found):g} is more than any GPU has", container=container, fix="write the memory of one GPU"
        )
    return as_bytes(found * unit, name, container=container)


def memory_in(container: ContainerReader, name: str, unit: int) -> int | None:
    """Bytes that a container asks for on one GPU under a resource name; None where it is absent or zero.

    Raises:
        RequestError: no quantity, or what `memory_of` refuses.
    """
    found = container.amount(name)
    return None if found is None else memory_of(found, unit, name, container.name)


def tiny_warning(memory: int | None, name: str, option: str) -> tuple[str, ...]:
    """What is said where a number can't be meant in the unit it is read in.

    Args:
        memory: bytes understood.
        name: it stands under.
        option: of the dialect, that makes the unit larger.
    """
    if not memory or memory >= LEAST_USEFUL:
        return ()
    return (f"{name} is read as {binary(memory)}, too little for any program; is the dialect's {option} right?",)


def share(total: int, gpus: int, name: str, container: str) -> int:
    """Divide a total over GPUs.

    Raises:
        RequestError: it doesn't divide exactly.
    """
    return int(memory_share(Fraction(total), gpus, name, container))


def memory_share(total: Fraction, gpus: int, name: str, container: str) -> Fraction:
    """Divide a total of memory over GPUs; for one GPU it may be a fraction of a unit.

    Raises:
        RequestError: it doesn't divide exactly.
    """
    if gpus > 1 and total % gpus:
        raise RequestError(
            f"{name}: a total of {float(total):g} does not divide evenly over {gpus} GPUs",
            container=container,
            fix=f"write a multiple of {gpus}",
        )
    return total / gpus


def percent_of_one(value: int | None, name: str, container: str) -> int | None:
    """Check a percentage of one GPU; 0 and None are not asked.

    Raises:
        RequestError: above 100.
    """
    if value is not None and value > 100:
        raise RequestError(
            f"{name}: {value} is more than 100 percent of a GPU", container=container, fix="write 1 to 100"
        )
    return value or None


def fraction_percent(value: Fraction) -> int:
    """A fraction of a card as a percentage: rounded down, so that three thirds fit on a card; at least 1."""
    return max(1, int(value * 100))


def cards_or_share(percent: int, name: str, container: str) -> int:
    """The number of whole cards in a percentage of 100 or more, 0 where it is a share of one.

    Raises:
        RequestError: above 100 and no multiple of it.
    """
    if percent < 100:
        return 0
    if percent % 100:
        raise RequestError(
            f"{name}: {percent} is neither a share of one GPU nor a number of whole ones",
            container=container,
            fix="write less than 100, or a multiple of 100",
        )
    return percent // 100


def label_count(pod: PodReader, label: str, container: str) -> int:
    """A number of GPUs that stands in a pod label; 1 where it is absent or zero.

    Raises:
        RequestError: no whole number.
    """
    text = pod.labels.get(label)
    return 1 if text is None else text_count(pod, text, f"label {label}", container=container) or 1


def text_count(pod: PodReader, text: str, name: str, *, container: str = "") -> int | None:
    """A whole number that stands in an annotation or label; None where it is zero.

    Raises:
        RequestError: no whole number.
    """
    found = pod.text_amount(text, name, container=container)
    if found is not None and found.denominator != 1:
        raise RequestError(
            f"{name}: {text[:64]} is not a whole number", container=container, fix="write one without a fraction"
        )
    return None if found is None else found.numerator


def first_container(pod: PodReader) -> ContainerReader:
    """The container that pod-wide requests speak for where nothing names another."""
    return pod.container(None, by="")
