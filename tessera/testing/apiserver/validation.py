"""What the API server refuses after admission (pkg/apis/core/validation), where Tessera can get it wrong.

Names, labels and annotations; containers and their resources; what may change on a pod and what may not; webhook
configurations. The messages are the real ones, since our own must make sense beside them.
"""

from __future__ import annotations

import re
from typing import Final

from tessera.model.errors import QuantityError
from tessera.model.quantity import parse
from tessera.testing.apiserver.status import Cause, duplicate, forbidden_value, invalid_value, required
from tessera.testing.apiserver.tree import Json, Object, copy, rows, table, text, texts, whole

_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", re.ASCII)
_LABEL: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?", re.ASCII)
_LARGEST_ANNOTATIONS: Final = 256 * 1024
_STANDARD: Final = ("cpu", "memory", "ephemeral-storage")

_BAD_SUBDOMAIN: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_BAD_NAME: Final = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_BAD_LABEL: Final = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
UPDATABLE: Final = (
    "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only "
    "additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was "
    "previously negative)"
)


def metadata(tree: Object) -> list[Cause]:
    """Check an object's name, labels and annotations."""
    causes: list[Cause] = []
    name = text(tree, "metadata", "name")
    if not name:
        causes.append(required("metadata.name", "name or generateName is required"))
    elif len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        causes.append(invalid_value("metadata.name", name, _BAD_SUBDOMAIN))
    for key, value in table(tree, "metadata", "labels").items():
        causes += _qualified("metadata.labels", key)
        shown = value if isinstance(value, str) else str(value)
        if len(shown) > 63:
            causes.append(invalid_value("metadata.labels", shown, "must be no more than 63 characters"))
        elif not _LABEL.fullmatch(shown):
            causes.append(invalid_value("metadata.labels", shown, _BAD_LABEL))
    size = 0
    for key, value in table(tree, "metadata", "annotations").items():
        causes += _qualified("metadata.annotations", key.lower())
        size += len(key.encode()) + len(value.encode() if isinstance(value, str) else b"")
    if size > _LARGEST_ANNOTATIONS:
        message = f"Too long: may not be more than {_LARGEST_ANNOTATIONS} bytes"
        causes.append(Cause("FieldValueTooLong", "metadata.annotations", message))
    return causes


def pod(tree: Object) -> list[Cause]:
    """Check a pod that is being created."""
    causes: list[Cause] = []
    if not rows(tree, "spec", "containers"):
        causes.append(required("spec.containers"))
    seen: set[str] = set()
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(rows(tree, "spec", kind)):
            causes += _container(f"spec.{kind}[{index}]", container, seen, init=kind == "initContainers")
    return causes


def pod_update(new: Object, old: Object) -> list[Cause]:
    """Check a change of a pod through its main resource."""
    before, after = table(old, "spec"), copy(table(new, "spec"))
    causes: list[Cause] = []
    for kind in ("containers", "initContainers"):
        if len(rows(before, kind)) != len(rows(after, kind)):
            return [forbidden_value(f"spec.{kind}", "pod updates may not add or remove containers")]
        for theirs, ours in zip(rows(after, kind), rows(before, kind), strict=True):
            if not text(theirs, "image"):
                causes.append(required(f"spec.{kind}[0].image"))
            theirs["image"] = ours.get("image")
    if any(toleration not in rows(after, "tolerations") for toleration in rows(before, "tolerations")):
        causes.append(
            forbidden_value("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds")
        )
    gates = [text(gate, "name") for gate in rows(before, "schedulingGates")]
    if any(text(gate, "name") not in gates for gate in rows(after, "schedulingGates")):
        causes.append(
            forbidden_value("spec.schedulingGates", "only deletion is allowed, but found new scheduling gate")
        )
    free = ["tolerations", "schedulingGates", "activeDeadlineSeconds"]
    if gates:
        # A gated pod's node selection may be narrowed; that it is only narrowed is not checked here.
        free += ["nodeSelector", "affinity"]
    if {k: v for k, v in before.items() if k not in free} != {k: v for k, v in after.items() if k not in free}:
        causes.append(forbidden_value("spec", f"pod updates may not change fields other than {UPDATABLE}"))
    return causes


def object_update(new: Object, old: Object) -> list[Cause]:
    """Check what no update may change."""
    causes = metadata(new)
    for name in ("name", "namespace", "uid"):
        if text(new, "metadata", name) != text(old, "metadata", name):
            causes.append(invalid_value(f"metadata.{name}", text(new, "metadata", name), "field is immutable"))
    if text(old, "metadata", "deletionTimestamp"):
        had = texts(old, "metadata", "finalizers")
        added = [name for name in texts(new, "metadata", "finalizers") if name not in had]
        if added:
            detail = f"no new finalizers can be added if the object is being deleted, found new finalizers {added}"
            causes.append(forbidden_value("metadata.finalizers", detail))
    return causes


def event(tree: Object) -> list[Cause]:
    """Check that an Event stands in the namespace of its object (pkg/apis/core/validation/events.go)."""
    where = text(tree, "metadata", "namespace")
    about = text(tree, "involvedObject", "namespace")
    fits = where == about if about else where in ("default", "kube-system")
    causes = [] if fits else [invalid_value("involvedObject.namespace", about, "does not match event.namespace")]
    if text(tree, "eventTime"):
        needed = ("reportingComponent", "reportingInstance", "action", "reason")
        causes += [required(name) for name in needed if not text(tree, name)]
    return causes


