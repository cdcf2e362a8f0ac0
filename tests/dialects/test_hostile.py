"""Every name that any dialect reads, in any mixture and with any value: understood or refused with a reason, never half.

The cases say what sensible pods mean; this says what holds for the others. Names come from the registry, so a new dialect
is held to it from its first line.
"""

import copy

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.dialects.native import native
from tessera.dialects.registry import FOREIGN, OPTIONS
from tessera.model.config import parse
from tessera.model.errors import RequestError
from tessera.model.names import names
from tessera.model.request import MOST_GPUS, decode, encode
from webhook.admission.validate import Validator

NAMES = names()
DIALECTS = (native(NAMES), *FOREIGN)
RESOURCES = [
    *sorted({name for dialect in DIALECTS for name in dialect.resources} | set(NAMES.tickets)),
    "nvidia.com/gpu-10gb",
    "nvidia.com/gpu-x",
    "nvidia.com/mig-1g.10gb",
    NAMES.mig("1g.10gb"),
]
TEXTS = [
    *sorted({name for dialect in DIALECTS for name in dialect.annotations | dialect.labels}),
    "gpu-fraction-num-devices",
    "gpu-fraction-container-name",
    "nvidia.com/container.a.gpu-memory.limit",
    "nvidia.com/container.z.gpu-memory.request",
    "nvidia.com/gpu-memory.container.a.limit",
    "nvidia.com/container..gpu-memory.limit",
    "alibabacloud.com/gpu-count",
    "aliyun.com/gpu-count",
    "volcano.sh/gpu-num",
    "sharedgpu/gpu_mem",
    NAMES.request,
    NAMES.plan,
]
SELECTORS = {
    "cloud.google.com/gke-gpu-sharing-strategy": ["time-sharing", "mps", "", "x"],
    "cloud.google.com/gke-max-shared-clients-per-gpu": ["2", "0", "-1", "1e9", "x"],
    "cloud.google.com/gke-gpu-partition-size": ["1g.10gb", ""],
    "nvidia.com/gpu.product": ["Tesla-T4-SHARED", "A100-MIG-1g.10gb", "-SHARED", ""],
    "gpushare": ["true"],
    "type": ["virtual-kubelet"],
}
SANE = [1, 2, 10, 20, 50, 100, 200, "1", "2", "50", "100", "8Gi", "1024Mi", "3k", 0, "0", "0.5", "500m", 4096]
WILD = [
    -1,
    "-1",
    "1e18",
    "9223372036854775807",
    "1e64",
    150,
    "33.3",
    "0.0001",
    "1n",
    "8GB",
    "",
    " 1",
    "NaN",
    "\u0663",
    1e300,
]
AMOUNTS = st.sampled_from(SANE) | st.sampled_from(SANE + WILD)
STRINGS = AMOUNTS.map(str) | st.sampled_from(
    ["a", "z", "true", "mig", "binpack", "A100,-T4", ",", "{}", "\x00", "x" * 300]
)
SCHEDULERS = ["", "default-scheduler", "hami-scheduler", "volcano", "kai-scheduler", "runai-scheduler", "nobody"]
OTHERS = {"cpu": "1", "rdma/hca": 1, "example.com/a~b": "2"}


def one_side():
    return st.dictionaries(st.sampled_from(RESOURCES), AMOUNTS, max_size=4)


def texts():
    return st.dictionaries(st.sampled_from(TEXTS), STRINGS, max_size=3)


@st.composite
def containers(draw, name, *, init=False):
    limits = draw(one_side())
    requests = draw(st.one_of(st.none(), st.just(copy.deepcopy(limits)), one_side()))
    built = {"name": name, "image": "x", "resources": {"limits": limits | OTHERS}}
    if requests is not None:
        built["resources"]["requests"] = requests
    if init and draw(st.booleans()):
        built["restartPolicy"] = "Always"
    if draw(st.integers(0, 9)) == 0:
        built["securityContext"] = {"privileged": True}
    if draw(st.integers(0, 4)) == 0:
        built["env"] = [{"name": "RUNAI_GPU_MEMORY_LIMIT", "value": draw(STRINGS)}]
    return built


@st.composite
def pods(draw):
    spec = {"containers": [draw(containers(name)) for name in "ab"[: draw(st.integers(1, 2))]]}
    if draw(st.integers(0, 3)) == 0:
        spec["initContainers"] = [draw(containers("i", init=True))]
    chosen = draw(st.lists(st.sampled_from(sorted(SELECTORS)), max_size=2, unique=True))
    spec["nodeSelector"] = {"zone": "z"} | {key: draw(st.sampled_from(SELECTORS[key])) for key in chosen}
    spec["schedulerName"] = draw(st.sampled_from(SCHEDULERS))
    metadata = {"name": "p", "annotations": draw(texts()), "labels": {"app": "p"} | draw(texts())}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


