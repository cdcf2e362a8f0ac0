"""What a kubelet does when plugins register, announce, end and come back."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import pytest

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from tessera.testing.kubelet import Plugin

GPU = "example.com/gpu"


async def refusal(plugin, **options):
    await plugin.serve()
    try:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await plugin.register(**options)
    finally:
        await plugin.stop()
    assert error.value.code() == grpc.StatusCode.UNKNOWN
    return error.value.details()


async def test_announced_devices_become_capacity_and_allocatable(kubelet, make_plugin):
    await make_plugin(GPU, ["d0", "d1"])

    seen = kubelet.capacity()

    assert (seen.capacity, seen.allocatable) == ({GPU: 2}, {GPU: 2})


async def test_unhealthy_devices_leave_allocatable_but_not_capacity(kubelet, make_plugin):
    plugin = await make_plugin(GPU, ["d0", "d1", "d2"])

    plugin.announce(unhealthy=["d1"])
    await kubelet.wait_serving(GPU, 2)

    assert kubelet.capacity().capacity == {GPU: 3}


async def test_another_version_is_refused_with_the_supported_one(kubelet):
    plugin = Plugin(kubelet.paths.root, GPU, ["d0"])

    text = await refusal(plugin, version="v1")

    assert text == 'requested API version "v1" is not supported by kubelet. Supported version is ["v1beta1"]'


@pytest.mark.parametrize(
    "name", ["gpu", "kubernetes.io/gpu", "requests.example.com/gpu", "example.com/", "example.com/a/b", "EXAMPLE.com/a"]
)
async def test_a_name_that_is_no_extended_resource_is_refused(kubelet, name):
    plugin = Plugin(kubelet.paths.root, name, ["d0"])

    assert await refusal(plugin) == f'the ResourceName "{name}" is invalid'
    assert kubelet.capacity().capacity == {}


@pytest.mark.parametrize("name", ["example.com/gpu-memory.256Mi", "a.b/c", "example.com/" + "x" * 63])
async def test_a_name_that_is_one_is_taken(kubelet, make_plugin, name):
    await make_plugin(name, ["d0"], socket="p.sock")

    assert kubelet.capacity().allocatable == {name: 1}


async def test_an_ended_stream_makes_allocatable_zero_and_keeps_capacity(kubelet, make_plugin):
    plugin = await make_plugin(GPU, ["d0", "d1"])

    await plugin.stop()
    await kubelet.wait_serving(GPU, 0)

    assert kubelet.capacity().capacity == {GPU: 2}


async def test_a_plugin_that_comes_back_is_served_again(kubelet, make_plugin):
    plugin = await make_plugin(GPU, ["d0", "d1"])
    await plugin.stop()
    await kubelet.wait_serving(GPU, 0)

    await plugin.start()
    await kubelet.wait_serving(GPU, 2)


async def test_a_plugin_that_comes_back_with_fewer_devices_leaves_no_trace_of_the_others(kubelet, make_plugin):
    plugin = await make_plugin(GPU, ["d0", "d1", "d2"])
    await plugin.stop()
    await kubelet.wait_serving(GPU, 0)

    del plugin.devices["d2"]
    await plugin.start()
    await kubelet.wait_serving(GPU, 2)

    assert kubelet.capacity().capacity == {GPU: 2}


async def test_the_end_of_an_older_stream_disconnects_the_newer_plugin(kubelet, make_plugin):
    """A handover between two instances: the newcomer has to notice that its stream ended, and register again."""
    old = await make_plugin(GPU, ["d0"], socket="old.sock")
    new = await make_plugin(GPU, ["d0", "d1"], socket="new.sock")

    await old.stop()
    await kubelet.wait_serving(GPU, 0)
    assert kubelet.capacity().capacity == {GPU: 2}

    await new.register()
    await kubelet.wait_serving(GPU, 2)


async def test_a_message_above_four_mebibytes_ends_the_stream(kubelet):
    """22 characters and 12 bytes of framing each: 140,000 of them are too much for a kubelet."""
    plugin = Plugin(kubelet.paths.root, GPU, (f"gpu-0123456789ab-m{n:07d}" for n in range(140_000)))
    async with plugin:
        await kubelet.wait_for(lambda each: each.capacity().capacity == {GPU: 0})

        # Known, but as nothing: the resource never had a healthy device.
        assert kubelet.capacity().allocatable == {}


async def test_a_message_just_below_four_mebibytes_is_taken(make_plugin):
    names = [f"gpu-0123456789ab-m{n:07d}" for n in range(100_000)]
    size = api.ListAndWatchResponse(devices=[api.Device(ID=name, health="Healthy") for name in names]).ByteSize()
    assert 3_000_000 < size < 4 * 1024 * 1024

    await make_plugin(GPU, names)


async def test_registering_without_serving_fails(kubelet):
    """The kubelet dials back inside Register."""
    plugin = Plugin(kubelet.paths.root, GPU, ["d0"], socket="dead.sock")

    with pytest.raises(grpc.aio.AioRpcError) as error:
        await plugin.register()

    assert "failed to dial device plugin" in error.value.details()


async def test_two_resources_are_kept_apart(kubelet, make_plugin):
    first = await make_plugin("example.com/a", ["d0", "d1"])
    await make_plugin("example.com/b", ["d0"])

    await first.stop()
    await kubelet.wait_serving("example.com/a", 0)

    assert kubelet.capacity().allocatable == {"example.com/a": 0, "example.com/b": 1}


@pytest.fixture
def foreign_file(kubelet):
    Path(kubelet.paths.plugins, "note").touch()


@pytest.mark.usefixtures("foreign_file")
async def test_a_restart_removes_every_socket_and_nothing_else(kubelet, make_plugin):
    await make_plugin(GPU, ["d0"], socket="gone.sock")

    await kubelet.restart()

    # A kubelet killed while it writes its checkpoint leaves the draft behind.
    left = sorted(name for name in os.listdir(kubelet.paths.plugins) if not name.startswith("."))
    assert left == ["kubelet.sock", "kubelet_internal_checkpoint", "note"]


async def test_a_restart_makes_a_new_registration_socket(kubelet):
    before = os.stat(kubelet.paths.registration)

    await kubelet.restart()

    after = os.stat(kubelet.paths.registration)
    # The inode number alone may be the same.
    assert (before.st_ino, before.st_ctime_ns) != (after.st_ino, after.st_ctime_ns)


async def test_after_a_restart_capacity_is_zero_until_the_plugin_registers(kubelet, make_plugin):
    plugin = await make_plugin(GPU, ["d0", "d1"])

    await kubelet.restart()

    seen = kubelet.capacity()
    assert (seen.capacity, seen.allocatable) == ({GPU: 0}, {GPU: 0})
    await plugin.stop()
    await plugin.start()
    await kubelet.wait_serving(GPU, 2)
