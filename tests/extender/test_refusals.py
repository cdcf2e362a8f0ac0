"""Which node is left alone after a refusal, by whom, and until when: told by pods and by time alone."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.model.names import names
from tessera.model.pod import Pod
from tessera.placement.reasons import Reason
from webhook.extender.admitting import cause_of
from webhook.extender.refusals import (
    FIRST,
    FORGET,
    LATE,
    LONGEST,
    MOST_BOUND,
    MOST_CONTROLLERS,
    PATIENCE,
    QUORUM,
    Refusals,
)

NAMES = names()
AWAY = f"no healthy devices present; cannot allocate unhealthy devices {NAMES.memory_units}"
WORDS = "rpc error: code = FailedPrecondition desc = tessera: needs 32 units, best GPU has 20"


def rejected(text: str) -> str:
    return f"Pod was rejected: Allocate failed due to {text}, which is unexpected"


class Time:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def wall(self):
        return self.now

    async def sleep(self, seconds):
        raise AssertionError(seconds)


class World:
    """Pods that are bound here, and what their kubelet makes of them."""

    def __init__(self):
        self.time = Time()
        self.opened = []
        self.refusals = Refusals(names=NAMES, clock=self.time, opened=self.opened.append)
        self.made = 0

    def pod(self, space="a", *, owner="rs", limits=(NAMES.memory_units,), node="", status=None) -> Pod:
        self.made += 1
        owners = [{"kind": "ReplicaSet", "uid": f"{space}-{owner}", "controller": True}] if owner else []
        return msgspec.convert(
            {
                "metadata": {
                    "name": f"p{self.made}",
                    "namespace": space,
                    "uid": f"u{self.made}",
                    "ownerReferences": owners,
                },
                "spec": {
                    "nodeName": node,
                    "containers": [{"name": "main", "resources": {"limits": dict.fromkeys(limits, "1")}}],
                },
                "status": status or {"phase": "Pending"},
            },
            Pod,
        )

    def bind(self, space="a", *, node="n1", **more) -> Pod:
        pod = self.pod(space, **more)
        assert self.refusals.on(node, pod) is None
        self.refusals.bound(pod, node)
        return self.now_is(pod, node=node)

    def now_is(self, pod, *, node="n1", **status) -> Pod:
        """The pod as the watch shows it next."""
        plain = msgspec.to_builtins(pod) | {"status": {"phase": "Pending", **status}}
        plain["spec"]["nodeName"] = node
        seen = msgspec.convert(plain, Pod)
        self.last = self.refusals.pod_seen(seen)
        return seen

    def refuse(self, pod, text=AWAY, *, node="n1"):
        self.now_is(pod, node=node, phase="Failed", reason="UnexpectedAdmissionError", message=rejected(text))
        return self.last

    def admit(self, pod, *, node="n1"):
        self.now_is(pod, node=node, containerStatuses=[{"name": "main"}])

    def closed(self, space="a", *, node="n1", **more) -> bool:
        return self.refusals.on(node, self.pod(space, **more)) is not None

    def why(self, space="a", *, node="n1") -> str:
        found = self.refusals.on(node, self.pod(space))
        return "" if found is None else found.text

    def wait(self, seconds):
        """Let time pass as the extender's loop does."""
        end = self.time.now + seconds
        while self.time.now < end:
            self.time.now = min(end, self.time.now + 1.0)
            self.refusals.tick()


@pytest.fixture
def world():
    return World()


def test_a_refusal_closes_the_node_and_says_how_long(world):
    world.refuse(world.bind())
    assert world.why() == "node's kubelet refused pods (its agent's log says why), is tried again within 2 s"
    assert not world.closed(node="n2")
    world.wait(1.5)
    assert "within 2 s" in world.why(), "few texts for many nodes: kube-scheduler adds equal ones up"
    world.wait(0.5)
    assert not world.closed()
    assert world.opened == ["n1"], "who waited is told"


def test_then_one_pod_is_tried_and_others_follow_when_it_was_admitted(world):
    world.refuse(world.bind())
    world.wait(FIRST)
    tried = world.bind()
    assert world.why() == "node's kubelet refused pods (its agent's log says why), and one pod is tried there first"
    assert world.refusals.on("n1", tried) is None, "its own Binding may be written again"
    world.opened.clear()
    world.admit(tried)
    assert (world.closed(), world.opened, len(world.refusals)) == (False, ["n1"], 0)
    world.bind()
    world.bind()


@pytest.mark.parametrize(
    "status",
    [
        {"phase": "Running"},
        {"phase": "Succeeded"},
        {"phase": "Failed", "containerStatuses": [{"name": "main", "containerID": "x"}]},
        {"phase": "Pending", "initContainerStatuses": [{"name": "init"}]},
    ],
)
def test_what_shows_that_a_pod_was_admitted(world, status):
    world.refuse(world.bind())
    world.wait(FIRST)
    world.now_is(world.bind(), **status)
    assert len(world.refusals) == 0


