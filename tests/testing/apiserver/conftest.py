"""What behaviour tests of an API server need: an address, a namespace of their own, and nothing that only a fake has.

Tests that take `api` and `namespace` alone say what a kube-apiserver does; a suite with a real one runs them by
replacing these two fixtures. Tests that take `fake` are about the fake itself.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tessera.testing.apiserver import FakeApiServer
from tessera.testing.apiserver.certificates import Authority

PATIENCE = 10.0
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY = "application/apply-patch+yaml"


@dataclass
class Answer:
    code: int
    body: Any
    headers: Any

    def ok(self) -> Any:
        assert self.code < 300, self.body
        return self.body

    def failed(self, code: int, reason: str) -> str:
        assert (self.code, self.body.get("reason")) == (code, reason), self.body
        return str(self.body["message"])


@dataclass
class Events:
    """A watch stream, read event by event."""

    response: aiohttp.ClientResponse
    waiting: list[dict[str, Any]] = field(default_factory=list)
    rest: bytes = b""

    async def next(self, *, bookmarks: bool = False) -> dict[str, Any] | None:
        """Return the next event, None at the end of the stream."""
        async with asyncio.timeout(PATIENCE):
            while True:
                while self.waiting:
                    event = self.waiting.pop(0)
                    if bookmarks or event["type"] != "BOOKMARK":
                        return event
                chunk = await self.response.content.readany()
                if not chunk:
                    return None
                *lines, self.rest = (self.rest + chunk).split(b"\n")
                self.waiting += [json.loads(line) for line in lines]

    async def names(self, count: int) -> list[tuple[str, str]]:
        """Return type and name of the next events."""
        found = []
        for _ in range(count):
            event = await self.next()
            assert event is not None
            found.append((event["type"], event["object"]["metadata"]["name"]))
        return found


class Api:
    """A plain HTTP client of an API server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def call(
        self, method: str, path: str, body: Any = None, *, kind: str = "application/json", **query: str
    ) -> Answer:
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        # A file: aiohttp warns of a large body of bytes.
        data = raw if raw is None else io.BytesIO(raw)
        headers = {"Content-Type": kind} if data is not None else {}
        async with self.session.request(method, self.url + path, data=data, headers=headers, params=query) as response:
            answer = await response.read()
            try:
                found = json.loads(answer)
            except ValueError:
                found = answer
            return Answer(response.status, found, response.headers)

    async def get(self, path: str, **query: str) -> Answer:
        return await self.call("GET", path, **query)

    async def post(self, path: str, body: Any, **query: str) -> Answer:
        return await self.call("POST", path, body, **query)

    async def put(self, path: str, body: Any, **query: str) -> Answer:
        return await self.call("PUT", path, body, **query)

    async def patch(self, path: str, body: Any, kind: str, **query: str) -> Answer:
        return await self.call("PATCH", path, body, kind=kind, **query)

    async def delete(self, path: str, body: Any = None, **query: str) -> Answer:
        return await self.call("DELETE", path, body, **query)

    @asynccontextmanager
    async def watch(self, path: str, **query: str) -> AsyncIterator[Events]:
        async with self.session.get(self.url + path, params={"watch": "true", **query}) as response:
            assert response.status == 200, await response.text()
            yield Events(response)


def pod(name: str = "", *, limits: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "main", "image": "registry.example/app:1"}
    if limits is not None:
        container["resources"] = {"limits": limits}
    metadata = {"name": name} if name else {"generateName": "p-"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [container], **spec},
    }


def configmap(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def binding(name: str, node: str, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, **metadata},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    }


@pytest.fixture
def make() -> Any:
    """The makers of objects, for test modules (which can't import a conftest)."""

    class Make:
        pod = staticmethod(pod)
        configmap = staticmethod(configmap)
        binding = staticmethod(binding)
        MERGE, STRATEGIC, JSON_PATCH, APPLY = MERGE, STRATEGIC, JSON_PATCH, APPLY

    return Make


