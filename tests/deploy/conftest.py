"""What the tests of generated objects share: configs, and pods that say a bit of everything."""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import cel
import jsonpatch
import msgspec
import pytest
import yaml
from hypothesis import strategies as st

from tessera.deploy import conditions
from tessera.deploy.policies import policies
from tessera.dialects.native import native, tickets
from tessera.dialects.registry import FOREIGN, OPTIONS
from tessera.model.config import Config, parse
from tessera.model.errors import RequestError
from tessera.model.names import names
from tessera.model.pod import Manifest
from webhook.admission.mutate import Mutator
from webhook.admission.patch import WIRE

NAMES = names()


def configured(config: Config, **changes: Any) -> Config:
    """A config with other values."""
    return msgspec.structs.replace(config, **changes)


def carries_ours(pod: dict[str, Any]) -> bool:
    """Whether a pod has a name under our domain in annotations or resources, or a label that only we write."""
    under = f"{NAMES.domain}/"
    metadata, spec = pod.get("metadata") or {}, pod.get("spec") or {}
    containers = (spec.get("initContainers") or []) + (spec.get("containers") or [])
    sides = [side or {} for each in containers for side in (each.get("resources") or {}).values()]
    return (
        any(key.startswith(under) for key in metadata.get("annotations") or {})
        or any(key in {NAMES.unit, NAMES.region} for key in metadata.get("labels") or {})
        or any(key.startswith(under) for side in sides if isinstance(side, dict) for key in side)
    )


# Pods of which each may say a bit of everything: names of every dialect, signs that change what they mean, noise.

_TABLE: Final = (native(NAMES), tickets(NAMES), *FOREIGN)
_PREFIXED: Final = ("10gb", "1g.10gb", "0gb", "x", "")
RESOURCES: Final = sorted(
    {name for each in _TABLE for name in each.resources}
    | {prefix + rest for each in _TABLE for prefix in each.prefixes for rest in _PREFIXED if rest}
    | {"cpu", "memory", "huawei.com/Ascend910", "metax-tech.com/gpu", "example.com/nic", f"{NAMES.domain}/unknown"}
)
SHARED: Final = ["cpu", "huawei.com/Ascend910", "nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/priority"]
"""Names that ask for ours only beside other signs."""
ANNOTATIONS: Final = sorted(
    {name for each in _TABLE for name in each.annotations}
    | {
        "nvidia.com/container.main.gpu-memory.limit",
        "nvidia.com/container.main.gpu-memory.request",
        "nvidia.com/container.main.gpu-compute.mode",
        "nvidia.com/container.main.gpus.devices",
        "nvidia.com/gpu-memory.container.main.limit",
        "gpu-fraction-num-devices",
        "kubernetes.io/config.mirror",
        "example.com/team",
        *(NAMES.plan, NAMES.request, NAMES.gpu_models, NAMES.wake, NAMES.placement_profile),
    }
)
LABELS: Final = sorted(
    {name for each in _TABLE for name in each.labels}
    | {"alibabacloud.com/eci", "alibabacloud.com/acs", "alibabacloud.com/compute-class", "runai/queue", "app"}
    | {NAMES.unit, NAMES.region, NAMES.node_model}
)
HAMI: Final = ("nvidia.com/gpumem", "nvidia.com/gpumem-percentage", "nvidia.com/gpucores")
SELECTORS: Final = {
    "nvidia.com/gpu.product": ("NVIDIA-A100", "NVIDIA-A100-SHARED", "NVIDIA-A100-MIG-1g.5gb"),
    "cloud.google.com/gke-gpu-sharing-strategy": ("time-sharing", "mps"),
    "cloud.google.com/gke-max-shared-clients-per-gpu": ("4", "1"),
    "cloud.google.com/gke-gpu-partition-size": ("1g.5gb",),
    "cloud.google.com/gke-accelerator": ("nvidia-l4",),
    "type": ("virtual-kubelet", "gpu"),
    "gpushare": ("true",),
}
SCHEDULERS: Final = (
    "default-scheduler",
    "hami-scheduler",
    "4pd-scheduler",
    "runai-scheduler",
    "kai-scheduler",
    "volcano",
)
AMOUNTS: Final = ("0", "1", "2", "50", "100", "500m", "1500m", "8Gi", "4096")
"""As the API server writes them; it writes any zero as 0, and 0.5 as 500m."""
OPEN: Final[dict[str, dict[str, Any]]] = {
    "nvidia": {"whole": True, "sharedPercent": 25, "mig": True},
    "gke": {"partitions": True},
}
"""Options that leave nothing to another system."""
HALVES: Final = tuple(dict.fromkeys(sorted(OPTIONS)[at::2], False) for at in range(2))
"""Every dialect is off in one of the two."""


