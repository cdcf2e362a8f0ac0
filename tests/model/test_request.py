"""What amounts mean, and that the request annotation holds exactly that."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.model.errors import AnnotationError, RequestError
from tessera.model.quantity import GIB
from tessera.model.request import ContainerRequest, PodRequest, container_request, decode, encode


def _ask(**amounts):
    return container_request(container="main", **amounts)


@pytest.mark.parametrize(
    ("amounts", "meaning"),
    [
        ({"memory": 8 * GIB}, ContainerRequest(gpus=1, memory=8 * GIB)),
        ({"memory": 8 * GIB, "compute": 30}, ContainerRequest(gpus=1, memory=8 * GIB, compute=30)),
        ({"gpus": 2, "memory": 8 * GIB}, ContainerRequest(gpus=2, memory=8 * GIB)),
        ({"memory_percent": 50}, ContainerRequest(gpus=1, memory_percent=50)),
        ({"compute": 50}, ContainerRequest(gpus=1, memory_percent=50, compute=50)),
        ({"gpus": 2, "compute": 50}, ContainerRequest(gpus=2, memory_percent=50, compute=50)),
        ({"compute": 100}, ContainerRequest(gpus=1, whole=True)),
        ({"gpus": 2}, ContainerRequest(gpus=2, whole=True)),
        ({"memory_percent": 100, "compute": 100}, ContainerRequest(gpus=1, whole=True)),
        ({"memory_percent": 100}, ContainerRequest(gpus=1, memory_percent=100)),
        ({"memory": 1, "compute": 100}, ContainerRequest(gpus=1, memory=1, compute=100)),
        ({"gpus": 0, "memory": 0, "memory_percent": 0, "compute": 0}, None),
        ({}, None),
        ({"gpus": 1, "memory": 0}, ContainerRequest(gpus=1, whole=True)),
        ({"memory": 1, "init": True}, ContainerRequest(gpus=1, memory=1, init=True)),
    ],
)
def test_meaning(amounts, meaning):
    assert _ask(**amounts) == meaning


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        ({"memory": 1, "memory_percent": 5}, "keep one of the two"),
        ({"memory_percent": 101}, "101 percent"),
        ({"compute": 101}, "101 percent"),
        ({"compute": -1}, "-1 compute"),
        ({"gpus": -1}, "-1 GPUs"),
        ({"gpus": 65}, "65 GPUs"),
    ],
)
def test_contradictions_name_the_container_the_value_and_the_fix(amounts, message):
    with pytest.raises(RequestError, match=message) as refused:
        _ask(**amounts)
    assert 'container "main"' in str(refused.value)
    assert refused.value.fix


def test_the_annotation_is_as_the_contract_shows_it():
    request = PodRequest(
        v=1, dialect="hami", containers={"main": ContainerRequest(gpus=1, memory=8589934592, compute=30)}
    )
    assert encode(request) == (
        '{"containers":{"main":{"compute":30,"gpus":1,"memory":8589934592}},"dialect":"hami","v":1}'
    )
    half = PodRequest(v=1, dialect="tessera", containers={"a": _ask(compute=50), "b": _ask(compute=100)})
    assert json.loads(encode(half))["containers"] == {
        "a": {"gpus": 1, "memoryPercent": 50, "compute": 50},
        "b": {"gpus": 1, "whole": True},
    }


_requests = st.builds(
    lambda gpus, memory, compute: container_request(container="c", gpus=gpus, compute=compute, **memory),
    st.integers(1, 16),
    st.one_of(
        st.builds(lambda m: {"memory": m}, st.integers(0, 2**40)),
        st.builds(lambda m: {"memory_percent": m}, st.integers(0, 100)),
    ),
    st.integers(0, 100),
)


@given(st.dictionaries(st.text(max_size=8), _requests, max_size=4))
def test_it_reads_back(containers):
    request = PodRequest(v=1, dialect="tessera", containers=containers)
    assert decode(encode(request)) == request


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{}", '{"v":1}', '{"v":2,"dialect":"x","containers":{}}',
        '{"v":1,"dialect":"x","containers":{"a":{"gpus":0,"memory":1}}}',
        '{"v":1,"dialect":"x","containers":{"a":{"gpus":1}}}',
        '{"v":1,"dialect":"x","containers":{"a":{"gpus":1,"memory":1,"whole":true}}}',
        '{"v":1,"dialect":"x","containers":{"a":{"gpus":1,"memory":-1}}}',
        '{"v":1,"dialect":"x","containers":{"a":{"gpus":1,"memoryPercent":101}}}',
        '{"v":1,"dialect":"x","containers":{"a":{"gpus":1,"whole":true,"compute":5}}}',
        '{"v":1,"dialect":"x","containers":{"a":{"gpus":"1","memory":1}}}',
        "[" * 5000, '{"v":1,"dialect":"' + "x" * 300_000 + '","containers":{}}',
    ],
)  # fmt: skip
def test_a_forged_annotation_is_refused_not_believed(text):
    with pytest.raises(AnnotationError, match="request annotation"):
        decode(text)


def test_a_long_name_does_not_hide_what_is_wrong():
    longest = "n" * 63
    assert (
        str(RequestError("is wrong", container=longest, fix="right it")) == f'container "{longest}": is wrong; right it'
    )
    told = RequestError("is wrong", container="n" * 5000, fix="right it")
    assert str(told) == f'container "{"n" * 62}…": is wrong; right it'
    assert len(told.container) == 5000