def test_it_stays_closed_longer_each_time_and_never_longer_than_30_seconds(world):
    waits = []
    for _ in range(8):
        waits.append(world.refuse(world.bind()).seconds)
        assert f"within {waits[-1]:g} s" in world.why()
        world.wait(waits[-1] - 0.5)
        assert "within 2 s" in world.why()
        world.wait(0.5)
    assert waits == [2, 4, 8, 16, 30, 30, 30, 30]


def test_pods_that_were_on_their_way_are_one_refusal(world):
    many = [world.bind() for _ in range(40)]
    assert [world.refuse(pod).seconds for pod in many] == [2] + [0] * 39
    world.wait(FIRST)
    assert not world.closed()


def test_a_pod_admitted_before_the_agent_died_opens_nothing_when_it_is_seen_late(world):
    first, second = world.bind(), world.bind()
    world.wait(0.1)
    world.refuse(second)
    world.admit(first)
    assert world.closed()


def test_a_refusal_is_forgotten_after_a_quiet_time(world):
    world.refuse(world.bind())
    world.wait(FIRST + FORGET)
    assert len(world.refusals) == 0
    assert world.refuse(world.bind()).seconds == FIRST


def test_who_is_tried_and_never_answered_for_holds_others_up_for_a_while_only(world):
    world.refuse(world.bind())
    world.wait(FIRST)
    lost = world.bind()
    world.opened.clear()
    world.wait(PATIENCE - 1)
    assert world.closed()
    world.wait(1)
    assert (world.closed(), world.opened) == (False, ["n1"])
    world.refuse(lost)
    assert "within 4 s" in world.why(), "what it says late still counts"


@pytest.mark.parametrize("end", ["unbound", "gone", "elsewhere", "evicted"])
def test_where_the_pod_that_is_tried_does_not_come_the_next_may(world, end):
    world.refuse(world.bind())
    world.wait(FIRST)
    tried = world.bind()
    world.opened.clear()
    if end == "unbound":
        world.refusals.unbound(tried.metadata.uid)
    elif end == "gone":
        world.refusals.pod_gone(tried.metadata.uid)
    elif end == "elsewhere":
        world.now_is(tried, node="n2")
    else:
        world.now_is(tried, phase="Failed", reason="Evicted")
    assert (world.closed(), world.opened) == (False, ["n1"])


def test_the_kubelet_knows_best_that_the_agent_is_back(world):
    world.refuse(world.bind())
    world.refusals.node_serves("n1")
    assert (world.closed(), world.opened) == (False, ["n1"])
    world.refusals.node_serves("n1")
    assert world.opened == ["n1"], "nobody is woken for nothing"


def test_a_node_that_is_gone_is_forgotten(world):
    world.refuse(world.bind())
    world.refusals.node_gone("n1")
    assert len(world.refusals) == 0


# Who can close a node, and for whom.


def test_other_namespaces_go_on(world):
    world.refuse(world.bind("a"))
    assert (world.closed("a"), world.closed("b")) == (True, False)
    world.admit(world.bind("b"))
    assert world.closed("a"), "it was bound in the same moment, which proves nothing"
    world.wait(1)
    world.admit(world.bind("b"))
    assert not world.closed("a"), "it serves"


def test_to_everybody_it_is_closed_by_three_namespaces(world):
    for space in "abc"[:QUORUM]:
        assert not world.closed("z")
        world.refuse(world.bind(space))
    assert world.closed("z")
    world.wait(FIRST)
    tried = world.bind("z")
    assert world.closed("y")
    assert world.closed("a"), "one at a time in all"
    world.admit(tried)
    assert not world.closed("y")


def test_two_namespaces_that_refuse_on_purpose_hold_it_against_no_third(world):
    for space in ("a", "b", "c"):
        world.refuse(world.bind(space))
    worst = 0.0
    for _ in range(6):
        for space in ("a", "b"):
            while world.closed(space):
                world.wait(1)
            world.refuse(world.bind(space))
        if world.closed("z"):
            worst += 1
    assert worst == 0


@pytest.mark.parametrize(
    "mischief",
    [
        pytest.param(lambda w: w.pod(node="n1"), id="spec.nodeName"),
        pytest.param(lambda w: w.pod(node="n1", owner=""), id="a static pod"),
    ],
)
def test_a_pod_that_was_not_bound_here_closes_nothing(world, mischief):
    for _ in range(10):
        assert world.refuse(mischief(world)) is None
    assert not world.closed()


def test_a_pod_of_the_same_name_or_on_another_node_closes_nothing(world):
    pod = world.bind()
    assert world.refuse(pod, node="n2") is None
    assert not world.closed(node="n1")
    assert not world.closed(node="n2")


def test_a_pod_that_was_admitted_once_is_refused_for_nothing_of_the_node(world):
    """After a reboot the kubelet admits anew, and whoever writes a pod's status may write anything."""
    pod = world.bind()
    world.admit(pod)
    assert world.refuse(pod) is None
    assert not world.closed()


