"""What the tests of generated objects share: configs, and pods that say a bit of everything."""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from typing import Any, Final

import msgspec
import pytest
from hypothesis import strategies as st

from tessera.dialects.native import native, tickets
from tessera.dialects.registry import FOREIGN, OPTIONS
from tessera.model.config import Config, parse
from tessera.model.errors import RequestError
from tessera.model.names import names
from tessera.model.pod import Manifest
from webhook.admission.mutate import Mutator

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
    off = st.dictionaries(st.sampled_from(names), st.just(False), max_size=len(names))
    return st.just({}) | st.just(OPEN) | off


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
    # CCE's fraction of a card is none beside HAMi's names, which may be nobody's where HAMi is off.
    sides = [side for each in pod["spec"]["containers"] for side in each.get("resources", {}).values()]
    return any("nvidia.com/gpu" in side and not side.keys().isdisjoint(HAMI) for side in sides)


@pytest.fixture(scope="session")
def make() -> Any:
    """The functions of this module, for tests."""
    return sys.modules[__name__]