def _some(keys: list[str], values: st.SearchStrategy[str], most: int) -> st.SearchStrategy[dict[str, str]]:
    return st.dictionaries(st.sampled_from(keys), values, max_size=most)


@st.composite
def _containers(draw: st.DrawFn, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "image": "x"}
    pool = draw(st.sampled_from((RESOURCES, SHARED)))
    limits = draw(_some(pool, st.sampled_from(AMOUNTS), 3))
    requests = draw(_some(RESOURCES, st.sampled_from(AMOUNTS), 2) | st.just({}))
    sides = {"limits": limits, "requests": {**limits, **requests} if draw(st.booleans()) else requests}
    if any(sides.values()):
        found["resources"] = {side: amounts for side, amounts in sides.items() if amounts}
    if draw(st.integers(0, 9)) == 0:
        found["env"] = [{"name": "RUNAI_GPU_MEMORY_LIMIT", "value": draw(st.sampled_from(("0.5", "8Gi")))}]
    return found


@st.composite
def pods(draw: st.DrawFn) -> dict[str, Any]:
    """A pod as the API server sends it."""
    texts = st.sampled_from((*AMOUNTS, "0.5", "true", "high", "main", "mig"))
    metadata: dict[str, Any] = {"name": "p"}
    annotations = draw(st.just({}) | st.just({}) | _some(ANNOTATIONS, texts, 2))
    labels = draw(st.just({}) | st.just({}) | _some(LABELS, texts, 2))
    metadata |= {key: each for key, each in (("annotations", annotations), ("labels", labels)) if each}
    spec: dict[str, Any] = {
        "containers": [draw(_containers(name)) for name in ("main", "other")[: draw(st.integers(1, 2))]]
    }
    if draw(st.booleans()):
        spec["initContainers"] = [draw(_containers("init"))]
    selectors = draw(st.lists(st.sampled_from(sorted(SELECTORS)), max_size=2, unique=True))
    if selectors:
        spec["nodeSelector"] = {key: draw(st.sampled_from(SELECTORS[key])) for key in selectors}
    spec["schedulerName"] = draw(st.sampled_from(SCHEDULERS))
    if draw(st.integers(0, 4)) == 0:
        spec["tolerations"] = [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def dialects() -> st.SearchStrategy[dict[str, Any]]:
    """The config's section of dialects: as it is without one, open, or with some of them off."""
    names = sorted(OPTIONS)
    some = st.sampled_from([dict.fromkeys(names[at::step], False) for step in (2, 3, 5) for at in range(step)])
    one = st.sampled_from([{name: False} for name in names])
    return st.just({}) | st.just(OPEN) | one | some


_MANIFEST: Final = msgspec.json.Decoder(Manifest)


def decoded(pod: dict[str, Any]) -> Manifest:
    """A pod given as plain data, as the webhook reads it."""
    return _MANIFEST.decode(json.dumps(pod).encode())


@lru_cache(maxsize=512)
def _config(section: str) -> Config:
    # The repair of CNI pods has an entry of its own.
    return parse(f'{{"dialects": {section}, "cni": {{"enabled": false}}}}', dialects=OPTIONS)


def config_of(section: dict[str, Any]) -> Config:
    """A config with this section of dialects."""
    return _config(json.dumps(section, sort_keys=True))


@lru_cache(maxsize=512)
def _mutator(section: str) -> Mutator:
    return Mutator(_config(section))


def mutator(section: dict[str, Any]) -> Mutator:
    """Admission with this section of dialects."""
    return _mutator(json.dumps(section, sort_keys=True))


@lru_cache(maxsize=512)
def _asks(section: str) -> cel.Program:
    return cel.compile(conditions.asks(_config(section)))


def asks(section: dict[str, Any]) -> cel.Program:
    """The match condition of a config with this section of dialects."""
    return _asks(json.dumps(section, sort_keys=True))


def acted_on(mutator: Mutator, pod: dict[str, Any]) -> bool:
    """Whether admission would change or refuse a pod, or the pod carries one of our names."""
    if carries_ours(pod):
        return True
    try:
        return bool(mutator.mutate(decoded(pod), namespace="team").operations)
    except RequestError:
        return True


def idle(pod: dict[str, Any]) -> bool:
    """Whether a pod says something of which only the code can tell that it asks for nothing."""
    annotations = pod["metadata"].get("annotations") or {}
    if annotations.get("gpu-memory") == "0":
        return True  # refused beside other words of KAI's, left alone by itself
    # CCE's fraction of a card is none beside HAMi's names, which may be nobody's where HAMi is off; beside a number of cards
    # of a shared product the number of replicas doesn't count.
    every = (pod["spec"].get("initContainers") or []) + pod["spec"]["containers"]
    beside = {*HAMI, "nvidia.com/gpu.shared"}
    sides = [side for each in every for side in each.get("resources", {}).values()]
    return any("nvidia.com/gpu" in side and not side.keys().isdisjoint(beside) for side in sides)


def cases() -> list[dict[str, Any]]:
    """The pods of the dialects' own tests, each with the config it is meant for."""
    folder = Path(__file__).parents[1] / "dialects" / "cases"
    return [case for path in sorted(folder.glob("*.yaml")) for case in yaml.safe_load(path.read_text())]


def whole(pod: dict[str, Any]) -> dict[str, Any]:
    """A case's pod with what every pod has."""
    metadata, spec = {"name": "p", **(pod.get("metadata") or {})}, pod.get("spec") or {}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [{"name": "main"}], **spec}}


