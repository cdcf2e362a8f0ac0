"""What an examination stands on: for each kind of object what was read, or why it could not be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, TypeVar

from tessera.doctor.objects import (
    ConfigMap,
    EndpointSlice,
    Event,
    LookedNode,
    LookedPod,
    Namespace,
    Policy,
    ResourceQuota,
    RuntimeClass,
    Secret,
    Version,
    WebhookConfiguration,
)
from tessera.model.config import Config
from tessera.model.errors import TesseraError
from tessera.model.names import Names
from tessera.model.pod import Manifest

T = TypeVar("T")


Judge = Callable[[Manifest, bool], Sequence[tuple[str, str]]]
"""What the guard would say against the creation of a pod, by policy; the second argument: it asks for a GPU of ours."""


Read = Literal[
    "config", "version", "nodes", "pods", "namespaces", "mutating", "validating", "policies", "bindings", "config_maps",
    "certificates", "endpoints", "runtime_classes", "quotas", "refusals", "probe", "said",
]  # fmt: skip
"""What can be read of a cluster: fields of `Evidence`, and ``config``, which `Evidence.settings` comes from. What is worked
out from others (`Evidence.guard` from the config, `Evidence.expected_policies` beside the policies) has no name here."""
LISTS: Final[frozenset[Read]] = frozenset(
    {"nodes", "pods", "namespaces", "mutating", "validating", "policies", "bindings", "config_maps", "endpoints",
     "runtime_classes", "quotas", "refusals"}
)  # fmt: skip


class NotLookedError(TesseraError):
    """What a check needs could not be read."""


@dataclass(frozen=True, slots=True)
class Look(Generic[T]):
    """What one read came to.

    Attributes:
        value: what was read; None where it could not be.
        problem: why not, "" where it could.
    """

    value: T | None = None
    problem: str = ""

    def need(self) -> T:
        """What was read.

        Raises:
            NotLookedError: it could not be.
        """
        if self.value is None:
            raise NotLookedError(self.problem or "it was not read")
        return self.value


@dataclass(frozen=True, slots=True)
class Probe:
    """What the API server answered to the dry run of a pod that asks for the smallest slice there is.

    Attributes:
        kind: ``made`` (and came back as `pod`), ``uncalled`` (a webhook could not be called), ``denied`` (an admission
            webhook of ours said no, so it was reached), ``refused`` (something else said no before it can be told).
        pod: as it would have been stored.
        said: the server's own message.
    """

    kind: Literal["made", "uncalled", "denied", "refused"]
    pod: LookedPod | None = None
    said: str = ""


@dataclass(frozen=True, slots=True)
class PartSaid:
    """What one of our pods said on its status port.

    Attributes:
        gauges: values of its metrics, by name; only those that are looked at.
        unready: why it is not ready, in its own words; "" where it is, or was not asked.
        problem: why it could not be asked.
    """

    gauges: Mapping[str, float] = field(default_factory=dict)
    unready: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """The config that the installation runs by, as far as it can be known.

    Attributes:
        config: the config. source: where it was found. problem: why what was found is refused, "" where it is not.
    """

    config: Config
    source: str
    problem: str = ""

    @property
    def names(self) -> Names:
        """The installation's names."""
        return self.config.names


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that was read.

    Attributes:
        now: seconds since 1970. settings: see there. namespace: where Tessera is installed.
        expected_policies: what this version generates by the config (ValidatingAdmissionPolicies and their bindings).
        guard: what the guard says by the config, in force or not.
        config_maps: of the installation's namespace and of kube-system.
        certificates: by ``namespace/name`` of the Secret that a webhook serves by.
        endpoints: by ``namespace/name`` of a webhook's Service, its slices.
        refusals: Events by which the extender says that it leaves a Node alone.
        said: by ``namespace/name`` of pods of ours, what they say of themselves.
        unreadable: objects that are not of the form that they should have, by what was listed.
    """

    now: float
    settings: Settings
    namespace: str
    version: Look[Version] = field(default_factory=Look)
    nodes: Look[tuple[LookedNode, ...]] = field(default_factory=Look)
    pods: Look[tuple[LookedPod, ...]] = field(default_factory=Look)
    namespaces: Look[tuple[Namespace, ...]] = field(default_factory=Look)
    mutating: Look[tuple[WebhookConfiguration, ...]] = field(default_factory=Look)
    validating: Look[tuple[WebhookConfiguration, ...]] = field(default_factory=Look)
    policies: Look[tuple[Policy, ...]] = field(default_factory=Look)
    bindings: Look[tuple[Policy, ...]] = field(default_factory=Look)
    expected_policies: Look[tuple[dict[str, object], ...]] = field(default_factory=Look)
    guard: Look[Judge] = field(default_factory=Look)
    config_maps: Look[tuple[ConfigMap, ...]] = field(default_factory=Look)
    certificates: Look[dict[str, Secret]] = field(default_factory=Look)
    endpoints: Look[dict[str, tuple[EndpointSlice, ...]]] = field(default_factory=Look)
    runtime_classes: Look[tuple[RuntimeClass, ...]] = field(default_factory=Look)
    quotas: Look[tuple[ResourceQuota, ...]] = field(default_factory=Look)
    refusals: Look[tuple[Event, ...]] = field(default_factory=Look)
    probe: Look[Probe] = field(default_factory=Look)
    said: Look[dict[str, PartSaid]] = field(default_factory=Look)
    unreadable: dict[str, int] = field(default_factory=dict)

    @property
    def names(self) -> Names:
        """The installation's names."""
        return self.settings.names
