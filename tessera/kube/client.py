"""The writing verbs of the API, on top of the reading ones.

Bodies are bytes because patches and objects are built by their owners (a webhook patch, a Binding with its plan); what
the server answers is returned as it came, for the few callers that look at it. No write is ever tried twice here: after
an error with `maybe_done` only the caller knows whether to look first.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from tessera.kube.reader import TIMEOUT, Reader
from tessera.kube.resources import PODS, Resource
from tessera.kube.transport import Call


class Patch(StrEnum):
    """The kinds of PATCH, by their media types."""

    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    JSON = "application/json-patch+json"
    APPLY = "application/apply-patch+yaml"


_ENCODER: Final = msgspec.json.Encoder()


class ApiClient(Reader):
    """Reads from and writes to one API server. An async context manager, as `Reader` is."""

    async def create(
        self,
        resource: Resource,
        body: bytes,
        *,
        namespace: str = "",
        name: str = "",
        subresource: str = "",
        dry_run: bool = False,
        timeout: float = TIMEOUT,  # noqa: ASYNC109
    ) -> bytes:
        """Create an object, or a subresource of the object called `name`; return the server's answer.

        Raises:
            ApiError: `AlreadyExistsError`, `InvalidError`, ...; look at `maybe_done` before trying again.
        """
        where = {"namespace": namespace, "name": name, "subresource": subresource}
        return await self._write(
            f"create {resource.describe(**where)}",
            "POST",
            resource.path(**where),
            body,
            query=_dry(dry_run),
            timeout=timeout,
        )

    async def update(
        self,
        resource: Resource,
        name: str,
        body: bytes,
        *,
        namespace: str = "",
        subresource: str = "",
        timeout: float = TIMEOUT,  # noqa: ASYNC109
    ) -> bytes:
        """Replace an object; with a resourceVersion in it, only if it is unchanged since (`ConflictError`)."""
        where = {"namespace": namespace, "name": name, "subresource": subresource}
        return await self._write(
            f"update {resource.describe(**where)}", "PUT", resource.path(**where), body, timeout=timeout
        )

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: bytes,
        *,
        kind: Patch,
        namespace: str = "",
        subresource: str = "",
        field_manager: str = "",
        force: bool = False,
        timeout: float = TIMEOUT,  # noqa: ASYNC109
    ) -> bytes:
        """Change a part of an object and return the whole.

        Args:
            resource: of what kind.
            name: which one.
            body: the patch; for `Patch.APPLY` the whole of what we own.
            kind: how the patch is meant.
            namespace: of the object.
            subresource: such as ``status``.
            field_manager: who owns the fields; required for `Patch.APPLY`.
            force: take fields from other owners (`Patch.APPLY` only).
            timeout: seconds.
        """
        where = {"namespace": namespace, "name": name, "subresource": subresource}
        query = {"fieldManager": field_manager} if field_manager else {}
        if force:
            query["force"] = "true"
        return await self._write(
            f"patch {resource.describe(**where)}",
            "PATCH",
            resource.path(**where),
            body,
            query=query,
            content_type=kind.value,
            timeout=timeout,
        )

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str = "",
        uid: str | None = None,
        grace: int | None = None,
        timeout: float = TIMEOUT,  # noqa: ASYNC109
    ) -> bytes:
        """Delete an object.

        Args:
            resource: of what kind.
            name: which one.
            namespace: of the object.
            uid: only the object of this UID; another of the same name is a `ConflictError`.
            grace: seconds; None leaves it to the object. 0 takes a pod out of the API while it may still run.
            timeout: seconds.
        """
        where = {"namespace": namespace, "name": name}
        return await self._write(
            f"delete {resource.describe(**where)}",
            "DELETE",
            resource.path(**where),
            _ENCODER.encode(_delete_options(uid, grace)),
            timeout=timeout,
        )

    async def bind(
        self,
        name: str,
        *,
        namespace: str,
        node: str,
        uid: str,
        annotations: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,  # noqa: ASYNC109
    ) -> None:
        """Bind a pod to a node; its annotations appear on the pod in the same write as nodeName.

        Args:
            name: of the pod.
            namespace: of the pod.
            node: where to.
            uid: which pod of that name; a recreated one is a `ConflictError`.
            annotations: to merge into the pod's.
            timeout: seconds.

        Raises:
            ApiError: `ConflictError` where the pod is bound, being deleted, gated or another one. With `maybe_done`,
                only reading the pod tells.
        """
        metadata = {"name": name, "namespace": namespace, "uid": uid, "annotations": annotations or {}}
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        body = _ENCODER.encode({"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target})
        path = PODS.path(namespace=namespace, name=name, subresource="binding")
        what = f"bind pods {namespace}/{name} to node {node}"
        await self._write(what, "POST", path, body, timeout=timeout)

    async def evict(
        self,
        name: str,
        *,
        namespace: str,
        uid: str | None = None,
        grace: int | None = None,
        dry_run: bool = False,
        timeout: float = TIMEOUT,  # noqa: ASYNC109
    ) -> None:
        """Ask for a pod's deletion, as PodDisruptionBudgets allow (`TooManyRequestsError` where they don't)."""
        metadata = {"name": name, "namespace": namespace}
        options = _delete_options(uid, grace)
        body = _ENCODER.encode(
            {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata, "deleteOptions": options}
        )
        path = PODS.path(namespace=namespace, name=name, subresource="eviction")
        what = f"evict pods {namespace}/{name}"
        await self._write(what, "POST", path, body, query=_dry(dry_run), timeout=timeout)

    async def _write(
        self,
        what: str,
        method: str,
        path: str,
        body: bytes,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout: float,  # noqa: ASYNC109
    ) -> bytes:
        return await self._transport.send(
            Call(
                what=what,
                method=method,
                path=path,
                query=query or {},
                body=body,
                content_type=content_type,
                timeout=timeout,
                write=True,
            )
        )


def _dry(dry_run: bool) -> dict[str, str]:
    return {"dryRun": "All"} if dry_run else {}


def _delete_options(uid: str | None, grace: int | None) -> dict[str, object]:
    options: dict[str, object] = {}
    if grace is not None:
        options["gracePeriodSeconds"] = grace
    if uid is not None:
        options["preconditions"] = {"uid": uid}
    return options
