"""kube-scheduler's wire format: k8s.io/kube-scheduler/extender/v1 types.go (v0.34.4), field names as Go writes them.

With `nodeCacheCapable: true` it sends names only; whole Nodes (`false`) are understood and answered in kind, with the
bytes of the node that came. Unknown fields are skipped, null and absent are the same. Of the pod only what a decision
needs is decoded.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec

from tessera.model.errors import TesseraError
from tessera.model.pod import Affinity, ObjectMeta, Pod, PodSpec, Toleration

T = TypeVar("T")

LARGEST_BODY: Final = 8 << 20
"""Bytes of one request. 5,000 node names have under 400 KiB, a pod at most 1.5 MiB; 5,000 whole Nodes don't fit."""
LONGEST_NAME: Final = 253
NOTHING: Final = msgspec.Raw(b"{}")
"""An empty JSON object."""


class WireError(TesseraError):
    """A body that is not what kube-scheduler sends; answered by 400 and this message."""


class SchedulingSpec(PodSpec, frozen=True, kw_only=True):
    """What the filter reads of a pod's spec beside its containers."""

    node_selector: dict[str, str] | None = None
    affinity: Affinity | None = None
    tolerations: tuple[Toleration, ...] | None = None


class SchedulingPod(Pod, frozen=True, kw_only=True):
    """A pod as the filter reads it."""

    spec: SchedulingSpec = SchedulingSpec()


class _Named(msgspec.Struct):
    metadata: ObjectMeta


class _NodeList(msgspec.Struct):
    items: list[msgspec.Raw] | None = None


class _Args(msgspec.Struct):
    Pod: SchedulingPod | None = None
    Nodes: _NodeList | None = None
    NodeNames: msgspec.Raw = msgspec.Raw(b"null")


class FilterArgs(msgspec.Struct, frozen=True):
    """A request to filter or prioritise.

    Attributes:
        pod: to be placed.
        raw_names: the JSON list of node names as it came, b"" where whole nodes came.
        nodes: the nodes as they came, by name, where names did not.
    """

    pod: SchedulingPod
    raw_names: bytes
    nodes: dict[str, msgspec.Raw] | None = None


class FilterResult(msgspec.Struct, kw_only=True):
    """ExtenderFilterResult, every field of it, as Go would write them."""

    NodeNames: msgspec.Raw | list[str] | None = None
    Nodes: dict[str, list[msgspec.Raw]] | None = None
    FailedNodes: msgspec.Raw = NOTHING
    FailedAndUnresolvableNodes: msgspec.Raw = NOTHING
    Error: str = ""


class BindArgs(msgspec.Struct, frozen=True):
    """ExtenderBindingArgs."""

    PodName: str = ""
    PodNamespace: str = ""
    PodUID: str = ""
    Node: str = ""


class BindResult(msgspec.Struct):
    """ExtenderBindingResult; an empty Error is success."""

    Error: str = ""


class HostPriority(msgspec.Struct):
    """One entry of HostPriorityList; 0..10, the higher the better."""

    Host: str
    Score: int


class MetaPod(msgspec.Struct):
    """A victim by UID."""

    UID: str = ""


class MetaVictims(msgspec.Struct):
    """The victims on one node."""

    Pods: list[MetaPod] | None = None
    NumPDBViolations: int = 0


class _Victims(msgspec.Struct):
    Pods: list[_Named] | None = None
    NumPDBViolations: int = 0


class PreemptArgs(msgspec.Struct):
    """ExtenderPreemptionArgs: the victims that kube-scheduler has chosen, by node."""

    Pod: SchedulingPod | None = None
    NodeNameToVictims: dict[str, _Victims] | None = None
    NodeNameToMetaVictims: dict[str, MetaVictims] | None = None

    def victims(self) -> dict[str, MetaVictims]:
        """By node, whichever form came."""
        found = dict(self.NodeNameToMetaVictims or {})
        for node, whole in (self.NodeNameToVictims or {}).items():
            pods = [MetaPod(pod.metadata.uid) for pod in whole.Pods or ()]
            found.setdefault(node, MetaVictims(pods, whole.NumPDBViolations))
        return found


