"""`tessera top`: booked from the objects, used from the agents' metrics, and what is said where they can't be asked."""

import io
import json

import msgspec
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from deviceplugin.monitor import Monitor, Owner, Report, Usage
from tessera.cli.top import show
from tessera.model.names import names
from tessera.model.node import Node
from tessera.model.pod import Pod
from tessera.report.cluster import view
from tessera.report.usage import MeasureError, Place, join, read
from tessera.testing.apiserver import status
from tessera.testing.apiserver.faults import on

A, B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
GIB = 1 << 30
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil"


def metrics(*usage, held=None, above=()):
    """An agent's own metrics page, made by its monitor."""
    registry = CollectorRegistry()
    monitor = Monitor(None, lambda _: None, unit=names().memory_unit, registry=registry)
    monitor.report = Report(usage=tuple(usage), held=held or {})
    monitor._open = dict.fromkeys(above)
    return generate_latest(registry)


def objects(cluster):
    """Nodes and pods as the fake has them."""
    return (
        [msgspec.convert(tree, Node) for tree in cluster.api.objects("nodes")],
        [msgspec.convert(tree, Pod) for tree in cluster.api.objects("pods")],
    )


def used(pod, amount, *, gpu=A, container="main", allowed=10 * GIB):
    owner = Owner(f"uid-{pod}", container)
    return Usage(owner=owner, gpu=gpu, namespace="default", pod=pod, used=amount, allowed=allowed, processes=1)


