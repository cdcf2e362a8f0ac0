"""Label and field selectors, in the forms that the API server takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeAlias

from tessera.testing.apiserver import status
from tessera.testing.apiserver.resources import Resource
from tessera.testing.apiserver.tree import Json, Object, dig, labels, rows, text, texts

Selector: TypeAlias = Callable[[Object], bool]

_SET: Final = re.compile(r"([^\s!=(),]+)\s+(in|notin)\s+\(([^()]*)\)")
_EQUAL: Final = re.compile(r"([^\s!=(),]+)\s*(==|=|!=)\s*([^\s!=(),]*)")
_EXISTS: Final = re.compile(r"(!?)\s*([^\s!=(),]+)")
_PART: Final = re.compile(r"(?:[^,(]|\([^)]*\))+")
_LabelTest: TypeAlias = Callable[[dict[str, str]], bool]


def parse(resource: Resource, *, label_selector: str, field_selector: str) -> Selector | None:
    """Make one test of both selectors; None where everything is selected.

    Raises:
        StatusError: 400, a selector can't be read or names a field that the resource can't be selected by.
    """
    label_tests = _label_tests(label_selector)
    field_tests = _field_tests(resource, field_selector)
    if not label_tests and not field_tests:
        return None

    def test(found: Object) -> bool:
        for path, value, equal in field_tests:
            if (_field(found, path) == value) is not equal:
                return False
        if label_tests:
            has = labels(found, "metadata", "labels")
            return all(test(has) for test in label_tests)
        return True

    return test


def matches_label_selector(selector: Json, has: dict[str, str]) -> bool:
    """Apply a LabelSelector object (matchLabels, matchExpressions); an absent or empty one matches everything."""
    for key, value in labels(selector, "matchLabels").items():
        if has.get(key) != value:
            return False
    for row in rows(selector, "matchExpressions"):
        key, operator, values = text(row, "key"), text(row, "operator"), texts(row, "values")
        matched = {
            "In": has.get(key) in values,
            "NotIn": has.get(key) not in values,
            "Exists": key in has,
            "DoesNotExist": key not in has,
        }.get(operator, False)
        if not matched:
            return False
    return True


def _label_tests(selector: str) -> list[_LabelTest]:
    return [_label_test(part.strip(), selector) for part in _PART.findall(selector)] if selector.strip() else []


def _label_test(part: str, selector: str) -> _LabelTest:
    if found := _SET.fullmatch(part):
        key, operator, listed = found.groups()
        values = {value.strip() for value in listed.split(",")}
        if operator == "in":
            return lambda has: has.get(key) in values
        return lambda has: has.get(key) not in values
    if found := _EQUAL.fullmatch(part):
        key, operator, value = found.groups()
        if operator == "!=":
            return lambda has: has.get(key) != value
        return lambda has: has.get(key) == value
    if found := _EXISTS.fullmatch(part):
        absent, key = found.groups()
        return (lambda has: key not in has) if absent else (lambda has: key in has)
    raise status.bad_request(f'unable to parse requirement: found "{part}", in selector "{selector}"')


def _field_tests(resource: Resource, selector: str) -> list[tuple[tuple[str, ...], str, bool]]:
    tests: list[tuple[tuple[str, ...], str, bool]] = []
    for part in filter(None, selector.split(",")):
        found = re.fullmatch(r"([^=!]+)(==|=|!=)(.*)", part)
        if found is None:
            raise status.bad_request(f"invalid selector: '{selector}'; can't understand '{part}'")
        name, operator, value = found.groups()
        known = ("metadata.name", "metadata.namespace") if resource.namespaced else ("metadata.name",)
        if name not in known + resource.fields:
            raise status.bad_request(f"field label not supported: {name}")
        tests.append((tuple(name.split(".")), value, operator != "!="))
    return tests


def _field(found: Object, path: tuple[str, ...]) -> str:
    value = dig(found, *path)
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "false" if path in (("spec", "unschedulable"), ("spec", "hostNetwork")) else ""
    return str(value)
