"""The API server's match conditions: which pods it sends us, in CEL, generated from the table of dialects and the config.

Nothing here is written by hand for one system: a dialect says what makes a pod one of its own (`tessera.dialects.trigger`),
and this module says it in CEL. So a dialect that config switches off stops costing a call, and one that is added is sent.

Facts about the API server that shape the text (Kubernetes 1.34, k8s.io/apiserver/pkg/admission/plugin/webhook):

* conditions are combined by AND, so what is an alternative has to stand in one expression;
* they see the object after decoding and defaulting and before validation: quantities in their canonical text (``0.1`` is
  ``100m``, any zero is ``0``), absent optional fields absent, ``spec.containers: null`` where a client sent none;
* a condition that fails to evaluate, or exceeds its cost, is a refusal where the failurePolicy is Fail; so nothing here
  selects a field without asking whether it is there, and names are compared before any pattern is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from tessera.deploy.cel import either, listed, text
from tessera.dialects.dialect import Context
from tessera.dialects.registry import FOREIGN
from tessera.dialects.trigger import (
    AllOf,
    AnyOf,
    Not,
    Resource,
    Scheduler,
    Text,
    Toleration,
    Trigger,
    Variable,
    all_of,
    alternatives,
    any_of,
)
from tessera.model.config import Cni, Config

MIRROR: Final = "kubernetes.io/config.mirror"
_FRACTION: Final = "^-?[0-9]+(m|u|n)$"
"""A quantity in canonical form that is not whole."""


def concerned(config: Config) -> Trigger:
    """Which pods are sent: those that ask for a GPU in a dialect that is on, or carry a name of ours.

    Ours are names under our domain in resources (amounts of zero too) and annotations, and labels that only we write: at
    creation the webhook strips what users bring of them. A static pod's mirror asks for nothing that could still be changed.

    Args:
        config: whose dialects and domain count.
    """
    names = config.names
    under = names.domain + "/"
    mirror = Text(where="annotations", names=frozenset({MIRROR}))
    return any_of(
        Text(where="annotations", prefix=under),
        Text(where="labels", names=frozenset({names.unit, names.region})),
        Resource(prefix=under, amount="any"),
        all_of(Not(mirror), any_of(*_foreign(config))),
    )


def asks(config: Config) -> str:
    """`concerned`, in CEL.

    Args:
        config: whose dialects and domain count.
    """
    return _bound(_cel(concerned(config)))


def _bound(expression: str) -> str:
    """An expression about ``p``, the parts of the pod that say what it asks, each there whatever the pod leaves out.

    CEL has no local names (the API server's has no ``cel.bind``), but a list of one element has a loop variable. ``amounts``
    holds, for each container, its limits and its requests.
    """
    optional = {
        "annotations": ("object.metadata.annotations", "{}"),
        "labels": ("object.metadata.labels", "{}"),
        "nodeSelector": ("object.spec.nodeSelector", "{}"),
        "tolerations": ("object.spec.tolerations", "[]"),
    }
    parts = {key: either(path, empty) for key, (path, empty) in optional.items()}
    containers = " + ".join(f"dyn({either(f'object.spec.{key}', '[]')})" for key in ("initContainers", "containers"))
    sides = ", ".join(f"dyn({either(f'c.resources.{side}', '{}')})" for side in ("limits", "requests"))
    parts["containers"] = f"({containers})"
    parts["amounts"] = f"({containers}).map(c, has(c.resources) ? [{sides}] : [])"
    members = ", ".join(f"'{key}': dyn({value})" for key, value in parts.items())
    return f"[{{{members}}}].exists(p, {expression})"


def repeats(config: Config) -> str:
    """CEL, for UPDATE: a pod that admission had converted comes with another spec than it has.

    That is what ``kubectl apply`` of the same manifest does a second time. Every other update of a running GPU pod
    (labels, finalizers, owners) passes without us, so that a webhook that is down stops no controller.
    """
    request = text(config.names.request)
    return (
        "request.operation != 'UPDATE' || (has(oldObject.metadata.annotations)"
        f" && {request} in oldObject.metadata.annotations && object.spec != oldObject.spec)"
    )


def cni(config: Cni) -> str:
    """CEL: a hostNetwork pod of a CNI DaemonSet that the repair is for (`webhook.admission.cni.concerns`)."""
    apps = listed(config.apps)
    labels = "has(object.metadata.labels) && ['app', 'k8s-app'].exists(l, l in object.metadata.labels"
    return " && ".join(
        (
            "has(object.spec.hostNetwork) && object.spec.hostNetwork",
            f"{labels} && object.metadata.labels[l] in {apps})",
            "has(object.metadata.ownerReferences) && object.metadata.ownerReferences.exists(o, o.kind == 'DaemonSet')",
        )
    )


def _cel(trigger: Trigger) -> str:
    """Write a trigger in CEL, about ``p`` (see `_bound`) and ``object``."""
    match trigger:
        case Resource():
            return _resource(trigger)
        case Text():
            return _text(trigger)
        case Scheduler():
            return f"(has(object.spec.schedulerName) && object.spec.schedulerName in {listed(trigger.names)})"
        case Toleration():
            return f"p.tolerations.exists(t, has(t.key) && t.key == {text(trigger.key)})"
        case Variable():
            name = text(trigger.name)
            return f"p.containers.exists(c, has(c.env) && c.env.exists(e, e.name == {name} && has(e.value)))"
        case AnyOf():
            parts = _merged(alternatives(trigger))
            return f"({' || '.join(_cel(part) for part in parts)})" if parts else "false"
        case AllOf():
            return f"({' && '.join(_cel(part) for part in trigger.parts)})" if trigger.parts else "true"
        case Not():
            return f"!{_cel(trigger.part)}"


def _foreign(config: Config) -> list[Trigger]:
    """Of the foreign dialects that are on; ours are names under our domain, which count in any case."""
    found = []
    for dialect in FOREIGN:
        options = config.dialects.get(dialect.name) or dialect.options()
        if options.enabled:
            found.append(dialect.triggers(Context(config.names, options)))
    return found


def _merged(parts: Iterable[Trigger]) -> list[Trigger]:
    """Alternatives with all plain resource names in one, so that a pod's resources are gone through once."""
    names: frozenset[str] = frozenset()
    rest: list[Trigger] = []
    for part in parts:
        if isinstance(part, Resource) and part == Resource(names=part.names):
            names |= part.names
        elif part not in rest:
            rest.append(part)
    # What is cheap to rule out comes first; a pod's containers are the long part.
    rest.sort(key=lambda part: not isinstance(part, Text | Scheduler))
    return [*rest, Resource(names=names)] if names else rest


def _resource(trigger: Resource) -> str:
    """``c`` is one container's limits and requests; where both have a name, the limit counts."""
    checks = [_named("k", trigger.names, trigger.prefix, trigger.pattern)]
    if trigger.amount == "positive":
        checks.append("(k in c[0] ? c[0][k] : r[k]) != '0'")
    elif trigger.amount == "fraction":
        checks.append(f"(k in c[0] ? c[0][k] : r[k]).matches({text(_FRACTION)})")
    found = f"c.exists(r, r.exists(k, {' && '.join(checks)}))"
    if trigger.off:
        off = text(trigger.off)
        found += f" && c.exists(r, {off} in r && ({off} in c[0] ? c[0][{off}] : r[{off}]) == '0')"
    if trigger.without:
        others = " || ".join(f"k.startsWith({text(prefix)})" for prefix in trigger.without)
        found += f" && !c.exists(r, r.exists(k, {others}))"
    return f"p.amounts.exists(c, {found})"


def _text(trigger: Text) -> str:
    checks = _named("k", trigger.names, trigger.prefix, trigger.pattern)
    if trigger.value:
        checks += f" && p.{trigger.where}[k].matches({text(f'^(?s:{trigger.value})$')})"
    if trigger.unless:
        checks += f" && !p.{trigger.where}[k].matches({text(f'^(?s:{trigger.unless})$')})"
    return f"p.{trigger.where}.exists(k, {checks})"


def _named(key: str, names: frozenset[str], prefix: str, pattern: str) -> str:
    parts = []
    if len(names) == 1:
        parts.append(f"{key} == {text(next(iter(names)))}")
    elif names:
        parts.append(f"{key} in {listed(names)}")
    if prefix and pattern:
        # Named groups have two spellings; here they need none.
        plain = re.sub(r"\(\?P<[a-z]+>", "(", pattern)
        parts.append(f"({key}.startsWith({text(prefix)}) && {key}.matches({text(f'^(?:{plain})$')}))")
    elif prefix:
        parts.append(f"{key}.startsWith({text(prefix)})")
    return f"({' || '.join(parts)})" if len(parts) > 1 else parts[0] if parts else "false"
