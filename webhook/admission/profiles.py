"""Placement profiles: what a pod is given so that the IDC fills first, then the cloud, unit by unit.

A profile is an ordered list of units. It becomes a required affinity (only nodes of some unit qualify), preferred terms
whose weights fall with the order (kube-scheduler and our extender both honour them, so the order holds with either), the
units' tolerations, and an annotation that says which profile it was. Rejected: a required affinity on the first unit
alone and a controller that moves pods on. It needs an API call per step, and the scheduler already tries nodes in order
of preference.

The pod's own values always win (as eci-profile, the cloud vendor's own such webhook, does): its affinity is narrowed and
never widened, units that it excludes are left out, labels and tolerations that it has are kept. A vendor's labels of a
serverless unit are added only to a pod that can go nowhere else, because ``alibabacloud.com/eci: "true"`` overrides
affinity, nodeSelector and every other negotiation of the place.

Fluid, the dataset cache, stops steering a pod whose affinity already speaks of its topology keys: it has to run first
(reinvocationPolicy IfNeeded on its entry or ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tessera.model.config import Profile, Unit
from tessera.model.errors import RequestError
from tessera.model.names import Names
from tessera.model.pod import Manifest, NodeAffinity, NodeSelectorTerm, SelectorRequirement, Toleration
from tessera.model.profile import choose, requirements
from webhook.admission.patch import Edit, Json, append, put

MOST_TERMS: Final = 128
"""Required terms of one pod after its own were multiplied with the units'."""

