"""Any pod: what comes out is what a slow rewriting of plain dicts gives, and everything that is not ours survives in it."""

import copy
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.model.config import Config
from tessera.model.errors import TesseraError
from webhook.admission.mutate import Mutator
from webhook.admission.validate import Validator

T = "tessera.dev/"
UNITS, PERCENT, COMPUTE = T + "gpu-memory.256Mi", T + "gpu-memory.percent", T + "gpu-compute.percent"
UNIT = 256 << 20
USERS = {T + name for name in ("gpu", "gpu-memory", "gpu-memory-percent", "gpu-compute")}
FOREIGN = {"nvidia.com/gpumem", "nvidia.com/gpumem-percentage", "nvidia.com/gpucores", "aliyun.com/gpu-mem"}

ODD = st.sampled_from(["a/b", "~", "~1/x", "~0", "ü/ü", "example.com/x~y", "", " ", "0", "-", "app"])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(ODD, below, max_size=2),
    max_leaves=3,
)
UNKNOWN = st.dictionaries(st.sampled_from(["futureField", "x~y/z", "schedulingGates2"]), PLAIN, max_size=2)
OTHER = st.dictionaries(
    st.sampled_from(["cpu", "memory", "example.com/a~b", "rdma/hca"]), st.sampled_from([1, "1", "2Gi"]), max_size=2
)
TEXTS = st.dictionaries(ODD, st.text(max_size=3), max_size=2)


