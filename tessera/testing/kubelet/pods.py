"""A pod as a kubelet sees it: the containers in the order of admission, with whole numbers of each resource.

The object stays beside the decoded part, untouched, because `GET /pods` shows it as the API server sent it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from tessera.model.errors import QuantityError
from tessera.model.pod import Manifest, ManifestContainer, Role, role
from tessera.model.quantity import parse
from tessera.testing.kubelet.errors import PodError

MOST_CONTAINERS: Final = 512
"""No real pod comes near; a bound keeps a hostile object from occupying the fake for minutes."""


@dataclass(frozen=True, slots=True)
class Container:
    """One container of a pod.

    Attributes:
        name: unique in the pod.
        image: as the spec says.
        role: ``init`` ends before the pod starts, ``sidecar`` is an init container with restartPolicy Always.
        limits: resource name -> amount, rounded up as Go's Quantity.Value does. The device manager reads limits only.
        env: what the spec sets by literal value, in order; the kubelet puts it behind the plugin's variables.
    """

    name: str
    role: Role
    image: str
    limits: Mapping[str, int]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KubeletPod:
    """One pod.

    Attributes:
        raw: the object as it came from the API server.
        containers: init containers and sidecars in spec order, then the others in spec order.
    """

    raw: Mapping[str, object]
    manifest: Manifest
    containers: tuple[Container, ...]

    @property
    def uid(self) -> str:
        return self.manifest.metadata.uid

    @property
    def name(self) -> str:
        return self.manifest.metadata.name

    @property
    def namespace(self) -> str:
        return self.manifest.metadata.namespace

    @property
    def key(self) -> str:
        return self.manifest.key

    @property
    def created(self) -> str:
        """RFC 3339 in UTC, as the API server writes it, so that texts sort like times. "" sorts first, as in Go."""
        return self.manifest.metadata.creation_timestamp or ""

    def container(self, name: str) -> Container:
        """Find one container.

        Raises:
            PodError: there is none of that name.
        """
        for container in self.containers:
            if container.name == name:
                return container
        names = ", ".join(each.name for each in self.containers)
        raise PodError(f'pod {self.key} has no container "{name}"; it has {names}')

    def listed(self) -> Iterator[Container]:
        """The containers that PodResources shows: plain init containers are left out (server_v1.go)."""
        return (container for container in self.containers if container.role != "init")

    def requests(self, resource: str) -> int:
        """What the scheduler's arithmetic says the pod holds of a resource.

        Sidecars count from their start on: max(over init containers: it plus the sidecars before it, sum of the rest).
        """
        sidecars = highest = main = 0
        for container in self.containers:
            amount = container.limits.get(resource, 0)
            if container.role == "sidecar":
                sidecars += amount
                highest = max(highest, sidecars)
            elif container.role == "init":
                highest = max(highest, sidecars + amount)
            else:
                main += amount
        return max(highest, sidecars + main)

    def qos(self) -> str:
        """The QoS class, which decides the cgroup's parent: only cpu and memory count."""
        every = [*(self.manifest.spec.init_containers or ()), *(self.manifest.spec.containers or ())]
        wanted: list[tuple[object, object]] = []
        for container in every:
            limits = container.resources.limits or {} if container.resources else {}
            requests = container.resources.requests or {} if container.resources else {}
            wanted += [(limits.get(name), requests.get(name, limits.get(name))) for name in ("cpu", "memory")]
        if all(limit is None and request is None for limit, request in wanted):
            return "BestEffort"
        if all(limit is not None and limit == request for limit, request in wanted):
            return "Guaranteed"
        return "Burstable"


def read_pod(raw: Mapping[str, object]) -> KubeletPod:
    """Decode a pod object, copying it.

    Raises:
        PodError: no pod that an API server would send: no UID, no container, a bad quantity, two equal names.
    """
    raw = copy.deepcopy(dict(raw))
    try:
        manifest = msgspec.convert(raw, Manifest, strict=True)
    except msgspec.ValidationError as error:
        raise PodError(f"not a pod object: {error}") from error
    meta = manifest.metadata
    for field, value, longest in (("uid", meta.uid, 64), ("name", meta.name, 253), ("namespace", meta.namespace, 63)):
        # The three become folder names.
        if not _plain(value) or len(value) > longest:
            raise PodError(f"pod {manifest.key}: metadata.{field} is {value!r}; a bound pod has a plain name there")
    containers = tuple(_containers(manifest))
    if not containers or containers[-1].role != "main":
        raise PodError(f"pod {manifest.key} has no container in spec.containers; it needs at least one")
    return KubeletPod(raw, manifest, containers)


def _plain(name: str) -> bool:
    """Tell whether a name can be a file's: the API server is stricter still."""
    return name.isascii() and name.isprintable() and "/" not in name and name not in {"", ".", ".."}


def _containers(manifest: Manifest) -> Iterator[Container]:
    every = [(each, True) for each in manifest.spec.init_containers or ()]
    every += [(each, False) for each in manifest.spec.containers or ()]
    if len(every) > MOST_CONTAINERS:
        raise PodError(f"pod {manifest.key} has {len(every)} containers; the fake takes {MOST_CONTAINERS}")
    seen: set[str] = set()
    for each, init in every:
        if not _plain(each.name) or len(each.name) > 63 or each.name in seen:
            raise PodError(
                f"pod {manifest.key}: container name {each.name!r} is used twice or no plain name of 1 to 63 characters"
            )
        seen.add(each.name)
        env = {variable.name: variable.value or "" for variable in each.env or () if variable.value_from is None}
        yield Container(each.name, role(each, init=init), each.image, _limits(manifest.key, each), env)


def _limits(pod: str, container: ManifestContainer) -> dict[str, int]:
    limits = container.resources.limits or {} if container.resources else {}
    try:
        return {name: math.ceil(parse(amount)) for name, amount in limits.items()}
    except QuantityError as error:
        raise PodError(f'pod {pod}, container "{container.name}": {error}') from error