def test_what_the_agent_itself_refuses_concerns_its_controller_only(world):
    refusal = world.refuse(world.bind(owner="bad"), WORDS)
    assert (refusal.cause, refusal.seconds) == ("pod", FIRST)
    assert world.closed(owner="bad"), "whose pods would come again at once"
    assert not world.closed(owner="good")
    assert not world.closed("b", owner="bad"), "of another namespace, whatever it says of itself"
    world.wait(1)
    world.admit(world.bind(owner="good"))
    assert world.closed(owner="bad"), "that others are admitted says nothing of it"


def test_what_the_agent_refuses_to_a_bare_pod_concerns_nobody(world):
    assert world.refuse(world.bind(owner=""), WORDS).left is None
    assert not world.closed(owner="")
    assert len(world.refusals) == 0


def test_made_up_controllers_fill_nothing(world):
    for number in range(3 * MOST_CONTROLLERS):
        world.refuse(world.bind(owner=f"made-up-{number}"), WORDS)
    assert sum(world.closed(owner=f"made-up-{number}") for number in range(3 * MOST_CONTROLLERS)) == MOST_CONTROLLERS
    world.refuse(world.bind("b", owner="bad"), WORDS)
    assert world.closed("b", owner="bad"), "another namespace has its own"


def test_pods_that_nobody_answers_for_fill_nothing(world):
    first = world.bind(node="n0")
    for _ in range(MOST_BOUND):
        world.refusals.bound(world.pod(), "n1")
    assert world.refuse(first, node="n0") is None
    late = world.bind()
    world.wait(LATE)
    assert world.refuse(late) is None


@pytest.mark.parametrize(
    ("text", "limits", "cause"),
    [
        (AWAY, (), "node"),
        (f"cannot allocate unregistered device {NAMES.compute_percent}", (), "node"),
        (f"requested number of devices unavailable for {NAMES.memory_percent}. Requested: 1, Available: 0", (), "node"),
        (f"previously allocated devices are no longer healthy; cannot allocate unhealthy devices {NAMES.mig_prefix}1g.5gb", (), "node"),
        ("rpc error: code = Unavailable desc = error reading from server: EOF", (), "node"),
        ("device plugin GetPreferredAllocation rpc failed with err: rpc error: code = Unavailable desc = x", (), "node"),
        ("rpc error: code = Canceled desc = grpc: the client connection is closing", (), "node"),
        ("rpc error: code = Unavailable desc = EOF", ("vendor.example/nic",), "pod"),
        (WORDS, (), "pod"),
        (f"rpc error: code = FailedPrecondition desc = tessera: code = Unavailable {AWAY}", (), "pod"),
        ("no healthy devices present; cannot allocate unhealthy devices vendor.example/nic", ("vendor.example/nic",), "pod"),
        (f"cannot allocate unregistered device evil.{NAMES.memory_units}", (), "pod"),
        ("not enough cpus available to satisfy request", (), "pod"),
        ("x" * 5000 + " " + AWAY, (), "pod"),
        ("", (), "pod"),
    ],
)  # fmt: skip
def test_whose_doing_a_refusal_is(world, text, limits, cause):
    status = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": rejected(text)}
    assert cause_of(world.pod(limits=(NAMES.memory_units, *limits), status=status), NAMES) == cause


def test_other_failures_close_nothing(world):
    for reason in ("Evicted", "OutOfcpu", "NodeAffinity", None):
        pod = world.bind()
        world.now_is(pod, phase="Failed", reason=reason, message=rejected(AWAY))
        assert world.last is None
    assert not world.closed()


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(("bind", "refuse", "refuse", "own", "admit", "gone", "wait", "serves")),
        st.sampled_from(("a", "b", "c", "d")),
        st.integers(0, 40),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(EVENTS)
def test_whatever_happens_a_closed_node_opens_again(events):
    world, pods = World(), []
    for what, space, number in events:
        if what == "bind":
            if not world.closed(space):
                pods.append(world.bind(space))
        elif what == "wait":
            world.wait(number)
        elif what == "serves":
            world.refusals.node_serves("n1")
        elif pods:
            pod = pods.pop(number % len(pods))
            if what == "gone":
                world.refusals.pod_gone(pod.metadata.uid)
            elif what == "admit":
                world.admit(pod)
            else:
                world.refuse(pod, AWAY if what == "refuse" else WORDS)
    shut = {space for space in "abcde" if world.closed(space)}
    world.opened.clear()
    seen = [shut]
    for _ in range(int(max(LONGEST, PATIENCE)) + 1):
        world.wait(1)
        seen.append({space for space in "abcde" if world.closed(space)})
    assert seen[-1] == set()
    opens = sum(bool(before - after) for before, after in pairwise(seen))
    assert len(world.opened) >= opens, "and who waited is told each time"
    world.wait(FORGET)
    assert len(world.refusals) == 0


def test_a_rejection_is_one_of_the_reasons(world):
    world.refuse(world.bind())
    (found,) = world.refusals.against(world.pod()).values()
    assert found.reason is Reason.REFUSING
    assert not found.reason.never