def webhooks(tree: Object) -> list[Cause]:
    """Check a webhook configuration."""
    causes: list[Cause] = []
    for index, hook in enumerate(rows(tree, "webhooks")):
        at = f"webhooks[{index}]"
        if text(hook, "name").count(".") < 2:
            detail = "should be a domain with at least three segments separated by dots"
            causes.append(invalid_value(f"{at}.name", text(hook, "name"), detail))
        if text(hook, "sideEffects") not in ("None", "NoneOnDryRun"):
            causes.append(required(f"{at}.sideEffects", "must specify one of None, NoneOnDryRun"))
        versions = texts(hook, "admissionReviewVersions")
        if not versions:
            causes.append(required(f"{at}.admissionReviewVersions", "must specify one of v1, v1beta1"))
        elif "v1" not in versions:
            causes.append(
                invalid_value(f"{at}.admissionReviewVersions", str(versions), "must include at least one of v1")
            )
        seconds = whole(hook, "timeoutSeconds")
        if seconds is None or not 1 <= seconds <= 30:
            causes.append(
                invalid_value(f"{at}.timeoutSeconds", seconds, "the timeout value must be between 1 and 30 seconds")
            )
        config = table(hook, "clientConfig")
        if ("url" in config) == ("service" in config):
            causes.append(required(f"{at}.clientConfig", "exactly one of url or service is required"))
        elif "url" in config and not text(config, "url").startswith("https://"):
            causes.append(
                invalid_value(f"{at}.clientConfig.url", text(config, "url"), "'https' is the only allowed URL scheme")
            )
    return causes


def is_overcommit_allowed(name: str) -> bool:
    """Tell Kubernetes' own resources from extended ones, whose requests must equal their limits."""
    return ("/" not in name or "kubernetes.io/" in name) and not name.startswith("hugepages-")


def _container(at: str, container: Object, seen: set[str], *, init: bool) -> list[Cause]:
    causes: list[Cause] = []
    name = text(container, "name")
    if not name:
        causes.append(required(f"{at}.name"))
    elif len(name) > 63 or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name, re.ASCII):
        causes.append(
            invalid_value(
                f"{at}.name",
                name,
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-'",
            )
        )
    elif name in seen:
        causes.append(duplicate(f"{at}.name", name))
    seen.add(name)
    if not text(container, "image"):
        causes.append(required(f"{at}.image"))
    if "restartPolicy" in container and not init:
        causes.append(forbidden_value(f"{at}.restartPolicy", "may not be set for non-init containers"))
    return causes + resources(f"{at}.resources", table(container, "resources"))


def resources(at: str, requirements: Object) -> list[Cause]:
    """Check limits and requests: names, amounts, and that extended resources are whole and equal in both."""
    causes: list[Cause] = []
    limits, requests = table(requirements, "limits"), table(requirements, "requests")
    for kind, amounts in (("limits", limits), ("requests", requests)):
        for name, value in amounts.items():
            causes += _amount(f"{at}.{kind}[{name}]", name, value)
    if causes:
        return causes
    for name, value in requests.items():
        shown = str(value)
        if name in limits:
            asked, limit = parse(_raw(value)), parse(_raw(limits[name]))
            if asked != limit and not is_overcommit_allowed(name):
                detail = f"must be equal to {name} limit of {limits[name]}"
                causes.append(invalid_value(f"{at}.requests", shown, detail))
            elif asked > limit:
                detail = f"must be less than or equal to {name} limit of {limits[name]}"
                causes.append(invalid_value(f"{at}.requests", shown, detail))
        elif not is_overcommit_allowed(name):
            causes.append(required(f"{at}.limits", "Limit must be set for non overcommitable resources"))
    return causes


def _amount(at: str, name: str, value: Json) -> list[Cause]:
    causes = _qualified(at, name)
    if "/" not in name and name not in _STANDARD and not name.startswith("hugepages-"):
        causes.append(invalid_value(at, name, "must be a standard resource for containers"))
    elif not is_overcommit_allowed(name) and "/" in name and name.startswith("requests."):
        causes.append(invalid_value(at, name, "doesn't follow extended resource name standard"))
    try:
        amount = parse(_raw(value))
    except QuantityError:
        detail = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        return [*causes, invalid_value(at, value, detail)]
    if amount < 0:
        causes.append(invalid_value(at, str(value), "must be greater than or equal to 0"))
    if not is_overcommit_allowed(name) and "/" in name and amount.denominator != 1:
        causes.append(invalid_value(at, str(value), "must be an integer"))
    return causes


def _raw(value: Json) -> str | int | float:
    return value if isinstance(value, str | int | float) else ""


def _qualified(at: str, key: str) -> list[Cause]:
    prefix, slash, name = key.rpartition("/")
    if slash and (not prefix or len(prefix) > 253 or not _SUBDOMAIN.fullmatch(prefix)):
        return [invalid_value(at, key, f"prefix part {_BAD_SUBDOMAIN}")]
    if len(name) > 63:
        return [invalid_value(at, key, "name part must be no more than 63 characters")]
    if not _NAME.fullmatch(name):
        return [invalid_value(at, key, _BAD_NAME)]
    return []
