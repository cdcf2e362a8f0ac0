"""Verbs, errors, deadlines, retries, and the writes that may have happened."""

from __future__ import annotations

import asyncio
import json
import random

import msgspec
import pytest

from tessera.kube.client import ApiClient, Patch
from tessera.kube.config import StaticConnection
from tessera.kube.errors import (
    AlreadyExistsError,
    AnswerLostError,
    ApiError,
    ApiTimeoutError,
    BadRequestError,
    ConflictError,
    DecodeError,
    ForbiddenError,
    GoneError,
    InvalidError,
    NotFoundError,
    ServerFaultError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
)
from tessera.kube.resources import CONFIGMAPS, LEASES, NODES, PODS, SECRETS
from tessera.model.pod import Pod
from tessera.testing.apiserver import ADMIN, Cut, FakeApiServer, Hold, StatusError, on

POD = msgspec.json.Decoder(Pod)
TREE = msgspec.json.Decoder(dict)


def configmap(name, **data):
    return json.dumps({"metadata": {"name": name}, "data": data}).encode()


async def test_an_object_goes_through_its_life(client, api):
    made = TREE.decode(await client.create(CONFIGMAPS, configmap("a", x="1"), namespace="default"))
    read = await client.get(CONFIGMAPS, "a", namespace="default", decoder=TREE)
    assert read == made
    body = b'{"data":{"y":"2"}}'
    patched = TREE.decode(await client.patch(CONFIGMAPS, "a", body, kind=Patch.MERGE, namespace="default"))
    assert patched["data"] == {"x": "1", "y": "2"}
    patched["data"] = {"z": "3"}
    body = json.dumps(patched).encode()
    assert TREE.decode(await client.update(CONFIGMAPS, "a", body, namespace="default"))["data"] == {"z": "3"}
    operations = b'[{"op":"remove","path":"/data/z"}]'
    await client.patch(CONFIGMAPS, "a", operations, kind=Patch.JSON, namespace="default")
    await client.patch(CONFIGMAPS, "a", b'{"data":{"q":"1"}}', kind=Patch.STRATEGIC, namespace="default")
    await client.delete(CONFIGMAPS, "a", namespace="default", uid=made["metadata"]["uid"])
    assert api.get("configmaps", "a", "default") is None


async def test_apply_sends_manager_and_force(client, api):
    body = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"x":"1"}}'
    for manager in ("one", "two"):
        await client.patch(
            CONFIGMAPS, "a", body, kind=Patch.APPLY, namespace="default", field_manager=manager, force=True
        )
    assert api.get("configmaps", "a", "default")["data"] == {"x": "1"}
    assert api.requests[-1].seen.query == {"fieldManager": "two", "force": "true"}


async def test_cluster_scoped_objects_and_subresources(client, api):
    api.add_node("n1")
    body = b'{"status":{"conditions":[{"type":"Ready","status":"False"}]}}'
    await client.patch(NODES, "n1", body, kind=Patch.STRATEGIC, subresource="status")
    assert api.get("nodes", "n1")["status"]["conditions"][0]["status"] == "False"


async def test_dry_run_creates_nothing(client, api):
    await client.create(CONFIGMAPS, configmap("a"), namespace="default", dry_run=True)
    assert api.get("configmaps", "a", "default") is None


async def test_bind_writes_plan_and_node(client, put_pod):
    uid = put_pod("a")["metadata"]["uid"]
    await client.bind("a", namespace="default", node="n1", uid=uid, annotations={"tessera.dev/plan": "{}"})
    pod = await client.get(PODS, "a", namespace="default", decoder=POD)
    assert pod.spec.node_name == "n1"
    assert pod.metadata.annotation("tessera.dev/plan") == "{}"


async def test_bind_of_another_pod_of_that_name_conflicts(client, api, put_pod):
    put_pod("a")
    with pytest.raises(ConflictError, match="bind pods default/a to node n1: 409 Conflict") as raised:
        await client.bind("a", namespace="default", node="n1", uid="another")
    assert raised.value.maybe_done is False
    assert "nodeName" not in api.get("pods", "a", "default")["spec"]


async def test_evict_and_delete_with_grace(client, api, put_pod):
    uid = put_pod("a", node="n1")["metadata"]["uid"]
    with pytest.raises(ConflictError):
        await client.evict("a", namespace="default", uid="another")
    await client.evict("a", namespace="default", uid=uid, grace=7)
    assert api.get("pods", "a", "default")["metadata"]["deletionGracePeriodSeconds"] == 7
    with pytest.raises(ConflictError):
        await client.delete(PODS, "a", namespace="default", uid="another", grace=0)
    await client.delete(PODS, "a", namespace="default", uid=uid, grace=0)
    assert api.get("pods", "a", "default") is None


