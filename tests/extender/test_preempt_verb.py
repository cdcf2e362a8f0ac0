"""The verb preempt over many nodes: others get the loop in between, and a client that has gone away is not served on."""

from __future__ import annotations

import asyncio
import json

import pytest

from webhook.extender.candidates import Candidates
from webhook.extender.preempt import preempt
from webhook.extender.wire import read_preempt

NODES = 64


@pytest.fixture
async def asked(rig, pod):
    """A call about many nodes, each filled by one pod of lower priority."""
    for number in range(NODES):
        rig.put_node(f"n{number}", 64)
    await rig.caught_up()
    for number in range(NODES):
        assert await rig.bind(rig.put_pod(f"low-{number}", units=64), f"n{number}") == ""
    await rig.caught_up()
    victims = {f"n{number}": {"Pods": [{"UID": "uid-x"}], "NumPDBViolations": 0} for number in range(NODES)}
    high = pod("high", units=64, spec={"priority": 9})
    return read_preempt(json.dumps({"Pod": high, "NodeNameToMetaVictims": victims}).encode())


@pytest.fixture
def candidates(rig, clock):
    return Candidates(rig.cluster, clock=clock)


async def test_others_get_the_loop_in_between(rig, asked, candidates):
    call = asyncio.create_task(preempt(asked, rig.cluster, rig.config, candidates, gone=lambda: False))
    turns = 0
    while not call.done():
        turns += 1
        await asyncio.sleep(0)
    found = (await call).NodeNameToMetaVictims
    assert [len(each.Pods or ()) for each in found.values()] == [1] * NODES
    assert turns > NODES / 16


async def test_who_has_gone_away_is_not_searched_for(rig, asked, candidates, monkeypatch):
    searched = []
    on = candidates.on

    def counted(kept, node, **more):
        searched.append(node)
        return on(kept, node, **more)

    monkeypatch.setattr(candidates, "on", counted)
    found = await preempt(asked, rig.cluster, rig.config, candidates, gone=lambda: len(searched) > 3)
    assert len(searched) < NODES
    assert found.NodeNameToMetaVictims == {}
