"""Who may write what our parts believe: annotations and labels of ours on pods, Bindings and Nodes (contract, section 3).

At a pod's creation the mutating webhook has stripped what only we write, so what is still there was put past it. From
then on a value changes only by the hand of its part; kubelet and controllers update the same objects all the time and
pass, since they leave the values as they are. Being an administrator is no exception: a plan that is edited by hand
makes two pods share units that nobody counts. Who has to, deletes the policy's binding first, or is named in
`guard.trusted`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tessera.deploy.cel import listed, text
from tessera.deploy.policy import NOT_MIRROR, Check, Policy
from tessera.model.config import Config

NODE_NAME: Final = "authentication.kubernetes.io/node-name"
"""What the API server says of a token that is bound to a pod: on which node that pod runs."""
_PODS: Final = ("pods", "pods/status", "pods/resize", "pods/ephemeralcontainers")
_ON_NODE: Final = (
    f"has(request.userInfo.extra) && {text(NODE_NAME)} in request.userInfo.extra"
    f" && request.userInfo.extra[{text(NODE_NAME)}].exists(n, n == request.name)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """Who writes.

    Attributes:
        extender: user name of the extender's service account.
        agent: user name of the node agent's.
        trusted: users and groups that may write as all of them.
    """

    extender: str
    agent: str
    trusted: tuple[str, ...] = ()

    def nobody_trusted(self) -> tuple[str, str]:
        """A condition: whoever asks is none of those that config trusts."""
        names = listed(self.trusted)
        return (
            "not-trusted-by-config",
            (
                f"!(request.userInfo.username in {names})"
                f" && !(has(request.userInfo.groups) && request.userInfo.groups.exists(g, g in {names}))"
            ),
        )


def pods(config: Config, accounts: Accounts) -> Policy:
    """Annotations and labels on pods; the plan comes with the Binding and never changes, so nobody writes it here."""
    names = config.names
    annotations, labels = (names.plan, names.request), (names.unit, names.region)
    created = _changed((names.plan,), "annotations") + " + " + _changed(labels, "labels")
    updated = _changed(annotations, "annotations") + " + " + _changed(labels, "labels")
    extender = f"request.userInfo.username == {text(accounts.extender)} && k in {listed(labels)}"
    return Policy(
        name="tessera-pod-annotations",
        resources=_PODS,
        conditions=_conditions(accounts, NOT_MIRROR),
        variables=(
            *_before_and_after(),
            ("changed", f"request.operation == 'CREATE' ? {created} : {updated}"),
            ("forged", f"variables.changed.filter(k, !({extender}))"),
        ),
        checks=(
            Check(
                holds="variables.forged.size() == 0",
                message=(
                    "variables.forged[0] + (request.operation == 'CREATE' ? ' is for Tessera to write; remove it (a manifest"
                    " made from a live pod carries it)' : ' is for Tessera to write; leave it as it is, and make the pod anew to"
                    " ask for something else')"
                ),
                summary="an annotation or label of the pod is for Tessera to write; leave it as it is",
            ),
        ),
    )


def bindings(config: Config, accounts: Accounts) -> Policy:
    """What rides in a Binding: it becomes the pod's, so a forged plan would come with it."""
    names = config.names
    under = f"k.startsWith({text(names.domain + '/')})"
    extender = f"request.userInfo.username == {text(accounts.extender)} && k in {listed((names.plan,))}"
    return Policy(
        name="tessera-bindings",
        resources=("bindings", "pods/binding"),
        operations=("CREATE",),
        conditions=_conditions(accounts),
        variables=(
            ("annotations", "has(object.metadata.annotations) ? object.metadata.annotations : {}"),
            ("labels", "has(object.metadata.labels) ? object.metadata.labels : {}"),
            (
                "forged",
                (
                    f"variables.annotations.map(k, k).filter(k, {under} && !({extender}))"
                    f" + variables.labels.map(k, k).filter(k, {under})"
                ),
            ),
        ),
        checks=(
            Check(
                holds="variables.forged.size() == 0",
                message="variables.forged[0] + ' in a Binding is for Tessera\\'s extender to write; bind without it'",
                summary="a Binding carries what only Tessera's extender may write; bind without it",
            ),
        ),
    )


