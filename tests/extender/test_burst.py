"""200 equal pods at once: none is lost, hardly any needs a second attempt, and no GPU holds more than it has."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

PODS = 200


@pytest.fixture
async def nodes(rig):
    """Room for 208 quarters of a GPU."""
    for number in range(13):
        rig.put_node(f"n{number:02d}", 64, 64, 64, 64)
    await rig.caught_up()
    return rig


def overfull(rig):
    held = Counter()
    for pod in rig.server.objects("pods"):
        for piece in rig.plan(pod["metadata"]["name"])["containers"]["main"]:
            held[piece["gpu"]] += piece["units"]
    return [gpu for gpu, units in held.items() if units > 64]


async def again(rig, refused):
    """Whoever was refused is tried once more."""
    for pod in refused:
        assert await rig.schedule(pod), "lost"


async def test_all_filtered_before_the_first_is_bound(nodes):
    pods = [nodes.put_pod(f"p{number}", units=16) for number in range(PODS)]
    chosen = [(await nodes.filter(pod))["NodeNames"] for pod in pods]
    assert all(chosen)
    errors = await asyncio.gather(*(nodes.bind(pod, node) for pod, (node,) in zip(pods, chosen, strict=True)))
    refused = [pod for pod, error in zip(pods, errors, strict=True) if error]
    assert len(refused) <= PODS // 100
    await again(nodes, refused)
    await nodes.caught_up()
    assert overfull(nodes) == []


async def test_filters_that_overtake_binds(nodes):
    waiting, refused = [], []

    async def bind(pod, node):
        if await nodes.bind(pod, node):
            refused.append(pod)

    for number in range(PODS):
        pod = nodes.put_pod(f"p{number}", units=16)
        (node,) = (await nodes.filter(pod))["NodeNames"]
        waiting.append(asyncio.create_task(bind(pod, node)))
    await asyncio.gather(*waiting)
    assert len(refused) <= PODS // 100
    await again(nodes, refused)
    await nodes.caught_up()
    assert overfull(nodes) == []


async def test_the_last_slot_named_twice_goes_to_one_and_the_other_finds_another_gpu(rig):
    rig.put_node("n1", 64, 64)
    await rig.caught_up()
    one, two, three = (rig.put_pod(name, units=64) for name in ("one", "two", "three"))
    for pod in (one, two, three):
        assert (await rig.filter(pod))["NodeNames"] == ["n1"], "nobody is refused because of a pod that is not bound"
    errors = [await rig.bind(pod, "n1") for pod in (three, two, one)]
    assert [bool(error) for error in errors] == [False, False, True]
