"""Variables that would show others' GPUs or lift limits: taken away where config says so, and only in pods that ask."""

import copy
import json

import jsonpatch
import pytest

from tessera.model.config import Config, Guard
from webhook.admission.mutate import Mutator
from webhook.admission.patch import WIRE

T = "tessera.dev/"
STRIP = Config(guard=Guard(environment="strip"))
HIDE = Config(guard=Guard(environment="strip", hide_others=True))
DEVICES = "NVIDIA_VISIBLE_DEVICES"
VOID = {"name": DEVICES, "value": "void"}
BY_REFERENCE = {"configMapKeyRef": {"name": "c", "key": "k"}}


def pod(*containers, init=(), **spec):
    built = {"containers": list(containers)} | ({"initContainers": list(init)} if init else {})
    return {"metadata": {"name": "p"}, "spec": built | spec}


def asking(*env, name="main"):
    return {"name": name, "env": list(env), "resources": {"limits": {T + "gpu-memory": "1Gi"}}}


def variables(found, at=0, which="containers"):
    return found["spec"][which][at].get("env")


def env(name, value):
    return {"name": name, "value": value}


BAD = [
    env(DEVICES, "all"),
    env(DEVICES, "0,1"),
    env(DEVICES, ""),
    {"name": DEVICES},
    {"name": DEVICES, "valueFrom": BY_REFERENCE},
    env("NVIDIA_DRIVER_CAPABILITIES", "all"),
    env("NVIDIA_DRIVER_CAPABILITIES", "compute,graphics"),
    {"name": "NVIDIA_DRIVER_CAPABILITIES", "valueFrom": BY_REFERENCE},
    env("NVIDIA_GPU_MEMORY_LIMIT", "1"),
    env("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "0=80G"),
    {"name": "CUDA_MPS_PIPE_DIRECTORY", "valueFrom": BY_REFERENCE},
    env("CUDA_DEVICE_MEMORY_LIMIT", "80g"),
    env("CUDA_DEVICE_MEMORY_LIMIT_0", "80g"),
]
GOOD = [
    env(DEVICES, "void"),
    env(DEVICES, "none"),
    env("NVIDIA_DRIVER_CAPABILITIES", "compute,utility"),
    env("CUDA_VISIBLE_DEVICES", "0"),
    env("NVIDIA_REQUIRE_CUDA", "cuda>=12"),
    env("PATH", "/bin"),
]


@pytest.mark.parametrize("variable", BAD, ids=str)
def test_it_is_taken_away_with_a_warning(admit, variable):
    given = pod(asking(env("A", "1"), variable, env("B", "2")))
    found, outcome = admit(given, STRIP)
    assert variables(found) == [env("A", "1"), env("B", "2")]
    assert outcome.warnings == (f'container "main": removed {variable["name"]}; the node sets what a slice has',)
    again, second = admit(found, STRIP)
    assert (again, second.operations) == (found, ())


@pytest.mark.parametrize("variable", GOOD, ids=str)
def test_others_stay(admit, variable):
    found, outcome = admit(pod(asking(variable)), STRIP)
    assert variables(found) == [variable]
    assert outcome.warnings == ()


@pytest.mark.parametrize("variable", BAD, ids=str)
def test_by_default_it_is_left_to_the_policies(admit, variable):
    found, outcome = admit(pod(asking(variable)))
    assert variables(found) == [variable]
    assert outcome.warnings == ()


def test_a_pod_that_asks_for_no_gpu_is_left_to_the_policies(admit):
    given = pod({"name": "main", "env": BAD})
    assert admit(given, HIDE)[0] == given


def test_several_go_at_once_and_the_warning_names_them(admit):
    found, outcome = admit(pod(asking(*BAD)), STRIP)
    assert variables(found) == []
    (warning,) = outcome.warnings
    assert len(warning) <= 120
    assert DEVICES in warning


def test_every_container_of_a_pod_that_asks_is_cleaned(admit):
    given = pod(asking(), {"name": "log", "env": [BAD[0]]}, init=[{"name": "fetch", "env": [env("A", "1"), BAD[9]]}])
    found, outcome = admit(given, STRIP)
    assert variables(found, 1) == []
    assert variables(found, 0, "initContainers") == [env("A", "1")]
    assert len(outcome.warnings) == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, [VOID]),
        ([], [VOID]),
        ([env("A", "1")], [env("A", "1"), VOID]),
        ([env(DEVICES, "none")], [env(DEVICES, "none")]),
        ([env(DEVICES, "all"), env("A", "1")], [VOID, env("A", "1")]),
        ([{"name": DEVICES, "valueFrom": BY_REFERENCE}], [VOID]),
        ([env(DEVICES, "all"), env(DEVICES, "0")], [VOID]),
        ([env("CUDA_MPS_PIPE_DIRECTORY", "/x")], [VOID]),
    ],
)
def test_a_container_that_asks_for_none_is_shown_none(admit, before, after):
    other = {"name": "log"} | ({} if before is None else {"env": before})
    found, _ = admit(pod(asking(), other), HIDE)
    assert variables(found, 1) == after
    assert variables(found, 0) == []
    again, second = admit(found, HIDE)
    assert (again, second.operations) == (found, ())


def test_without_stripping_a_variable_that_the_policies_judge_is_not_overwritten(admit):
    config = Config(guard=Guard(hide_others=True))
    found, _ = admit(pod(asking(), {"name": "a", "env": [BAD[0]]}, {"name": "b"}), config)
    assert variables(found, 1) == [BAD[0]]
    assert variables(found, 2) == [VOID]


@pytest.mark.parametrize("variable", [BAD[0], BAD[4], BAD[9]], ids=str)
def test_a_manifest_that_is_applied_again_brings_nothing_back(admit, manifest, variable):
    """The merge goes by name: what is still there is changed in its place, what is gone is added."""
    other = {"name": "log", "env": [env("A", "1"), variable]}
    old, _ = admit(pod(asking(variable, env("B", "2")), other), HIDE)
    new = copy.deepcopy(old)
    for container in new["spec"]["containers"]:
        kept = [each for each in container["env"] if each["name"] != variable["name"]]
        place = next((at for at, each in enumerate(container["env"]) if each["name"] == variable["name"]), len(kept))
        container["env"] = [*kept[:place], variable, *kept[place:]]
    outcome = Mutator(HIDE).update(manifest(new), manifest(old), namespace="team")
    assert jsonpatch.apply_patch(new, json.loads(WIRE.encode(outcome.operations))) == old
