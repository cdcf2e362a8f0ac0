"""Binding and eviction of pods (pkg/registry/core/pod/storage/storage.go and eviction.go of 1.34).

A Binding writes nodeName, the Binding's annotations and the PodScheduled condition in one step. Its labels are copied
only where the feature PodTopologyLabelsAdmission is on: off in 1.34, on from 1.35. A UID or resourceVersion in its
metadata is a precondition. Whether the node exists is not checked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tessera.testing.apiserver import status
from tessera.testing.apiserver.admission import Admission
from tessera.testing.apiserver.deletion import delete_now
from tessera.testing.apiserver.metadata import check_preconditions, stamp
from tessera.testing.apiserver.registry import Registry, Request
from tessera.testing.apiserver.resources import Target
from tessera.testing.apiserver.selectors import matches_label_selector
from tessera.testing.apiserver.store import Stored
from tessera.testing.apiserver.strategy import is_deleting
from tessera.testing.apiserver.tree import Json, Object, copy, labels, own, rows, table, text, whole

_BUDGETS: Final = "poddisruptionbudgets.policy"
SUCCESS: Final = b'{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success","code":201}\n'


class PodActions:
    """The subresources of a pod that act instead of writing."""

    def __init__(self, registry: Registry, admission: Admission, *, copies_labels: bool) -> None:
        """Act on the pods of `registry`; `copies_labels` as from 1.35 on."""
        self._registry = registry
        self._admission = admission
        self._copies_labels = copies_labels

    async def bind(self, request: Request, binding: Object) -> None:
        """Bind a pod to a node.

        Raises:
            StatusError: 409, the pod is bound, being deleted, gated or another one; 404; 400.
        """
        target = request.target
        name = text(binding, "metadata", "name")
        if name != target.name:
            raise status.bad_request("name in URL does not match name in Binding object")
        self._check_namespace(target, binding)
        if text(binding, "target", "kind") not in ("", "Node"):
            raise status.StatusError(500, "", f'target.kind: Unsupported value: "{text(binding, "target", "kind")}"')
        if not text(binding, "target", "name"):
            raise status.StatusError(500, "", "target.name: Required value")
        attempt = replace(self._registry.attempt(request, "CREATE", target), kind=("", "v1", "Binding"))
        binding = await self._admission.mutate(attempt, binding) or binding
        await self._admission.validate(attempt, binding)
        pod = self._registry.read(Target(target.resource, target.namespace, name))
        self._check_bindable(target, binding, pod)
        if not request.dry_run:
            self._registry.store.write(target.resource.shelf, self._bound(pod, binding))

    async def evict(self, request: Request, eviction: Object) -> None:
        """Delete a pod, if its disruption budget allows.

        Raises:
            StatusError: 429, the budget doesn't allow it; 404; 409, another pod.
        """
        target = request.target
        if text(eviction, "metadata", "name") != target.name:
            raise status.bad_request("name in URL does not match name in Eviction object")
        self._check_namespace(target, eviction)
        attempt = replace(self._registry.attempt(request, "CREATE", target), kind=("policy", "v1", "Eviction"))
        eviction = await self._admission.mutate(attempt, eviction) or eviction
        await self._admission.validate(attempt, eviction)
        pod = self._registry.read(Target(target.resource, target.namespace, target.name))
        options = table(eviction, "deleteOptions")
        check_preconditions(target.resource, pod, options)
        disruptive = text(pod.tree, "status", "phase") not in ("Succeeded", "Failed", "Pending")
        if disruptive and not is_deleting(pod.tree):
            self._take_from_budget(pod, dry_run=request.dry_run)
        if request.dry_run:
            return
        tree = copy(pod.tree)
        _set_condition(
            tree,
            {
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting",
                "lastTransitionTime": stamp(),
            },
        )
        pod = self._registry.store.write(target.resource.shelf, tree)
        strategy = self._registry.strategy(Target(target.resource))
        delete_now(self._registry.store, strategy, pod, grace=whole(options, "gracePeriodSeconds"))

    def _check_namespace(self, target: Target, tree: Object) -> None:
        if own(tree, "metadata").setdefault("namespace", target.namespace) != target.namespace:
            raise status.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )

    def _check_bindable(self, target: Target, binding: Object, pod: Stored) -> None:
        name = target.name
        for field, there in (("uid", pod.uid), ("resourceVersion", str(pod.version))):
            asked = text(binding, "metadata", field)
            if asked and asked != there:
                what = "UID" if field == "uid" else "ResourceVersion"
                problem = f"Precondition failed: {what} in precondition: {asked}, {what} in object meta: {there}"
                raise status.conflict("", "pods", name, problem)
        problem = ""
        if is_deleting(pod.tree):
            problem = f"pod {name} is being deleted, cannot be assigned to a host"
        elif node := text(pod.tree, "spec", "nodeName"):
            problem = f'pod {name} is already assigned to node "{node}"'
        elif rows(pod.tree, "spec", "schedulingGates"):
            problem = f"pod {name} has non-empty .spec.schedulingGates"
        if problem:
            raise status.conflict("", "pods/binding", name, problem)

    def _bound(self, pod: Stored, binding: Object) -> Object:
        tree = copy(pod.tree)
        own(tree, "spec")["nodeName"] = text(binding, "target", "name")
        for key, value in labels(binding, "metadata", "annotations").items():
            own(tree, "metadata", "annotations")[key] = value
        if self._copies_labels:
            for key, value in labels(binding, "metadata", "labels").items():
                own(tree, "metadata", "labels")[key] = value
        _set_condition(tree, {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp()})
        return tree

    def _take_from_budget(self, pod: Stored, *, dry_run: bool) -> None:
        has = labels(pod.tree, "metadata", "labels")
        budgets = [
            budget
            for budget in self._registry.store.shelf(_BUDGETS).objects.values()
            if budget.key[0] == pod.key[0] and matches_label_selector(table(budget.tree, "spec", "selector"), has)
        ]
        if not budgets:
            return
        if len(budgets) > 1:
            message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
            raise status.StatusError(500, "", message)
        budget = budgets[0]
        seen = whole(budget.tree, "status", "observedGeneration") or 0
        if seen < (whole(budget.tree, "metadata", "generation") or 0):
            raise _disrupts(f"The disruption budget {budget.key[1]} is still being processed by the server.", retry=10)
        allowed = whole(budget.tree, "status", "disruptionsAllowed") or 0
        if allowed <= 0:
            needs = whole(budget.tree, "status", "desiredHealthy") or 0
            healthy = whole(budget.tree, "status", "currentHealthy") or 0
            raise _disrupts(
                f"The disruption budget {budget.key[1]} needs {needs} healthy pods and has {healthy} currently"
            )
        if not dry_run:
            tree = copy(budget.tree)
            own(tree, "status")["disruptionsAllowed"] = allowed - 1
            own(tree, "status", "disruptedPods")[pod.key[1]] = stamp()
            self._registry.store.write(_BUDGETS, tree)


def _disrupts(detail: str, *, retry: int = 0) -> status.StatusError:
    error = status.too_many_requests(
        "Cannot evict pod as it would violate the pod's disruption budget.", retry_after=retry
    )
    error.details["causes"] = [{"reason": "DisruptionBudget", "message": detail}]
    return error


def _set_condition(tree: Object, condition: Object) -> None:
    kind = text(condition, "type")
    others: list[Json] = [row for row in rows(tree, "status", "conditions") if text(row, "type") != kind]
    own(tree, "status")["conditions"] = [*others, condition]
