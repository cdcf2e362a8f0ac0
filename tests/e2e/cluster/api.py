"""A client of the API server that shares no code with the product's: what is tested should not be what tests."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from cluster.errors import ClusterError
from cluster.processes import until

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"


class ApiError(ClusterError):
    """The API server said no.

    Attributes:
        code: HTTP status.
        reason: such as NotFound.
    """

    def __init__(self, code: int, reason: str, message: str) -> None:
        """Take what the Status object says."""
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason


class Api:
    """One user's door to an API server (or to a kubelet)."""

    def __init__(self, url: str, *, ca_file: Path | None, token: str) -> None:
        """Open nothing yet.

        Args:
            url: such as https://10.213.0.1:6443.
            ca_file: what its certificate is checked with; None: not at all (a kubelet's is signed by itself).
            token: the user's bearer token.
        """
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), parts.port
        self.url = url
        self.token = token
        self.tls = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        if ca_file is None:
            self.tls.check_hostname = False
            self.tls.verify_mode = ssl.CERT_NONE

    def raw(
        self, method: str, path: str, body: object = None, *, kind: str = "application/json", **query: str
    ) -> tuple[int, bytes]:
        """Send one request; return status and body whatever they are.

        Raises:
            OSError: no answer.
        """
        connection = self._connect(30)
        try:
            self._send(connection, method, asked(path, query), body, kind=kind)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def call(self, method: str, path: str, body: object = None, **query: str) -> Any:
        """Send one request and return the object that is answered.

        Raises:
            ApiError: it was refused.
        """
        return self._checked(*self.raw(method, path, body, **query))

    def get(self, path: str, **query: str) -> Any:
        """Read an object or a list."""
        return self.call("GET", path, **query)

    def text(self, path: str, **query: str) -> str:
        """Read something that isn't JSON, such as a log."""
        status, body = self.raw("GET", path, **query)
        if status >= 300:
            self._checked(status, body)
        return body.decode(errors="replace")

    def post(self, path: str, body: object, **query: str) -> Any:
        """Create an object."""
        return self.call("POST", path, body, **query)

    def patch(self, path: str, body: object, *, kind: str = MERGE, **query: str) -> Any:
        """Change an object."""
        return self._checked(*self.raw("PATCH", path, body, kind=kind, **query))

    def delete(self, path: str, **options: object) -> Any:
        """Delete an object; `options` are those of DeleteOptions."""
        return self.call("DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions", **options})

    def apply(self, *objects: Object) -> None:
        """Create objects, or bring them to what is said (server-side apply)."""
        for each in objects:
            path = f"{collection(each)}/{each['metadata']['name']}"
            self.patch(path, each, kind=APPLY, fieldManager="e2e", force="true")

    def exists(self, path: str) -> bool:
        """Tell whether there is such an object."""
        return self.raw("GET", path)[0] == 200

    def healthy(self, path: str = "/readyz") -> bool:
        """Tell whether a health check says yes; no answer is no."""
        try:
            return self.raw("GET", path)[0] == 200
        except OSError:
            return False

    def watch(self, path: str, *, seconds: float, since: str = "", **query: str) -> Iterator[tuple[str, Object]]:
        """List, then watch: yield (ADDED, object) for what there is, and every event until the time is over.

        Where it is to begin `since` a version, nothing is listed.

        The API server ends the watch of a client that is slow to read; it goes on where it was then.
        """
        end = time.monotonic() + seconds
        version = since
        if not since:
            listed = self.get(path, **query)
            for item in listed["items"]:
                yield "ADDED", item
            version = listed["metadata"]["resourceVersion"]
        while end > time.monotonic():
            for kind, each in self._watch_from(version, path, end, query):
                version = each["metadata"]["resourceVersion"]
                yield kind, each

    def _watch_from(
        self, version: str, path: str, end: float, query: Mapping[str, str]
    ) -> Iterator[tuple[str, Object]]:
        connection = self._connect(max(0.1, end - time.monotonic()))
        try:
            wanted = {**query, "watch": "true", "resourceVersion": version}
            self._send(connection, "GET", asked(path, wanted))
            response = connection.getresponse()
            if response.status != 200:
                self._checked(response.status, response.read())
            while (left := end - time.monotonic()) > 0:
                if connection.sock is not None:
                    connection.sock.settimeout(left)
                line = response.readline()
                if not line:
                    return
                event = json.loads(line)
                if event["type"] == "ERROR":
                    found = event["object"]
                    raise ApiError(found.get("code", 0), found.get("reason", ""), found.get("message", ""))
                yield event["type"], event["object"]
        except TimeoutError:
            return
        finally:
            connection.close()

    def wait(self, path: str, check: Callable[[Object], bool], *, seconds: float = 30, what: str = "") -> Object:
        """Wait until one object is as wanted, and return it.

        Raises:
            ClusterError: it isn't in time; with what it was last.
        """
        folder, _, name = path.rpartition("/")
        last: Object = {}
        for kind, each in self.watch(folder, seconds=seconds, fieldSelector=f"metadata.name={name}"):
            last = each
            if kind != "DELETED" and check(each):
                return each
        raise ClusterError(f"{path} {what or 'as wanted'}: not after {seconds:g} s; last: {json.dumps(last)[:3000]}")

    def wait_all(
        self, folder: str, names: Iterable[str], check: Callable[[Object], bool], *, seconds: float = 30
    ) -> dict[str, Object]:
        """Wait until each of some objects of a collection has been as wanted, and return them by name: one watch for all.

        Raises:
            ClusterError: one isn't in time; with what it was last.
        """
        found: dict[str, Object] = {}
        left, last = set(names), None
        if not left:
            return found
        for kind, each in self.watch(folder, seconds=seconds):
            name = each["metadata"]["name"]
            if name not in left:
                continue
            last = each
            if kind != "DELETED" and check(each):
                found[name] = each
                left.remove(name)
                if not left:
                    return found
        told = f"the last that was seen of them: {json.dumps(last)[:3000]}"
        raise ClusterError(f"{folder}: not as wanted after {seconds:g} s: {', '.join(sorted(left))}; {told}")

    def wait_all_gone(self, folder: str, names: Iterable[str], *, seconds: float = 30) -> None:
        """Wait until none of some objects of a collection is there: one watch for all.

        Raises:
            ClusterError: one is there still.
        """
        left = set(names)
        listed = self.get(folder)
        left &= {each["metadata"]["name"] for each in listed["items"]}
        if not left:
            return
        for kind, each in self.watch(folder, seconds=seconds, since=listed["metadata"]["resourceVersion"]):
            if kind == "DELETED":
                left.discard(each["metadata"]["name"])
                if not left:
                    return
        raise ClusterError(f"{folder}: not gone after {seconds:g} s: {', '.join(sorted(left))}")

    def wait_gone(self, path: str, *, seconds: float = 30) -> None:
        """Wait until there is no such object."""
        until(f"{path} is gone", lambda: not self.exists(path), seconds=seconds)

    def _connect(self, seconds: float) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._host, self._port, timeout=seconds, context=self.tls)

    def _send(
        self, connection: http.client.HTTPSConnection, method: str, path: str, body: object = None, *, kind: str = ""
    ) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json, */*"}
        content = None
        if body is not None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers["Content-Type"] = kind
        connection.request(method, path, content, headers)

    def _checked(self, status: int, body: bytes) -> Any:
        if status < 300:
            return json.loads(body) if body else {}
        try:
            found = json.loads(body)
            reason, message = found.get("reason", ""), found.get("message", "")
        except (ValueError, AttributeError):
            reason, message = "", body[:500].decode(errors="replace")
        raise ApiError(status, reason, message)


def plain(host: str, port: int, path: str) -> tuple[int, str]:
    """GET without TLS: health checks and metrics.

    Raises:
        OSError: no answer.
    """
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


def asked(path: str, query: dict[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


# Kind -> plural, for what tests create; everything else is written out as a path.
_CLUSTER_WIDE = {
    "Namespace",
    "Node",
    "ClusterRole",
    "ClusterRoleBinding",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "PriorityClass",
    "RuntimeClass",
}


def collection(body: Object) -> str:
    """Return the path of the collection that an object belongs to."""
    version, kind = body["apiVersion"], body["kind"]
    root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    plural = kind.lower()
    plural = f"{plural[:-1]}ies" if plural.endswith("y") else f"{plural}es" if plural.endswith("s") else f"{plural}s"
    if kind in _CLUSTER_WIDE:
        return f"{root}/{plural}"
    return f"{root}/namespaces/{body['metadata'].get('namespace', 'default')}/{plural}"
