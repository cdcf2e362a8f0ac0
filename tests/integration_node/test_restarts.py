"""Kubelet and agent restart, in every order, and nothing is lost or given twice."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from deviceplugin.errors import LedgerFileError
from deviceplugin.ledgerfile import read
from tessera.model.names import names

UNITS, PERCENT, COMPUTE = names().tickets


def ledger(cluster):
    return {(grant.uid, grant.container): grant.devices for grant in cluster.agent.board.ledger}


async def test_pods_bound_while_the_kubelet_is_away_are_admitted(make_cluster):
    cluster = await make_cluster()
    old = cluster.pod("old", {UNITS: 16, COMPUTE: 10}, plan={"main": [(1, 16, 10)]})
    await cluster.running_pod("old")
    before = cluster.kubelet.allocations()[old]
    await cluster.node.stop()
    fresh = [cluster.pod(f"new{n}", {UNITS: 16, COMPUTE: 10}, plan={"main": [(n % 2, 16, 10)]}) for n in range(4)]
    await cluster.node.start()
    for number, uid in enumerate(fresh):
        await cluster.running_pod(f"new{number}")
        assert {cluster.gpu(number % 2)} == cluster.given(uid)[UNITS]
    assert before == cluster.kubelet.allocations()[old]
    assert cluster.phase("old") == "Running"


async def test_the_agent_survives_a_kubelet_that_restarts_several_times(make_cluster):
    cluster = await make_cluster()
    for round_ in range(3):
        await cluster.node.restart()
        await cluster.serving()
        cluster.pod(f"p{round_}", {UNITS: 8}, plan={"main": [(round_ % 2, 8, 0)]})
        await cluster.running_pod(f"p{round_}")
    assert len(cluster.agent.board.ledger) == 3


@pytest.mark.parametrize("damage", ["none", "cut", "garbage", "missing", "other version"])
async def test_a_killed_agent_knows_everything_again(make_cluster, damage):
    cluster = await make_cluster()
    cluster.pod("p", {UNITS: 16, COMPUTE: 10}, plan={"main": [(1, 16, 10)]})
    cluster.pod("q", {UNITS: 16})
    cluster.pod(
        "r",
        init=[("warm", {UNITS: 40})],
        containers=[("main", {UNITS: 30})],
        plan={"warm": [(0, 40, 0)], "main": [(0, 30, 0)]},
    )
    for name in "pqr":
        await cluster.running_pod(name)
    before = ledger(cluster)
    held = [cluster.agent.board.ledger.held(cluster.gpu(index)) for index in (0, 1)]
    path = Path(cluster.folder) / "state" / "ledger.json"
    await cluster.until(path.exists)
    await cluster.kill_agent()
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:50])
        case "garbage":
            path.write_bytes(os.urandom(4096))
        case "missing":
            path.unlink()
        case "other version":
            path.write_text('{"v":2,"grants":[]}')
    await cluster.start_agent()
    assert before == ledger(cluster)
    assert held == [cluster.agent.board.ledger.held(cluster.gpu(index)) for index in (0, 1)]
    q = next(grant for grant in cluster.agent.board.ledger if grant.name == "q")
    await cluster.until(lambda: list(cluster.drift()) == [q.uid])


async def test_the_agent_starts_before_its_kubelet(make_cluster):
    cluster = await make_cluster(agent=False)
    await cluster.node.stop()
    cluster.agent = await cluster.make_agent()
    cluster.running = asyncio.create_task(cluster.agent.run(cluster.stop))
    await cluster.until(lambda: cluster.agent.board.offers and cluster.agent.checks["kubelet"]())
    await cluster.node.start()
    await cluster.serving()


async def test_sockets_of_a_crashed_agent_are_cleaned_up(make_cluster):
    cluster = await make_cluster(agent=False)
    left = Path(cluster.kubelet.paths.plugins) / "tessera-dead00-1.sock"
    left.touch()
    await cluster.start_agent()
    assert not left.exists()


async def test_a_full_disk_stops_nothing_and_is_reported(make_cluster):
    cluster = await make_cluster()
    state = Path(cluster.folder) / "state"
    draft = state / "ledger.json.new"
    draft.mkdir()
    cluster.pod("p", {UNITS: 16}, plan={"main": [(0, 16, 0)]})
    await cluster.running_pod("p")
    await cluster.until(cluster.agent.checks["ledger"])
    assert "can't be written" in cluster.agent.checks["ledger"]()
    draft.rmdir()
    await cluster.until(lambda: cluster.agent.checks["ledger"]() is None)
    assert [grant.name for grant in read(str(state / "ledger.json"))] == ["p"]


def test_a_ledger_file_with_strange_ids_is_refused(tmp_path):
    path = tmp_path / "ledger.json"
    path.write_text('{"v":1,"grants":[{"uid":"u","container":"c","devices":{"r":["../../etc/passwd"]}}]}')
    with pytest.raises(LedgerFileError, match="not a device ID"):
        read(str(path))