async def test_lists_come_page_by_page(client, api, put_pod):
    for number in range(7):
        put_pod(f"p{number}", node="n1" if number % 2 else "n2", labels={"odd": str(number % 2)})
    pages = [page async for page in client.pages(PODS, decoder=POD, limit=3)]
    assert [[pod.metadata.name for pod in page.items] for page in pages] == [
        ["p0", "p1", "p2"],
        ["p3", "p4", "p5"],
        ["p6"],
    ]
    assert len({page.resource_version for page in pages}) == 1
    found = await client.list(PODS, decoder=POD, namespace="default", fields="spec.nodeName=n1", limit=2)
    assert [pod.metadata.name for pod in found.items] == ["p1", "p3", "p5"]
    found = await client.list(PODS, decoder=POD, labels="odd=0", fields="spec.nodeName=n2")
    assert [pod.metadata.name for pod in found.items] == ["p0", "p2", "p4", "p6"]
    assert found.resource_version == str(api.version)


async def test_a_list_whose_snapshot_expires_is_read_in_one_piece(client, api, put_pod):
    for number in range(4):
        put_pod(f"p{number}")
    api.faults.add(lambda seen: "continue" in seen.query, StatusError(410, "Expired", "too old"))
    found = await client.list(PODS, decoder=POD, limit=2)
    assert [pod.metadata.name for pod in found.items] == ["p0", "p1", "p2", "p3"]


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (400, "BadRequest", BadRequestError),
        (401, "Unauthorized", UnauthorizedError),
        (403, "Forbidden", ForbiddenError),
        (404, "NotFound", NotFoundError),
        (409, "Conflict", ConflictError),
        (409, "AlreadyExists", AlreadyExistsError),
        (410, "Expired", GoneError),
        (422, "Invalid", InvalidError),
        (429, "TooManyRequests", TooManyRequestsError),
        (500, "InternalError", ServerFaultError),
        (502, "", UnavailableError),
        (503, "ServiceUnavailable", UnavailableError),
        (504, "Timeout", ApiTimeoutError),
    ],
)
async def test_every_failure_has_its_class(client, api, code, reason, kind):
    api.faults.add(on("create"), StatusError(code, reason, "the reason why"))
    with pytest.raises(kind, match="the reason why") as raised:
        await client.create(CONFIGMAPS, configmap("a"), namespace="default")
    error = raised.value
    assert type(error) is kind
    assert (error.status, error.reason, error.detail) == (code, reason, "the reason why")
    assert str(error).startswith("create configmaps default: ")
    # A 5xx may come from a proxy, after the write.
    assert error.maybe_done is (code >= 500)


async def test_a_pod_denied_by_admission_reads_as_it_was_said(client, api):
    api.faults.add(on("create"), StatusError(400, "", 'admission webhook "x" denied the request: ask for less'))
    with pytest.raises(BadRequestError, match="denied the request: ask for less"):
        await client.create(CONFIGMAPS, configmap("a"), namespace="default")


async def test_writes_are_never_sent_twice(client, api, clock):
    api.faults.add(on("create"), StatusError(503, "ServiceUnavailable", "down"), times=None)
    with pytest.raises(UnavailableError):
        await client.create(CONFIGMAPS, configmap("a"), namespace="default")
    assert len(api.requests) == 1
    assert clock.slept == []


async def test_a_lost_answer_leaves_a_write_in_doubt(client, api):
    for cut in (Cut.BEFORE, Cut.AFTER):
        api.faults.add(on("create"), cut)
        with pytest.raises(AnswerLostError, match="may have taken effect") as raised:
            await client.create(CONFIGMAPS, configmap(f"a-{cut.name.lower()}"), namespace="default")
        assert raised.value.maybe_done is True
    assert api.get("configmaps", "a-before", "default") is None
    assert api.get("configmaps", "a-after", "default") is not None


async def test_no_verb_is_repeated_behind_our_back(client, api, put_pod):
    # aiohttp alone would send DELETE and PUT again, and report "not found" for a deletion that was done.
    uid = put_pod("a")["metadata"]["uid"]
    api.faults.add(on("delete"), Cut.AFTER)
    with pytest.raises(AnswerLostError) as raised:
        await client.delete(PODS, "a", namespace="default", uid=uid)
    assert raised.value.maybe_done is True
    assert [handled.seen.verb for handled in api.requests] == ["delete"]


async def test_a_server_that_is_not_there_leaves_no_doubt(clock):
    async with ApiClient(StaticConnection("http://127.0.0.1:1"), clock=clock, rng=random.Random(1)) as client:
        with pytest.raises(UnavailableError) as raised:
            await client.create(CONFIGMAPS, configmap("a"), namespace="default")
        assert raised.value.maybe_done is False
        assert raised.value.status == 0


async def test_a_deadline_ends_every_call(client, api):
    hold = Hold()
    api.faults.add(on(), hold, times=None)
    with pytest.raises(ApiTimeoutError, match=r"no answer within 0\.05 s") as raised:
        await client.create(CONFIGMAPS, configmap("a"), namespace="default", timeout=0.05)
    assert raised.value.maybe_done is True
    with pytest.raises(ApiTimeoutError) as raised:
        await client.get(CONFIGMAPS, "a", namespace="default", decoder=TREE, timeout=0.05)
    assert raised.value.maybe_done is False
    hold.release()


