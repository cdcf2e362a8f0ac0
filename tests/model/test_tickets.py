"""Requests become tickets and back; an annotation is believed only where it yields the pod's tickets."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.model.errors import RequestError
from tessera.model.names import names
from tessera.model.pod import Pod
from tessera.model.quantity import GIB
from tessera.model.request import ContainerRequest, PodRequest, container_request, encode
from tessera.model.tickets import asks, describe, request_of, tickets

N = names()
M, P, C = N.tickets


@pytest.mark.parametrize(
    ("amounts", "counts"),
    [
        ({"memory": 8 * GIB}, {M: 32}),
        ({"memory": 8 * GIB, "compute": 30}, {M: 32, C: 30}),
        ({"gpus": 2, "memory": 8 * GIB, "compute": 30}, {M: 64, C: 60}),
        ({"memory_percent": 50}, {P: 50}),
        ({"memory_percent": 50, "compute": 30}, {P: 50, C: 30}),
        ({"compute": 50}, {P: 50, C: 50}),
        ({"gpus": 2}, {P: 200, C: 200}),
        ({"memory": 1}, {M: 1}),
        ({"memory": 256 * 1024**2 + 1}, {M: 2}),
    ],
)
def test_the_contract_table(amounts, counts):
    assert tickets(container_request(container="c", **amounts), N) == counts


def test_mig():
    assert tickets(ContainerRequest(gpus=2, mig="1g.10gb+me"), N) == {"tessera.dev/mig-1g.10gb.me": 2}


def _pod(containers, init=(), annotations=None):
    def container(entry):
        name, limits, *rest = entry
        return {"name": name, "resources": {"limits": limits}} | (rest[0] if rest else {})

    return msgspec.convert(
        {
            "metadata": {"name": "p", "annotations": annotations},
            "spec": {
                "containers": [container(c) for c in containers],
                "initContainers": [container(c) for c in init],
            },
        },
        Pod,
    )


def test_asks_come_in_the_kubelets_order_with_their_roles():
    pod = _pod(
        [("a", {M: "1"}), ("plain", {"cpu": "1"})],
        init=[("i", {M: 2}), ("s", {P: "3"}, {"restartPolicy": "Always"})],
    )
    assert [(ask.container, ask.role) for ask in asks(pod, N)] == [("i", "init"), ("s", "sidecar"), ("a", "main")]
    assert asks(pod, N)[0].request.init


def test_an_annotation_that_fits_is_believed():
    request = container_request(container="a", gpus=2, memory=100 * 1024**2)
    text = encode(PodRequest(v=1, dialect="hami", containers={"a": request}))
    pod = _pod([("a", {M: "2"})], annotations={N.request: text})
    assert asks(pod, N)[0].request == request


@pytest.mark.parametrize("text", ["nonsense", encode(PodRequest(v=1, dialect="x", containers={
    "a": ContainerRequest(gpus=1, memory=64 * GIB)}))])  # fmt: skip
def test_one_that_does_not_is_not(text):
    pod = _pod([("a", {M: "2"})], annotations={N.request: text})
    assert asks(pod, N)[0].request == ContainerRequest(gpus=1, memory=512 * 1024**2)


@pytest.mark.parametrize(
    ("counts", "request_"),
    [
        ({M: 32}, ContainerRequest(gpus=1, memory=8 * GIB)),
        ({P: 50, C: 50}, ContainerRequest(gpus=1, memory_percent=50, compute=50)),
        ({P: 200, C: 200}, ContainerRequest(gpus=2, whole=True)),
        ({C: 30}, ContainerRequest(gpus=1, memory_percent=30, compute=30)),
        ({M: 64, C: 160}, ContainerRequest(gpus=2, memory=8 * GIB, compute=80)),
        ({"tessera.dev/mig-1g.10gb": 2}, ContainerRequest(gpus=2, mig="1g.10gb")),
        ({}, None),
    ],
)
def test_tickets_by_hand(counts, request_):
    assert request_of(counts, N, container="c", init=False) == request_


@pytest.mark.parametrize(
    "limits",
    [
        {M: "1", P: "1"},
        {P: "150"} | {C: "101"},
        {M: "0.5"},
        {M: "-1"},
        {M: "x"},
        {M: "1", "tessera.dev/mig-1g.10gb": "1"},
        {"tessera.dev/mig-1g.10gb": "1", "tessera.dev/mig-2g.20gb": "1"},
    ],
)
def test_tickets_that_make_no_sense(limits):
    with pytest.raises(RequestError, match='container "a"'):
        asks(_pod([("a", limits)]), N)


def test_zero_tickets_are_no_ask():
    assert asks(_pod([("a", {M: "0"})]), N) == ()


@given(
    st.integers(1, 8),
    st.one_of(st.builds(lambda m: {"memory": m}, st.integers(1, 2**38)),
              st.builds(lambda m: {"memory_percent": m}, st.integers(1, 100))),
    st.integers(0, 100),
)  # fmt: skip
def test_any_request_is_found_again_in_its_pod(gpus, memory, compute):
    request = container_request(container="a", gpus=gpus, compute=compute, **memory)
    text = encode(PodRequest(v=1, dialect="tessera", containers={"a": request}))
    limits = {name: str(count) for name, count in tickets(request, N).items()}
    assert asks(_pod([("a", limits)], annotations={N.request: text}), N)[0].request == request
    # And without the annotation the tickets alone ask for the same totals.
    assert tickets(asks(_pod([("a", limits)]), N)[0].request, N) == tickets(request, N)


def test_in_words():
    assert describe(container_request(container="c", gpus=2, memory=8 * GIB, compute=30)) == (
        "2 GPUs, each 8Gi of memory and 30 % of compute"
    )
    assert describe(ContainerRequest(gpus=1, whole=True)) == "1 GPU, whole"
