"""`tessera inspect` against an API server: who holds what, and nothing that others wrote reaches the terminal as it is."""

import io
import json

import msgspec
import pytest
from rich.console import Console

from tessera.cli.inspect import show
from tessera.model.names import names
from tessera.model.node import Node
from tessera.model.pod import Pod
from tessera.report.cluster import view
from tessera.testing.apiserver import status
from tessera.testing.apiserver.faults import on

N = names()
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil"


async def test_who_holds_what(cluster):
    cluster.node()
    cluster.pod("train", 40, node="n1")
    cluster.pod("waits", 8)
    code, out, err = await cluster.run("inspect")
    assert (code, err) == (0, "")
    assert "10/22.5 GiB" in out
    assert "1: default/train" in out
    assert "waits: default/waits (main: 1 GPU, 2Gi of memory)" in out
    _, out, _ = await cluster.run("inspect", "-o", "wide", "n1")
    assert "default/train" in out


@pytest.mark.parametrize("width", [72, 80, 100])
async def test_a_narrow_terminal_loses_bars_before_amounts_and_names(cluster, width):
    cluster.node("gpu-node-1", model="NVIDIA A100-SXM4-80GB")
    cluster.pod("train", 40, node="gpu-node-1")
    nodes = [msgspec.convert(tree, Node) for tree in cluster.api.objects("nodes")]
    pods = [msgspec.convert(tree, Pod) for tree in cluster.api.objects("pods")]
    out = Console(width=width, file=io.StringIO(), color_system=None)
    show(view(nodes, pods, N), out)
    lines = [line.rstrip() for line in out.file.getvalue().splitlines()]
    assert all(title in lines[0] for title in ("NODE", "GPU", "MEMORY", "COMPUTE", "HELD BY", "PODS"))
    assert lines[1].startswith("gpu-node-1  0")
    assert "10/22.5 GiB" in lines[1]
    assert "watched/none" in lines[1]
    assert "█" not in lines[1]
    assert max(map(len, lines)) <= width


async def test_a_node_that_is_not_there(cluster):
    cluster.node()
    code, out, err = await cluster.run("inspect", "n7")
    assert (code, out, err) == (3, "", "tessera inspect: no GPU node n7; there are n1\n")


async def test_it_goes_by_the_installed_config_or_a_files(cluster, tmp_path):
    other = names(memory_unit=1 << 30)
    cluster.node()
    cluster.pod("waits", limits={other.memory_units: "8"})
    assert "waits: " not in (await cluster.run("inspect"))[1]
    path = tmp_path / "config.yaml"
    path.write_text("memoryUnit: 1Gi\n")
    assert (
        "waits: default/waits (main: 1 GPU, 8Gi of memory)" in (await cluster.run("inspect", "--config", str(path)))[1]
    )
    data = {"config.yaml": path.read_text()}
    cluster.api.put("configmaps", {"metadata": {"name": "tessera-config", "namespace": "tessera-system"}, "data": data})
    assert "waits: default/waits (main: 1 GPU, 8Gi of memory)" in (await cluster.run("inspect"))[1]


async def test_what_may_not_be_read_is_named(cluster):
    cluster.api.faults.add(on("list", "pods"), status.forbidden("", "pods", "", "no"), times=None)
    code, out, err = await cluster.run("inspect")
    assert (code, out) == (3, "")
    assert err.startswith("tessera inspect: could not look: pods: not permitted (403)")


async def test_an_api_server_that_is_away(cluster):
    await cluster.api.stop()
    code, out, err = await cluster.run("inspect")
    assert (code, out) == (3, "")
    assert err.startswith("tessera inspect: could not look: ")


@pytest.mark.parametrize("output", ["table", "wide", "json"])
async def test_hostile_objects_do_nothing_to_a_terminal(cluster, output):
    cluster.node(model=f"[bold]A10{HOSTILE}")
    cluster.node("n2", annotations={N.inventory: HOSTILE})
    cluster.pod("evil", 8, node="n1")
    code, out, _ = await cluster.run("inspect", "-o", output)
    assert code == 0
    assert "[bold]A10" in out
    if output == "json":
        assert json.loads(out)["nodes"][0]["gpus"][0]["model"] == f"[bold]A10{HOSTILE}"
