"""The queue hands pods out by priority and age, and brings the unschedulable ones back only for a reason."""

from tessera.testing.scheduler.queue import SchedulingQueue


def _queue():
    return SchedulingQueue(backoff=1.0, most=10.0)


def _drain(queue, now):
    found = []
    while (uid := queue.pop(now=now)) is not None:
        found.append(uid)
    return found


def test_priority_then_order_of_arrival():
    queue = _queue()
    for uid, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5)):
        queue.add(uid, priority, now=0)
    assert _drain(queue, 0) == ["b", "d", "a", "c"]


def test_an_unschedulable_pod_waits_for_an_event_and_then_for_its_backoff():
    queue = _queue()
    queue.add("a", 0, now=0)
    assert queue.pop(now=0) == "a"
    queue.unschedulable("a", 0, now=0, missed=False)
    assert queue.pop(now=1000) is None
    queue.event(now=1000)
    assert queue.pop(now=1000) is None
    assert queue.next_time() == 1001
    assert queue.pop(now=1001) == "a"


def test_an_event_during_its_cycle_is_not_missed():
    queue = _queue()
    queue.add("a", 0, now=0)
    queue.pop(now=0)
    queue.unschedulable("a", 0, now=0, missed=True)
    assert queue.pop(now=1) == "a"


def test_backoff_doubles_and_is_capped():
    queue = _queue()
    queue.add("a", 0, now=0)
    waits = []
    for _ in range(6):
        now = queue.next_time()
        assert queue.pop(now=now) == "a"
        queue.unschedulable("a", 0, now=now, missed=True)
        waits.append(queue.next_time() - now)
    assert waits == [1, 2, 4, 8, 10, 10]


def test_a_dropped_pod_never_comes_back():
    queue = _queue()
    queue.add("a", 0, now=0)
    queue.drop("a")
    assert _drain(queue, 10) == []
    queue.add("b", 0, now=0)
    queue.pop(now=0)
    queue.unschedulable("b", 0, now=0, missed=False)
    queue.drop("b")
    queue.event(now=0)
    assert _drain(queue, 100) == []
    assert len(queue) == 0


def test_adding_twice_is_adding_once():
    queue = _queue()
    queue.add("a", 0, now=0)
    queue.add("a", 0, now=0)
    assert _drain(queue, 0) == ["a"]
