"""Leases: who holds one, judged by our own clock; and holding one without ever believing in it too long."""

from __future__ import annotations

import asyncio
import random
from email.utils import formatdate

import pytest

from tessera.kube.client import ApiClient
from tessera.kube.clock import parse_rfc3339, rfc3339
from tessera.kube.config import StaticConnection
from tessera.kube.errors import ConflictError, UnavailableError
from tessera.kube.leases import LeaseKeeper, LeaseObserver
from tessera.kube.servertime import ServerClock
from tessera.testing.apiserver import Cut, StatusError, on


def lease(api, holder, clock, *, age=0.0, seconds=15):
    api.put(
        "leases",
        {
            "metadata": {"name": "l", "namespace": "kube-system"},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": seconds,
                "renewTime": rfc3339(clock.wall() - age, micro=True),
                "leaseTransitions": 3,
            },
        },
    )


@pytest.fixture
def observer(client, clock):
    return LeaseObserver(client, name="l", namespace="kube-system", clock=clock)


@pytest.fixture
def keeper(client, clock):
    def keeper(identity):
        return LeaseKeeper(
            client, name="l", namespace="kube-system", identity=identity, clock=clock, rng=random.Random(4)
        )

    return keeper


async def test_nobody_holds_a_lease_that_is_not_there(observer):
    assert observer.holder == ""
    assert await observer.refresh() == ""


async def test_a_holder_counts_for_as_long_as_it_renews(api, clock, observer):
    lease(api, "scheduler-1", clock)
    assert await observer.refresh() == "scheduler-1"
    for _ in range(5):
        clock.now += 10
        lease(api, "scheduler-1", clock)
        assert await observer.refresh() == "scheduler-1"
    clock.now += 14.9
    assert observer.holder == "scheduler-1"
    clock.now += 0.2
    assert observer.holder == ""
    # Read again, unchanged: still nobody.
    assert await observer.refresh() == ""
    lease(api, "scheduler-2", clock)
    assert await observer.refresh() == "scheduler-2"


async def test_a_record_that_was_old_when_first_seen_does_not_count(api, clock, observer):
    lease(api, "scheduler-1", clock, age=3600)
    assert await observer.refresh() == ""


async def test_a_holder_with_a_wrong_clock_counts_once_it_has_renewed(api, clock, observer):
    lease(api, "scheduler-1", clock, age=3600)
    await observer.refresh()
    clock.now += 2
    lease(api, "scheduler-1", clock, age=3600)
    assert await observer.refresh() == "scheduler-1"


async def test_a_holder_from_the_future_counts_for_no_longer_than_others(api, clock, observer):
    lease(api, "scheduler-1", clock, age=-3600)
    assert await observer.refresh() == "scheduler-1"
    clock.now += 15.1
    assert observer.holder == ""


@pytest.mark.parametrize("wrong", [86_400.0, -86_400.0, 315_360_000.0, -315_360_000.0])
@pytest.mark.parametrize(("age", "holder"), [(5.0, "scheduler-1"), (3600.0, "")])
async def test_a_wrong_clock_of_our_own_is_not_what_a_record_is_judged_by_at_first_sight(  # noqa: PLR0917
    api, clock, monkeypatch, wrong, age, holder
):
    lease(api, "scheduler-1", clock, age=age)
    true = clock.wall()
    api.date = lambda: formatdate(true, usegmt=True)
    monkeypatch.setattr(clock, "wall", lambda: true + wrong)
    server = ServerClock(clock)
    async with ApiClient(StaticConnection(api.url), clock=server, rng=random.Random(1), dates=server.heard) as client:
        assert await LeaseObserver(client, name="l", namespace="kube-system", clock=server).refresh() == holder


@pytest.mark.parametrize("renewed", ["", "yesterday", "2026-01-01T00:00:00", None])
async def test_a_lease_without_a_usable_time_counts_for_nobody(api, observer, renewed):
    spec = {"holderIdentity": "x", "leaseDurationSeconds": 15, "renewTime": renewed}
    api.put("leases", {"metadata": {"name": "l", "namespace": "kube-system"}, "spec": spec})
    assert await observer.refresh() == ""