class Ask:
    """What a container asks, how it is written, and what that means: tickets and request, by the contract's table."""

    def __init__(self, dialect, written, meant):
        self.dialect, self.written, self.meant = dialect, written, meant

    @property
    def tickets(self):
        gpus, meant = self.meant["gpus"], self.meant
        if meant.get("whole"):
            return {PERCENT: str(100 * gpus), COMPUTE: str(100 * gpus)}
        found = {}
        if "memory" in meant:
            found[UNITS] = str((meant["memory"] + UNIT - 1) // UNIT * gpus)
        if "memoryPercent" in meant:
            found[PERCENT] = str(meant["memoryPercent"] * gpus)
        if "compute" in meant:
            found[COMPUTE] = str(meant["compute"] * gpus)
        return found


def _meaning(gpus, memory=None, percent=None, compute=None):
    if memory is None and percent is None:
        percent, compute = compute or 100, compute or 100
    if percent == 100 and compute == 100:
        return {"gpus": gpus, "whole": True}
    found = {"gpus": gpus, "memory": memory, "memoryPercent": percent, "compute": compute}
    return {key: value for key, value in found.items() if value is not None}


@st.composite
def asks(draw, *, shared=False):
    """One container's request in one of the dialects; `shared`: six of them fit on one GPU."""
    gpus, compute, percent = (draw(st.integers(1, high)) for high in ((1, 16, 16) if shared else (3, 100, 100)))
    mib = draw(st.integers(1, 80_000))
    spell = draw(st.sampled_from([int, str]))
    forms = ["bytes", "percent", "compute", "hami", "hami%", "aliyun", "tickets", *([] if shared else ["whole"])]
    form = draw(st.sampled_from(forms))
    with_compute = draw(st.booleans())
    native = {T + "gpu": spell(gpus)} if gpus > 1 or form == "whole" or draw(st.booleans()) else {}
    also = {T + "gpu-compute": spell(compute)} if with_compute else {}
    cores = {"nvidia.com/gpucores": spell(compute)} if with_compute else {}
    capped = compute if with_compute else None
    match form:
        case "bytes":
            return Ask(
                "tessera", native | also | {T + "gpu-memory": f"{mib}Mi"}, _meaning(gpus, mib << 20, None, capped)
            )
        case "percent":
            written = native | also | {T + "gpu-memory-percent": spell(percent)}
            return Ask("tessera", written, _meaning(gpus, None, percent, capped))
        case "compute":
            return Ask("tessera", native | {T + "gpu-compute": spell(compute)}, _meaning(gpus, None, None, compute))
        case "whole":
            return Ask("tessera", native, {"gpus": gpus, "whole": True})
        case "hami":
            written = {"nvidia.com/gpu": spell(gpus), "nvidia.com/gpumem": spell(mib)} | cores
            return Ask("hami", written, _meaning(gpus, mib << 20, None, capped))
        case "hami%":
            written = {"nvidia.com/gpu": spell(gpus), "nvidia.com/gpumem-percentage": spell(percent)} | cores
            # All of a card and no cap on its cores is an exclusive card in HAMi.
            return Ask("hami", written, _meaning(gpus, None, percent, 100 if percent == 100 and not capped else capped))
        case "aliyun":
            return Ask("aliyun", {"aliyun.com/gpu-mem": spell(mib % 80 + 1)}, _meaning(1, (mib % 80 + 1) << 30))
        case _:
            return Ask("tickets", {UNITS: spell(mib)}, _meaning(1, mib * UNIT))


@st.composite
def pods(draw):
    """A pod with everything odd that a cluster holds, and what each of its containers asks."""
    plain_init_asks = draw(st.booleans())
    said, spec = {}, draw(UNKNOWN)
    for which, names in (("initContainers", "ijk"), ("containers", "abc")):
        built = []
        for name in names[: draw(st.integers(1 if which == "containers" else 0, 3))]:
            sidecar = which == "initContainers" and (not plain_init_asks or draw(st.booleans()))
            container = {"name": name} | draw(UNKNOWN) | ({"restartPolicy": "Always"} if sidecar else {})
            ask = draw(st.none() | asks(shared=plain_init_asks))
            if ask is not None:
                said[name] = ask
            resources = _resources(draw, ask)
            if resources is not ...:
                container["resources"] = resources
            built.append(container)
        if built or draw(st.booleans()):
            spec[which] = built or draw(st.sampled_from([None, []]))
    for name in ("nodeSelector", "tolerations", "affinity"):
        how = draw(st.sampled_from(["absent", "null", "there"]))
        if how != "absent":
            value = {"nodeSelector": TEXTS, "tolerations": st.lists(st.fixed_dictionaries({"key": ODD}), max_size=1)}
            spec[name] = None if how == "null" else draw(value.get(name, st.just({"podAffinity": {"x": []}})))
    metadata = {"name": "p"} | draw(UNKNOWN)
    for name in ("annotations", "labels"):
        value = draw(st.sampled_from([..., None]) | TEXTS)
        if value is not ...:
            metadata[name] = value
    forged = draw(st.sampled_from([{}, {T + "plan": "{}"}, {T + "plan": "x", T + "request": "{}"}]))
    if forged:
        metadata["annotations"] = (metadata.get("annotations") or {}) | forged
    if draw(st.booleans()):
        metadata["labels"] = (metadata.get("labels") or {}) | {T + "unit": "u", T + "region": "r"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, said


def _resources(draw, ask):
    """Where a container's amounts stand; ... for nowhere."""
    other = draw(OTHER)
    if ask is None:
        return draw(
            st.sampled_from([..., None, {}, {"limits": None}, {"limits": other}, {"requests": other, "claims": []}])
        )
    zero = {T + "gpu-compute": "0"} if ask.dialect != "tessera" and draw(st.booleans()) else {}
    match draw(st.sampled_from(["limits", "requests", "both", "nulls"])):
        case "limits":
            return {"limits": other | ask.written | zero, "claims": [{"name": "c"}]}
        case "requests":
            return {"requests": ask.written | other}
        case "both":
            return {"limits": ask.written | other, "requests": other | ask.written | zero}
        case _:
            return {"limits": ask.written | zero, "requests": None}


def rewritten(pod, said):
    """The oracle: the object that is meant, written down step by step."""
    found = copy.deepcopy(pod)
    metadata, spec = found["metadata"], found["spec"]
    for name in (T + "plan", *(() if said else (T + "request",))):
        (metadata.get("annotations") or {}).pop(name, None)
    for name in (T + "unit", T + "region"):
        (metadata.get("labels") or {}).pop(name, None)
    if not said:
        return found
    order = [c["name"] for which in ("initContainers", "containers") for c in spec.get(which) or ()]
    first = next(said[name].dialect for name in order if name in said)
    containers = {}
    for which in ("initContainers", "containers"):
        for container in spec.get(which) or ():
            resources = container.get("resources") or {}
            ask = said.get(container["name"])
            for side in ("limits", "requests"):
                for name in (*USERS, *(ask.written if ask and ask.dialect != "tickets" else ())):
                    (resources.get(side) or {}).pop(name, None)
            if ask is None:
                continue
            for side in ("limits", "requests"):
                there = resources.get(side) or {}
                for name, count in ask.tickets.items():
                    if there.get(name) not in (count, int(count)):
                        there[name] = count
                container["resources"] = resources
                resources[side] = there
            plain_init = which == "initContainers" and container.get("restartPolicy") != "Always"
            containers[container["name"]] = (
                ask.meant
                | ({"init": True} if plain_init else {})
                | ({"dialect": ask.dialect} if ask.dialect != first else {})
            )
    metadata["annotations"] = (metadata.get("annotations") or {}) | {
        T + "request": {"v": 1, "dialect": first, "containers": containers}
    }
    spec["schedulerName"] = "tessera-scheduler"
    return found


def opened(found):
    """With the request annotation as what it says."""
    found = copy.deepcopy(found)
    annotations = found["metadata"].get("annotations") or {}
    if T + "request" in annotations:
        annotations[T + "request"] = json.loads(annotations[T + "request"])
    return found


@given(pods())
def test_the_result_is_the_object_that_was_meant_and_unknown_fields_survive(admit, case):
    pod, said = case
    found, outcome = admit(pod)
    assert opened(found) == rewritten(pod, said)
    assert (outcome.request is not None) == bool(said)
    stripped = "removed what only Tessera may write"
    touched = T + "plan" in (pod["metadata"].get("annotations") or {}) or T + "unit" in (
        pod["metadata"].get("labels") or {}
    )
    assert any(stripped in warning for warning in outcome.warnings) == touched


@given(pods())
def test_a_second_pass_is_empty_and_the_result_is_valid(admit, manifest, validator, case):
    pod, _ = case
    found, first = admit(pod)
    again, second = admit(found)
    assert (again, second.operations, second.request) == (found, (), first.request)
    validator.validate(manifest(found))


@given(pods())
def test_no_name_that_users_write_is_left_where_amounts_stand(admit, case):
    pod, said = case
    found, _ = admit(pod)
    if said:
        spec = found["spec"]
        containers = [each for which in ("initContainers", "containers") for each in spec.get(which) or ()]
        left = {
            name
            for container in containers
            for side in ("limits", "requests")
            for name in ((container.get("resources") or {}).get(side) or {})
        }
        assert not left & (USERS | FOREIGN | {"nvidia.com/gpu"})


@given(pods(), pods())
def test_after_another_webhook_put_containers_in_front_all_is_as_if_they_had_been_there(admit, one, other):
    pod, injected = one[0], other[0]
    if any(_asks_in_init(*each) for each in (one, other)):
        return  # all of such a pod has to fit on one GPU; two of them together may not
    added = copy.deepcopy(injected["spec"]["containers"])
    for container in added:
        container["name"] = f"injected-{container['name']}"
    found, _ = admit(pod)
    found["spec"]["containers"] = added + found["spec"]["containers"]
    found, late = admit(found)
    together = copy.deepcopy(pod)
    together["spec"]["containers"] = copy.deepcopy(added) + together["spec"]["containers"]
    whole, at_once = admit(together)
    if late.request is None or at_once.request is None:
        assert late.request is at_once.request
        return
    assert opened(found)["spec"]["containers"] == opened(whole)["spec"]["containers"]
    assert _meanings(late.request) == _meanings(at_once.request)


def _asks_in_init(pod, said):
    inits = pod["spec"].get("initContainers") or ()
    return any(each["name"] in said and each.get("restartPolicy") != "Always" for each in inits)


def _meanings(request):
    return {
        name: (asked.amounts(), asked.init, asked.dialect or request.dialect)
        for name, asked in request.containers.items()
    }


@pytest.fixture(scope="session")
def validator():
    return Validator(Config())


HOSTILE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from(["8Gi", "-1", "NaN", "1e3", "0.5", "101", "\x00", "🦀", "true", "a" * 5000]),
    lambda below: (
        st.lists(below, max_size=2) | st.dictionaries(st.sampled_from([*USERS, *FOREIGN, "x"]), below, max_size=2)
    ),
    max_leaves=4,
)


@given(
    limits=st.dictionaries(st.sampled_from([*USERS, *FOREIGN, UNITS, PERCENT, COMPUTE, "nvidia.com/gpu"]), HOSTILE, max_size=4),
    annotations=st.dictionaries(
        st.sampled_from([*USERS, T + "request", T + "container", T + "gpu-models", T + "gpu-uuids", T + "guarantee"]),
        st.text(max_size=30) | st.sampled_from(["1", "8Gi", "a", "-", "," * 100]),
        max_size=4,
    ),
)  # fmt: skip
def test_whatever_stands_there_it_is_admitted_or_refused_with_a_reason(manifest, limits, annotations):
    pod = {
        "metadata": {"name": "p", "annotations": annotations},
        "spec": {"containers": [{"name": "a", "resources": {"limits": limits, "requests": limits}}]},
    }
    try:
        found = manifest(pod)
    except msgspec.ValidationError:
        return  # what the API server itself would not have decoded
    refusal = "none"
    try:
        Mutator(Config()).mutate(found, namespace="team")
    except TesseraError as error:
        refusal = str(error)
    assert 0 < len(refusal) < 1000
