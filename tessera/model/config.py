"""The one config file, read strictly: an unknown key or a bad value is refused with its path, its line and the fix.

A typo that is silently ignored shows weeks later as a limit that limits nothing, so nothing is ignored. This module is
pure (text in, `Config` out); `tessera.daemon.configfile` reads and re-reads the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from tessera.model.errors import ConfigError
from tessera.model.guarantee import Guarantee
from tessera.model.names import DOMAIN, MEMORY_UNIT, Names, names
from tessera.model.pod import Toleration
from tessera.model.strict import Document, nearest

_Namespace = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]


class _Strict(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True
):
    """A part of the config: no unknown keys, every key has a default that works."""


class DialectOptions(_Strict, frozen=True, kw_only=True):
    """What every dialect can be told; a dialect with options of its own extends it in its file."""

    enabled: bool = True


class Measure(_Strict, frozen=True, kw_only=True):
    """Constants of the measures behind ``priced`` and ``fragmentation``; docs/placement.md says what each does.

    Attributes:
        coverage: the most popular requests that make up this share of all pods are what a node is measured by.
        balance: CPU that a free GPU should have beside it, in multiples of what an average pod asks.
        slack: thousandths of a GPU; how softly a lack of CPU is counted on nodes with few free GPUs.
        remainder: weight of what the rest of a GPU is worth to other pods.
        card: weight of keeping cards for pods that can't use others. card_most: the dearest that a card gets.
        step: thousandths of a GPU that two nodes must differ by to be told apart.
        reserve: idle nodes are kept for pods that need whole ones: as many as are to be expected when the cluster is full,
            and so many standard deviations more; null keeps none.
        prior: before pods are seen, every GPU of the cluster counts as so many pods that ask for one with its share of CPU.
        half_life: pods seen after which an old one counts half.
    """

    coverage: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.95
    balance: Annotated[float, msgspec.Meta(ge=0, le=100)] = 1.5
    slack: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 500
    remainder: Annotated[float, msgspec.Meta(ge=0, le=100)] = 5
    card: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.7
    card_most: Annotated[float, msgspec.Meta(ge=0, le=100)] = 1.5
    step: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 20
    reserve: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = 2
    prior: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.1
    half_life: Annotated[int, msgspec.Meta(ge=100, le=10_000_000)] = 20_000


PolicyName = Literal["priced", "fragmentation", "pack", "spread", "best-fit"]


class Placement(_Strict, frozen=True, kw_only=True):
    """How slices are placed.

    Attributes:
        policy: ``priced`` and ``fragmentation`` keep usable what is left, ``pack`` and ``best-fit`` fill GPUs and nodes,
            ``spread`` evens them out.
        shapes: file with the requests that are expected, to start from before enough pods were seen.
        measure: constants of ``priced`` and ``fragmentation``.
        topology: which GPUs one container's several slices should be on.
        answer: ``one`` node named by the extender, or ``all`` that fit, scored by kube-scheduler.
        cpu_pods: what becomes of pods that ask for no GPU, where kube-scheduler is told to send them too: ``ignore`` leaves
            them to it, ``score`` sends them where the policy's measure loses least, ``avoid`` only keeps them off nodes with
            GPUs.
    """

    policy: PolicyName = "priced"
    shapes: str = ""
    measure: Measure = Measure()
    topology: Literal["nvlink", "numa", "any"] = "any"
    answer: Literal["one", "all"] = "one"
    cpu_pods: Literal["ignore", "score", "avoid"] = "ignore"


class Health(_Strict, frozen=True, kw_only=True):
    """When a GPU is sick.

    Attributes:
        ignore_xids: XIDs (beside those known to be an application's own fault) that don't make a GPU sick.
        recover_after: seconds without another error after which a GPU with no recovery action pending is used again.
    """

    ignore_xids: tuple[Annotated[int, msgspec.Meta(ge=0, le=100_000)], ...] = ()
    recover_after: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 60.0


class Limit(_Strict, frozen=True, kw_only=True):
    """The most that one pod of a namespace may ask for; absent means no limit.

    Attributes:
        gpus: GPUs of all containers together.
        memory: bytes, on each GPU.
        compute: percent, on each GPU.
    """

    gpus: Annotated[int, msgspec.Meta(ge=0)] | None = None
    memory: int | None = None
    compute: Annotated[int, msgspec.Meta(ge=0, le=100)] | None = None


class Unit(_Strict, frozen=True, kw_only=True):
    """One place of a placement profile, such as the IDC or a region of the cloud.

    Attributes:
        name: becomes the pod label ``tessera.dev/unit``.
        node_selector: labels that the unit's nodes carry.
        regions: values of ``topology.kubernetes.io/region`` that belong to it; empty means any.
        tolerations: added to pods that may go there.
        labels: added to pods that go to a serverless unit (the vendor's own region and class labels).
        serverless: virtual nodes without a device plugin; host paths are never injected there.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
    node_selector: dict[str, str] = {}
    regions: tuple[str, ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    labels: dict[str, str] = {}
    serverless: bool = False


class Profile(_Strict, frozen=True, kw_only=True):
    """An ordered list of units: the first with room is taken (IDC first, then the regions of the cloud).

    Attributes:
        name: what the pod annotation ``tessera.dev/placement-profile`` may name.
        namespaces: namespaces it applies to; empty means all.
        selector: labels that a pod has to carry for it to apply.
        units: in order of preference.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
    namespaces: tuple[str, ...] = ()
    selector: dict[str, str] = {}
    units: Annotated[tuple[Unit, ...], msgspec.Meta(min_length=1, max_length=32)]


class Cni(_Strict, frozen=True, kw_only=True):
    """Repair of hostNetwork CNI DaemonSet pods, which can't start where /opt/cni/bin or its loopback plugin is missing.

    Attributes:
        enabled: whether such pods are repaired.
        image: image of the init container that puts the loopback plugin in place; empty leaves only the paths repaired.
        namespaces: only pods there.
        apps: values of the pod's ``app`` or ``k8s-app`` label.
    """

    enabled: bool = True
    image: str = ""
    namespaces: tuple[str, ...] = ("kube-system",)
    apps: tuple[str, ...] = ("terway", "terway-eniip", "calico-node", "cilium", "flannel", "kube-flannel")


class Guard(_Strict, frozen=True, kw_only=True):
    """What nobody but Tessera may say about GPUs (docs/guard.md).

    Attributes:
        actions: what becomes of a pod that says what it may not: ``deny``, or ``warn`` (whoever makes it is warned, the audit log
            has it, and it is made). Our own annotations are guarded in any case.
        environment: what admission does with such variables in pods that ask for GPUs: ``deny`` leaves them to the policies,
            ``strip`` takes them away with a warning. In every other pod they are denied.
        hide_others: give the containers of such a pod that ask for none NVIDIA_VISIBLE_DEVICES=void, so that an image that
            wants all GPUs sees none of them either.
        exempt_namespaces: pods there are not looked at; our own annotations are guarded everywhere.
        driver_capabilities: what NVIDIA_DRIVER_CAPABILITIES may list.
        host_paths: folders that pods may neither mount nor reach through a folder above them; one that ends in ``*``
            stands for every name that begins so.
        runtime_classes: of NVIDIA's runtime; only pods that ask for a GPU may name them.
        trusted: users and groups that may write our annotations beside our own service accounts (a backup tool, say).
    """

    actions: Literal["deny", "warn"] = "deny"
    environment: Literal["deny", "strip"] = "deny"
    hide_others: bool = False
    exempt_namespaces: tuple[_Namespace, ...] = ("kube-system",)
    driver_capabilities: tuple[Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]{1,32}$")], ...] = ("compute", "utility")
    host_paths: tuple[Annotated[str, msgspec.Meta(pattern=r"^(/[A-Za-z0-9._-]+)+\*?$", max_length=256)], ...] = (
        "/var/lib/kubelet/device-plugins",
        "/var/lib/kubelet/plugins_registry",
        "/var/lib/kubelet/pod-resources",
        "/etc/cdi",
        "/run/cdi",
        "/var/run/cdi",
        "/dev/char",
        "/dev/nvidia*",
        "/run/nvidia-container-devices",
        "/var/run/nvidia-container-devices",
        "/run/nvidia/mps",
        "/var/run/nvidia/mps",
        "/tmp/nvidia-mps*",  # noqa: S108 - where an MPS daemon listens unless told otherwise
        "/run/tessera",
        "/var/run/tessera",
    )
    runtime_classes: tuple[Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")], ...] = (
        "nvidia",
        "nvidia-cdi",
        "nvidia-legacy",
    )
    trusted: tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=253)], ...] = ()


class Lease(_Strict, frozen=True, kw_only=True):
    """The Lease that the kube-scheduler beside an extender holds while it leads; what acts, acts only then.

    Attributes:
        name: of the Lease (``leaderElection.resourceName``); empty where that kube-scheduler runs without an election.
        namespace: of the Lease (``leaderElection.resourceNamespace``).
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$")] = "kube-scheduler"
    namespace: _Namespace = "kube-system"


class Preemption(_Strict, frozen=True, kw_only=True):
    """Ending pods of lower priority for one that finds no slice.

    Attributes:
        enabled: whether that is done.
        per_minute: evictions a minute over all, in the long run.
        burst: evictions at once, after a quiet time.
    """

    enabled: bool = True
    per_minute: Annotated[float, msgspec.Meta(gt=0, le=6000)] = 60.0
    burst: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20


class Autoscaler(_Strict, frozen=True, kw_only=True):
    """Scale pods: they make Cluster Autoscaler add a node for pods that only fragmentation keeps pending.

    Attributes:
        enabled: whether they are made.
        namespace: where they are made.
        image: of their one container, which never runs.
        priority_class_name: the lowest there is that Cluster Autoscaler still scales up for (-10 and above).
        after: seconds that a pod waits before one is made for it.
        interval: seconds between two that are made.
        most: there are at one time.
    """

    enabled: bool = False
    namespace: _Namespace = "tessera-system"
    image: Annotated[str, msgspec.Meta(min_length=1, max_length=512)] = "pause"
    priority_class_name: str = "tessera-scale"
    after: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    interval: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 10.0
    most: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10


class Config(_Strict, frozen=True, kw_only=True):
    """The whole config; every key has a default, so an empty file (or none) is valid.

    Attributes:
        domain: in front of every name of ours.
        memory_unit: bytes of one memory ticket.
        headroom_per_gpu: bytes of each GPU that are never handed out, beside the driver's own reserve.
        device_injection: how a container gets its GPUs; ``auto`` takes CDI where the node has it, else ``envvar``.
        runtime_class_name: set on pods that ask for GPUs, where given.
        scheduler_name: set on pods that ask for GPUs and name no other scheduler; empty leaves it alone.
        replace_schedulers: foreign schedulers that converted pods may name; empty means every foreign one is replaced.
        dialects: options by dialect; absent ones have their defaults.
        placement, isolation, health, limits, profiles, cni, guard, lease, preemption, autoscaler: see their types. `limits`
            is by namespace, ``*`` for others.
    """

    domain: str = DOMAIN
    memory_unit: int = MEMORY_UNIT
    headroom_per_gpu: int = 0
    device_injection: Literal["auto", "cdi", "envvar", "volume-mounts"] = "auto"
    runtime_class_name: str = ""
    scheduler_name: str = "tessera-scheduler"
    replace_schedulers: tuple[str, ...] = ()
    dialects: dict[str, DialectOptions] = {}
    placement: Placement = Placement()
    isolation: tuple[Guarantee, ...] = tuple(Guarantee)
    health: Health = Health()
    limits: dict[str, Limit] = {}
    profiles: tuple[Profile, ...] = ()
    cni: Cni = Cni()
    guard: Guard = Guard()
    lease: Lease = Lease()
    preemption: Preemption = Preemption()
    autoscaler: Autoscaler = Autoscaler()

    @property
    def names(self) -> Names:
        """The names of this installation."""
        return names(self.domain, self.memory_unit)


_AMOUNTS: Final = ("memoryUnit", "headroomPerGpu")


def parse(text: str, *, dialects: Mapping[str, type[DialectOptions]] | None = None) -> Config:
    """Read the config file's text.

    Args:
        text: YAML, one document; an empty one gives the defaults.
        dialects: the options type of each dialect there is; None leaves the section unread (a part that needs none).

    Returns:
        The config, with one entry in `dialects` for every dialect that was passed in.

    Raises:
        ConfigError: with path, line and, for an unknown key, the nearest valid one.
    """
    document = Document(text)
    plain = dict(document.plain)
    section = plain.pop("dialects", None)
    for key in _AMOUNTS:
        if key in plain:
            plain[key] = document.amount((key,), plain[key])
    if "limits" in plain:
        plain["limits"] = _limits(plain["limits"], document)
    config = document.convert(plain, Config)
    if dialects is not None:
        config = msgspec.structs.replace(config, dialects=_dialects(section, dialects, document))
    _check(config, document)
    return config


def _limits(section: object, document: Document) -> object:
    """Read the amounts of memory, which may be quantities or bare numbers; what is no mapping is left to be refused."""
    if not isinstance(section, dict):
        return section
    return {
        namespace: limit | {"memory": document.amount(("limits", str(namespace), "memory"), limit["memory"])}
        if isinstance(limit, dict) and limit.get("memory") is not None
        else limit
        for namespace, limit in section.items()
    }


def _dialects(
    section: object, known: Mapping[str, type[DialectOptions]], document: Document
) -> dict[str, DialectOptions]:
    """Read the dialects' section: each value is on/off or a mapping of options."""
    if section is None:
        section = {}
    if not isinstance(section, dict):
        raise document.refusal(("dialects",), "write one key per dialect, such as 'hami: true'")
    for name in section:
        if name not in known:
            raise document.refusal(("dialects", str(name)), f"no such dialect{nearest(name, known)}")
    options = {}
    for name, kind in known.items():
        value = section.get(name)
        plain = {"enabled": value} if isinstance(value, bool) else value or {}
        options[name] = document.convert(plain, kind, ("dialects", name))
    return options


def _check(config: Config, document: Document) -> None:
    """What types can't say: values that contradict each other."""
    try:
        names(config.domain, config.memory_unit)
    except ConfigError as error:
        key, _, problem = str(error).partition(": ")
        raise document.refusal((key,), problem) from None
    if len(set(config.isolation)) != len(config.isolation):
        raise document.refusal(("isolation",), "names one guarantee twice")
    known: set[str] = set()
    for index, profile in enumerate(config.profiles):
        if profile.name in known:
            raise document.refusal(("profiles", index, "name"), f"{profile.name!r} stands twice")
        known.add(profile.name)
        if len({unit.name for unit in profile.units}) != len(profile.units):
            raise document.refusal(("profiles", index, "units"), "one unit's name stands twice")
        for at, unit in enumerate(profile.units[:-1]):
            if not unit.node_selector and not unit.regions:
                raise document.refusal(
                    ("profiles", index, "units", at),
                    f"{unit.name!r} names neither labels nor regions, so it takes every node and no later unit gets one",
                )
