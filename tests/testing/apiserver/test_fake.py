"""What only the fake has: faults, credentials, direct access, TLS, running as a process."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
from pathlib import Path

import aiohttp
import pytest

from tessera.testing.apiserver import ADMIN, Cut, FakeApiServer, Hold, User, on, service_account
from tessera.testing.apiserver.status import StatusError, too_many_requests


@pytest.fixture
def secrets(namespace):
    return f"/api/v1/namespaces/{namespace}/secrets"


async def test_a_version_that_is_forgotten_is_gone(api, fake, secrets):
    version = (await api.get(secrets)).ok()["metadata"]["resourceVersion"]
    (await api.post(secrets, {"metadata": {"name": "a"}})).ok()
    fake.compact()
    async with api.watch(secrets, resourceVersion=version) as events:
        event = await events.next()
        assert event["type"] == "ERROR"
        assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
        assert "too old resource version" in event["object"]["message"]
        assert await events.next() is None
    fake.faults.expired_as_status = True
    assert (await api.get(secrets, watch="true", resourceVersion=version)).failed(410, "Expired")


async def test_history_is_bounded():
    async with FakeApiServer(history=3) as fake, aiohttp.ClientSession() as session:
        first = fake.version
        for number in range(5):
            fake.put("secrets", {"metadata": {"name": f"s{number}", "namespace": "default"}})
        fake.faults.expired_as_status = True
        for version, code in ((first, 410), (fake.version - 3, 200), (fake.version, 200)):
            url = f"{fake.url}/api/v1/secrets?watch=true&resourceVersion={version}"
            async with session.get(url) as response:
                assert response.status == code, version


async def test_a_continue_token_expires_with_its_snapshot(api, fake, secrets):
    for number in range(4):
        (await api.post(secrets, {"metadata": {"name": f"s{number}"}})).ok()
    first = (await api.get(secrets, limit="2")).ok()
    (await api.delete(f"{secrets}/s3")).ok()
    fake.compact()
    answer = await api.get(secrets, limit="2", **{"continue": first["metadata"]["continue"]})
    assert "too old to display a consistent list" in answer.failed(410, "Expired")
    # The token that comes with the error goes on without consistency.
    rest = (await api.get(secrets, limit="2", **{"continue": answer.body["metadata"]["continue"]})).ok()
    assert [item["metadata"]["name"] for item in rest["items"]] == ["s2"]


async def test_a_version_that_is_not_there_yet_times_out(api, secrets):
    assert (await api.get(secrets, resourceVersion="999999999")).failed(504, "Timeout")


async def test_bookmarks_come_on_quiet_watches():
    async with FakeApiServer(bookmark_interval=0.02) as fake, aiohttp.ClientSession() as session:
        query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": str(fake.version)}
        async with session.get(f"{fake.url}/api/v1/pods", params=query) as response, asyncio.timeout(10):
            line = json.loads(await response.content.readline())
        assert line["type"] == "BOOKMARK"
        assert line["object"]["kind"] == "Pod"
        assert line["object"]["metadata"]["resourceVersion"] == str(fake.version)


async def test_dropped_ended_and_frozen_watches(api, fake, secrets):
    version = (await api.get(secrets)).ok()["metadata"]["resourceVersion"]
    async with api.watch(secrets, resourceVersion=version) as events:
        await fake.wait_for_watches("secrets")
        fake.drop_watches("secrets")
        with pytest.raises(aiohttp.ClientPayloadError):
            await events.next()
    async with api.watch(secrets, resourceVersion=version) as events:
        await fake.wait_for_watches("secrets")
        fake.end_watches()
        assert await events.next() is None
    async with api.watch(secrets, resourceVersion=version) as events:
        await fake.wait_for_watches("secrets")
        fake.freeze_watches("secrets")
        (await api.post(secrets, {"metadata": {"name": "a"}})).ok()
        reading = asyncio.create_task(events.next())
        await asyncio.sleep(0)
        assert not reading.done()
        fake.freeze_watches("secrets", frozen=False)
        assert (await reading)["type"] == "ADDED"


async def test_requests_can_be_refused_a_number_of_times(api, fake, secrets):
    fault = fake.faults.add(on("create", "secrets"), too_many_requests("slow down", retry_after=7), times=2)
    for _ in range(2):
        answer = await api.post(secrets, {"metadata": {"name": "a"}})
        assert answer.failed(429, "TooManyRequests") == "slow down"
        assert answer.headers["Retry-After"] == "7"
    (await api.post(secrets, {"metadata": {"name": "a"}})).ok()
    assert fault.hits == 2
    fake.faults.add(on(name="a"), StatusError(503, "ServiceUnavailable", "down"), times=None)
    assert (await api.get(f"{secrets}/a")).code == 503
    assert (await api.get(secrets)).code == 200
    fake.faults.clear()
    assert (await api.get(f"{secrets}/a")).code == 200


async def test_an_answer_can_be_lost_before_or_after_the_write(api, fake, secrets):
    fake.faults.add(on("create", "secrets"), Cut.BEFORE)
    with pytest.raises(aiohttp.ClientError):
        await api.post(secrets, {"metadata": {"name": "a"}})
    assert (await api.get(f"{secrets}/a")).code == 404
    fake.faults.add(on("create", "secrets"), Cut.AFTER)
    with pytest.raises(aiohttp.ClientError):
        await api.post(secrets, {"metadata": {"name": "a"}})
    assert (await api.get(f"{secrets}/a")).code == 200
    assert [handled.code for handled in fake.requests if handled.seen.verb == "create"][-2:] == [0, 0]


async def test_a_request_can_be_delayed(api, fake, secrets):
    fault = fake.faults.add(on("list"), 0.01, times=2)
    assert (await api.get(secrets)).code == 200
    fake.faults.remove(fault)
    fake.faults.remove(fault)
    assert (await api.get(secrets)).code == 200
    assert fault.hits == 1


async def test_a_request_can_be_held(api, fake, secrets):
    hold = Hold()
    fake.faults.add(on("create", "secrets"), hold)
    waiting = asyncio.create_task(api.post(secrets, {"metadata": {"name": "a"}}))
    await hold.arrived.wait()
    assert (await api.get(f"{secrets}/a")).code == 404
    hold.release()
    assert (await waiting).code == 201


async def test_a_client_that_leaves_ends_its_watch_but_not_its_write(api, fake, secrets):
    async with api.watch(secrets):
        await fake.wait_for_watches("secrets")
    async with asyncio.timeout(10):
        await fake.wait_for_no_watches("secrets")
    hold = Hold()
    fake.faults.add(on("create", "secrets"), hold)
    writing = asyncio.create_task(api.post(secrets, {"metadata": {"name": "a"}}))
    await hold.arrived.wait()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    hold.release()
    async with asyncio.timeout(10):
        while (await api.get(f"{secrets}/a")).code != 200:
            pass


async def test_the_official_client_understands_it(fake, tmp_path):
    path = fake.kubeconfig(tmp_path / "config")

    def talk():
        from kubernetes import client, config, watch

        core = client.CoreV1Api(config.new_client_from_config(path))
        container = client.V1Container(name="main", image="registry.example/app:1")
        made = core.create_namespaced_pod(
            "default",
            client.V1Pod(metadata=client.V1ObjectMeta(name="a"), spec=client.V1PodSpec(containers=[container])),
        )
        core.patch_namespaced_pod("a", "default", {"metadata": {"labels": {"x": "y"}}})
        core.create_namespaced_binding(
            "default",
            client.V1Binding(
                metadata=client.V1ObjectMeta(name="a"), target=client.V1ObjectReference(kind="Node", name="n1")
            ),
            _preload_content=False,
        )
        found = core.list_pod_for_all_namespaces(field_selector="spec.nodeName=n1").items
        core.delete_namespaced_pod("a", "default", grace_period_seconds=0)
        stream = watch.Watch().stream(
            core.list_namespaced_pod,
            "default",
            resource_version=made.metadata.resource_version,
            timeout_seconds=1,
        )
        return made, found, [event["type"] for event in stream]

    made, found, seen = await asyncio.to_thread(talk)
    assert made.status.phase == "Pending"
    assert [(pod.metadata.name, pod.metadata.labels, pod.spec.node_name) for pod in found] == [("a", {"x": "y"}, "n1")]
    assert seen == ["MODIFIED", "MODIFIED", "MODIFIED", "DELETED"]


async def test_users_by_token_and_their_rights():
    def authorize(user, verb, target):
        return user.name == ADMIN.name or (verb, target.resource.plural) == ("get", "nodes")

    agent = service_account("tessera-system", "node", node="n1")
    async with FakeApiServer(anonymous=None, authorize=authorize) as fake, aiohttp.ClientSession() as session:
        fake.add_node("n1")

        async def get(path, token=None):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with session.get(fake.url + path, headers=headers) as response:
                return response.status, await response.json()

        assert (await get("/api/v1/nodes/n1"))[0] == 401
        assert (await get("/api/v1/nodes/n1", "wrong"))[0] == 401
        token = fake.token(agent)
        assert (await get("/api/v1/nodes/n1", token))[0] == 200
        code, body = await get("/api/v1/nodes", token)
        assert (code, body["reason"]) == (403, "Forbidden")
        assert 'User "system:serviceaccount:tessera-system:node" cannot list resource "nodes"' in body["message"]
        fake.revoke(token)
        assert (await get("/api/v1/nodes/n1", token))[0] == 401
        assert fake.requests[-1].seen.user == agent


async def test_webhooks_see_who_asks(*, api, fake, namespace, make, webhook, register):
    await register()
    user = service_account("tessera-system", "node", node="n1")
    headers = {"Authorization": f"Bearer {fake.token(user)}"}
    url = f"{fake.url}/api/v1/namespaces/{namespace}/pods"
    async with api.session.post(url, json=make.pod("a"), headers=headers) as response:
        assert response.status == 201
    info = webhook.asked[0]["request"]["userInfo"]
    assert info["username"] == "system:serviceaccount:tessera-system:node"
    assert "system:serviceaccounts" in info["groups"]
    assert info["extra"] == {"authentication.kubernetes.io/node-name": ["n1"]}


async def test_webhooks_named_by_service_are_found(make, webhook):
    address = webhook.url.removeprefix("https://")
    async with (
        FakeApiServer(services={"tessera-system/tessera-webhook": address}) as fake,
        aiohttp.ClientSession() as session,
    ):
        service = {"namespace": "tessera-system", "name": "tessera-webhook", "path": "/mutate"}
        config = {"service": service, "caBundle": webhook.bundle}
        body = webhook.configuration("MutatingWebhookConfiguration", "m", "default", clientConfig=config)
        fake.put("mutatingwebhookconfigurations", body)
        async with session.post(f"{fake.url}/api/v1/namespaces/default/pods", json=make.pod("a")) as response:
            assert response.status == 201, await response.text()
        assert len(webhook.asked) == 1
        service["name"] = "other"
        body = webhook.configuration("MutatingWebhookConfiguration", "m", "default", clientConfig=config)
        fake.put("mutatingwebhookconfigurations", body)
        async with session.post(f"{fake.url}/api/v1/namespaces/default/pods", json=make.pod("b")) as response:
            assert 'service "other" not found' in (await response.json())["message"]


async def test_match_conditions_are_the_tests_business(make, webhook):
    def decide(expression, request):
        return expression == "has gpu" and "gpu" in json.dumps(request["object"])

    async with FakeApiServer(match_condition=decide) as fake, aiohttp.ClientSession() as session:
        conditions = [{"name": "gpu", "expression": "has gpu"}]
        body = webhook.configuration("MutatingWebhookConfiguration", "m", "default", matchConditions=conditions)
        fake.put("mutatingwebhookconfigurations", body)
        for name, asked in (("plain", 0), ("with-gpu", 1)):
            async with session.post(f"{fake.url}/api/v1/namespaces/default/pods", json=make.pod(name)) as response:
                assert response.status == 201
            assert len(webhook.asked) == asked


async def test_labels_of_a_binding_are_copied_where_asked(make):
    async with FakeApiServer(copies_binding_labels=True) as fake, aiohttp.ClientSession() as session:
        pods = f"{fake.url}/api/v1/namespaces/default/pods"
        async with session.post(pods, json=make.pod("a")):
            pass
        async with session.post(f"{pods}/a/binding", json=make.binding("a", "n1", labels={"zone": "z"})) as response:
            assert response.status == 201
        assert fake.get("pods", "a", "default")["metadata"]["labels"] == {"zone": "z"}


async def test_direct_access_for_tests(fake):
    fake.add_node("n1", labels={"gpu": "yes"}, allocatable={"tessera.dev/gpu-memory.256Mi": "316"})
    fake.put("pods", {"metadata": {"name": "p", "namespace": "default"}, "spec": {"nodeName": "n1"}})
    assert fake.get("nodes", "n1")["status"]["allocatable"]["tessera.dev/gpu-memory.256Mi"] == "316"
    assert [pod["metadata"]["name"] for pod in fake.objects("pods", "default")] == ["p"]
    assert fake.objects("pods", "kube-system") == []
    uid = fake.get("pods", "p", "default")["metadata"]["uid"]
    fake.put("pods", {"metadata": {"name": "p", "namespace": "default", "labels": {"x": "y"}}})
    assert fake.get("pods", "p", "default")["metadata"]["uid"] == uid
    fake.remove("pods", "p", "default")
    assert fake.get("pods", "p", "default") is None
    with pytest.raises(KeyError):
        fake.remove("pods", "p", "default")
    with pytest.raises(KeyError, match="Nothing"):
        fake.load({"apiVersion": "v1", "kind": "Nothing", "metadata": {"name": "a"}})


async def test_a_server_that_restarts_keeps_its_objects_and_its_port():
    async with FakeApiServer() as fake:
        fake.add_node("n1")
        url = fake.url
        await fake.stop()
        await fake.start()
        assert fake.url == url
        async with aiohttp.ClientSession() as session, session.get(f"{url}/api/v1/nodes/n1") as response:
            assert response.status == 200


def read(path):
    return json.loads(Path(path).read_text()), Path(path).stat().st_mode


async def test_tls_with_client_certificates(tmp_path):
    user = User(name="system:node:n1", groups=("system:nodes",))
    seen = []

    def authorize(user, verb, target):
        del verb, target
        seen.append((user.name, user.groups))
        return True

    async with FakeApiServer(tls=True, anonymous=None, authorize=authorize) as fake:
        config, mode = read(fake.kubeconfig(tmp_path / "config", user=user, certificate=True))
        assert mode & 0o077 == 0
        credentials = config["users"][0]["user"]
        context = ssl.create_default_context(cafile=config["clusters"][0]["cluster"]["certificate-authority"])

        async def ask():
            async with (
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
                session.get(f"{fake.url}/api/v1/nodes") as response,
            ):
                return response.status

        assert await ask() == 401
        context.load_cert_chain(credentials["client-certificate"], credentials["client-key"])
        assert await ask() == 200
    assert seen == [("system:node:n1", ("system:nodes",))]


async def test_certificates_need_tls(tmp_path, fake):
    with pytest.raises(ValueError, match="tls=True"):
        fake.kubeconfig(tmp_path / "config", certificate=True)


async def test_it_runs_as_a_process(tmp_path):
    manifest = tmp_path / "objects.yaml"
    manifest.write_text("apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n---\n")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tessera.testing.apiserver", "--listen", "127.0.0.1:0"),
        *("--kubeconfig", str(tmp_path / "config"), "--load", str(manifest), "--exit-with-stdin"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(20):
            ready = json.loads(await process.stdout.readline())
            token = json.loads((tmp_path / "config").read_text())["users"][0]["user"]["token"]
            headers = {"Authorization": f"Bearer {token}"}
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.get(f"{ready['url']}/api/v1/nodes") as response,
            ):
                assert [item["metadata"]["name"] for item in (await response.json())["items"]] == ["n1"]
            process.stdin.close()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()


async def test_a_process_that_can_not_start_says_why(tmp_path):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tessera.testing.apiserver", "--load", str(tmp_path / "none.yaml")),
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        _, said = await process.communicate()
    assert process.returncode == 2
    assert b"none.yaml" in said
    assert b"Traceback" not in said
