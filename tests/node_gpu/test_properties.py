"""What must hold for any input."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.health import Condition, Seen, Settings, advance
from deviceplugin.isolation.toolkit import parse_version
from deviceplugin.nvml.facts import RecoveryAction
from deviceplugin.processes import parse_cgroup

SEEN = st.builds(
    Seen,
    xids=st.lists(st.integers(0, 200), max_size=3).map(tuple),
    ecc=st.booleans(),
    unavailable=st.booleans(),
    recovery=st.sampled_from([None, *RecoveryAction]),
    answer=st.sampled_from(["ok", "lost", "reset", "failed"]),
    error=st.just("text"),
)


@given(st.lists(st.tuples(st.floats(0, 100), SEEN), max_size=30))
def test_a_gpu_with_something_pending_is_never_ok_and_quiet_always_heals(story: list[tuple[float, Seen]]) -> None:
    settings = Settings(recover_after=60)
    condition, now = Condition(), 0.0
    for pause, seen in story:
        now += pause
        condition = advance(condition, seen, now=now, settings=settings)
        if seen.answer in ("lost", "reset") or seen.recovery not in (None, RecoveryAction.NONE):
            assert condition.health != "ok"
        assert (condition.health == "ok") == (condition.reason == "")
    for later in (1, 61):
        condition = advance(condition, Seen(), now=now + later, settings=settings)
    assert condition.health == "ok"


@given(st.text(max_size=500))
def test_no_cgroup_text_raises(text: str) -> None:
    found = parse_cgroup(text)
    assert found is None or len(found.pod) in (32, 36)


@given(st.text(max_size=100))
def test_no_version_text_raises(text: str) -> None:
    found = parse_version(text)
    assert found is None or len(found) == 3
