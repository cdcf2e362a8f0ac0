"""One HTTP request, read: what it is about, who sends it, what it brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
import yaml
from aiohttp import web

from tessera.testing.apiserver import status
from tessera.testing.apiserver.access import User
from tessera.testing.apiserver.faults import Seen
from tessera.testing.apiserver.registry import Request
from tessera.testing.apiserver.resources import Catalog, Target
from tessera.testing.apiserver.tree import Json, Object, decode

LARGEST_BODY: Final = 3 << 20
"""Bytes of a request (apiserver's MaxRequestBodyBytes)."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request on its way.

    Attributes:
        http: as aiohttp has it.
        target: about what.
        seen: as faults and tests see it.
        user: who.
        body: what it brings.
        warnings: what the user is to be told with the answer.
    """

    http: web.BaseRequest
    target: Target
    seen: Seen
    user: User
    body: bytes
    warnings: list[str]

    @property
    def query(self) -> Mapping[str, str]:
        """The URL's parameters."""
        return self.seen.query

    def request(self) -> Request:
        """Return what the registry needs to know of it."""
        return Request(
            target=self.target,
            user=self.user,
            dry_run=self.query.get("dryRun") == "All",
            field_manager=self.query.get("fieldManager", ""),
            warnings=self.warnings,
        )

    def object(self) -> Object:
        """Read the body as an object, JSON or YAML.

        Raises:
            StatusError: 400, it is none; 415, it is neither.
        """
        kind = self.http.headers.get("Content-Type", "application/json").partition(";")[0]
        if kind not in ("application/json", "application/yaml", "application/octet-stream"):
            raise status.unsupported_media_type(["application/json", "application/yaml"])
        tree: Json
        try:
            tree = yaml.safe_load(self.body) if kind == "application/yaml" else decode(self.body)
        except (msgspec.DecodeError, yaml.YAMLError) as error:
            resource = self.target.resource
            problem = f"couldn't get version/kind; {resource.kind} in version {resource.version}: {error}"
            raise status.bad_request(problem) from error
        if not isinstance(tree, dict):
            raise status.bad_request("the body of the request is no object")
        return tree

    def options(self) -> Object:
        """Read the body of a deletion; parameters of the URL do as well."""
        options = self.object() if self.body else {}
        if "gracePeriodSeconds" in self.query:
            options["gracePeriodSeconds"] = number(self.query["gracePeriodSeconds"], "gracePeriodSeconds")
        return options

    def not_allowed(self) -> status.StatusError:
        """Word the refusal of an authorizer."""
        resource = self.target.resource
        part = f"/{self.target.subresource}" if self.target.subresource else ""
        where = f'in the namespace "{self.target.namespace}"' if self.target.namespace else "at the cluster scope"
        problem = (
            f'User "{self.user.name}" cannot {self.seen.verb} resource "{resource.plural}{part}" in API group '
            f'"{resource.group}" {where}'
        )
        return status.forbidden(resource.group, resource.plural, self.target.name, problem)


async def read_call(http: web.BaseRequest, catalog: Catalog, user: User, warnings: list[str]) -> Call:
    """Read a request.

    Raises:
        StatusError: 404, no resource lives at its path; 413, it is too large.
    """
    path = http.rel_url.raw_path
    target = catalog.target(path)
    query = dict(http.rel_url.query)
    body = await _body(http)
    seen = Seen(
        verb=_verb(http.method, target, query),
        plural=target.resource.plural,
        subresource=target.subresource,
        namespace=target.namespace,
        name=target.name,
        path=path,
        query=query,
        user=user,
        body=body,
    )
    return Call(http, target, seen, user, body, warnings)


def number(value: str, name: str) -> int:
    """Read a parameter that is a number.

    Raises:
        StatusError: 400, it is none.
    """
    if not (value.isascii() and value.isdecimal()):
        raise status.bad_request(f'strconv.ParseInt: parsing "{value}": invalid syntax ({name})')
    return int(value)


async def _body(http: web.BaseRequest) -> bytes:
    if not http.can_read_body:
        return b""
    chunks: list[bytes] = []
    size = 0
    async for chunk in http.content.iter_any():
        size += len(chunk)
        if size > LARGEST_BODY:
            raise status.too_large(LARGEST_BODY)
        chunks.append(chunk)
    return b"".join(chunks)


def _verb(method: str, target: Target, query: Mapping[str, str]) -> str:
    if method == "GET":
        if query.get("watch") in ("true", "1"):
            return "watch"
        return "get" if target.name else "list"
    if method == "DELETE":
        return "delete" if target.name else "deletecollection"
    if method == "POST":
        return "create"
    if method in ("PUT", "PATCH") and target.name:
        return "update" if method == "PUT" else "patch"
    return method.lower()
