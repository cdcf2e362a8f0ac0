"""The repair of CNI pods that can't start on a fresh cloud node, or whose network can't.

Two things keep a node's network from coming up, and the pod that would bring it up from healing it:

* The CNI DaemonSet mounts /opt/cni/bin with hostPath type ``Directory`` (terway still does); on a node without that folder
  the kubelet says "hostPath type check failed" for ever, though the pod itself would fill it. The type becomes
  ``DirectoryOrCreate``; volumes are checked at mount, long after admission. The DaemonSet controller compares revision
  hashes, not specs, so the changed pod is not replaced.
* The ``loopback`` plugin is missing. The runtime runs CNI ADD, loopback first, before any init container of an ordinary
  pod, so an init container can help only where no CNI ADD happens: in the hostNetwork pod of the CNI itself. There it is
  put in front, copies the plugin, and the node's other pods recover by the kubelet's own retries.

So nothing but hostNetwork pods of the configured CNI DaemonSets is touched, and never on a virtual node, which knows
neither host paths nor DaemonSets. The entry for this path has failurePolicy Ignore: a dead webhook must not keep the
network from healing.

The image has to be one that holds Python, this package and the plugin in one of `loopback.SOURCES`, for each of the
nodes' architectures: our own webhook image is. Nodes with SELinux enforcing may need a policy module for the mount.
"""

from __future__ import annotations

import posixpath
from typing import Final

from tessera.model.config import Cni
from tessera.model.pod import Manifest, NodeSelectorTerm, Volume
from webhook.admission.patch import Edit, Json, append, prepend, put

CONTAINER: Final = "tessera-loopback"
"""The init container's fixed name, by which a second pass knows the first."""
BIN: Final = "/opt/cni/bin"
_VOLUME: Final = "tessera-cni-bin"
_MOUNT: Final = "/host/opt/cni/bin"
_ROOTS: Final = ("/opt/cni", "/etc/cni", "/var/lib/cni")
"""Folders of CNI alone; /var/run or / with type Directory in the same pods are none of our business."""
_LABELS: Final = ("app", "k8s-app")
_VIRTUAL: Final = "virtual-kubelet"


def repair(pod: Manifest, *, cni: Cni, namespace: str) -> tuple[Edit, ...]:
    """What mends a CNI pod; nothing where the pod is another one or has been mended.

    Args:
        pod: as it came.
        cni: of the config.
        namespace: of the admission request (the object's own may be empty at creation).
    """
    if not concerns(pod, cni=cni, namespace=namespace):
        return ()
    edits = [
        put(("spec", "volumes", index, "hostPath", "type"), "DirectoryOrCreate")
        for index, volume in enumerate(pod.spec.volumes or ())
        if _is_cni_directory(volume)
    ]
    if cni.image and not any(container.name == CONTAINER for container in pod.spec.init_containers or ()):
        edits += _loopback(pod, cni.image)
    return tuple(edits)


def concerns(pod: Manifest, *, cni: Cni, namespace: str) -> bool:
    """Whether this is a pod that the repair is for."""
    labels = pod.metadata.labels or {}
    return (
        cni.enabled
        and namespace in cni.namespaces
        and pod.spec.host_network is True
        and any(labels.get(label) in cni.apps for label in _LABELS)
        and any(owner.kind == "DaemonSet" for owner in pod.metadata.owner_references or ())
        and not _on_virtual_node(pod)
    )


def command(target: str = _MOUNT) -> list[str]:
    """The init container's command; no shell is needed.

    Args:
        target: folder to put the plugin in.
    """
    return ["python3", "-m", "webhook.admission.loopback", target]


def _loopback(pod: Manifest, image: str) -> list[Edit]:
    volumes = pod.spec.volumes or ()
    name = next((volume.name for volume in volumes if _path(volume) == BIN), None)
    edits: list[Edit] = []
    if name is None:
        if any(volume.name == _VOLUME for volume in volumes):
            return []  # somebody uses our name for something else; the API server would refuse a second one
        name = _VOLUME
        edits.append(
            append(("spec", "volumes"), {"name": name, "hostPath": {"path": BIN, "type": "DirectoryOrCreate"}})
        )
    edits.append(prepend(("spec", "initContainers"), _container(image, volume=name)))
    return edits


def _container(image: str, *, volume: str) -> Json:
    amounts: Json = {"cpu": "100m", "memory": "64Mi"}
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list[Json](command()),
        # Equal requests and limits: a Guaranteed pod stays one.
        "resources": {"requests": amounts, "limits": amounts},
        # Root, because root owns /opt/cni/bin; without any capability it can write there and nowhere else.
        "securityContext": {
            "runAsUser": 0,
            "runAsNonRoot": False,
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": volume, "mountPath": _MOUNT}],
    }


def _path(volume: Volume) -> str:
    """The volume's host path in its shortest spelling; "" where it has none or hides its aim behind dots.

    Admission comes before validation, so ``..`` may still stand here.
    """
    path = volume.host_path.path if volume.host_path is not None else ""
    if not path.startswith("/") or ".." in path.split("/"):
        return ""
    return "/" + posixpath.normpath(path).lstrip("/")


def _is_cni_directory(volume: Volume) -> bool:
    path = _path(volume)
    return (
        volume.host_path is not None
        and volume.host_path.type == "Directory"
        and any(path == root or path.startswith(root + "/") for root in _ROOTS)
    )


def _on_virtual_node(pod: Manifest) -> bool:
    if pod.spec.node_name.startswith(_VIRTUAL) or (pod.spec.node_selector or {}).get("type") == _VIRTUAL:
        return True
    affinity = pod.spec.affinity.node_affinity if pod.spec.affinity is not None else None
    required = affinity.required if affinity is not None else None
    terms = required.node_selector_terms if required is not None else None
    return bool(terms) and all(_picks_virtual(term) for term in terms or ())


def _picks_virtual(term: NodeSelectorTerm) -> bool:
    """The DaemonSet controller names the node by ``metadata.name``; virtual ones are called virtual-kubelet-<zone>."""
    by_name = any(
        field.key == "metadata.name" and any(value.startswith(_VIRTUAL) for value in field.values or ())
        for field in term.match_fields or ()
    )
    by_label = any(
        expression.key == "type" and expression.operator == "In" and expression.values == (_VIRTUAL,)
        for expression in term.match_expressions or ()
    )
    return by_name or by_label