async def test_reads_are_tried_again_with_jitter(client, api, clock, put_pod):
    put_pod("a")
    api.faults.add(on("get"), StatusError(503, "ServiceUnavailable", "down"), times=2)
    api.faults.add(on("get"), Cut.BEFORE, times=1)
    pod = await client.get(PODS, "a", namespace="default", decoder=POD)
    assert pod.metadata.name == "a"
    assert len(clock.slept) == 3
    assert all(0 <= wait <= 0.1 * 2 ** (attempt + 1) for attempt, wait in enumerate(clock.slept))
    assert len(set(clock.slept)) == 3


async def test_reads_give_up_after_a_few_attempts(client, api, clock):
    api.faults.add(on("get"), StatusError(500, "InternalError", "broken"), times=None)
    with pytest.raises(ServerFaultError, match="broken"):
        await client.get(PODS, "a", namespace="default", decoder=POD)
    assert len(api.requests) == 4
    assert len(clock.slept) == 3


async def test_what_will_not_change_is_not_tried_again(client, api, clock):
    with pytest.raises(NotFoundError):
        await client.get(PODS, "a", namespace="default", decoder=POD)
    assert len(api.requests) == 1
    assert clock.slept == []


async def test_the_server_says_how_long_to_wait(client, api, clock, put_pod):
    put_pod("a")
    error = StatusError(429, "TooManyRequests", "slow down", retry_after=2)
    api.faults.add(on("get"), error)
    await client.get(PODS, "a", namespace="default", decoder=POD)
    assert clock.slept == [2.0]
    # Longer than the deadline allows: give up at once.
    error = StatusError(429, "TooManyRequests", "slow down", retry_after=60)
    api.faults.add(on("get"), error)
    with pytest.raises(TooManyRequestsError) as raised:
        await client.get(PODS, "a", namespace="default", decoder=POD)
    assert raised.value.retry_after == 60
    assert clock.slept == [2.0]


async def test_answers_that_do_not_fit_or_are_too_large(client, api, monkeypatch):
    api.put("secrets", {"metadata": {"name": "s", "namespace": "default"}, "data": {}})

    class Wrong(msgspec.Struct):
        kind: int

    with pytest.raises(DecodeError, match="get secrets default/s: the answer is not what it should be"):
        await client.get(SECRETS, "s", namespace="default", decoder=msgspec.json.Decoder(Wrong))
    monkeypatch.setattr("tessera.kube.transport.LARGEST_ANSWER", 100)
    with pytest.raises(DecodeError, match="more than 100 bytes"):
        await client.get(SECRETS, "s", namespace="default", decoder=TREE)


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "a%2fb", "x" * 254])
async def test_names_that_would_reach_another_path(client, name):
    with pytest.raises(ValueError, match=r"URL path|subresource"):
        await client.bind(name, namespace="default", node="n1", uid="u")


async def test_a_namespace_where_none_belongs_and_none_where_one_does(client):
    with pytest.raises(ValueError, match="not namespaced"):
        await client.get(NODES, "n1", namespace="default", decoder=TREE)
    with pytest.raises(ValueError, match="without a namespace"):
        await client.get(LEASES, "l", decoder=TREE)


async def test_odd_names_are_quoted(client, api):
    api.put("nodes", {"metadata": {"name": "system:node a"}})
    found = await client.get(NODES, "system:node a", decoder=TREE)
    assert found["metadata"]["name"] == "system:node a"


async def test_proxies_of_the_environment_are_not_used(client, api, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    api.add_node("n1")
    assert (await client.get(NODES, "n1", decoder=TREE))["kind"] == "Node"


async def test_redirects_are_not_followed_with_our_token(client, api):
    api.faults.add(on("get"), StatusError(302, "", "elsewhere"))
    with pytest.raises(ApiError, match="302: elsewhere"):
        await client.get(NODES, "n1", decoder=TREE)


async def test_a_refused_token_is_renewed_once_even_for_a_write(clock):
    class Rotating:
        """A connection whose token the server has forgotten until it is renewed."""

        def __init__(self, url, tokens):
            self.url, self.tokens, self.renewed = url, tokens, 0

        async def access(self):
            return await StaticConnection(self.url, token=self.tokens[self.renewed]).access()

        async def renew(self):
            self.renewed += 1
            return True

    async with FakeApiServer(anonymous=None) as api:
        connection = Rotating(api.url, ["old", api.token(ADMIN), "unused"])
        async with ApiClient(connection, clock=clock, rng=random.Random(1)) as client:
            await client.create(CONFIGMAPS, configmap("a"), namespace="default")
            assert connection.renewed == 1
        connection = Rotating(api.url, ["old", "wrong", "unused"])
        async with ApiClient(connection, clock=clock, rng=random.Random(1)) as client:
            with pytest.raises(UnauthorizedError):
                await client.create(CONFIGMAPS, configmap("b"), namespace="default")
            assert connection.renewed == 1


async def test_connections_are_used_again(client, api):
    api.add_node("n1")
    before = len(asyncio.all_tasks())
    for _ in range(20):
        await client.get(NODES, "n1", decoder=TREE)
    # The fake has one task for each connection.
    assert len(asyncio.all_tasks()) - before <= 2