async def test_what_was_known_runs_out_while_the_server_is_away(api, clock, observer):
    lease(api, "scheduler-1", clock)
    await observer.refresh()
    api.faults.add(on("get", "leases"), StatusError(503, "ServiceUnavailable", "down"), times=None)
    with pytest.raises(UnavailableError):
        await observer.refresh()
    assert observer.holder == "scheduler-1"
    clock.now += 16
    assert observer.holder == ""


async def test_one_of_two_gets_it_and_the_other_takes_over(api, clock, keeper):
    one, two = keeper("one"), keeper("two")
    assert await one.attempt() is True
    assert await two.attempt() is False
    assert (one.held, two.held) == (True, False)
    spec = api.get("leases", "l", "kube-system")["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("one", 15, 0)
    for _ in range(4):
        clock.now += 4
        await one.attempt()
        await two.attempt()
        assert (one.held, two.held) == (True, False)
    # The first falls silent.
    clock.now += 10.1
    assert one.held is False
    assert await two.attempt() is False
    clock.now += 5
    assert await two.attempt() is True
    assert (one.held, two.held) == (False, True)
    assert api.get("leases", "l", "kube-system")["spec"]["leaseTransitions"] == 1
    assert await one.attempt() is False


async def test_of_two_at_once_one_loses(keeper):
    one, two = keeper("one"), keeper("two")
    results = await asyncio.gather(one.attempt(), two.attempt(), return_exceptions=True)
    assert [one.held, two.held].count(True) == 1
    assert sum(isinstance(result, ConflictError) or result is False for result in results) == 1


async def test_believing_ends_before_others_may_take_it(clock, keeper):
    one = keeper("one")
    await one.attempt()
    clock.now += 9.9
    assert one.held is True
    clock.now += 0.2
    assert one.held is False


async def test_fields_that_others_wrote_survive(api, clock, keeper):
    lease(api, "", clock)
    tree = api.get("leases", "l", "kube-system")
    tree["spec"]["strategy"] = "OldestEmulationVersion"
    tree["metadata"]["labels"] = {"a": "b"}
    api.put("leases", tree)
    await keeper("one").attempt()
    after = api.get("leases", "l", "kube-system")
    assert after["spec"]["strategy"] == "OldestEmulationVersion"
    assert after["metadata"]["labels"] == {"a": "b"}


async def test_a_lost_answer_is_sorted_out_by_the_next_attempt(api, keeper):
    one = keeper("one")
    api.faults.add(on("create", "leases"), Cut.AFTER)
    with pytest.raises(UnavailableError):
        await one.attempt()
    assert one.held is False
    assert await one.attempt() is True
    assert one.held is True


async def test_letting_go_frees_it_at_once(api, keeper):
    one, two = keeper("one"), keeper("two")
    await two.release()
    await one.attempt()
    await one.release()
    assert one.held is False
    assert api.get("leases", "l", "kube-system")["spec"]["holderIdentity"] == ""
    assert await two.attempt() is True


async def test_running_holds_it_through_failures(api, clock, keeper, until, caplog):
    one = keeper("one")
    task = asyncio.create_task(one.run())
    await until(lambda: one.held)
    api.faults.add(on("patch", "leases"), StatusError(503, "ServiceUnavailable", "down"), times=3)
    before = api.get("leases", "l", "kube-system")["spec"]["renewTime"]
    await until(lambda: api.get("leases", "l", "kube-system")["spec"]["renewTime"] > before)
    await until(lambda: one.held)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    assert all(1.6 <= wait <= 2.4 for wait in clock.slept)


def test_moments_are_written_as_the_api_writes_them():
    assert rfc3339(1_700_000_000.5) == "2023-11-14T22:13:20Z"
    assert rfc3339(1_700_000_000.5, micro=True) == "2023-11-14T22:13:20.500000Z"
    assert parse_rfc3339("2023-11-14T22:13:20.500000Z") == 1_700_000_000.5
    with pytest.raises(ValueError, match="no offset"):
        parse_rfc3339("2023-11-14T22:13:20")
