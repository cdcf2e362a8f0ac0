"""Every name that the outside sees, built from the configured domain in one place.

A name is written nowhere else: the webhook that writes a ticket, the node that advertises it, the policies, the
manifests and the documentation's examples all take it from here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tessera.model.errors import ConfigError
from tessera.model.quantity import MIB, binary

DOMAIN: Final = "tessera.dev"
MEMORY_UNIT: Final = 256 * MIB
"""Bytes of one memory ticket. 1 MiB units would break kubelet's 4 MiB limit on a ListAndWatch message."""

KUBELET_REFUSES: Final = "KubeletRefuses"
"""Reason of the Event by which the extender says on a Node that it leaves it alone for some pods."""

_DOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one installation. Make it with `names`, which computes each text once."""

    domain: str
    memory_unit: int

    # What a user writes (limits, or pod annotations of the same names).
    gpu: str
    gpu_memory: str
    gpu_memory_percent: str
    gpu_compute: str
    # What a user may add (annotations only).
    container: str
    gpu_models: str
    gpu_uuids: str
    gpu_placement: str
    gpu_topology: str
    gpu_class: str
    gpu_avoid_class: str
    guarantee: str
    placement_profile: str
    resize: str
    # Tickets: the extended resources that the node advertises.
    memory_units: str
    memory_percent: str
    compute_percent: str
    mig_prefix: str
    # What the parts write on pods.
    request: str
    plan: str
    unit: str
    region: str
    # What the parts write on nodes.
    inventory: str
    drift: str
    wake: str
    node_model: str
    node_count: str
    node_memory: str
    node_sharing: str
    # What the extender writes on the pods that it makes itself.
    scale_for: str

    def mig(self, profile: str) -> str:
        """Name the ticket of one MIG profile; ``+`` has no place in a resource name, so it becomes a dot."""
        return self.mig_prefix + profile.replace("+", ".")

    def is_ticket(self, name: str) -> bool:
        """Tell whether a resource name is one that our nodes advertise."""
        return name in (self.memory_units, self.memory_percent, self.compute_percent) or name.startswith(
            self.mig_prefix
        )

    @property
    def tickets(self) -> tuple[str, str, str]:
        """The three ticket names of a GPU that is not cut by MIG."""
        return (self.memory_units, self.memory_percent, self.compute_percent)

    @property
    def asks(self) -> tuple[str, str, str, str]:
        """The four names a user writes an amount under."""
        return (self.gpu, self.gpu_memory, self.gpu_memory_percent, self.gpu_compute)


@lru_cache(maxsize=16)
def names(domain: str = DOMAIN, memory_unit: int = MEMORY_UNIT) -> Names:
    """Build the names of an installation.

    Args:
        domain: DNS name in front of the slash of every name, at most 100 characters.
        memory_unit: bytes of one memory ticket, a whole number of MiB.

    Raises:
        ConfigError: the domain is no DNS name, or the unit is not a positive number of MiB.
    """
    if not _DOMAIN.fullmatch(domain) or len(domain) > 100:
        raise ConfigError(f"domain: {domain!r} is not a DNS name of at most 100 characters, such as {DOMAIN}")
    if memory_unit <= 0 or memory_unit % MIB:
        raise ConfigError(f"memoryUnit: {memory_unit} bytes is not a positive number of MiB; write one such as 256Mi")
    at = f"{domain}/"
    return Names(
        domain=domain,
        memory_unit=memory_unit,
        gpu=at + "gpu",
        gpu_memory=at + "gpu-memory",
        gpu_memory_percent=at + "gpu-memory-percent",
        gpu_compute=at + "gpu-compute",
        container=at + "container",
        gpu_models=at + "gpu-models",
        gpu_uuids=at + "gpu-uuids",
        gpu_placement=at + "gpu-placement",
        gpu_topology=at + "gpu-topology",
        gpu_class=at + "gpu-class",
        gpu_avoid_class=at + "gpu-avoid-class",
        guarantee=at + "guarantee",
        placement_profile=at + "placement-profile",
        resize=at + "resize",
        memory_units=f"{at}gpu-memory.{binary(memory_unit)}",
        memory_percent=at + "gpu-memory.percent",
        compute_percent=at + "gpu-compute.percent",
        mig_prefix=at + "mig-",
        request=at + "request",
        plan=at + "plan",
        unit=at + "unit",
        region=at + "region",
        inventory=at + "inventory",
        drift=at + "drift",
        wake=at + "wake",
        node_model=at + "gpu-model",
        node_count=at + "gpu-count",
        node_memory=at + "gpu-memory-mib",
        node_sharing=at + "sharing",
        scale_for=at + "scale-for",
    )