_AFFINITY: Final = ("spec", "affinity", "nodeAffinity")
REQUIRED: Final = (*_AFFINITY, "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
_PREFERRED: Final = (*_AFFINITY, "preferredDuringSchedulingIgnoredDuringExecution")
_TOP_WEIGHT: Final = 100
_NEVER: Final = NodeSelectorTerm()
"""A term without expressions matches no node."""

_Expressions = tuple[SelectorRequirement, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """What a profile does to a pod.

    Attributes:
        profile: its name, or "" where the profile that matches was not applied (see `warnings`).
        units: names of the units the pod may go to, in order.
        serverless: the pod can only go to virtual nodes, where there is no device plugin and no host path.
        edits: the changes; empty where the pod has them already.
        warnings: for the user, each at most 120 characters.
    """

    profile: str
    units: tuple[str, ...] = ()
    serverless: bool = False
    edits: tuple[Edit, ...] = ()
    warnings: tuple[str, ...] = ()


def place(pod: Manifest, *, profiles: Sequence[Profile], names: Names, namespace: str) -> Placed | None:
    """Apply the pod's profile: the one its annotation names, else the first that matches.

    Pods that no scheduler places (spec.nodeName, a DaemonSet's, which already name their node) are left alone.

    Args:
        pod: as it came.
        profiles: of the config.
        names: of this installation.
        namespace: of the admission request (the object's own may be empty at creation).

    Returns:
        None where no profile speaks of the pod.

    Raises:
        RequestError: the pod names a profile that is not configured or that its own selectors exclude, or its affinity
            has more terms than can be multiplied with the units'.
    """
    named = pod.metadata.annotation(names.placement_profile)
    if not (profiles or named) or pod.spec.node_name or _of_daemonset(pod):
        return None
    profile = choose(profiles, named=named, namespace=namespace, labels=pod.metadata.labels)
    if profile is None:
        return None
    own = _own_terms(pod)
    pinned = _pinned(pod)
    units = tuple(unit for unit in profile.units if _open(unit, own, pinned))
    if any(_aims_at(unit, own, pinned) for unit in units if unit.serverless and unit.node_selector):
        # A pod that selects virtual nodes by their label means them, though a label proves nothing about the IDC's nodes.
        units = tuple(unit for unit in units if unit.serverless)
    if not units:
        return _excluded(profile, explicit=bool(named))
    edits: list[Edit] = []
    if named != profile.name:
        edits.append(put(("metadata", "annotations", names.placement_profile), profile.name))
    edits += _required(units, own, pinned)
    edits += _preferences(pod, units)
    edits += _tolerations(pod, units)
    serverless = all(unit.serverless for unit in units)
    if serverless and len(units) == 1:
        labels = pod.metadata.labels or {}
        edits += [
            put(("metadata", "labels", key), value) for key, value in units[0].labels.items() if key not in labels
        ]
    return Placed(profile.name, tuple(unit.name for unit in units), serverless, tuple(edits))


def _of_daemonset(pod: Manifest) -> bool:
    return any(owner.kind == "DaemonSet" for owner in pod.metadata.owner_references or ())


def _excluded(profile: Profile, *, explicit: bool) -> Placed:
    if explicit:
        raise RequestError(
            f'its nodeSelector or affinity excludes every unit of the placement profile "{profile.name}"',
            fix=f"relax them, or name another profile (units: {', '.join(unit.name for unit in profile.units)})",
        )
    return Placed(
        "", warnings=(f"placement profile {profile.name} not applied: the pod's selectors exclude its units",)
    )


def _own_terms(pod: Manifest) -> tuple[NodeSelectorTerm, ...] | None:
    """The pod's own required terms that can match a node; None where it has no required affinity at all."""
    affinity = _node_affinity(pod)
    if affinity is None or affinity.required is None:
        return None
    return tuple(term for term in affinity.required.node_selector_terms or () if term != _NEVER)


def _node_affinity(pod: Manifest) -> NodeAffinity | None:
    return pod.spec.affinity.node_affinity if pod.spec.affinity is not None else None


def _pinned(pod: Manifest) -> _Expressions:
    """The pod's nodeSelector as expressions: it is ANDed with every term."""
    return tuple(
        SelectorRequirement(key=key, operator="In", values=(value,))
        for key, value in (pod.spec.node_selector or {}).items()
    )


def _open(unit: Unit, own: tuple[NodeSelectorTerm, ...] | None, pinned: _Expressions) -> bool:
    """Whether the pod leaves a way to the unit's nodes."""
    wanted = requirements(unit)
    if any(_contradict(have, want) for have in pinned for want in wanted):
        return False
    return own is None or any(_compatible(term, wanted) for term in own)


def _aims_at(unit: Unit, own: tuple[NodeSelectorTerm, ...] | None, pinned: _Expressions) -> bool:
    """Whether all that the pod selects carries the unit's labels, in whatever region."""
    wanted = requirements(Unit(name=unit.name, node_selector=unit.node_selector))
    return all(
        _implied(want, (*(term.match_expressions or ()), *pinned))
        for term in (own if own is not None else (_NEVER,))
        for want in wanted
    )


def _compatible(term: NodeSelectorTerm, wanted: _Expressions) -> bool:
    return not any(_contradict(have, want) for have in term.match_expressions or () for want in wanted)


def _contradict(have: SelectorRequirement, want: SelectorRequirement) -> bool:
    """No node can satisfy both; `want` is an ``In`` of a unit. Gt and Lt are left to the scheduler."""
    if have.key != want.key:
        return False
    values, wanted = have.values or (), want.values or ()
    if have.operator == "In":
        return not any(value in wanted for value in values)
    if have.operator == "NotIn":
        return all(value in values for value in wanted)
    return have.operator == "DoesNotExist"


def _implied(want: SelectorRequirement, have: _Expressions) -> bool:
    """Whether expressions that the pod has already see to what a unit wants."""
    wanted = want.values or ()
    return any(
        own.key == want.key and own.operator == "In" and own.values and all(value in wanted for value in own.values)
        for own in have
    )


def _alternatives(units: tuple[Unit, ...]) -> tuple[_Expressions, ...]:
    """The units as the terms of one OR; units that differ in their regions alone share a term, so that there are few."""
    regions: dict[tuple[tuple[str, str], ...], tuple[str, ...]] = {}
    for unit in units:
        key = tuple(sorted(unit.node_selector.items()))
        before = regions.get(key)
        if before == () or not unit.regions:
            regions[key] = ()  # every region
        else:
            regions[key] = (*(before or ()), *(region for region in unit.regions if region not in (before or ())))
    return tuple(requirements(Unit(name="u", node_selector=dict(key), regions=rs)) for key, rs in regions.items())


def _required(
    units: tuple[Unit, ...], own: tuple[NodeSelectorTerm, ...] | None, pinned: _Expressions
) -> tuple[Edit, ...]:
    """AND "in some unit" to what the pod requires: each of its terms is multiplied with the units that it allows.

    A term that lies within a unit already stays as it is. That is exact, and it makes a second pass change nothing.
    """
    alternatives = _alternatives(units)
    terms: list[NodeSelectorTerm] = []
    for term in own if own is not None else (_NEVER,):
        have = (*(term.match_expressions or ()), *pinned)
        if any(all(_implied(want, have) for want in wanted) for wanted in alternatives):
            terms.append(term)
            continue
        for wanted in alternatives:
            if _compatible(term, wanted):
                missing = tuple(want for want in wanted if not _implied(want, have))
                expressions = (*(term.match_expressions or ()), *missing)
                terms.append(NodeSelectorTerm(match_expressions=expressions, match_fields=term.match_fields))
        if len(terms) > MOST_TERMS:
            raise RequestError(
                f"has {len(own or ())} required node affinity terms, which make more than {MOST_TERMS} with the "
                f"{len(alternatives)} kinds of units of its placement profile",
                fix="write fewer terms, or name a profile with fewer units",
            )
    if tuple(terms) == (own if own is not None else (_NEVER,)):
        return ()
    return (put(REQUIRED, [written(term) for term in terms]),)


def _preferences(pod: Manifest, units: tuple[Unit, ...]) -> list[Edit]:
    """One preferred term per unit but the last, weights falling evenly from 100: the last one's score is the zero."""
    affinity = _node_affinity(pod)
    there = {(preferred.weight, preferred.preference) for preferred in (affinity.preferred if affinity else None) or ()}
    found = []
    for place_in_order, unit in enumerate(units[:-1]):
        # Whole numbers from 100 down to 4 (at most 32 units); kube-scheduler scales the sums of a pod to 100 anyway.
        weight = _TOP_WEIGHT * (len(units) - 1 - place_in_order) // (len(units) - 1)
        term = NodeSelectorTerm(match_expressions=requirements(unit))
        if term.match_expressions and (weight, term) not in there:
            found.append(append(_PREFERRED, {"weight": weight, "preference": written(term)}))
    return found


def _tolerations(pod: Manifest, units: tuple[Unit, ...]) -> list[Edit]:
    there = list(pod.spec.tolerations or ())
    found = []
    for toleration in (toleration for unit in units for toleration in unit.tolerations):
        if not any(_covers(own, toleration) for own in there):
            there.append(toleration)
            found.append(append(("spec", "tolerations"), _toleration(toleration)))
    return found


def _covers(own: Toleration, wanted: Toleration) -> bool:
    """Whether a toleration that is there tolerates all that another would (an absent operator is Equal)."""
    if own.effect and own.effect != wanted.effect:
        return False
    if own.operator == "Exists":
        return own.key in ("", wanted.key)
    return (
        own.key == wanted.key and wanted.operator in (None, "", "Equal") and (own.value or "") == (wanted.value or "")
    )


def _toleration(toleration: Toleration) -> Json:
    fields: dict[str, Json] = {
        "key": toleration.key,
        "operator": toleration.operator,
        "value": toleration.value,
        "effect": toleration.effect,
        "tolerationSeconds": toleration.toleration_seconds,
    }
    return {key: value for key, value in fields.items() if value not in (None, "")}


def written(term: NodeSelectorTerm) -> Json:
    """A term as a manifest writes it."""
    found: dict[str, Json] = {}
    if term.match_expressions:
        found["matchExpressions"] = [_expression(expression) for expression in term.match_expressions]
    if term.match_fields:
        found["matchFields"] = [_expression(expression) for expression in term.match_fields]
    return found


def _expression(expression: SelectorRequirement) -> Json:
    found: dict[str, Json] = {"key": expression.key, "operator": expression.operator}
    if expression.values:
        found["values"] = list(expression.values)
    return found
