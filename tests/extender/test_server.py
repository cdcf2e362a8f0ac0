"""What comes over HTTP is hostile: it is refused with a message, and the next request is answered as if nothing were."""

from __future__ import annotations

import asyncio
import json

import pytest

from tessera.model.config import Config, Preemption
from tessera.model.names import names
from webhook.extender.http import Limits

NAMES = names()
PATHS = ("/filter", "/bind", "/prioritize", "/preempt")


async def send(rig, path, body, **more):
    async with rig.session.post(rig.url + path, data=body, **more) as answer:
        return answer.status, await answer.text()


async def alive(rig, pod):
    answer = await rig.filter(pod("alive"), "n1")
    assert answer["NodeNames"] == ["n1"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="half"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"{}", id="an empty object"),
        pytest.param(b"\xff\xfe{}", id="not UTF-8"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"Pod":' * 5_000, id="deep objects"),
        pytest.param(b'{"Pod":{"metadata":{"name":"\xff"}},"NodeNames":["n1"]}', id="a name that is not UTF-8"),
        pytest.param(b'{"Pod":7,"NodeNames":["n1"],"PodName":7}', id="wrong types"),
    ],
)
async def test_malformed_bodies_are_400_with_a_message(rig, pod, path, body):
    status, text = await send(rig, path, body)
    assert status == 400
    assert len(text) > 10
    assert "Traceback" not in text
    await alive(rig, pod)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/filter", {"NodeNames": ["n1"]}, "Pod is missing"),
        ("/filter", {"Pod": {}}, "neither NodeNames nor Nodes"),
        ("/filter", {"Pod": {}, "NodeNames": [1]}, "NodeNames"),
        ("/filter", {"Pod": {}, "NodeNames": "n1"}, "NodeNames"),
        ("/filter", {"Pod": {}, "Nodes": {"items": [{}]}}, "Nodes"),
        ("/filter", {"Pod": {}, "Nodes": {"items": [{"metadata": {}}]}}, "no name of a node"),
        ("/prioritize", {"Pod": {}, "NodeNames": {"a": 1}}, "NodeNames"),
        ("/bind", {"PodName": "p", "PodNamespace": "d", "PodUID": "u"}, "Node"),
        ("/bind", {"PodName": "p", "PodNamespace": "", "PodUID": "u", "Node": "n"}, "PodNamespace"),
        ("/bind", {"PodName": "../x", "PodNamespace": "d", "PodUID": "u", "Node": "n"}, "PodName"),
        ("/bind", {"PodName": "p" * 300, "PodNamespace": "d", "PodUID": "u", "Node": "n"}, "PodName"),
        ("/preempt", {"NodeNameToMetaVictims": {}}, "Pod is missing"),
    ],
)
async def test_what_is_missing_or_wrong_is_named(rig, path, body, message):
    asking = body
    if path in ("/filter", "/prioritize") and body.get("Pod") == {}:
        asking = body | {"Pod": {"spec": {"containers": [{"resources": {"limits": {NAMES.memory_units: 1}}}]}}}
    status, text = await send(rig, path, json.dumps(asking))
    assert (status, message in text) == (400, True), text


@pytest.mark.parametrize(
    "limits",
    [
        {NAMES.memory_units: "1.5"},
        {NAMES.memory_units: "-3"},
        {NAMES.memory_units: "9" * 5000},
        {NAMES.memory_units: "1", NAMES.memory_percent: "1"},
        {NAMES.mig("1g"): "1", NAMES.mig("2g"): "1"},
        {NAMES.memory_percent: "6401"},
        {NAMES.compute_percent: 1e300},
    ],
)
async def test_tickets_that_make_no_sense_are_refused_on_every_node(rig, limits):
    rig.put_node("n1", 64)
    await rig.caught_up()
    odd = {
        "metadata": {"name": "p", "namespace": "d", "uid": "u"},
        "spec": {"containers": [{"name": "main", "resources": {"limits": limits}}]},
    }
    answer = await rig.filter(odd, "n1", "n2")
    assert answer["NodeNames"] == []
    assert set(answer["FailedAndUnresolvableNodes"]) == {"n1", "n2"}
    assert all(len(text) < 700 for text in answer["FailedAndUnresolvableNodes"].values())