def nodes(config: Config, accounts: Accounts) -> Policy:
    """Inventory and drift are the node's own agent's, wake is the extender's; labels may come with a new Node.

    Node pools and autoscalers label a Node at its creation with what its kind will have; the agent corrects it.
    """
    names = config.names
    agents_ = (names.inventory, names.drift)
    labels = (names.node_model, names.node_count, names.node_memory, names.node_sharing)
    here = f"request.userInfo.username == {text(accounts.agent)} && {_ON_NODE}"
    extender = f"request.userInfo.username == {text(accounts.extender)}"
    annotations = _changed((*agents_, names.wake), "annotations")
    return Policy(
        name="tessera-nodes",
        resources=("nodes", "nodes/status"),
        conditions=_conditions(accounts),
        variables=(
            *_before_and_after(),
            (
                "changed",
                f"{annotations} + (request.operation == 'CREATE' ? [] : {_changed(labels, 'labels')})",
            ),
            (
                "forged",
                (
                    f"variables.changed.filter(k, !({here} && k in {listed((*agents_, *labels))})"
                    f" && !({extender} && k == {text(names.wake)}))"
                ),
            ),
        ),
        checks=(
            Check(
                holds="variables.forged.size() == 0",
                message=(
                    "variables.forged[0] + ' of node \"' + request.name + '\" is for '"
                    f" + (variables.forged[0] == {text(names.wake)} ? 'Tessera\\'s extender' : 'the node agent there')"
                    " + ' to write; leave it as it is'"
                ),
                summary="an annotation or label of the node is for Tessera to write; leave it as it is",
            ),
        ),
    )


def agents(config: Config, accounts: Accounts) -> Policy:
    """What an agent's token is good for: our names on its own Node, and nothing else; a stolen one moves no other node."""
    under = text(config.domain + "/")

    def others_kept(kind: str) -> str:
        return (
            f"variables.{kind}.all(k, k.startsWith({under}) || (k in variables.{kind}Before"
            f" && variables.{kind}Before[k] == variables.{kind}[k]))"
            f" && variables.{kind}Before.all(k, k.startsWith({under}) || k in variables.{kind})"
        )

    return Policy(
        name="tessera-agents",
        resources=("nodes", "nodes/*", "pods", "pods/*"),
        operations=("CREATE", "UPDATE", "DELETE"),
        conditions=(("agent", f"request.userInfo.username == {text(accounts.agent)}"),),
        variables=_before_and_after(),
        checks=(
            Check(
                holds=(
                    "request.resource.resource == 'nodes' && request.operation == 'UPDATE'"
                    f" && (!has(request.subResource) || request.subResource == '') && {_ON_NODE}"
                ),
                message=(
                    "'the node agent may update no object but the Node its token is bound to'"
                    f" + (has(request.userInfo.extra) && {text(NODE_NAME)} in request.userInfo.extra ? '' :"
                    " '; this token is bound to none: use the one that its pod is given')"
                ),
                summary="the node agent may update no object but the Node its token is bound to",
            ),
            Check(
                holds=(
                    "request.resource.resource != 'nodes' || request.operation != 'UPDATE' || (object.spec =="
                    f" oldObject.spec && {others_kept('annotations')} && {others_kept('labels')})"
                ),
                message="'the node agent may change nothing of its Node but annotations and labels of Tessera'",
                summary="the node agent may change nothing of its Node but annotations and labels of Tessera",
            ),
        ),
    )


def _conditions(accounts: Accounts, *others: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (*others, accounts.nobody_trusted()) if accounts.trusted else others


def _before_and_after() -> tuple[tuple[str, str], ...]:
    """Variables: annotations and labels as they were and as they are to be."""
    found = []
    for kind in ("annotations", "labels"):
        new, old = f"object.metadata.{kind}", f"oldObject.metadata.{kind}"
        found.append((kind, f"object != null && has({new}) ? {new} : {{}}"))
        found.append((f"{kind}Before", f"oldObject != null && has({old}) ? {old} : {{}}"))
    return tuple(found)


def _changed(keys: tuple[str, ...], kind: str) -> str:
    """The keys whose value changes, comes or goes."""
    new, old = f"variables.{kind}", f"variables.{kind}Before"
    return f"{listed(keys)}.filter(k, (k in {new}) != (k in {old}) || (k in {new} && {new}[k] != {old}[k]))"
