"""Nodes whose kubelet has just refused a pod, left alone for a while by those whom that concerns.

A node agent that was killed is noticed by its kubelet at once, but by the API server only with the kubelet's next status, up
to 10 s later. Until then the node looks empty, every pod that is bound there ends as Failed (`UnexpectedAdmissionError`), and
its controller makes another at once, for the same node. So a refusal closes the node, for 2, 4, 8 ... 30 seconds as refusals
go on; then one pod is tried there, and only when that was admitted may others follow.

A tenant must not close nodes for others, so what a refusal closes, and for whom, depends on what is certain of it:

- only pods count that this process has bound itself: a pod with a forged plan, with spec.nodeName, or from a file on the
  node says nothing. After a restart nothing is known, and every node is open;
- a cause of the node's own (the kubelet names a ticket of ours, or could not reach the agent) closes it for the pods of the
  same namespace; any other cause (the agent's refusal, another vendor's device) for those of the same controller only;
- to everybody it is closed while that many namespaces (`QUORUM`) are kept from it. As the shortest of their times counts, two
  that refuse on purpose can't hold it against a third.

The first pod that is admitted after the refusal, whoever's it is, shows that the node serves, and opens it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import nlargest
from itertools import islice
from typing import Final, Literal, NamedTuple

from tessera.kube.clock import Clock, rfc3339
from tessera.model.names import Names
from tessera.model.pod import Pod
from tessera.placement.reasons import Reason, Rejection
from webhook.extender.admitting import REFUSED, Cause, admitted, cause_of

FIRST: Final = 2.0
"""Seconds for which one refusal closes a node. An agent that was killed is back after one to three."""
LONGEST: Final = 30.0
BRIEFLY: Final = 3
"""Refusals in a row after which nobody counts on the node any more; by then the kubelet's status is 4 s overdue."""
SOME: Final = 16
MOST_TOLD: Final = 16
"""Of those who are kept from one node, so many are told to people."""
FORGET: Final = 60.0
"""Seconds after it has opened again in which a node takes one pod at a time, if none has shown yet that it serves."""
PATIENCE: Final = 30.0
"""Seconds for which others wait for the pod that is tried. A kubelet admits within seconds, before it pulls any image."""
QUORUM: Final = 3
"""Namespaces that have to be kept from a node for it to be closed to all."""
LATE: Final = 600.0
"""Seconds after its Binding in which a pod's admission or refusal tells something of its node."""
MOST_BOUND: Final = 20_000
MOST_CONTROLLERS: Final = 16
"""Controllers of one namespace that are kept from one node."""


class Who(NamedTuple):
    """Whom a node is closed for: pods of a namespace, or only those that one controller (its UID) has made."""

    namespace: str
    controller: str = ""


class LeftAlone(NamedTuple):
    """A node that some pods are kept from, as it is told to people.

    Attributes:
        who: is kept from it.
        refused: pods of theirs that its kubelet has refused since one was last admitted.
        until: when the node opens for one of them, in seconds since 1970.
        state: ``closed``, ``tried`` by one pod that others wait for, or ``open`` for one at a time.
    """

    who: Who
    refused: int
    until: float
    state: Literal["closed", "tried", "open"]

    @property
    def text(self) -> str:
        """All of it, in one sentence without the node's name."""
        whose = "the same controller in namespace" if self.who.controller else "namespace"
        goes_on = {
            "closed": f"are kept from it until {rfc3339(self.until)[11:19]} UTC, then one pod tries",
            "tried": "wait for one that is being tried there",
            "open": "go there one at a time until one is admitted",
        }[self.state]
        many = f"{self.refused} pod{'s' if self.refused > 1 else ''}"
        return f"its kubelet refused {many} ({REFUSED}); pods of {whose} {self.who.namespace} {goes_on}"


class Refusal(NamedTuple):
    """A pod that this process had bound was refused.

    Attributes:
        node: where.
        cause: whose it is, the node's or the pod's own.
        left: how the node is left alone now for it; None where nobody is kept from it.
        seconds: for how long it closes the node; 0 where that was closed already when the pod was refused.
    """

    node: str
    cause: Cause
    left: LeftAlone | None
    seconds: float


@dataclass(slots=True)
class _Bound:
    """A pod of which the kubelet has not said yet whether it takes it."""

    node: str
    since: float


@dataclass(slots=True)
class _Rest:
    """One node, closed for one `Who`.

    Attributes:
        times: refusals in a row that closed it, each longer. refused: pods in all, with those that were on their way.
        since: the last that closed it. until: when it opens again.
        trial: UID of the pod that is tried there since. patience: until when others wait for it.
        told: those who wait know that it is open.
    """

    times: int
    refused: int
    since: float
    until: float
    trial: str = ""
    patience: float = -math.inf
    told: bool = False


