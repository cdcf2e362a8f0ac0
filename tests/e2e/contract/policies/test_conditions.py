"""The match conditions and the code agree: every pod that admission would change or refuse is sent, and no other is."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster.processes import until
from contract.loader import load
from contract.policies.conftest import NAMES, STRATEGIC, Object, carrying, container, pod
from contract.policies.lone import ADMIN, Lone
from contract.policies.recorder import Recorder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera.deploy.webhooks import webhook_configurations
from tessera.model.config import Cni, Config
from webhook.admission.mutate import Mutator

theirs: Any = load("dialects/conftest.py")
made: Any = load("deploy/conftest.py")
HOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"


class Gate:
    """The API server's view of one config: which pods it sends."""

    def __init__(self, lone: Lone, recorder: Recorder, config: Config) -> None:
        """Register the webhook of a config for a namespace of its own."""
        self._api = lone.api(ADMIN)
        self._recorder = recorder
        self._numbers = itertools.count()
        self.namespace = f"m-{uuid.uuid4().hex[:8]}"
        self._path = f"/{self.namespace}"
        self._pods = f"/api/v1/namespaces/{self.namespace}/pods"
        self._api.post("/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        self.mutator = Mutator(config)
        self.configuration: Any = webhook_configurations(config)[0]
        self.configuration["metadata"]["name"] = self.namespace
        for entry in self.configuration["webhooks"]:
            entry["timeoutSeconds"] = 30  # the machine of a test may be busy
            entry["clientConfig"] = recorder.client(self._path)
            selected = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": [self.namespace]}
            entry["namespaceSelector"] = {"matchExpressions": [selected]}
        self._api.post(HOOKS, self.configuration)
        ours = carrying(pod(), annotations={NAMES.gpu_models: "A100"})
        until("the webhook is called", lambda: bool(self.sent(ours)), seconds=30)

    def post(self, body: Object) -> tuple[int, str]:
        """Create a pod for show; return the API server's status and answer."""
        named = {**body, "metadata": {**body["metadata"], "name": f"p{next(self._numbers)}"}}
        status, answer = self._api.raw("POST", self._pods, named, dryRun="All")
        return status, answer.decode(errors="replace")

    def sent(self, body: Object) -> bool | None:
        """Whether the API server asks about a pod; None where it can't be read, so that nobody is asked."""
        self._recorder.taken(self._path)
        status, answer = self.post(body)
        if status == 400 and "cannot be handled as a Pod" in answer:
            return None
        # A condition that can't be evaluated, or costs too much, says so here; policies look after webhooks were asked.
        assert status in {201, 422} or "ValidatingAdmissionPolicy" in answer, answer
        return bool(self._recorder.taken(self._path))

    def update(self, name: str, body: Object, *, kind: str, subresource: str = "") -> bool:
        """Whether the API server asks about a change of a pod that is there."""
        self._recorder.taken(self._path)
        status, answer = self._api.raw("PATCH", f"{self._pods}/{name}{subresource}", body, kind=kind, dryRun="All")
        assert status in {200, 422}, answer
        return bool(self._recorder.taken(self._path))

    def create(self, body: Object) -> None:
        """Create a pod, without asking anybody what it means."""
        self._api.post(self._pods, body)

    def close(self) -> None:
        """Take the registration away."""
        self._api.delete(f"{HOOKS}/{self.namespace}")


@pytest.fixture(scope="module")
def gates(lone: Lone, recorder: Recorder) -> Iterator[Callable[..., Gate]]:
    """Make the gate of a config, once."""
    found: dict[str, Gate] = {}

    def gate(dialects: dict[str, Any] | None = None, **more: Any) -> Gate:
        key = json.dumps([dialects or {}, {name: str(value) for name, value in more.items()}], sort_keys=True)
        if key not in found:
            config = theirs.config_of(dialects)
            # The repair of CNI pods has an entry of its own.
            found[key] = Gate(lone, recorder, made.configured(config, cni=Cni(enabled=False), **more))
        return found[key]

    yield gate
    for each in found.values():
        each.close()


@pytest.mark.parametrize("number", range(4))
def test_the_cases_of_every_dialect_are_sent_where_the_code_would_act(gates, number):
    wrong = []
    for case in theirs.cases()[number::4]:
        body = theirs.whole(case.pod)
        # A registration takes a second to be in force, so dialects are switched off by halves.
        for dialects in (case.config, *made.HALVES):
            gate = gates(dialects)
            sent = gate.sent(body)
            if sent is None or (sent and made.idle(body)):
                continue
            if sent != made.acted_on(gate.mutator, body):
                wrong.append(f"{case.dialect}: {case.name} {dialects}: sent is {sent}")
    assert wrong == []


@pytest.mark.parametrize("dialects", [{}, made.OPEN, {"hami": False, "kai": False, "nvfractions": False}], ids=str)
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_pods_that_say_a_bit_of_everything_are_too(gates, dialects, data):
    gate, body = gates(dialects), data.draw(made.pods())
    sent, acted_on = gate.sent(body), made.acted_on(gate.mutator, body)
    assert sent is not None
    assert sent or not acted_on
    assert acted_on or not sent or made.idle(body)


PLAIN = [
    pod(),
    pod(containers=[container() | {"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]),
    pod(containers=[container() | {"resources": {"limits": {"nvidia.com/gpu": "1"}}}]),
    pod(containers=[container() | {"resources": {"limits": {"example.com/nic": "1"}}}]),
    carrying(pod(), annotations={"tessera.development/x": "1", "gpu-memory": "high"}, labels={NAMES.node_model: "x"}),
]


@pytest.mark.parametrize("body", PLAIN, ids=range(len(PLAIN)))
def test_a_webhook_that_is_down_stops_nobody_else(gates, body):
    assert gates().sent(body) is False


def test_an_update_is_sent_only_where_a_converted_pods_spec_comes_back(gates):
    gate = gates()
    gate.create(carrying(pod("mine", containers=[container(tickets=4)]), annotations={NAMES.request: "{}"}))
    gate.create(pod("other"))
    again = {"spec": {"containers": [{"name": "main", "resources": {"limits": {NAMES.gpu_memory: "1Gi"}}}]}}
    assert gate.update("mine", again, kind=STRATEGIC)
    assert gate.update("mine", {"spec": {"containers": [{"name": "main", "image": "y"}]}}, kind=STRATEGIC)
    assert not gate.update("other", again, kind=STRATEGIC)
    for body in (
        {"metadata": {"labels": {"a": "b"}}},
        {"metadata": {"annotations": {NAMES.resize: "main=1Gi"}}},
        {"metadata": {"finalizers": ["example.com/wait"]}},
    ):
        assert not gate.update("mine", body, kind=STRATEGIC)
    assert not gate.update("mine", {"status": {"phase": "Running"}}, kind=STRATEGIC, subresource="/status")


def crowd(count, *, amounts, variables=0):
    """A pod of so many containers, none of which asks for a GPU: every part of every condition is looked at."""
    resources = {"limits": {f"example.com/{'x' * 40}{n}": "1" for n in range(amounts)}}
    env = [{"name": f"VARIABLE_{n}", "value": "x" * 20} for n in range(variables)]
    return [container(f"c{n}", env=env) | {"resources": resources} for n in range(count)]


@pytest.mark.parametrize(("count", "amounts", "variables"), [(64, 4, 20), (64, 16, 200)])
def test_a_pod_of_64_containers_stays_below_the_cost_that_is_allowed(gates, count, amounts, variables):
    gate = gates(made.OPEN)
    body = pod(containers=crowd(count, amounts=amounts, variables=variables))
    body = carrying(body, annotations={f"example.com/{n}": "x" * 100 for n in range(100)})
    assert gate.sent(body) is False
    body["spec"]["containers"][-1]["resources"] = {"limits": {"nvidia.com/gpumem": "1"}}
    assert gate.sent(body) is True


def test_an_update_of_64_containers_does_too(gates):
    gate = gates()
    body = pod("crowd", containers=crowd(64, amounts=16, variables=100))
    gate.create(carrying(body, annotations={NAMES.request: "{}"}))
    assert not gate.update("crowd", {"metadata": {"labels": {"a": "b"}}}, kind=STRATEGIC)
    last = {"spec": {"containers": [{"name": "c63", "image": "y"}]}}
    assert gate.update("crowd", last, kind=STRATEGIC)
