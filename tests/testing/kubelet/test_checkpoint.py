"""The checkpoint file, held against texts that the kubelet's own code wrote (k8s.io/kubernetes v1.34.4)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from tessera.testing.kubelet import CheckpointError
from tessera.testing.kubelet.checkpoint import Checkpoint, Entry, decode, encode, read, write
from tessera.testing.kubelet.fnv import fnv1a32

TICKET = "tessera.dev/gpu-memory.256Mi"
ANSWER = api.ContainerAllocateResponse(envs={"A": "1"}).SerializeToString()

NOTHING = b'{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":3467439661}'
ONE = (
    b'{"Data":{"PodDeviceEntries":[{"PodUID":"u1","ContainerName":"main",'
    b'"ResourceName":"tessera.dev/gpu-memory.256Mi","DeviceIDs":{"-1":["g-m001","g-m000"]},'
    b'"AllocResp":"CgYKAUESATE="}],"RegisteredDevices":{"tessera.dev/gpu-memory.256Mi":["g-m001","g-m000","g-m002"]}},'
    b'"Checksum":2892651389}'
)
MANY = (
    '{"Data":{"PodDeviceEntries":[{"PodUID":"u1","ContainerName":"main",'
    '"ResourceName":"tessera.dev/gpu-memory.256Mi","DeviceIDs":{"-1":["g-m001","g-m000"]},"AllocResp":"CgYKAUESATE="},'
    '{"PodUID":"u\\"2é\\u003c","ContainerName":"c","ResourceName":"x.y/z",'
    '"DeviceIDs":{"0":["a"],"1":["b"],"10":["c"],"2":[]},"AllocResp":""},'
    '{"PodUID":"u3","ContainerName":"c","ResourceName":"x.y/z","DeviceIDs":{},"AllocResp":null}],'
    '"RegisteredDevices":{"a.b/c":["2","3"],"a.b/c.d":[],"z.z/z":["1"]}},"Checksum":4138030888}'
).encode()

FIRST = Entry("u1", "main", TICKET, {-1: ("g-m001", "g-m000")}, ANSWER)
SECOND = Entry('u"2é<', "c", "x.y/z", {1: ("b",), 0: ("a",), 10: ("c",), 2: ()}, b"")


def test_an_empty_checkpoint_is_written_as_the_kubelet_writes_it():
    assert encode(Checkpoint((), {})) == NOTHING


def test_an_allocation_is_written_as_the_kubelet_writes_it():
    assert encode(Checkpoint((FIRST,), {TICKET: ("g-m001", "g-m000", "g-m002")})) == ONE


def test_awkward_texts_and_numbers_are_written_as_the_kubelet_writes_them():
    written = json.loads(encode(Checkpoint((FIRST, SECOND), {"z.z/z": ("1",), "a.b/c": ("2", "3"), "a.b/c.d": ()})))
    expected = json.loads(MANY)

    assert written["Data"]["PodDeviceEntries"] == expected["Data"]["PodDeviceEntries"][:2]
    assert b'"u\\"2\xc3\xa9\\u003c"' in encode(Checkpoint((SECOND,), {}))


@pytest.mark.parametrize("content", [NOTHING, ONE, MANY])
def test_what_the_kubelet_wrote_is_read(content):
    found = decode(content)

    assert [entry.pod_uid for entry in found.entries] == ["u1", 'u"2é<', "u3"][: len(found.entries)]


def test_what_was_read_is_what_was_meant():
    assert decode(ONE) == Checkpoint((FIRST,), {TICKET: ("g-m001", "g-m000", "g-m002")})


names = st.text(min_size=0, max_size=8)
entries = st.builds(
    Entry,
    names,
    names,
    names,
    st.dictionaries(st.integers(-1, 300), st.lists(names, max_size=3).map(tuple), max_size=3),
    st.binary(max_size=8),
)


@given(
    st.lists(entries, max_size=3).map(tuple), st.dictionaries(names, st.lists(names, max_size=3).map(tuple), max_size=3)
)
def test_anything_written_is_read_again(found, registered):
    written = Checkpoint(found, registered)

    assert decode(encode(written)) == written


@given(st.binary(max_size=300))
def test_the_hash_is_the_plain_definition_s(content):
    state = 0x811C9DC5
    for byte in content:
        state = (state ^ byte) * 0x01000193 % 2**32

    assert fnv1a32(content) == state


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"Data":{}}',
        NOTHING[:-1],
        NOTHING.replace(b"3467439661", b"3467439662"),
        ONE.replace(b'"main"', b'"mail"'),
        ONE.replace(b"CgYKAUESATE=", b"not base64!"),
        ONE.replace(b'"-1"', b'"x"'),
    ],
)
def test_a_broken_file_is_refused(content):
    with pytest.raises(CheckpointError):
        decode(content)


def test_no_file_is_no_checkpoint(directory):
    assert read(f"{directory}/kubelet_internal_checkpoint") is None


def test_a_file_is_replaced_as_a_whole(directory):
    path = f"{directory}/kubelet_internal_checkpoint"
    write(path, Checkpoint((), {}))
    write(path, Checkpoint((FIRST,), {}))

    assert read(path) == Checkpoint((FIRST,), {})