async def test_a_pod_with_nulls_everywhere_is_just_a_pod(rig):
    odd = {"metadata": {"annotations": None, "labels": None}, "spec": {"containers": None, "affinity": None}}
    answer = await rig.filter(odd, "n1")
    assert answer["NodeNames"] == ["n1"]


async def test_other_paths_and_methods(rig, pod):
    for path, method, status in (("/", "GET", 404), ("/filter", "GET", 405), ("/filter/../bind", "POST", 400)):
        async with rig.session.request(method, rig.url + path, data=b"{}" if method == "POST" else None) as answer:
            assert answer.status == status
    await alive(rig, pod)


async def test_bodies_are_bounded(new_rig, pod):
    rig = await new_rig(limits=Limits(body=10_000, bodies=15_000, body_time=0.2))
    status, text = await send(rig, "/filter", b"x" * 10_001)
    assert (status, "at most 10000" in text) == (413, True)

    async def chunks():
        yield b"{}"

    assert (await send(rig, "/filter", chunks()))[0] == 411
    await alive(rig, pod)


async def raw(rig):
    return await asyncio.open_connection(rig.listener.address.host, rig.listener.address.port)


HEAD = b"POST /filter HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


async def read_status(rig, reader):
    line = await rig.soon(reader.readline())
    return int(line.split()[1]) if line else 0


async def test_a_body_that_trickles_in_is_cut_off(new_rig, pod):
    rig = await new_rig(limits=Limits(body_time=0.05))
    reader, writer = await raw(rig)
    writer.write(HEAD % 100 + b"{")
    assert await read_status(rig, reader) == 408
    writer.close()
    await alive(rig, pod)


async def test_large_bodies_share_a_bound(new_rig, pod):
    rig = await new_rig(limits=Limits(body=10_000, bodies=15_000))
    first_reader, first = await raw(rig)
    first.write(HEAD % 9_000)
    await first.drain()
    await rig.until(lambda: rig.listener.bodies == 9_000)
    second_reader, second = await raw(rig)
    second.write(HEAD % 9_000)
    assert await read_status(rig, second_reader) == 503
    await alive(rig, pod)
    first.close()
    second.close()
    await rig.until(lambda: rig.listener.bodies == 0)
    assert await rig.soon(first_reader.read()) == b""


async def test_connections_that_do_nothing_make_room(new_rig, pod):
    rig = await new_rig(limits=Limits(connections=4))
    opened = [await raw(rig) for _ in range(4)]
    await alive(rig, pod)
    assert await rig.soon(opened[0][0].read()) == b"", "the oldest was closed"
    for _, writer in opened:
        writer.close()


async def test_idle_connections_end(new_rig):
    rig = await new_rig(limits=Limits(idle=0.05))
    reader, writer = await raw(rig)
    writer.write(b"POST /filter HT")
    assert await rig.soon(reader.read()) == b""
    writer.close()


async def test_garbage_instead_of_http(rig, pod):
    for garbage in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"A" * 100_000):
        reader, writer = await raw(rig)
        writer.write(garbage)
        if garbage[0] != 0x16:
            await rig.soon(reader.read())
        writer.close()
    await alive(rig, pod)


async def test_a_compressed_bomb_is_no_json(rig, pod):
    import gzip

    status, _ = await send(rig, "/filter", gzip.compress(b" " * 50_000_000), headers={"Content-Encoding": "gzip"})
    assert status == 400
    await alive(rig, pod)


async def test_while_draining_answers_end_their_connections(rig, pod):
    rig.listener.draining = True
    async with rig.session.post(f"{rig.url}/filter", data=json.dumps({"Pod": pod("p"), "NodeNames": ["n1"]})) as answer:
        assert answer.status == 200
        assert answer.headers["Connection"] == "close"


