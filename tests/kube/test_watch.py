"""Watch caches: current, ordered, honest about what they did not see, and calm when the server isn't."""

from __future__ import annotations

import asyncio
import logging
import random

import msgspec
import pytest

from tessera.kube.changes import Added, Deleted, Modified
from tessera.kube.errors import ForbiddenError, NotFoundError, UnavailableError
from tessera.kube.resources import NODES
from tessera.kube.watch import WatchCache, WatchTiming
from tessera.model.node import Node
from tessera.testing.apiserver import Cut, StatusError, on


async def synced(cache):
    async with asyncio.timeout(10):
        await cache.synced.wait()


async def test_it_lists_then_follows(api, start, put_pod):
    put_pod("a")
    cache, recorder, _ = start()
    await synced(cache)
    await api.wait_for_watches("pods")
    put_pod("b")
    put_pod("a", phase="Running")
    api.remove("pods", "b", "default")
    await recorder.wait(4)
    assert recorder.words == ["+a", "+b", "~a", "-b"]
    assert [pod.metadata.name for pod in cache] == ["a"]
    assert len(cache) == 1


async def test_lookups_by_name_and_uid(start, put_pod):
    uid = put_pod("a")["metadata"]["uid"]
    cache, _, _ = start()
    assert cache.get("a", "default") is None
    await synced(cache)
    assert cache.get("a", "default") is cache.by_uid(uid)
    assert cache.get("a", "other") is None
    assert cache.get("b", "default") is None
    assert cache.by_uid("none") is None


async def test_a_change_carries_the_state_before_and_after(api, start, put_pod):
    put_pod("a")
    cache, recorder, _ = start()
    await synced(cache)
    await api.wait_for_watches("pods")
    put_pod("a", phase="Succeeded")
    api.remove("pods", "a", "default")
    added, modified, deleted = await recorder.wait(3)
    assert isinstance(added, Added)
    assert isinstance(modified, Modified)
    assert (modified.old, modified.new.status.phase) == (added.new, "Succeeded")
    assert isinstance(deleted, Deleted)
    assert deleted.old == modified.new
    assert deleted.final.status.phase == "Succeeded"
    assert deleted.seen_final is True


async def test_cluster_scoped_objects(client, api, clock):
    api.add_node("n1")
    cache = WatchCache(client, NODES, msgspec.json.Decoder(Node), clock=clock, rng=random.Random(1))
    task = asyncio.create_task(cache.run())
    await synced(cache)
    assert cache.get("n1").ready
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_large_lists_come_in_pages(api, start, put_pod):
    for number in range(1201):
        put_pod(f"p{number}")
    cache, recorder, _ = start()
    await synced(cache)
    assert len(cache) == 1201
    assert len(recorder.changes) == 1201
    assert sum(handled.seen.verb == "list" for handled in api.requests) == 3


async def test_selectors_narrow_what_is_kept(api, start, put_pod):
    put_pod("a", node="n1")
    put_pod("b", node="n2")
    cache, recorder, _ = start(fields="spec.nodeName=n1")
    await synced(cache)
    await api.wait_for_watches("pods")
    put_pod("c", node="n1")
    put_pod("a", node="n2")
    await recorder.wait(3)
    # For this cache a pod that left the selection is deleted.
    assert recorder.words == ["+a", "+c", "-a"]
    _, recorder, _ = start(labels="gpu=yes", namespace="default")
    put_pod("d", labels={"gpu": "yes"})
    await recorder.wait(1)
    assert recorder.words == ["+d"]


async def test_a_late_subscriber_may_hear_what_is_there(start, put_pod):
    put_pod("a")
    cache, _, _ = start()
    await synced(cache)
    heard = []
    stop = cache.subscribe(heard.append, replay=True)
    assert [change.new.metadata.name for change in heard] == ["a"]
    silent = []
    cache.subscribe(silent.append)
    assert silent == []
    stop()
    stop()


async def test_a_subscriber_that_has_left_hears_nothing(api, start, put_pod):
    cache, recorder, _ = start()
    heard = []
    stop = cache.subscribe(heard.append)
    await synced(cache)
    await api.wait_for_watches("pods")
    put_pod("a")
    await recorder.wait(1)
    stop()
    put_pod("b")
    await recorder.wait(2)
    assert len(heard) == 1


async def test_changes_of_one_object_come_in_order_through_drops(api, start, put_pod):
    cache, recorder, _ = start()
    await synced(cache)
    put_pod("a", annotations={"n": "0"})
    for number in range(1, 60):
        put_pod("a", annotations={"n": str(number)})
        if number % 20 == 0:
            await api.wait_for_watches("pods")
            api.drop_watches("pods")
            await asyncio.sleep(0)
    while cache.get("a", "default") is None or cache.get("a", "default").metadata.annotation("n") != "59":
        await recorder.wait(len(recorder.changes) + 1)
    seen = [int(change.new.metadata.annotation("n")) for change in recorder.changes]
    assert seen == sorted(set(seen))
    assert cache.stats.lists == 1


