"""What decoding into Go's types does to an object before anything else looks at it.

A webhook never sees a null, an amount as a bare number, or a quantity that isn't one: nulls are dropped, quantities are
rewritten in canonical form ("8192Mi" becomes "8Gi", 2 becomes "2"), wrong types are refused with 400. Clients read the
canonical form back. (apimachinery/pkg/api/resource/quantity.go, CanonicalizeBytes)
"""

from __future__ import annotations

import re
from typing import Final

from tessera.model.errors import QuantityError
from tessera.model.quantity import parse
from tessera.testing.apiserver import status
from tessera.testing.apiserver.resources import Resource
from tessera.testing.apiserver.tree import Json, Object, dig, own, rows, table

_TEMPLATES: Final = ("deployments", "daemonsets", "statefulsets", "replicasets", "jobs")
_DECIMAL: Final = {-9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E"}
_BINARY: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_NANO: Final = 10**9
_REGEX: Final = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"


def typed(resource: Resource, tree: Object) -> Object:
    """Return what is left of an object after decoding; `tree` may be changed.

    Raises:
        StatusError: 400, a part is of the wrong type.
    """
    tree = _without_nulls(tree)
    for name in ("labels", "annotations"):
        values = dig(tree, "metadata", name)
        if values is not None and not isinstance(values, dict):
            raise _wrong(resource, f"json: cannot unmarshal into Go struct field ObjectMeta.metadata.{name}")
        for key, value in table(values).items():
            if not isinstance(value, str):
                problem = f"json: cannot unmarshal {_kind(value)} into Go struct field ObjectMeta.metadata.{name} of type string"
                raise _wrong(resource, f"{problem} ({key})")
    if resource.plural == "pods":
        _pod_spec(resource, table(tree, "spec"))
    elif resource.plural in _TEMPLATES:
        _pod_spec(resource, table(tree, "spec", "template", "spec"))
    elif resource.plural == "nodes":
        _quantities(resource, table(tree, "status"), "capacity")
        _quantities(resource, table(tree, "status"), "allocatable")
    return tree


def canonical(value: str | float) -> str:
    """Write a quantity as the API server does.

    Raises:
        QuantityError: it is none.
    """
    amount = parse(value)
    text = str(value)
    if amount == 0:
        return "0"
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    if text.endswith("i") and amount >= 1024 and amount.denominator == 1:
        number, power = int(amount), 0
        while number % 1024 == 0 and power < len(_BINARY) - 1:
            number, power = number // 1024, power + 1
        return f"{sign}{number}{_BINARY[power]}"
    # Nothing finer than a nano is kept; it is rounded up.
    nanos = -(-amount * _NANO // 1)
    number, exponent = int(nanos), -9
    while number % 10 == 0:
        number, exponent = number // 10, exponent + 1
    while exponent % 3 or exponent > 18:
        number, exponent = number * 10, exponent - 1
    # An exponent in the text is kept as one; E alone is the suffix of 10**18.
    if re.search(r"[eE][+-]?[0-9]", text):
        return f"{sign}{number}e{exponent}" if exponent else f"{sign}{number}"
    return f"{sign}{number}{_DECIMAL[exponent]}"


def _without_nulls(tree: Object) -> Object:
    return {key: _clean(value) for key, value in tree.items() if value is not None}


def _clean(value: Json) -> Json:
    if isinstance(value, dict):
        return _without_nulls(value)
    if isinstance(value, list):
        return [_clean(item) for item in value if item is not None]
    return value


def _pod_spec(resource: Resource, spec: Object) -> None:
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        listed = spec.get(kind)
        if listed is not None and (not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed)):
            raise _wrong(resource, f"json: cannot unmarshal {_kind(listed)} into Go struct field PodSpec.spec.{kind}")
        for container in rows(spec, kind):
            if "resources" in container:
                _quantities(resource, own(container, "resources"), "limits")
                _quantities(resource, own(container, "resources"), "requests")
            for env in rows(container, "env"):
                if "value" in env and not isinstance(env["value"], str):
                    problem = (
                        f"json: cannot unmarshal {_kind(env['value'])} into Go struct field EnvVar.value of type string"
                    )
                    raise _wrong(resource, problem)
    _quantities(resource, spec, "overhead")


def _quantities(resource: Resource, holder: Object, name: str) -> None:
    amounts = holder.get(name)
    if amounts is None:
        return
    if not isinstance(amounts, dict):
        raise _wrong(
            resource, f"json: cannot unmarshal {_kind(amounts)} into Go struct field {name} of type v1.ResourceList"
        )
    for key, value in amounts.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise _wrong(resource, f"json: cannot unmarshal {_kind(value)} into a quantity")
        try:
            # Quantity.UnmarshalJSON trims blanks (but no escape such as \t: it reads the raw JSON). ParseQuantity doesn't.
            amounts[key] = canonical(value.strip(" ") if isinstance(value, str) else value)
        except QuantityError as error:
            raise _wrong(resource, _REGEX) from error


def _wrong(resource: Resource, problem: str) -> status.StatusError:
    kind = resource.kind
    return status.bad_request(f'{kind} in version "{resource.version}" cannot be handled as a {kind}: {problem}')


def _kind(value: Json) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, dict):
        return "object"
    return "array" if isinstance(value, list) else "string"