class Refusals:
    """Knows which nodes are left alone, by whom, and until when."""

    def __init__(self, *, names: Names, clock: Clock, opened: Callable[[str], None] | None = None) -> None:
        """Leave no node alone yet.

        Args:
            names: of this installation.
            clock: measures how long.
            opened: called with the name of a node that may take somebody who was kept from it.
        """
        self._names = names
        self._clock = clock
        self._opened = opened
        self._bound: dict[str, _Bound] = {}
        self._rests: dict[str, dict[Who, _Rest]] = {}

    def __len__(self) -> int:
        """How many nodes are left alone, or tried by one pod at a time, by somebody."""
        return len(self._rests)

    # What filter, bind and preemptor ask.

    def against(self, pod: Pod) -> dict[str, Rejection]:
        """By name, the nodes that this pod has to leave alone now, and why."""
        if not self._rests:
            return {}
        found, whos, now = {}, _whos(pod), self._clock.monotonic()
        for node, there in self._rests.items():
            why = self._why(there, pod.metadata.uid, whos, now)
            if why is not None:
                found[node] = why
        return found

    def on(self, node: str, pod: Pod) -> Rejection | None:
        """Why a pod has to leave a node alone now; None where it may go there."""
        there = self._rests.get(node)
        return self._why(there, pod.metadata.uid, _whos(pod), self._clock.monotonic()) if there else None

    @staticmethod
    def _why(there: dict[Who, _Rest], uid: str, whos: Iterable[Who], now: float) -> Rejection | None:
        rests, until = _concerning(there, whos)
        if now < until:
            return _CLOSED[_about(until - now)]
        if any(rest.trial not in ("", uid) and now < rest.patience for rest in rests):
            return _TRIED
        return None

    def briefly(self, pod: Pod) -> list[str]:
        """Nodes that this pod has to leave alone now, but most likely for seconds only; `SOME` of them."""
        found = (
            node
            for node in self._rests
            if self.on(node, pod) is not None
            and max(rest.times for rest in _concerning(self._rests[node], _whos(pod))[0]) <= BRIEFLY
        )
        return list(islice(found, SOME))

    def left_alone(self, node: str) -> list[LeftAlone]:
        """Who is kept from a node, longest first; `MOST_TOLD` of them."""
        there = self._rests.get(node, {})
        longest = nlargest(MOST_TOLD, there.items(), key=lambda each: each[1].until)
        return [self._left(who, rest) for who, rest in longest]

    def _left(self, who: Who, rest: _Rest) -> LeftAlone:
        now = self._clock.monotonic()
        tried = rest.trial and now < rest.patience
        state: Literal["closed", "tried", "open"] = "closed" if now < rest.until else "tried" if tried else "open"
        return LeftAlone(who, rest.refused, self._clock.wall() + rest.until - now, state)

    # What bind tells.

    def bound(self, pod: Pod, node: str) -> None:
        """A Binding of this pod is about to be written."""
        uid, now = pod.metadata.uid, self._clock.monotonic()
        self._settle(uid)
        while len(self._bound) >= MOST_BOUND:
            self._settle(next(iter(self._bound)))
        self._bound[uid] = _Bound(node, now)
        for rest in _concerning(self._rests.get(node, {}), _whos(pod))[0]:
            rest.trial, rest.patience = uid, now + PATIENCE

    def unbound(self, uid: str) -> None:
        """That Binding is not in force and will not be."""
        self._settle(uid)

    # What the caches tell.

    def pod_seen(self, pod: Pod) -> Refusal | None:
        """Take in a pod as it is now; what it was refused by, if that is new."""
        uid, node = pod.metadata.uid, pod.spec.node_name
        bound = self._bound.get(uid)
        if bound is None or not node:
            return None
        if node != bound.node:
            self._settle(uid)
        elif admitted(pod):
            self._serves(pod, bound)
            self._settle(uid)
        elif pod.ended:
            refusal = self._refused(pod, bound) if pod.status.reason == REFUSED else None
            self._settle(uid)
            return refusal
        return None

    def pod_gone(self, uid: str) -> None:
        """A pod is gone."""
        self._settle(uid)

    def node_serves(self, node: str) -> None:
        """The kubelet itself has said that the node's agent is back."""
        if self._rests.pop(node, None) is not None:
            self._tell(node)

    def node_gone(self, node: str) -> None:
        """A node is gone."""
        self._rests.pop(node, None)

    # Time.

    def tick(self) -> None:
        """Let go of what has lasted long enough, and tell of nodes that have opened."""
        now = self._clock.monotonic()
        for node in list(self._rests):
            if self._pass(self._rests[node], now):
                self._tell(node)
            if not self._rests[node]:
                del self._rests[node]
        while self._bound:
            uid, bound = next(iter(self._bound.items()))
            if now - bound.since < LATE:
                return
            self._settle(uid)

    @staticmethod
    def _pass(rests: dict[Who, _Rest], now: float) -> bool:
        """Let time pass on one node; whether it takes somebody whom it didn't before."""
        opens = False
        for who, rest in list(rests.items()):
            if rest.trial and now >= rest.patience:
                rest.trial, opens = "", True
            if not rest.told and now >= rest.until:
                rest.told = opens = True
            if not rest.trial and now - rest.until >= FORGET:
                del rests[who]
                opens = True
        return opens

    # Inside.

    def _refused(self, pod: Pod, bound: _Bound) -> Refusal:
        cause = cause_of(pod, self._names)
        namespace, controller = pod.metadata.namespace, _controller(pod)
        who = Who(namespace) if cause == "node" else Who(namespace, controller)
        there = self._rests.get(bound.node, {})
        many = sum(each.namespace == namespace and bool(each.controller) for each in there) >= MOST_CONTROLLERS
        if cause == "pod" and (not controller or (many and who not in there)):
            # Nobody makes it anew by itself, or the namespace has enough of such already.
            return Refusal(bound.node, cause, None, 0.0)
        rest, now = there.get(who), self._clock.monotonic()
        if rest is not None and bound.since <= rest.since:
            # It was on its way when the one before it was refused, and tells nothing new.
            rest.refused += 1
            return Refusal(bound.node, cause, self._left(who, rest), 0.0)
        times, refused = (1, 1) if rest is None else (rest.times + 1, rest.refused + 1)
        seconds = _wait(times)
        made = self._rests.setdefault(bound.node, there)[who] = _Rest(times, refused, now, now + seconds)
        return Refusal(bound.node, cause, self._left(who, made), seconds)

    def _serves(self, pod: Pod, bound: _Bound) -> None:
        """A pod was admitted: the node serves, as far as refusals before its Binding can tell."""
        there, own = self._rests.get(bound.node, {}), Who(pod.metadata.namespace, _controller(pod))
        over = [who for who, rest in there.items() if bound.since > rest.since and (not who.controller or who == own)]
        for who in over:
            del there[who]
        if over:
            if not there:
                del self._rests[bound.node]
            self._tell(bound.node)

    def _settle(self, uid: str) -> None:
        """Nothing more is waited for from a pod; where it was tried, the next may be."""
        bound = self._bound.pop(uid, None)
        if bound is None:
            return
        tried = [rest for rest in self._rests.get(bound.node, {}).values() if rest.trial == uid]
        for rest in tried:
            rest.trial = ""
        if tried:
            self._tell(bound.node)

    def _tell(self, node: str) -> None:
        if self._opened is not None:
            self._opened(node)


