"""What a node left behind, read without any code of the programs under judgement.

The fake kubelet writes what a real one writes (its device manager's checkpoint) and what a real runtime knows (what each
container was started with). Both are files; the rest stands on the Node object.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from typing import Any, Final

Json = dict[str, Any]
"""One API object as plain JSON."""

DOMAIN: Final = "tessera.dev/"
_ID: Final = re.compile(r"([0-9a-f]{12})-([mpcg])(\d+)")
_CHECKPOINT: Final = "kubelet_internal_checkpoint"
_MOUNTED: Final = "/var/run/nvidia-container-devices/"
_CDI: Final = "nvidia.com/gpu="


class Evidence:
    """One node at one moment.

    Attributes:
        name: of the node.
        node: the Node object.
        gpus: its inventory's GPUs by id.
        held: by (pod UID, container), the device IDs in the kubelet's checkpoint; ours only.
        records: by (pod UID, container), what the container was started with.
    """

    def __init__(self, node: Json, kubelet_dir: str) -> None:
        """Read everything now."""
        self.node = node
        self.name: str = node["metadata"]["name"]
        inventory = json.loads(node["metadata"]["annotations"][DOMAIN + "inventory"])
        self.gpus: dict[str, Json] = {gpu["id"]: gpu for gpu in inventory["gpus"]}
        self.held: dict[tuple[str, str], set[str]] = defaultdict(set)
        with open(os.path.join(kubelet_dir, "device-plugins", _CHECKPOINT), encoding="utf-8") as file:
            for entry in json.load(file)["Data"]["PodDeviceEntries"] or []:
                if entry["ResourceName"].startswith(DOMAIN):
                    devices = {device for numa in entry["DeviceIDs"].values() for device in numa}
                    self.held[entry["PodUID"], entry["ContainerName"]] |= devices
        self.records: dict[tuple[str, str], Json] = {}
        for folder, _, files in os.walk(os.path.join(kubelet_dir, "containers")):
            for name in files:
                if name.endswith(".json"):
                    with open(os.path.join(folder, name), encoding="utf-8") as file:
                        record = json.load(file)
                    self.records[record["uid"], record["container"]] = record

    def slices(self, uid: str, container: str) -> list[tuple[str, int, int]]:
        """What a container's device IDs come to: (GPU, units, percent of compute), sorted."""
        counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for device in self.held.get((uid, container), ()):
            gpu, kind = parse_device(device)
            counts[gpu][kind] += 1
        return sorted(
            (gpu, kinds["m"] + self.percent_units(gpu, kinds["p"]), kinds["c"]) for gpu, kinds in counts.items()
        )

    def percent_units(self, gpu: str, percent: int) -> int:
        """Units that a percentage of a GPU's memory comes to."""
        return max(1, percent * self.gpus[gpu]["units"] // 100) if percent and gpu in self.gpus else 0


def parse_device(device: str) -> tuple[str, str]:
    """The GPU and the kind (m, p, c or g) of a device ID.

    Raises:
        ValueError: no device ID of ours.
    """
    match = _ID.fullmatch(device)
    if match is None:
        message = f"{device!r} is no device ID of ours"
        raise ValueError(message)
    return match.group(1), match.group(2)


def visible(record: Json) -> list[str]:
    """UUIDs of the GPUs that a container is given, by whichever way of injection."""
    found = {name.removeprefix(_CDI) for name in record["cdi"] if name.startswith(_CDI)}
    paths = (mount["containerPath"] for mount in record["mounts"])
    found |= {path.removeprefix(_MOUNTED) for path in paths if path.startswith(_MOUNTED)}
    if not found:
        listed = record["env"].get("NVIDIA_VISIBLE_DEVICES", "")
        found = {uuid for uuid in listed.split(",") if uuid and uuid not in ("void", "none")}
    return sorted(found)


def tickets(container: Json) -> dict[str, int]:
    """The tickets in a container's limits."""
    limits = container.get("resources", {}).get("limits") or {}
    return {name: int(count) for name, count in limits.items() if name.startswith(DOMAIN) and int(count)}


def planned(pod: Json) -> dict[str, list[Json]]:
    """By container, the slices of a pod's plan; empty where it has none."""
    text = (pod["metadata"].get("annotations") or {}).get(DOMAIN + "plan")
    return json.loads(text)["containers"] if text else {}


def alive(pod: Json) -> bool:
    """Bound and not ended."""
    return bool(pod["spec"].get("nodeName")) and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