async def test_errors_are_counted_and_time_is_measured(rig, pod):
    await send(rig, "/filter", b"{")
    await alive(rig, pod)
    value = rig.registry.get_sample_value
    assert value("tessera_extender_bad_requests_total", {"status": "400"}) == 1
    assert value("tessera_extender_request_seconds_count", {"verb": "filter"}) == 2


async def test_preempt_keeps_the_nodes_where_it_would_help(rig, pod):
    rig.put_node("n1", 64)
    rig.put_node("n2", 64, held=60)
    rig.put_node("n3", 64)
    await rig.caught_up()
    for name in ("a", "b"):
        await rig.bind(rig.put_pod(name, units=30), "n1")
        await rig.bind(rig.put_pod(f"{name}3", units=30), "n3")
    await rig.caught_up()
    victims = {
        "n1": {"Pods": [{"UID": "uid-a"}], "NumPDBViolations": 2},
        "n2": {"Pods": [{"UID": "uid-a"}], "NumPDBViolations": 0},
        "n3": {"Pods": [], "NumPDBViolations": 0},
        "nowhere": {"Pods": None, "NumPDBViolations": 0},
    }
    answer = await rig.post("/preempt", {"Pod": pod("p", units=30), "NodeNameToMetaVictims": victims})
    assert answer == {"NodeNameToMetaVictims": {"n1": victims["n1"]}}
    whole = {"n1": {"Pods": [{"metadata": {"uid": "uid-a"}}], "NumPDBViolations": 2}}
    answer = await rig.post("/preempt", {"Pod": pod("p", units=30), "NodeNameToVictims": whole})
    assert answer == {"NodeNameToMetaVictims": {"n1": victims["n1"]}}
    answer = await rig.post("/preempt", {"Pod": pod("p"), "NodeNameToMetaVictims": victims})
    assert answer == {"NodeNameToMetaVictims": victims}
    odd = pod("p", units=30, annotations={NAMES.guarantee: "iron"})
    answer = await rig.post("/preempt", {"Pod": odd, "NodeNameToMetaVictims": victims})
    assert answer == {"NodeNameToMetaVictims": {}}


async def test_preempt_adds_nobody_whom_a_budget_may_protect(rig, pod):
    """kube-scheduler deletes victims; ours go by evictions, once the pod has come to the filter."""
    rig.put_node("n1", 64, 64)
    rig.put_node("n2", 64)
    rig.put_node("n3", 64)
    await rig.caught_up()
    for name, node, priority in (("a", "n1", 3), ("b", "n1", 2), ("c", "n2", 100)):
        await rig.bind(rig.put_pod(name, units=50, spec={"priority": priority}), node)
    await rig.caught_up()
    nobody = {"Pods": [], "NumPDBViolations": 0}
    victims = {"n1": nobody, "n2": {"Pods": None}, "n3": nobody}
    high = pod("p", units=30, spec={"priority": 100})
    answer = await rig.post("/preempt", {"Pod": high, "NodeNameToMetaVictims": victims})
    assert answer["NodeNameToMetaVictims"] == {"n3": nobody}, "newer kube-schedulers ask with no victims too"
    other = {"Pods": [{"UID": "uid-x"}], "NumPDBViolations": 1}
    answer = await rig.post("/preempt", {"Pod": high, "NodeNameToMetaVictims": {"n1": other, "n2": other}})
    assert answer["NodeNameToMetaVictims"] == {"n1": other}
    rig.config = Config(preemption=Preemption(enabled=False))
    answer = await rig.post("/preempt", {"Pod": high, "NodeNameToMetaVictims": {"n1": other}})
    assert answer["NodeNameToMetaVictims"] == {}
    rig.config = Config(preemption=Preemption(enabled=False))
    answer = await rig.post("/preempt", {"Pod": high, "NodeNameToMetaVictims": victims})
    assert set(answer["NodeNameToMetaVictims"]) == {"n3"}
