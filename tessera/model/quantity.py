"""Kubernetes quantities, exactly as the API server reads them.

Grammar (k8s.io/apimachinery/pkg/api/resource, quantity.go): an optional sign, digits with at most one dot and at least
one digit, then one suffix: binary (Ki Mi Gi Ti Pi Ei), decimal (n u m, none, k M G T P E) or an exponent (e or E, sign,
digits). Python's own number parsers take more (NaN, 1_000, blanks, other scripts' digits), so they are kept out until
the text has matched. Values are exact: no float is ever made of a text.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from tessera.model.errors import QuantityError

KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3

LARGEST: Final = 2**63 - 1
"""The API server caps quantities here; we refuse what is above, since no GPU is that large."""

_SUFFIXES: Final[dict[str, Fraction]] = {
    "": Fraction(1),
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 10**3),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
    "Ti": Fraction(2**40),
    "Pi": Fraction(2**50),
    "Ei": Fraction(2**60),
}
_PATTERN: Final = re.compile(
    r"([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:([eE][+-]?[0-9]+)|(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]))?", re.ASCII
)
_LONGEST: Final = 64
"""No sane amount is longer; a limit keeps a hostile text from costing big-number arithmetic."""
_EXPONENT: Final = 64

Raw = str | int | float
"""How a quantity stands in JSON: the API server takes a string or a bare number."""


def parse(raw: Raw) -> Fraction:
    """Read one quantity.

    Args:
        raw: the value as it stands in the manifest: ``"8Gi"``, ``"0.5"``, ``1e3``, ``2``.

    Returns:
        The exact value in base units (bytes, GPUs, percent: the name it stands under says which).

    Raises:
        QuantityError: the API server would refuse it, or it is beyond 2**63 - 1.
    """
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise QuantityError(f"{raw!r} is not a quantity; write a number such as 2 or a text such as 8Gi")
    text = raw if isinstance(raw, str) else repr(raw)
    if len(text) > _LONGEST:
        raise QuantityError(f"quantity of {len(text)} characters; the longest that makes sense has {_LONGEST}")
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise QuantityError(f"{text!r} is not a quantity; write digits and one suffix, such as 8Gi, 8192Mi, 0.5 or 1e3")
    sign, digits, exponent, suffix = match.groups()
    if exponent is not None:
        power = int(exponent[1:])
        if abs(power) > _EXPONENT:
            raise QuantityError(f"{text!r} has an exponent of {power}; at most {_EXPONENT} makes sense")
        scale = Fraction(10) ** power
    else:
        scale = _SUFFIXES[suffix or ""]
    value = Fraction(digits if digits[-1] != "." else digits[:-1]) * scale
    if value > LARGEST:
        raise QuantityError(f"{text!r} is larger than any quantity that Kubernetes holds (2^63-1)")
    return -value if sign == "-" else value


def whole(raw: Raw) -> int:
    """Read a quantity that has to be a whole number, such as bytes or a count of GPUs.

    Raises:
        QuantityError: not a quantity, or a fraction is left after its suffix (``0.5``, ``100m``, ``1.5n``).
    """
    if isinstance(raw, str) and len(raw) < 19 and raw.isascii() and raw.isdigit():
        # Nearly every ticket; a Fraction costs 8 us, and 40,000 pods are read at a start.
        return int(raw)
    value = parse(raw)
    if value.denominator != 1:
        raise QuantityError(f"{raw!r} is {float(value):g}, not a whole number; write one without a fraction")
    return value.numerator


def binary(amount: int) -> str:
    """Write bytes as the shortest exact quantity with a binary suffix: 268435456 -> ``256Mi``."""
    for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        factor = _SUFFIXES[suffix].numerator
        if amount and amount % factor == 0:
            return f"{amount // factor}{suffix}"
    return str(amount)


def gib(amount: int) -> str:
    """Write bytes for people, in GiB with at most two decimals: 8589934592 -> ``8 GiB``."""
    return f"{amount / GIB:.2f}".rstrip("0").rstrip(".") + " GiB"


def size(amount: int) -> str:
    """Write bytes for people: in GiB as `gib` does, whole MiB where that is less than one: 268435456 -> ``256 MiB``."""
    return gib(amount) if amount >= GIB else f"{amount // MIB} MiB"