async def test_a_dropped_stream_goes_on_where_it_was(api, start, put_pod, caplog):
    caplog.set_level(logging.DEBUG, logger="tessera.kube")
    put_pod("a")
    cache, recorder, _ = start()
    await synced(cache)
    await api.wait_for_watches("pods")
    put_pod("b")
    await recorder.wait(2)
    api.drop_watches("pods")
    put_pod("c")
    await recorder.wait(3)
    assert recorder.words == ["+a", "+b", "+c"]
    assert cache.stats.lists == 1
    assert cache.stats.streams == 2
    # A stream that had served is replaced without a word.
    assert caplog.messages == []


async def test_a_stream_that_ends_in_order_is_replaced(api, start, put_pod):
    cache, recorder, _ = start()
    await synced(cache)
    for name in ("a", "b"):
        await api.wait_for_watches("pods")
        api.end_watches("pods")
        put_pod(name)
    await recorder.wait(2)
    assert recorder.words == ["+a", "+b"]
    assert cache.stats.failures == 0


@pytest.mark.parametrize("as_status", [True, False])
async def test_a_version_that_is_gone_makes_a_new_list(api, start, put_pod, as_status):
    api.faults.expired_as_status = as_status
    for name in ("stays", "changes", "ends", "again"):
        put_pod(name)
    cache, recorder, _ = start()
    await synced(cache)
    await api.wait_for_watches("pods")
    hold = api.faults.add(on("watch"), StatusError(503, "ServiceUnavailable", "down"), times=None)
    api.drop_watches("pods")
    old = cache.get("again", "default").metadata.uid
    put_pod("changes", phase="Running")
    put_pod("ends", phase="Succeeded")
    api.remove("pods", "ends", "default")
    api.remove("pods", "again", "default")
    put_pod("again")
    put_pod("new")
    api.compact()
    api.faults.remove(hold)
    await recorder.wait(4 + 5)
    # What vanished unseen is said to have, first; then what is there, in the list's order.
    assert recorder.words[4:6] in (["?ends", "?again"], ["?again", "?ends"])
    assert sorted(recorder.words[6:]) == ["+again", "+new", "~changes"]
    unseen = next(c for c in recorder.changes if isinstance(c, Deleted) and c.old.metadata.name == "ends")
    assert (unseen.seen_final, unseen.final.status.phase) == (False, "Pending")
    assert cache.by_uid(old) is None
    assert cache.get("again", "default").metadata.uid != old
    assert cache.stats.expirations >= 1
    assert cache.stats.lists >= 2
    # And it follows on from there.
    put_pod("later")
    await recorder.wait(10)
    assert recorder.words[-1] == "+later"


async def test_bookmarks_keep_a_quiet_watch_from_expiring(api, start, put_pod):
    cache, recorder, _ = start(labels="gpu=yes")
    await synced(cache)
    await api.wait_for_watches("pods")
    for number in range(5):
        put_pod(f"other{number}")
    api.bookmark("pods")
    put_pod("mine", labels={"gpu": "yes"})
    await recorder.wait(1)
    assert cache.stats.bookmarks == 1
    api.compact()
    api.drop_watches("pods")
    put_pod("mine2", labels={"gpu": "yes"})
    await recorder.wait(2)
    assert recorder.words == ["+mine", "+mine2"]


async def test_a_silent_stream_is_replaced(api, start, put_pod):
    cache, recorder, _ = start(timing=WatchTiming(idle=0.05))
    await synced(cache)
    await api.wait_for_watches("pods")
    api.freeze_watches("pods")
    put_pod("a")
    await recorder.wait(1)
    assert cache.stats.failures >= 1
    assert recorder.words == ["+a"]


async def test_an_outage_is_said_once_and_its_end_once(*, api, start, put_pod, caplog, clock, until):
    caplog.set_level(logging.DEBUG, logger="tessera.kube")
    fault = api.faults.add(on("list", "pods"), StatusError(403, "Forbidden", "no right"), times=None)
    cache, recorder, _ = start(fields="spec.nodeName=n1")
    await until(lambda: fault.hits >= 8)
    assert not cache.synced.is_set()
    assert isinstance(cache.last_error, ForbiddenError)
    assert cache.staleness == float("inf")
    assert len(caplog.messages) == 1
    assert "watch of pods (spec.nodeName=n1)" in caplog.text
    assert "no right" in caplog.text
    # Full jitter under a doubling bound with a cap.
    assert all(0 <= wait <= min(10.0, 0.2 * 2 ** (attempt + 1)) for attempt, wait in enumerate(clock.slept))
    api.faults.clear()
    put_pod("a", node="n1")
    await recorder.wait(1)
    await api.wait_for_watches("pods")
    await until(lambda: cache.last_error is None)
    assert len(caplog.messages) == 2
    assert "works again after" in caplog.messages[1]


