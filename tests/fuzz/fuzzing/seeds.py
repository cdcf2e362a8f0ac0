"""What fuzzing starts from: every manifest of the dialects' tests, and the words and amounts that pods are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tessera.dialects.registry import FOREIGN
from tessera.model.names import names

CASES = Path(__file__).resolve().parents[2] / "dialects" / "cases"
NAMES = names()

AMOUNTS: tuple[Any, ...] = (
    0, 1, 2, 3, 8, 30, 50, 100, 101, 128, 200, 3000, 16276, 40000, 2**31, 2**62, 2**63, -1, 0.5, 0.1, 1.5, 1e3, 1e-9,
    "0", "1", "2", "0.5", "0.3333", "100m", "5500m", "1k", "3k", "8Gi", "1e3", "1E", "4096M", "-1", "+1", "", " ", "x",
    "NaN", "Infinity", "0x10", "1_0", "9" * 40, "1e400", "1e-60", "true", "null", "\uff18", None, True, [], {}, [1], {"a": 1},
)  # fmt: skip
TEXTS: tuple[str, ...] = (
    "", "a", "main", "other", "-", ",", "A100,H100", "-T4", "a" * 70, "ü", "\u0000", "🦀", "../..", "void", "all", "none",
    "true", "false", "pack", "spread", "nvlink", "numa", "any", "kernel", "process", "watched", "volcano", "kai-scheduler",
    "hami-scheduler", "runai-scheduler", "default-scheduler", "Always", "virtual-kubelet", "mig", "Tesla-T4-SHARED",
    "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "mps", "time-sharing", "1g.5gb", "{}", '{"v":1}',
    '{"v":1,"dialect":"tessera","containers":{"main":{"gpus":1,"memory":8589934592}}}',
)  # fmt: skip
_FIELDS = (
    "metadata", "annotations", "labels", "ownerReferences", "spec", "containers", "initContainers", "ephemeralContainers",
    "resources", "limits", "requests", "claims", "name", "image", "env", "value", "valueFrom", "restartPolicy", "nodeName",
    "schedulerName", "nodeSelector", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms", "matchExpressions", "matchFields", "key",
    "operator", "values", "tolerations", "volumes", "hostPath", "path", "type", "hostNetwork", "hostIPC", "securityContext",
    "privileged", "runtimeClassName", "overhead", "status", "kind", "generateName", "namespace", "uid",
)  # fmt: skip
_CARRIED = (
    "gpushare", "cgpu", "cloud.google.com/gke-accelerator", "cloud.google.com/gke-gpu-sharing-strategy",
    "cloud.google.com/gke-max-shared-clients-per-gpu", "cloud.google.com/gke-gpu-partition-size", "nvidia.com/gpu.product",
    "kubernetes.io/config.mirror", "alibabacloud.com/eci", "alibabacloud.com/acs", "kai.scheduler/queue",
    "gpu-fraction-num-devices", "gpu-fraction-container-name", "nvidia.com/container.main.gpu-memory.limit",
    "nvidia.com/container.main.gpus.devices", "nvidia.com/gpu-10gb", "nvidia.com/mig-1g.5gb", "huawei.com/Ascend910",
    "RUNAI_GPU_MEMORY_LIMIT", "CGPU_DISABLE", "NVIDIA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY", "cpu", "memory",
)  # fmt: skip


def pods() -> list[dict[str, Any]]:
    """Pods as people write them."""
    found = []
    for path in sorted(CASES.glob("*.yaml")):
        for case in yaml.safe_load(path.read_text(encoding="utf-8")):
            pod = case["pod"]
            pod.setdefault("metadata", {}).setdefault("name", "p")
            pod.setdefault("spec", {}).setdefault("containers", [{"name": "main"}])
            found.append(pod)
    return found


def words() -> list[str]:
    """Names that mean something somewhere in a pod."""
    found = {*_FIELDS, *_CARRIED, *NAMES.asks, *NAMES.tickets, NAMES.mig_prefix + "1g.5gb"}
    found |= {NAMES.request, NAMES.plan, NAMES.unit, NAMES.container, NAMES.gpu_models, NAMES.gpu_uuids}
    found |= {NAMES.gpu_placement, NAMES.gpu_topology, NAMES.guarantee, NAMES.placement_profile, NAMES.resize}
    for dialect in FOREIGN:
        found |= {
            *dialect.resources,
            *dialect.prefixes,
            *dialect.annotations,
            *dialect.annotation_prefixes,
            *dialect.labels,
        }
    return sorted(found)