def admitted(case: dict[str, Any]) -> dict[str, Any] | None:
    """A case's pod after admission; None where it is refused or left as it is."""
    pod = whole(case["pod"])
    try:
        outcome = mutator(case.get("config", {})).mutate(decoded(pod), namespace="team")
    except RequestError:
        return None
    found: dict[str, Any] = jsonpatch.apply_patch(pod, json.loads(WIRE.encode(outcome.operations)))
    return found if outcome.request is not None else None


def mutated(pod: dict[str, Any], config: Config) -> dict[str, Any]:
    """A pod after admission by a config."""
    outcome = Mutator(config).mutate(decoded(pod), namespace="team")
    # What stands twice in a test's pod is one object, and a patch would change both.
    pod = json.loads(json.dumps(pod))
    found: dict[str, Any] = jsonpatch.apply_patch(pod, json.loads(WIRE.encode(outcome.operations)))
    return found


@pytest.fixture(scope="session")
def make() -> Any:
    """The functions of this module, for tests."""
    return sys.modules[__name__]


# Policies evaluated in this process: what the API server does with them, by another implementation of CEL.

FUNCTIONS: Final = {"split": lambda text, by: text.split(by), "join": lambda parts, by: by.join(parts)}
"""Of the API server's library, what the standard of CEL has not."""


class Rule:
    """One ValidatingAdmissionPolicy."""

    def __init__(self, policy: dict[str, Any]) -> None:
        """Compile all of its expressions."""
        spec = policy["spec"]
        self.name = policy["metadata"]["name"]
        self.match = spec["matchConstraints"]
        self.conditions = [cel.compile(each["expression"]) for each in spec.get("matchConditions", ())]
        self.variables = [(each["name"], cel.compile(each["expression"])) for each in spec.get("variables", ())]
        self.checks = [
            (cel.compile(each["expression"]), cel.compile(each["messageExpression"])) for each in spec["validations"]
        ]

    def matches(self, resource: str, operation: str, namespace: str) -> bool:
        """Whether the policy looks at such a request at all."""
        (rule,) = self.match["resourceRules"]
        wild = resource.partition("/")[0] + "/*" if "/" in resource else ""
        selector = self.match.get("namespaceSelector", {"matchExpressions": []})["matchExpressions"]
        return (
            (resource in rule["resources"] or wild in rule["resources"])
            and operation in rule["operations"]
            and all(namespace not in each["values"] for each in selector)
        )

    def judge(self, about: dict[str, Any]) -> list[str]:
        """What it says against a request; nothing where it may pass."""
        if not all(each.execute(cel.Context(about, FUNCTIONS)) for each in self.conditions):
            return []
        variables: dict[str, Any] = {}
        for name, expression in self.variables:
            variables[name] = expression.execute(cel.Context({**about, "variables": variables}, FUNCTIONS))
        context = cel.Context({**about, "variables": variables}, FUNCTIONS)
        return [
            f"{self.name}: {message.execute(context)}" for check, message in self.checks if not check.execute(context)
        ]


class Gate:
    """All policies of a config."""

    def __init__(self, config: Config) -> None:
        """Compile them."""
        found = policies(config)
        self.rules = [Rule(each) for each in found if each["kind"] == "ValidatingAdmissionPolicy"]

    def refusals(
        self,
        new: dict[str, Any] | None,
        old: dict[str, Any] | None = None,
        *,
        resource: str = "pods",
        operation: str = "CREATE",
        namespace: str = "team",
        user: str = "alice",
        groups: tuple[str, ...] = ("system:masters",),
        node: str = "",
    ) -> list[str]:
        """What all of them say against a request."""
        base, _, sub = resource.partition("/")
        extra = {"authentication.kubernetes.io/node-name": [node]} if node else {}
        about = {
            "object": new,
            "oldObject": old,
            "request": {
                "operation": operation,
                "name": (new or old or {})["metadata"].get("name", ""),
                "namespace": namespace,
                "resource": {"group": "", "version": "v1", "resource": base},
                "subResource": sub,
                "userInfo": {"username": user, "groups": list(groups), "extra": extra},
            },
        }
        return [
            said for rule in self.rules if rule.matches(resource, operation, namespace) for said in rule.judge(about)
        ]