class PreemptResult(msgspec.Struct):
    """ExtenderPreemptionResult."""

    NodeNameToMetaVictims: dict[str, MetaVictims]


def read_filter(body: bytes) -> FilterArgs:
    """Decode a request to filter or prioritise.

    Raises:
        WireError: no JSON, of another form, without a pod, without nodes, or with names that no node has.
    """
    quick = _read_quickly(body)
    if quick is not None:
        return quick
    args = _decode(_ARGS, body, "ExtenderArgs")
    if args.Pod is None:
        raise WireError("ExtenderArgs: Pod is missing")
    raw = bytes(args.NodeNames)
    if raw != b"null":
        return FilterArgs(args.Pod, raw)
    if args.Nodes is None:
        raise WireError("ExtenderArgs: neither NodeNames nor Nodes is given")
    nodes: dict[str, msgspec.Raw] = {}
    for item in args.Nodes.items or ():
        name = _decode(_NAMED, item, "ExtenderArgs: Nodes").metadata.name
        _check_name(name)
        nodes[name] = item
    return FilterArgs(args.Pod, b"", nodes)


def _read_quickly(body: bytes) -> FilterArgs | None:
    """Read what Go writes, without going through thousands of names that are looked up as bytes anyway.

    The names come last. What stands before them must be an object's beginning by itself, and no list ends within them; then
    whatever they are, it is what ``NodeNames`` holds, and whoever takes it apart sees whether it is a list of names.
    """
    at = body.find(_NAMES_KEY)
    # A quote after anything else may be the escaped one of another name.
    if at < 1 or body[at - 1] not in b",{" or not body.endswith(b"]}"):
        return None
    raw = body[at + len(_NAMES_KEY) - 1 : -1]
    if raw.find(b"]") != len(raw) - 1 or b"\\" in raw:
        return None
    try:
        args = _ARGS.decode(body[:at] + _NO_NAMES)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return FilterArgs(args.Pod, raw) if args.Pod is not None else None


def check_names(raw: bytes) -> msgspec.Raw:
    """Names as they came, to be sent back.

    Raises:
        WireError: no JSON.
    """
    _decode(_RAW, raw, "ExtenderArgs: NodeNames")
    return msgspec.Raw(raw)


def read_names(raw: bytes) -> list[str]:
    """Decode a list of node names.

    Raises:
        WireError: no such list, or a name that no node has.
    """
    return _decode(_NAMES, raw, "ExtenderArgs: NodeNames")


def read_bind(body: bytes) -> BindArgs:
    """Decode a request to bind.

    Raises:
        WireError: no JSON, of another form, or without the pod or the node.
    """
    args = _decode(_BIND, body, "ExtenderBindingArgs")
    for field in ("PodName", "PodNamespace", "Node"):
        value = getattr(args, field)
        if not value or len(value) > LONGEST_NAME or "/" in value or value in (".", ".."):
            raise WireError(f"ExtenderBindingArgs: {field} is {value[:64]!r}, which names nothing")
    return args


def read_preempt(body: bytes) -> PreemptArgs:
    """Decode a request to preempt.

    Raises:
        WireError: no JSON, of another form, or without a pod.
    """
    args = _decode(_PREEMPT, body, "ExtenderPreemptionArgs")
    if args.Pod is None:
        raise WireError("ExtenderPreemptionArgs: Pod is missing")
    return args


def _check_name(name: str) -> None:
    if not name or len(name) > LONGEST_NAME:
        raise WireError(f"ExtenderArgs: {name[:64]!r} is no name of a node")


def _decode(decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw, what: str) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"{what}: {error}") from error


_ARGS: Final = msgspec.json.Decoder(_Args)
_NAMED: Final = msgspec.json.Decoder(_Named)
_NAMES: Final = msgspec.json.Decoder(list[Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_NAME)]])
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)
_BIND: Final = msgspec.json.Decoder(BindArgs)
_PREEMPT: Final = msgspec.json.Decoder(PreemptArgs)
_NAMES_KEY: Final = b'"NodeNames":['
_NO_NAMES: Final = b'"NodeNames":[]}'
encode: Final = msgspec.json.Encoder().encode
