"""GPUs that fall sick, recover or vanish, and files that are lost."""

from __future__ import annotations

import json
import subprocess

from cluster.processes import until
from product import pods, truth
from product.installed import NODE
from product.names import INVENTORY, UNITS
from product.space import is_planned, plan_of

XID_DOUBLE_BIT = 48


def health(space):
    node = space.cluster.node()
    return {gpu["index"]: gpu["health"] for gpu in json.loads(node["metadata"]["annotations"][INVENTORY])["gpus"]}


def becomes(space, gpu, wanted):
    until(f"GPU {gpu} is {wanted}", lambda: health(space)[gpu] == wanted, seconds=30)


def indexes(space, *names):
    """The GPUs of pods, by NVML's index."""
    node = space.cluster.node()
    known = {gpu["id"]: gpu["index"] for gpu in json.loads(node["metadata"]["annotations"][INVENTORY])["gpus"]}
    return {name: {known[each["gpu"]] for each in plan_of(space.get(name))["main"]} for name in names}


def test_a_sick_gpu_takes_no_new_slices_and_comes_back(space, product):
    space.run(pods.pod("old", {"gpu-memory": "8Gi"}))
    (sick,) = indexes(space, "old")["old"]
    with product.nvml() as nvml, space.undisturbed():
        nvml.mark_sick(sick, XID_DOUBLE_BIT)
        becomes(space, sick, "sick")
        names = [f"p{number}" for number in range(6)]
        space.run(*(pods.pod(name, {"gpu-memory": "8Gi"}) for name in names))
        assert all(sick not in found for found in indexes(space, *names).values())
        # What runs there runs on: its program may well not have been hit.
        space.running("old")
        space.just()

        nvml.recover(sick)
        becomes(space, sick, "ok")
        large = [f"large{number}" for number in range(3)]
        space.run(*(pods.pod(name, {"gpu-memory": "60Gi"}) for name in large))
        assert sick in set().union(*indexes(space, *large).values())
    space.just()
    space.nobody_was_refused()


def test_a_sick_fully_used_gpu_leaves_a_free_one_usable(space, product):
    """A Node's status counts the sick GPU's tickets as gone AND as used: whoever believed it would see no room."""
    space.run(*(pods.pod(f"full{number}", {"gpu": 1}) for number in range(3)))
    (sick,) = indexes(space, "full0")["full0"]
    with product.nvml() as nvml:
        nvml.mark_sick(sick, XID_DOUBLE_BIT)
        becomes(space, sick, "sick")
        space.run(pods.pod("p", {"gpu": 1}), seconds=30)
        nvml.recover(sick)
        becomes(space, sick, "ok")
    space.just()
    space.nobody_was_refused()


def test_a_gpu_vanishes_and_returns(space, product):
    space.run(pods.pod("old", {"gpu-memory": "8Gi"}))
    (lost,) = indexes(space, "old")["old"]
    with product.nvml() as nvml, space.undisturbed():
        nvml.lose(lost)
        becomes(space, lost, "lost")
        space.run(*(pods.pod(f"p{number}", {"gpu": 1}) for number in range(3)))
        space.create(pods.pod("waits", {"gpu": 1}))
        space.waiting("waits")
        space.delete("old")
        space.gone("old")

        nvml.return_gpu(lost)
        becomes(space, lost, "ok")
        space.running("waits", seconds=30)
    space.just()
    space.nobody_was_refused()


def test_the_kubelets_checkpoint_is_deleted(space, product):
    """A kubelet that has forgotten what it gave away offers it again: the agent's own ledger knows better."""
    space.run(*(pods.pod(f"old{number}", {"gpu-memory": "30Gi"}) for number in range(4)))
    checkpoint = space.cluster.settings.kubelet_dir / "device-plugins" / "kubelet_internal_checkpoint"
    with space.undisturbed():
        space.cluster.restart_kubelet(between=checkpoint.unlink)
        product.wait_serving()
        names = [f"new{number}" for number in range(4)]
        space.run(*(pods.pod(name, {"gpu-memory": "30Gi"}) for name in names))
        space.create(pods.pod("waits", {"gpu-memory": "40Gi"}))
        space.waiting("waits")

    held = {name: truth.pod_resources(space.cluster)[name]["main"] for name in names}
    for name, gpus in indexes(space, *names).items():
        assert len(gpus) == 1
        assert len(held[name][UNITS]) == 120
    assert sum(len(each) for each in held.values()) == 4
    everyone = [f"old{number}" for number in range(4)] + names
    used = [next(iter(each)) for each in indexes(space, *everyone).values()]
    assert sorted(used.count(gpu) for gpu in range(4)) == [2, 2, 2, 2]
    space.nobody_was_refused()


def test_a_full_disk_stops_nothing(space, product):
    """The agent's ledger lives on a disk of 64 KiB that is full: it serves from memory, and says so."""
    folder = space.cluster.settings.kubelet_dir / "device-plugins" / "tessera"
    product.crash(NODE)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True)
    try:
        (folder / "full").write_bytes(b"\0" * (60 << 10))
        product.back(NODE)
        space.run(*(pods.pod(f"p{number}", {"gpu-memory": "2Gi", "gpu-compute": 1}) for number in range(12)))
        space.just()
        product.crash(NODE)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    with space.undisturbed():
        product.back(NODE)
        space.run(pods.pod("after", {"gpu": 1}))
    space.just()
    assert all(is_planned(each) for each in space.all())
