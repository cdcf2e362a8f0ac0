"""kube-scheduler's configuration: which extender it asks, about which resources, and how much it believes of its own counting.

Every value here was chosen against a default that goes wrong (contract, section 5): an extender sees only part of a big
cluster's nodes unless all are scored, kube-scheduler would place by totals that are ten seconds old unless our tickets are
`ignoredByScheduler`, and there is no wildcard in managedResources, so each MIG profile has to be named.
"""

from __future__ import annotations

from typing import Final, Literal

from tessera.model.config import Config, Lease
from tessera.model.errors import ConfigError

Form = Literal["second", "default"]
"""A kube-scheduler of our own with the extender beside it, or the cluster's own with the extender on its machine."""

NAMESPACE: Final = "tessera-system"
DEFAULT_SCHEDULER: Final = "default-scheduler"
LEASE: Final = Lease(name="tessera-scheduler", namespace=NAMESPACE)
"""Of a second kube-scheduler; the manifests' config tells the extenders of it."""
EXTENDER_URL: Final = "http://127.0.0.1:9460"
"""Loopback in both forms: whichever kube-scheduler leads asks the extender beside it, and no port is open to others."""
DEFAULT_KUBECONFIG: Final = "/etc/kubernetes/scheduler.conf"
"""Where kubeadm puts the credentials of the cluster's own scheduler."""
_QPS, _BURST = 500, 1000
_FIRST_BACKOFF, _LONGEST_BACKOFF = 1, 2
"""Seconds. With the default of ten a pod whose slice has become free could wait that long although it was woken."""

# Of NVIDIA's MIG user guide, every card from the A30 to the B300; what a node advertises beyond these works by node totals.
MIG_PROFILES: Final = (
    # A30
    "1g.6gb", "1g.6gb+me", "2g.12gb", "2g.12gb+me", "4g.24gb",
    # A100 40GB
    "1g.5gb", "1g.5gb+me", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb",
    # A100 80GB, H100 80GB
    "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb",
    # H100 94GB and 96GB, H20, GH200
    "1g.11gb", "1g.11gb+me", "1g.12gb", "1g.12gb+me", "1g.22gb", "1g.24gb", "1g.24gb+me", "2g.22gb", "2g.24gb",
    "3g.44gb", "3g.47gb", "3g.48gb", "4g.44gb", "4g.47gb", "4g.48gb", "7g.88gb", "7g.94gb", "7g.96gb",
    # H200, GH200 144GB
    "1g.16gb", "1g.16gb+me", "1g.18gb", "1g.18gb+me", "1g.32gb", "1g.33gb", "1g.35gb", "1g.36gb", "2g.32gb", "2g.33gb",
    "2g.35gb", "2g.36gb", "3g.66gb", "3g.71gb", "3g.72gb", "4g.66gb", "4g.71gb", "4g.72gb", "7g.141gb", "7g.144gb",
    # B200, GB200
    "1g.23gb", "1g.23gb+me", "1g.45gb", "1g.47gb", "2g.45gb", "2g.47gb", "3g.90gb", "3g.93gb", "3g.95gb", "4g.90gb",
    "4g.93gb", "4g.95gb", "7g.180gb", "7g.186gb", "7g.189gb",
    # B300, GB300
    "1g.34gb", "1g.34gb+me", "1g.35gb+me", "1g.67gb", "1g.70gb", "2g.67gb", "2g.70gb", "3g.135gb", "3g.139gb", "4g.135gb",
    "4g.139gb", "7g.269gb", "7g.278gb",
    # RTX PRO Blackwell
    "1g.24gb+gfx", "1g.24gb+me.all", "1g.24gb-me", "2g.48gb", "2g.48gb+gfx", "2g.48gb+me.all", "2g.48gb-me", "4g.96gb",
    "4g.96gb+gfx", "1g.12gb+gfx", "1g.12gb+me.all", "1g.12gb-me", "2g.24gb+gfx", "2g.24gb+me.all", "2g.24gb-me",
    "4g.48gb+gfx",
)  # fmt: skip


def scheduler_configuration(config: Config, *, form: Form = "second") -> dict[str, object]:
    """The KubeSchedulerConfiguration (kubescheduler.config.k8s.io/v1) of an installation.

    Args:
        config: whose names and placement count.
        form: which kube-scheduler it is for.

    Raises:
        ConfigError: a second scheduler is to have no name, or the cluster's own one.
    """
    connection: dict[str, object] = {"qps": _QPS, "burst": _BURST}
    election: dict[str, object] = {"leaderElect": True}
    if form == "second":
        name = config.scheduler_name
        if name in ("", DEFAULT_SCHEDULER):
            raise ConfigError(
                f"schedulerName: {name!r} is no name for a second scheduler; write one such as {LEASE.name}, "
                "or install the form for the cluster's own scheduler"
            )
        lease = LEASE if config.lease == Lease() else config.lease
        election |= {"resourceName": lease.name, "resourceNamespace": lease.namespace}
    else:
        name = DEFAULT_SCHEDULER
        connection["kubeconfig"] = DEFAULT_KUBECONFIG
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": connection,
        "leaderElection": election,
        "percentageOfNodesToScore": 100,
        "podInitialBackoffSeconds": _FIRST_BACKOFF,
        "podMaxBackoffSeconds": _LONGEST_BACKOFF,
        "profiles": [{"schedulerName": name}],
        "extenders": [extender(config), *_everybody(config)],
    }


def extender(config: Config) -> dict[str, object]:
    """The entry of ``extenders`` that makes a kube-scheduler ask ours: it names the tickets, so only who asks for one is sent.

    Args:
        config: whose tickets count.
    """
    entry: dict[str, object] = {
        "urlPrefix": EXTENDER_URL,
        "filterVerb": "filter",
        "bindVerb": "bind",
        "preemptVerb": "preempt",
        "enableHTTPS": False,
        "nodeCacheCapable": True,
        "ignorable": False,
        "httpTimeout": "10s",
        "managedResources": [{"name": name, "ignoredByScheduler": True} for name in tickets(config)],
    }
    if config.placement.answer == "all":
        entry |= {"prioritizeVerb": "prioritize", "weight": 1}
    return entry


def _everybody(config: Config) -> list[dict[str, object]]:
    """A second entry by which every pod is sent, where pods without GPUs are to come too (``placement.cpuPods``).

    One that names no resource is for all pods (``cpu`` may not be named). It is ignorable and binds nothing: an extender
    that is away must keep no other pod waiting, its own least of all, which would then never start again.
    """
    if config.placement.cpu_pods == "ignore":
        return []
    return [
        {
            "urlPrefix": EXTENDER_URL,
            "filterVerb": "filter",
            "enableHTTPS": False,
            "nodeCacheCapable": True,
            "ignorable": True,
            "httpTimeout": "2s",
        }
    ]


def tickets(config: Config) -> list[str]:
    """Every ticket that a node may advertise: the three of a GPU, and one for each MIG profile."""
    names = config.names
    return [*names.tickets, *sorted({names.mig(profile) for profile in MIG_PROFILES})]