# Every option that reads what is left alone by default.
EVERYTHING = {
    "nvidia": {"whole": True, "sharedPercent": 25, "mig": True},
    "gke": {"partitions": True},
    "runai": {"reserve": "limit"},
    "kubeshare": {"compute": "limit"},
}


@pytest.fixture(scope="module", params=[{}, EVERYTHING], ids=["defaults", "everything"])
def installed(request):
    """Options of dialects, and the last look of an installation that has them."""
    config = parse(yaml.safe_dump({"dialects": request.param}), dialects=OPTIONS)
    return request.param, Validator(config)


@settings(max_examples=200)
@given(pod=pods())
def test_it_is_understood_whole_or_refused_with_a_reason(admit, manifest, installed, pod):
    options, validator = installed
    try:
        after, outcome = admit(pod, options)
    except RequestError as refusal:
        error = refusal
    else:
        error = None
    if error is not None:
        assert 0 < len(str(error)) < 1000
        assert error.fix
        return
    again, second = admit(after, options)
    assert (again, second.operations, second.request) == (after, (), outcome.request)
    everywhere = after["spec"]["containers"] + after["spec"].get("initContainers", [])
    assert all(OTHERS.items() <= each["resources"]["limits"].items() for each in everywhere)
    assert after["spec"]["nodeSelector"]["zone"] == "z"
    assert after["metadata"]["labels"]["app"] == "p"
    if outcome.request is not None:
        # What the annotation's reader would not believe must not be written into it.
        assert decode(encode(outcome.request)) == outcome.request
        validator.validate(manifest(after))


@pytest.mark.parametrize(
    ("written", "selector", "options"),
    [
        (NAMES.mig("1g.10gb"), {}, {}),
        ("nvidia.com/mig-1g.10gb", {}, EVERYTHING),
        ("nvidia.com/gpu", {"cloud.google.com/gke-gpu-partition-size": "1g.10gb"}, EVERYTHING),
    ],
    ids=["tickets", "nvidia", "gke"],
)
def test_mig_instances_are_bounded_as_gpus_are(admit, written, selector, options):
    def asking(count):
        main = {"name": "main", "image": "x", "resources": {"limits": {written: count}}}
        return {"metadata": {"name": "p"}, "spec": {"nodeSelector": selector, "containers": [main]}}

    after, outcome = admit(asking(MOST_GPUS), options)
    assert outcome.request.containers["main"].gpus == MOST_GPUS
    assert admit(after, options)[1].request == outcome.request
    with pytest.raises(RequestError, match=f'container "main": asks for {MOST_GPUS + 1} MIG instances.*at most'):
        admit(asking(MOST_GPUS + 1), options)


@pytest.mark.parametrize(
    ("asking", "beside"),
    [
        ({"aliyun.com/gpu-mem": 4}, {"aliyun.com/gpu-count": 1}),
        ({"volcano.sh/vgpu-memory": 4096, "aliyun.com/gpu-count": 1}, {}),
        ({"nvidia.com/gpumem": 4096}, {"nvidia.com/priority": 1}),
    ],
    ids=["in a container that asks nothing", "under another dialect", "a priority alone"],
)
def test_what_asks_for_nothing_and_no_node_has_is_left_in_no_container(admit, asking, beside):
    """The pod would wait for it for ever."""
    given = [
        {"name": name, "image": "x", "resources": {"limits": {**each, "cpu": 1}, "requests": {**each, "cpu": 1}}}
        for name, each in (("a", asking), ("b", beside))
    ]
    after, outcome = admit({"metadata": {"name": "p"}, "spec": {"containers": given}})
    assert list(outcome.request.containers) == ["a"]
    first, second = (each["resources"] for each in after["spec"]["containers"])
    assert first == {side: {"cpu": 1, NAMES.memory_units: "16"} for side in ("limits", "requests")}
    assert second == {side: {"cpu": 1} for side in ("limits", "requests")}
    assert admit(after)[1].operations == ()


@pytest.mark.parametrize("limits", [{"aliyun.com/gpu-count": 1}, {"nvidia.com/priority": 1}], ids=str)
def test_where_nobody_asks_in_another_systems_words_it_is_none_of_our_business(admit, limits):
    given = {
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "a", "image": "x", "resources": {"limits": limits}}]},
    }
    assert admit(given)[1].operations == ()