async def test_waits_between_attempts_are_capped(api, start, clock, until):
    fault = api.faults.add(on("list"), StatusError(404, "NotFound", "none"), times=None)
    cache, _, _ = start(timing=WatchTiming(backoff=1.0, backoff_cap=3.0))
    await until(lambda: fault.hits >= 30)
    assert isinstance(cache.last_error, NotFoundError)
    assert max(clock.slept) <= 3.0
    assert max(clock.slept) > 1.0
    assert len(set(clock.slept)) == len(clock.slept)


async def test_the_server_says_how_long_to_wait(api, start, clock, put_pod):
    cache, recorder, _ = start()
    await synced(cache)
    await api.wait_for_watches("pods")
    api.faults.add(on("watch"), StatusError(429, "TooManyRequests", "slow down", retry_after=9))
    api.drop_watches("pods")
    put_pod("a")
    await recorder.wait(1)
    assert 9.0 in clock.slept


async def test_a_server_that_takes_and_drops_every_stream_is_not_hammered(api, start, clock, until):
    api.faults.add(on("watch"), Cut.BEFORE, times=12)
    cache, _, _ = start()
    await synced(cache)
    await until(lambda: cache.stats.failures >= 12)
    assert isinstance(cache.last_error, UnavailableError) or cache.last_error is None
    # Twelve attempts took long enough for a server to catch its breath.
    assert sum(clock.slept) > 5
    assert cache.stats.lists == 1


async def test_a_server_that_always_forgets_is_not_hammered(api, start, clock, until):
    fault = api.faults.add(on("watch"), StatusError(410, "Expired", "too old"), times=10)
    cache, _, _ = start()
    await until(lambda: fault.hits >= 10)
    assert cache.stats.expirations >= 9
    assert sum(clock.slept) > 2


async def test_staleness_is_the_time_since_the_last_word(api, start, clock, until):
    cache, _, _ = start()
    await synced(cache)
    await api.wait_for_watches("pods")
    before = cache.staleness
    clock.now += 70
    assert cache.staleness == before + 70
    api.bookmark("pods")
    await until(lambda: cache.stats.bookmarks > 0)
    assert cache.staleness == 0


async def test_an_object_that_can_not_be_decoded_is_named_and_skipped(api, start, put_pod, caplog):
    put_pod("good")
    put_pod("bad")
    api.put("pods", {"metadata": {"name": "bad", "namespace": "default"}, "spec": {"nodeName": ["odd"]}})
    cache, recorder, _ = start()
    await synced(cache)
    assert recorder.words == ["+good"]
    assert cache.undecodable == {("default", "bad")}
    assert "Pod default/bad: can't be decoded" in caplog.text
    await api.wait_for_watches("pods")
    # A change for the worse keeps what was known; one for the better is taken in.
    api.put("pods", {"metadata": {"name": "good", "namespace": "default"}, "spec": {"nodeName": 7}})
    put_pod("bad")
    await recorder.wait(2)
    assert recorder.words == ["+good", "+bad"]
    assert cache.get("good", "default") is not None
    assert cache.undecodable == {("default", "good")}
    # Its end is reported, but not as one that was seen.
    api.remove("pods", "good", "default")
    await recorder.wait(3)
    assert recorder.words[-1] == "?good"
    assert cache.undecodable == frozenset()


async def test_a_list_keeps_what_it_knew_of_an_object_that_turned_undecodable(api, start, put_pod):
    put_pod("a")
    cache, recorder, _ = start()
    await synced(cache)
    await api.wait_for_watches("pods")
    api.put("pods", {"metadata": {"name": "a", "namespace": "default"}, "spec": {"nodeName": 7}})
    api.compact()
    api.drop_watches("pods")
    put_pod("b")
    await recorder.wait(2)
    assert cache.get("a", "default") is not None


async def test_a_subscriber_that_fails_ends_the_cache(start, put_pod):
    cache, _, task = start()

    def broken(_change):
        raise ZeroDivisionError("a bug of the ledger")

    cache.subscribe(broken)
    put_pod("a")
    with pytest.raises(ZeroDivisionError):
        await task


async def test_a_subscribers_own_api_error_does_not_pass_for_an_outage(start, put_pod):
    cache, _, task = start()

    def broken(_change):
        raise UnavailableError("something else")

    cache.subscribe(broken)
    put_pod("a")
    with pytest.raises(RuntimeError, match="a subscriber of pods failed"):
        await task


async def test_cancelling_closes_the_stream(api, start):
    cache, _, task = start()
    await synced(cache)
    await api.wait_for_watches("pods")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_streams_of_many_nodes_do_not_end_together(api, start, until):
    for seed in range(4):
        start(rng=random.Random(seed), timing=WatchTiming(lasts=300))
    await api.wait_for_watches("pods", 4)
    api.end_watches("pods")
    await until(lambda: sum(handled.seen.verb == "watch" for handled in api.requests) >= 4)
    lasts = [int(h.seen.query["timeoutSeconds"]) for h in api.requests if h.seen.verb == "watch"]
    assert len(set(lasts)) > 1
    assert all(300 <= seconds <= 600 for seconds in lasts)
