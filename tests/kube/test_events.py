"""Events: written in the background, counted together, bounded, and never in anybody's way."""

from __future__ import annotations

import asyncio
import random

import pytest

from tessera.kube.events import EventPace, EventRecorder, Regarding
from tessera.testing.apiserver import Cut, Hold, StatusError, on

POD = Regarding(kind="Pod", name="a", namespace="default", uid="u1")


@pytest.fixture
async def recorder(client, clock):
    made = EventRecorder(
        client, component="tessera-extender", instance="host-1", clock=clock, rng=random.Random(3), pace=EventPace()
    )
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def events(api):
    return api.objects("events")


async def test_an_event_is_what_kubectl_shows(api, recorder, until):
    recorder.emit(POD, reason="SliceAllocated", message="8 GiB of GPU 0 on node n1")
    await until(lambda: events(api))
    (event,) = events(api)
    assert event["apiVersion"] == "v1"
    assert event["metadata"]["namespace"] == "default"
    assert event["metadata"]["name"].startswith("a.")
    about = event["involvedObject"]
    assert (about["kind"], about["namespace"], about["name"], about["uid"]) == ("Pod", "default", "a", "u1")
    assert (event["type"], event["reason"], event["count"]) == ("Normal", "SliceAllocated", 1)
    assert event["message"] == "8 GiB of GPU 0 on node n1"
    assert event["source"] == {"component": "tessera-extender", "host": "host-1"}
    assert event["firstTimestamp"] == event["lastTimestamp"] == "2023-11-14T22:30:00Z"


async def test_events_about_nodes_stand_in_default(api, recorder, until):
    recorder.emit(Regarding(kind="Node", name="n1"), reason="GpuSick", message="XID 79", warning=True)
    await until(lambda: events(api))
    (event,) = events(api)
    assert (event["metadata"]["namespace"], event["type"]) == ("default", "Warning")


async def test_equal_events_are_counted_together(api, recorder, clock, until):
    for number in range(5):
        recorder.emit(POD, reason="OverSlice", message=f"uses {number} MiB too much")
    await until(lambda: events(api))
    assert events(api)[0]["count"] == 5
    assert events(api)[0]["message"] == "uses 4 MiB too much"
    # Later ones go into the same object, not before the interval has passed.
    written = clock.now
    clock.now += 1
    recorder.emit(POD, reason="OverSlice", message="again")
    await until(lambda: events(api)[0]["count"] == 6)
    assert clock.now - written >= 10
    (event,) = events(api)
    assert event["message"] == "again"
    assert event["lastTimestamp"] > event["firstTimestamp"]
    # Another reason is another event.
    recorder.emit(POD, reason="Other", message="x")
    await until(lambda: len(events(api)) == 2)


async def test_an_event_that_was_cleaned_up_is_begun_anew(api, recorder, until):
    recorder.emit(POD, reason="R", message="one")
    await until(lambda: events(api))
    api.remove("events", events(api)[0]["metadata"]["name"], "default")
    recorder.emit(POD, reason="R", message="two")
    await until(lambda: events(api))
    assert events(api)[0]["count"] == 1


async def test_writes_are_paced(api, client, clock, until):
    recorder = EventRecorder(
        client,
        component="c",
        instance="i",
        clock=clock,
        rng=random.Random(3),
        pace=EventPace(rate=2.0, burst=5),
    )
    for number in range(25):
        recorder.emit(Regarding(kind="Pod", name=f"p{number}", namespace="default"), reason="R", message="m")
    began = clock.now
    task = asyncio.create_task(recorder.run())
    await until(lambda: len(events(api)) == 25)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    # Five at once, twenty at two a second.
    assert clock.now - began >= 9.5


async def test_what_does_not_fit_is_dropped_and_counted(client, clock):
    pace = EventPace(backlog=3)
    recorder = EventRecorder(client, component="c", instance="i", clock=clock, rng=random.Random(3), pace=pace)
    for number in range(10):
        recorder.emit(Regarding(kind="Pod", name=f"p{number}", namespace="default"), reason="R", message="m")
    recorder.emit(Regarding(kind="Pod", name="p0", namespace="default"), reason="R", message="m")
    assert recorder.stats.emitted == 11
    assert recorder.stats.dropped == 7


async def test_emitting_does_not_wait_for_the_server(api, recorder):
    hold = Hold()
    api.faults.add(on("create", "events"), hold, times=None)
    recorder.emit(POD, reason="R", message="m")
    await hold.arrived.wait()
    recorder.emit(POD, reason="R", message="m")
    recorder.emit(POD, reason="S", message="m")
    assert recorder.stats.emitted == 3
    hold.release()


@pytest.mark.parametrize(
    "fault",
    [
        StatusError(503, "ServiceUnavailable", "down"),
        StatusError(429, "TooManyRequests", "slow down", retry_after=1),
        Cut.BEFORE,
    ],
)
async def test_failures_that_pass_are_outlived(api, recorder, caplog, fault, until):
    api.faults.add(on("create", "events"), fault, times=3)
    recorder.emit(POD, reason="R", message="m")
    recorder.emit(POD, reason="R", message="m")
    await until(lambda: recorder.stats.written == 1)
    assert events(api)[0]["count"] == 2
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


async def test_refusals_are_counted_and_not_repeated(api, recorder, until):
    fault = api.faults.add(on("create", "events"), StatusError(403, "Forbidden", "no right"), times=None)
    recorder.emit(POD, reason="R", message="m")
    await until(lambda: recorder.stats.failed == 1)
    recorder.emit(Regarding(kind="Pod", name="b", namespace="default"), reason="R", message="m")
    await until(lambda: recorder.stats.failed == 2)
    assert fault.hits == 2


async def test_an_event_of_a_namespace_that_is_gone_is_let_go(recorder, until):
    recorder.emit(Regarding(kind="Pod", name="a", namespace="gone"), reason="R", message="m")
    await until(lambda: recorder.stats.failed == 1)


async def test_long_texts_and_names_fit(api, recorder, until):
    recorder.emit(Regarding(kind="Pod", name="a" * 253, namespace="default"), reason="R", message="x" * 5000)
    await until(lambda: events(api))
    (event,) = events(api)
    assert len(event["metadata"]["name"]) <= 253
    assert len(event["message"]) == 1024
    assert event["message"].endswith("…")


async def test_draining_writes_what_waits_before_the_end(api, client, clock):
    recorder = EventRecorder(client, component="c", instance="i", clock=clock, rng=random.Random(3))
    for name in ("a", "b"):
        recorder.emit(Regarding(kind="Pod", name=name, namespace="default"), reason="R", message="m")
    await recorder.drain()
    assert len(events(api)) == 2
    recorder.emit(Regarding(kind="Pod", name="c", namespace="default"), reason="R", message="m")
    recorder.emit(Regarding(kind="Pod", name="d", namespace="default"), reason="R", message="m")
    fault = api.faults.add(on("create"), StatusError(503, "ServiceUnavailable", "down"), times=None)
    await recorder.drain()
    assert fault.hits == 1