@pytest.fixture
async def serve(cluster):
    """Serve a page as a node agent's metrics, and put its pod there."""
    runners = []

    async def start(node, page, *, code=200):
        async def answer(_):
            return web.Response(body=page, status=code)

        app = web.Application()
        app.router.add_get("/metrics", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        cluster.agent(node, ports=[{"name": "status", "containerPort": 7777}])
        cluster.proxied[f"tessera-system/tessera-node-{node}:7777"] = f"127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def test_booked_only_where_no_agent_can_be_asked(cluster):
    cluster.node()
    cluster.pod("one", 40, node="n1")
    code, out, err = await cluster.run("top")
    assert (code, err) == (0, "")
    assert "2 GPUs on 1 node: 10 GiB of 45 GiB booked (22%); what is used is not known" in out
    assert "not measured: n1 (no agent's pod is there)" in out


async def test_used_beside_booked(cluster, serve):
    cluster.node()
    cluster.pod("one", 40, node="n1")
    cluster.pod("two", 20, node="n1")
    await serve("n1", metrics(used("one", 3 * GIB), used("two", 6 * GIB), above=[(Owner("uid-two", "main"), A)]))
    code, out, _ = await cluster.run("top", "-o", "json")
    found = json.loads(out)
    first = found["nodes"][0]["gpus"][0]
    assert code == 0
    assert (first["booked"], first["used"]) == (15 * GIB, 9 * GIB)
    assert [(s["pod"], s["used"], s["above"]) for s in first["slices"]] == [
        ("default/one", 3 * GIB, False),
        ("default/two", 6 * GIB, True),
    ]
    assert (found["used"], found["measuredNodes"]) == (9 * GIB, 1)
    _, out, _ = await cluster.run("top")
    assert "15 GiB of 45 GiB booked (33%), 9 GiB used" in out
    assert "2: default/two (above), default/one" in out
    _, out, _ = await cluster.run("top", "-o", "wide", "n1")
    assert "default/two main above its slice" in out


async def test_a_narrow_terminal_has_no_bars(cluster):
    cluster.node()
    cluster.pod("one", 40, node="n1")
    found = join(view(*objects(cluster), names()), {})
    wide, narrow = (Console(width=width, file=io.StringIO(), color_system=None) for width in (120, 80))
    for out in (wide, narrow):
        show(found, out)
    assert "▒" in wide.file.getvalue().partition("memory in GiB")[0]
    assert "▒" not in narrow.file.getvalue().partition("memory in GiB")[0]
    assert "1: default/one" in narrow.file.getvalue()


@pytest.mark.parametrize("width", [72, 80, 100])
async def test_a_narrow_terminal_loses_names_of_pods_before_numbers(cluster, width):
    cluster.node("gpu-node-1", model="NVIDIA A100-SXM4-80GB")
    for at in range(6):
        cluster.pod(f"a-job-with-a-long-name-{at}", 10, node="gpu-node-1")
    out = Console(width=width, file=io.StringIO(), color_system=None)
    show(join(view(*objects(cluster), names()), {}), out)
    header, first, second = [line for line in out.file.getvalue().splitlines() if line.strip()][1:4]
    assert header.split()[:3] == ["NODE", "GPU", "MODEL"]
    assert all(title in header for title in ("USED", "BOOKED", "OF", "COMPUTE", "PODS"))
    assert "15.0  22.5" in first
    assert first.startswith("gpu-node-1  0")
    assert "6: " in first
    assert second.split()[0] == "1"
    assert max(map(len, out.file.getvalue().splitlines()[2:5])) <= width


async def test_what_holds_no_slice_and_what_strangers_use(cluster, serve):
    cluster.node()
    await serve("n1", metrics(used("gone", GIB, container=""), held={A: 8}))
    _, out, _ = await cluster.run("top", "-o", "wide")
    assert "default/gone holds no slice" in out
    assert "processes without a slice" in out
    assert "3 GiB used" in out


@pytest.mark.parametrize(
    "page",
    [
        b"<html>",
        b"\xff\xfe",
        b'tessera_container_gpu_memory_used_bytes{pod="p"} NaN\n',
        b'tessera_container_gpu_memory_used_bytes{pod="p"} -1\n',
        b'tessera_gpu_foreign_units{gpu="aaaaaaaaaaaa"} 1e300\n',
        b'tessera_container_gpu_memory_used_bytes{pod="\n',
    ],
)
async def test_an_agent_that_answers_nonsense_is_not_measured(cluster, serve, page):
    cluster.node()
    await serve("n1", page)
    code, out, _ = await cluster.run("top")
    assert code == 0
    assert "what is used is not known" in out or "0 GiB used" in out


async def test_hostile_names_in_metrics_and_objects(cluster, serve):
    cluster.node(model=f"A10{HOSTILE}", annotations={"tessera.dev/drift": HOSTILE})
    cluster.node("n2", model=f"A10[red]{HOSTILE}")
    await serve("n2", metrics(used(HOSTILE, GIB, container=HOSTILE)))
    for output in ("table", "wide", "json"):
        assert (await cluster.run("top", "-o", output))[0] == 0


async def test_one_refusal_stands_for_all_agents(cluster):
    for at in range(40):
        cluster.node(f"n{at}")
        cluster.agent(f"n{at}")
    cluster.api.faults.add(on("get", "pods", subresource="proxy"), status.forbidden("", "pods", "x", "no"), times=None)
    cluster.api.forget_requests()
    _, out, _ = await cluster.run("top")
    assert 'and 35 more (pods/proxy: not permitted (403); pods "x" is forbidden: no)' in out
    assert sum(each.seen.subresource == "proxy" for each in cluster.api.requests) < 40


async def test_an_agent_that_is_away_leaves_the_others(cluster, serve):
    cluster.node("n1")
    cluster.node("n2")
    cluster.pod("one", 40, node="n1")
    cluster.agent("n2")
    await serve("n1", metrics(used("one", GIB)))
    _, out, _ = await cluster.run("top")
    assert "1 GiB used on the 1 node that could be asked" in out
    assert "not measured: n2 (agent tessera-system/tessera-node-n2" in out


async def test_nodes_that_are_not_there(cluster):
    cluster.node()
    code, out, err = await cluster.run("top", "n1", "n7")
    assert (code, out) == (3, "")
    assert err == "tessera top: no GPU node n7; there are n1\n"


async def test_a_cluster_without_gpus(cluster):
    code, out, _ = await cluster.run("top")
    assert code == 0
    assert "No node has a Tessera inventory" in out


async def test_pods_that_may_not_be_listed(cluster):
    cluster.api.faults.add(on("list", "pods"), status.forbidden("", "pods", "", "no"), times=None)
    code, _, err = await cluster.run("top")
    assert code == 3
    assert err == "tessera top: could not look: pods: not permitted (403); pods is forbidden: no\n"


def test_the_agent_s_own_metrics_are_read():
    found = read(metrics(used("one", 5), held={B: 2}, above=[(Owner("uid-one", "main"), A)]).decode())
    place = Place(A, "default/one", "main")
    assert (found.used, found.above, found.foreign) == ({place: 5}, {place}, {B: 2})


def test_a_page_too_large_is_refused():
    with pytest.raises(MeasureError, match="characters"):
        read("#" * (9 << 20))