@pytest.fixture
async def fake() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer() as api:
        yield api


@pytest.fixture
async def api(fake: FakeApiServer) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession() as session:
        yield Api(session, fake.url)


@pytest.fixture
async def namespace(api: Api) -> str:
    name = f"t-{uuid.uuid4().hex[:8]}"
    (await api.post("/api/v1/namespaces", {"metadata": {"name": name}})).ok()
    return name


@pytest.fixture
async def pods(api: Api, namespace: str) -> str:
    """The path of the test namespace's pods."""
    del api
    return f"/api/v1/namespaces/{namespace}/pods"


Reviewer = Callable[[dict[str, Any]], Awaitable[dict[str, Any] | web.Response]]


class Webhook:
    """An HTTPS server that answers admission reviews as a test says, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.reviewer: Reviewer = self.allow
        self.url = ""
        self.bundle = ""

    async def allow(self, _request: dict[str, Any]) -> dict[str, Any]:
        return {"allowed": True}

    def patches(self, *operations: dict[str, Any]) -> None:
        async def reviewer(_request: dict[str, Any]) -> dict[str, Any]:
            return {"allowed": True, **patch(*operations)}

        self.reviewer = reviewer

    def answers(self, response: dict[str, Any]) -> None:
        async def reviewer(_request: dict[str, Any]) -> dict[str, Any]:
            return response

        self.reviewer = reviewer

    async def handle(self, http: web.BaseRequest) -> web.StreamResponse:
        review = json.loads(await http.read())
        self.asked.append(review)
        answer = await self.reviewer(review["request"])
        if isinstance(answer, web.Response):
            return answer
        return web.json_response(
            {
                "apiVersion": "admission.k8s.io/v1",
                "kind": "AdmissionReview",
                "response": {"uid": review["request"]["uid"], **answer},
            }
        )

    def configuration(self, kind: str, name: str, namespace: str, /, **hook: Any) -> dict[str, Any]:
        entry = {
            "name": f"{name}.tessera.test",
            "clientConfig": {"url": f"{self.url}/{name}", "caBundle": self.bundle},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "timeoutSeconds": 2,
            **hook,
        }
        return {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": kind,
            "metadata": {"name": name},
            "webhooks": [entry],
        }


def patch(*operations: dict[str, Any]) -> dict[str, str]:
    return {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(operations).encode()).decode()}


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    """A webhook's server context, and the CA bundle that goes into its configuration."""
    authority = Authority(str(tmp_path_factory.mktemp("ca")))
    pair = authority.server(("127.0.0.1", "tessera-webhook.tessera-system.svc"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.cert, pair.key)
    return context, base64.b64encode(Path(authority.ca_file).read_bytes()).decode()


@pytest.fixture
async def webhook(identity: tuple[ssl.SSLContext, str]) -> AsyncIterator[Webhook]:
    context, bundle = identity
    hook = Webhook()
    hook.bundle = bundle
    runner = web.ServerRunner(web.Server(hook.handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    hook.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    yield hook
    await runner.cleanup()


@pytest.fixture
async def register(
    api: Api, webhook: Webhook, namespace: str
) -> AsyncIterator[Callable[..., Awaitable[dict[str, Any]]]]:
    """Register the webhook for pods of the test's namespace."""
    made: list[str] = []

    async def register(kind: str = "Mutating", name: str = "hook", **hook: Any) -> dict[str, Any]:
        plural = f"{kind.lower()}webhookconfigurations"
        path = f"/apis/admissionregistration.k8s.io/v1/{plural}"
        body = webhook.configuration(f"{kind}WebhookConfiguration", f"{name}-{namespace}", namespace, **hook)
        made.append(f"{path}/{name}-{namespace}")
        found: dict[str, Any] = (await api.post(path, body)).ok()
        return found

    yield register
    for path in made:
        await api.delete(path)
