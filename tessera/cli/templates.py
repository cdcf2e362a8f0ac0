"""Where pods hide in other objects: Deployments, Jobs, and kinds that this program has never heard of.

Kubernetes' own kinds are looked up, so that a template that is missing or misshapen is said. In all others, pod templates
are found by their shape: whatever stands under a key such as ``template``, ``workerTemplate`` or ``templates`` and has a
``spec`` with a list of containers. That covers PyTorchJob and its family, MPIJob, Volcano Job, Argo Rollout, JobSet,
LeaderWorkerSet, RayCluster, RayJob, Knative Service and most others. Under other keys (Seldon's componentSpecs, KServe's
predictor, pods inside of other objects) each container has to have a name and an image. An Argo Workflow writes one container
instead of a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tessera.cli.yamlreader import DEEPEST, Object
from tessera.report.plaintext import short
from webhook.admission.patch import Json

_GROUPS: Final = frozenset({"", "apps", "batch", "extensions"})
_TEMPLATE: Final = ("spec", "template")
_OWN: Final[dict[str, tuple[str, ...]]] = {
    "Pod": (),
    "PodTemplate": ("template",),
    "CronJob": ("spec", "jobTemplate", *_TEMPLATE),
    **dict.fromkeys(
        ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"), _TEMPLATE
    ),
}
_KEY: Final = re.compile(r"(^t|T)emplates?$")
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_ARGO_POD: Final = frozenset({"schedulerName", "nodeSelector", "tolerations", "affinity", "volumes"})
"""What an Argo template and a pod's spec call by the same name, of what admission may change."""


@dataclass(frozen=True, slots=True)
class Template:
    """One pod template.

    Attributes:
        path: where it stands, for messages: ``spec.template``; "" where the object is a Pod.
        pod: what a pod made from it is: ``metadata`` and ``spec``. Its values are the object's own, so that what is
            changed in them changes the object.
        owner: the kind whose controller makes the pods.
        problem: why there is no pod to be seen, or "".
        container: of an Argo template, the one container that it writes outside of a list.
        within: the mapping that the pod's values come from, where that is shaped otherwise than a pod.
    """

    path: str
    pod: Object
    owner: str = ""
    problem: str = ""
    container: Object | None = None
    within: Object | None = None

    def settle(self) -> None:
        """After the pod was changed: carry what is new on its top levels into an object that is shaped otherwise."""
        if self.within is None:
            return
        if "metadata" in self.pod:
            self.within["metadata"] = self.pod["metadata"]
        spec = self.pod["spec"]
        if not isinstance(spec, dict) or spec is self.within:
            return
        if self.container is not None:
            main = _list(spec, "containers")[0]
            self.container.update({key: value for key, value in main.items() if key != "name"})
        self.within.update({key: value for key, value in spec.items() if key in _ARGO_POD | {"initContainers"}})


def templates(value: Object) -> list[Template]:
    """Every pod template of an object, in the order in which they stand in it."""
    kind = str(value.get("kind", ""))
    version = value.get("apiVersion")
    group = version.rpartition("/")[0] if isinstance(version, str) else ""
    if kind == "Pod" or (group in _GROUPS and kind in _OWN):
        own = _own(value, kind)
        # A Volcano Job without apiVersion is a Job too, to whoever reads it.
        others = [each for each in _find(value, "", kind, 0) if each.path] if own.problem else []
        return others or [own]
    return list(_find(value, "", kind, 0))


def _own(value: Object, kind: str) -> Template:
    here: Json = value
    path = ""
    for step in _OWN[kind]:
        path = f"{path}.{step}".removeprefix(".")
        here = here.get(step) if isinstance(here, dict) else None
        if not isinstance(here, dict):
            return Template(path, {}, kind, f"{path} is {_name(here)}; a {kind} has its pods' template there")
    return Template(path, here if isinstance(here, dict) else {}, kind)


def _name(value: Json) -> str:
    return "missing" if value is None else "a list" if isinstance(value, list) else short(repr(value), 40)


def _find(value: Json, path: str, kind: str, depth: int, *, named: bool = False) -> Iterator[Template]:
    """Walk what may hold pod templates; `named`: the key that led here says that this is one."""
    if depth > DEEPEST:
        return
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _find(item, f"{path}[{number}]", kind, depth + 1, named=named)
    elif isinstance(value, dict):
        found = _template(value, path, kind, named=named)
        if found is not None:
            yield found
            return
        for key, below in value.items():
            yield from _find(below, f"{path}.{key}".removeprefix("."), kind, depth + 1, named=bool(_KEY.search(key)))


def _template(value: Object, path: str, kind: str, *, named: bool) -> Template | None:
    """What has the shape of a pod template, as one; without the name its containers have to look like containers."""
    spec = value.get("spec")
    if isinstance(spec, dict) and _runs(spec, named=named):
        return Template(path, value, kind)
    if _runs(value, named=named):
        return Template(path, _around(value, value), kind, within=value)
    if not named:
        return None
    container = value.get("container") or value.get("script")
    together = value.get("containerSet")
    if isinstance(container, dict):
        # Argo runs it under this name, and the sidecars beside it.
        main: Object = {"name": "main", **container}
        return _argo(value, [main], path, kind, container)
    if isinstance(together, dict) and _list(together, "containers"):
        return _argo(value, _list(together, "containers"), path, kind, None)
    return None


def _runs(spec: Object, *, named: bool) -> bool:
    """Whether this has a list of containers; patterns of policies have such lists too, with wildcards for names."""
    containers = _list(spec, "containers")
    return bool(containers) and (
        named or all(_is_name(each.get("name")) and isinstance(each.get("image"), str) for each in containers)
    )


def _is_name(value: Json) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _argo(value: Object, containers: list[Object], path: str, kind: str, container: Object | None) -> Template:
    spec: Object = {"containers": [*containers, *_list(value, "sidecars")]}
    spec |= {key: value[key] for key in (*_ARGO_POD, "initContainers") if key in value}
    return Template(path, _around(value, spec), kind, container=container, within=value)


def _around(value: Object, spec: Object) -> Object:
    """A pod of a spec and of the metadata that stands beside it."""
    pod: Object = {"metadata": value["metadata"]} if "metadata" in value else {}
    return pod | {"spec": spec}


def _list(value: Object, key: str) -> list[Object]:
    """The mappings of a list, where a key holds nothing else; else none."""
    found = value.get(key)
    items = [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
    return items if isinstance(found, list) and len(items) == len(found) else []
