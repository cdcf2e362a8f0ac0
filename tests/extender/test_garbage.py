"""Collections of garbage stay short: what survived a slow one is not looked at again."""

import gc
from collections.abc import Iterator

import pytest

from webhook.extender.garbage import SLOW, Collector


class Watch:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def frozen() -> list[float]:
    return []


@pytest.fixture
def collector(watch: Watch, frozen: list[float]) -> Iterator[Collector]:
    found = Collector(watch, freeze=lambda: frozen.append(watch.now))
    yield found
    found.close()


def collection(collector: Collector, watch: Watch, *, generation: int, took: float) -> None:
    collector.seen("start", {"generation": generation})
    watch.now += took
    collector.seen("stop", {"generation": generation, "collected": 0, "uncollectable": 0})


@pytest.mark.usefixtures("collector")
def test_nothing_is_collected_while_caches_fill() -> None:
    assert not gc.isenabled()


def test_full_caches_are_set_aside_and_garbage_is_collected_again(collector: Collector, frozen: list[float]) -> None:
    collector.settle()
    assert len(frozen) == 1
    assert gc.isenabled()
    assert gc.callbacks.count(collector.seen) == 1


def test_settling_twice_is_heard_of_once(collector: Collector) -> None:
    collector.settle()
    collector.settle()
    assert gc.callbacks.count(collector.seen) == 1


@pytest.mark.parametrize(
    ("slow", "times"),
    [((2, SLOW), 1), ((2, 1.0), 1), ((2, SLOW / 2), 0), ((1, 1.0), 0), ((0, 1.0), 0)],
)
def test_only_what_survived_a_slow_full_collection_is_set_aside(
    collector: Collector, watch: Watch, frozen: list[float], slow: tuple[int, float], times: int
) -> None:
    generation, took = slow
    collection(collector, watch, generation=generation, took=took)
    assert len(frozen) == times


def test_python_tells_of_its_collections(collector: Collector, watch: Watch, frozen: list[float]) -> None:
    collector.settle()
    watch.now = 5.0
    gc.collect()
    assert len(frozen) == 1  # no time has passed: it was quick
    collector.close()
    assert collector.seen not in gc.callbacks


def test_closing_leaves_python_as_it_was(collector: Collector) -> None:
    collector.settle()
    collector.close()
    collector.close()
    assert gc.isenabled()
