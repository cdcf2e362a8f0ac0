"""The paths beside the resources: health, version, and what is served, enough for kubectl to find its way."""

from __future__ import annotations

from typing import Final

from tessera.testing.apiserver.resources import Catalog, Resource
from tessera.testing.apiserver.tree import Json, Object, encode

OPEN_PATHS: Final = ("/healthz", "/livez", "/readyz", "/version")
"""Answered to everybody."""
VERSION: Final = "v1.34.4"
_VERBS: Final[list[Json]] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


def open_answer(path: str) -> bytes:
    """Answer one of `OPEN_PATHS`."""
    if path != "/version":
        return b"ok"
    return encode({"major": "1", "minor": "34", "gitVersion": VERSION, "platform": "fake"})


def answer(catalog: Catalog, path: str) -> bytes | None:
    """Answer a discovery path; None where it is none."""
    parts = path.strip("/").split("/")
    if parts == ["api"]:
        return encode({"kind": "APIVersions", "versions": ["v1"]})
    if parts == ["apis"]:
        return encode({"kind": "APIGroupList", "apiVersion": "v1", "groups": _groups(catalog)})
    if len(parts) == 2 and parts[0] == "api":
        return _resources(catalog, "", parts[1])
    if len(parts) == 2 and parts[0] == "apis":
        groups = [group for group in _groups(catalog) if isinstance(group, dict) and group["name"] == parts[1]]
        return encode({"kind": "APIGroup", "apiVersion": "v1", **_as_object(groups[0])}) if groups else None
    if len(parts) == 3 and parts[0] == "apis":
        return _resources(catalog, parts[1], parts[2])
    return None


def _groups(catalog: Catalog) -> list[Json]:
    shown: list[Json] = []
    for group in dict.fromkeys(resource.group for resource in catalog.resources if resource.group):
        versions = dict.fromkeys(resource.version for resource in catalog.resources if resource.group == group)
        listed: list[Json] = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
        shown.append({"name": group, "versions": listed, "preferredVersion": listed[0]})
    return shown


def _resources(catalog: Catalog, group: str, version: str) -> bytes | None:
    found = [resource for resource in catalog.resources if (resource.group, resource.version) == (group, version)]
    if not found:
        return None
    listed: list[Json] = []
    for resource in found:
        listed.append(_entry(resource, "", _VERBS))
        listed += [_entry(resource, f"/{part}", ["get", "patch", "update"]) for part in resource.subresources]
    group_version = f"{group}/{version}" if group else version
    return encode({"kind": "APIResourceList", "groupVersion": group_version, "resources": listed})


def _entry(resource: Resource, part: str, verbs: list[Json]) -> Object:
    return {
        "name": resource.plural + part,
        "singularName": "" if part else resource.kind.lower(),
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": verbs,
    }


def _as_object(value: Json) -> Object:
    return value if isinstance(value, dict) else {}
