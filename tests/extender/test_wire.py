"""Requests as kube-scheduler writes them are read the short way, and mean what they mean by the long one."""

from __future__ import annotations

import json

import msgspec
import pytest

from webhook.extender.wire import WireError, check_names, read_filter, read_names

POD = {"metadata": {"name": "p", "annotations": {"a": '"NodeNames":["x"]', "NodeNames": '["y"]}'}}}
NAMES = ["n1", "n2"]


def go(value):
    """JSON as Go writes it."""
    return msgspec.json.encode(value)


@pytest.mark.parametrize(
    "body",
    [
        go({"Pod": POD, "Nodes": None, "NodeNames": NAMES}),
        go({"NodeNames": NAMES, "Pod": POD, "Nodes": None}),
        go({"Pod": POD, "NodeNames": NAMES, "Other": [1]}),
        go({"Other": {"NodeNames": ["x"]}, "Pod": POD, "NodeNames": NAMES}),
        go({"Pod": POD | {"NodeNames": ["x"]}, "NodeNames": NAMES}),
        b'{"NodeNames":["x"],"Pod":%b,"NodeNames":["n1","n2"]}' % go(POD),
        json.dumps({"Pod": POD, "NodeNames": NAMES}).encode(),
    ],
)
def test_names_are_those_of_the_request_itself(body):
    found = read_filter(body)
    assert (read_names(found.raw_names), found.nodes) == (NAMES, None)
    assert found.pod.metadata.annotations == POD["metadata"]["annotations"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"Pod":{"NodeNames":["x"]}',
        b'{"Pod":{},"Nodes":{"NodeNames":["x"]}',
        b'{"Pod":{}},"NodeNames":["x"]}',
        b'"Pod":{},"NodeNames":["x"]}',
        b'{"Pod":null,"NodeNames":["x"]}',
        b'{"Pod":{} "NodeNames":["x"]}',
        b'{"Pod":7,"NodeNames":["x"]}',
        b'{"Pod":{"metadata":{"name":"\xff"}},"NodeNames":["x"]}',
        b'{"NodeNames":["x"]}',
        b'{"Pod":{},"Other\\"NodeNames":["x"]}',
        b'{"Pod":{},"Other,\\"NodeNames":["x"]}',
    ],
)
def test_what_is_no_request_is_none_by_either_way(body):
    with pytest.raises(WireError):
        read_filter(body)


@pytest.mark.parametrize("names", [b'["a" "b"]', b'["a"', b'["a",]', b'["a",x]', b'["a"]]', b'["a\n"]'])
def test_names_that_are_no_json_are_neither_looked_up_nor_sent_back(names):
    body = b'{"Pod":{},"NodeNames":%b}' % names
    with pytest.raises(WireError):
        read_names(read_filter(body).raw_names)
    with pytest.raises(WireError):
        check_names(read_filter(body).raw_names)
