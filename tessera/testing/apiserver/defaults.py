"""What the API server fills in when it decodes an object (pkg/apis/*/v1/defaults.go), where Tessera can see it.

Defaulting runs before admission and again after every webhook's patch: that is why a webhook sees requests equal to
limits although the user wrote limits only, and why one that changes a limit must change the request with it.
"""

from __future__ import annotations

from typing import Final

from tessera.testing.apiserver.tree import Object, dig, own, rows, table, text

_POD_OWNERS: Final = ("deployments", "daemonsets", "statefulsets", "replicasets", "jobs")
_FILE_MODE: Final = 420
_VOLUMES_WITH_MODE: Final = ("secret", "configMap", "projected", "downwardAPI")
_PROBES: Final = ("livenessProbe", "readinessProbe", "startupProbe")


def fill_in(plural: str, tree: Object) -> None:
    """Fill in what is missing in an object of that resource."""
    if plural == "pods":
        _pod(tree)
    elif plural in _POD_OWNERS:
        _pod_spec(own(tree, "spec", "template", "spec"))
    elif plural == "secrets":
        tree.setdefault("type", "Opaque")
    elif plural == "namespaces":
        if name := text(tree, "metadata", "name"):
            own(tree, "metadata", "labels")["kubernetes.io/metadata.name"] = name
        own(tree, "status").setdefault("phase", "Active")
    elif plural in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        for hook in rows(tree, "webhooks"):
            _webhook(hook, mutating=plural.startswith("mutating"))


def _pod(tree: Object) -> None:
    spec = own(tree, "spec")
    for container in rows(spec, "containers") + rows(spec, "initContainers"):
        limits = table(container, "resources", "limits")
        if limits:
            requests = own(container, "resources", "requests")
            for name, value in limits.items():
                requests.setdefault(name, value)
    spec.setdefault("enableServiceLinks", True)
    if spec.get("hostNetwork") is True:
        for container in rows(spec, "containers") + rows(spec, "initContainers"):
            for port in rows(container, "ports"):
                port.setdefault("hostPort", port.get("containerPort"))
    _pod_spec(spec)


def _pod_spec(spec: Object) -> None:
    for container in rows(spec, "containers") + rows(spec, "initContainers") + rows(spec, "ephemeralContainers"):
        _container(container)
    for volume in rows(spec, "volumes"):
        for kind in _VOLUMES_WITH_MODE:
            if isinstance(volume.get(kind), dict):
                own(volume, kind).setdefault("defaultMode", _FILE_MODE)
        if isinstance(volume.get("hostPath"), dict):
            own(volume, "hostPath").setdefault("type", "")
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("securityContext", {})
    spec.setdefault("schedulerName", "default-scheduler")
    if spec.get("serviceAccountName"):
        spec["serviceAccount"] = spec["serviceAccountName"]


def _container(container: Object) -> None:
    container.setdefault("resources", {})
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    if not container.get("imagePullPolicy"):
        image = text(container, "image")
        tag = image.rsplit("/", 1)[-1].partition("@")[0].partition(":")[2]
        pinned = "@" in image or tag not in ("", "latest")
        container["imagePullPolicy"] = "IfNotPresent" if pinned else "Always"
    for port in rows(container, "ports"):
        port.setdefault("protocol", "TCP")
    for env in rows(container, "env"):
        if isinstance(dig(env, "valueFrom", "fieldRef"), dict):
            own(env, "valueFrom", "fieldRef").setdefault("apiVersion", "v1")
    for kind in _PROBES:
        if isinstance(container.get(kind), dict):
            probe = own(container, kind)
            probe.setdefault("timeoutSeconds", 1)
            probe.setdefault("periodSeconds", 10)
            probe.setdefault("successThreshold", 1)
            probe.setdefault("failureThreshold", 3)


def _webhook(hook: Object, *, mutating: bool) -> None:
    hook.setdefault("failurePolicy", "Fail")
    hook.setdefault("matchPolicy", "Equivalent")
    hook.setdefault("timeoutSeconds", 10)
    hook.setdefault("namespaceSelector", {})
    hook.setdefault("objectSelector", {})
    if mutating:
        hook.setdefault("reinvocationPolicy", "Never")
    for rule in rows(hook, "rules"):
        rule.setdefault("scope", "*")
    if isinstance(dig(hook, "clientConfig", "service"), dict):
        own(hook, "clientConfig", "service").setdefault("port", 443)