def _concerning(there: dict[Who, _Rest], whos: Iterable[Who]) -> tuple[list[_Rest], float]:
    """What keeps a pod from a node, and until when at least.

    Args:
        there: of the node.
        whos: the pod is one of.
    """
    found = [there[who] for who in whos if who in there]
    until = max((rest.until for rest in found), default=-math.inf)
    if len(there) >= QUORUM:
        spaces = [rest for who, rest in there.items() if not who.controller]
        if len(spaces) >= QUORUM:
            found += spaces
            until = max(until, sorted([rest.until for rest in spaces])[-QUORUM])
    return found, until


def _wait(times: int) -> float:
    """Seconds for which the last of so many refusals in a row closes a node."""
    return min(LONGEST, FIRST * 2.0 ** min(times - 1, 16))


def _about(seconds: float) -> float:
    """The next larger of those: kube-scheduler adds equal texts up, so that many nodes should say one of few."""
    return next((wait for wait in _CLOSED if wait >= seconds), LONGEST)


_CLOSED: Final = {
    wait: Rejection(Reason.REFUSING, what=f"is tried again within {wait:g} s") for wait in map(_wait, range(1, 16))
}
_TRIED: Final = Rejection(Reason.REFUSING, what="and one pod is tried there first")


def _controller(pod: Pod) -> str:
    return next((owner.uid for owner in pod.metadata.owner_references or () if owner.controller), "")


def _whos(pod: Pod) -> tuple[Who, ...]:
    namespace, controller = pod.metadata.namespace, _controller(pod)
    return (Who(namespace), Who(namespace, controller)) if controller else (Who(namespace),)
