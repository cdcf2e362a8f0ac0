"""The registration of our webhook with the API server: who is asked about which pods, and what happens when nobody answers.

Refusing (failurePolicy Fail) is right for pods that ask for GPUs, since an untranslated one waits for ever or walks around
the accounting; it is made harmless to all others by match conditions (lessons of peers: with Ignore, GPU pods go by
unmanaged; with Fail and no conditions, a webhook that is down keeps anybody from creating any pod). The CNI repair is an
entry of its own with Ignore: a dead webhook must not keep the network from healing.

Our own namespace and kube-system are never sent: the webhook's own pods have to be creatable while it is down, and so
have those that the cluster itself stands on.
"""

from __future__ import annotations

from typing import Final

from tessera.deploy.conditions import asks, cni, repeats
from tessera.model.config import Config

NAME: Final = "tessera-webhook"
"""Of both configurations; what the webhook's flag ``--webhook-configuration`` says by default."""
SYSTEM: Final = "kube-system"
_NAMESPACE: Final = "kubernetes.io/metadata.name"
_TIMEOUT: Final = 5
"""Seconds; an answer takes well under a millisecond, so what is longer is a webhook that is gone."""
_CNI_TIMEOUT: Final = 2

Object = dict[str, object]


def webhook_configurations(
    config: Config, *, namespace: str = "tessera-system", service: str = "tessera-webhook", ca_bundle: str = ""
) -> list[Object]:
    """The MutatingWebhookConfiguration and the ValidatingWebhookConfiguration (admissionregistration.k8s.io/v1).

    Args:
        config: whose dialects, domain and CNI repair count.
        namespace: of the webhook's Service.
        service: the Service's name.
        ca_bundle: base64 of PEM; "" leaves it to the webhook (or to cert-manager), which fills it in.
    """
    elsewhere = {"matchExpressions": [_expression("NotIn", sorted({SYSTEM, namespace}))]}
    conditions = [{"name": "asks", "expression": asks(config)}]

    def entry(path: str, timeout: int, operations: list[str]) -> Object:
        client: Object = {"service": {"name": service, "namespace": namespace, "path": path, "port": 443}}
        if ca_bundle:
            client["caBundle"] = ca_bundle
        return {
            "name": f"{path.removeprefix('/')}.{config.domain}",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "timeoutSeconds": timeout,
            "matchPolicy": "Equivalent",
            "rules": [
                {
                    "apiGroups": [""],
                    "apiVersions": ["v1"],
                    "resources": ["pods"],
                    "operations": operations,
                    "scope": "Namespaced",
                }
            ],
            "clientConfig": client,
        }

    again = {"name": "applied-again", "expression": repeats(config)}
    mutate = entry("/mutate", _TIMEOUT, ["CREATE", "UPDATE"]) | {
        "failurePolicy": "Fail",
        "reinvocationPolicy": "IfNeeded",
        "namespaceSelector": elsewhere,
        "matchConditions": [again, *conditions],
    }
    validate = entry("/validate", _TIMEOUT, ["CREATE"]) | {
        "failurePolicy": "Fail",
        "namespaceSelector": elsewhere,
        "matchConditions": conditions,
    }
    mutating = [mutate]
    if config.cni.enabled and config.cni.namespaces:
        mutating.append(
            entry("/mutate-cni", _CNI_TIMEOUT, ["CREATE"])
            | {
                "failurePolicy": "Ignore",
                "reinvocationPolicy": "IfNeeded",
                "namespaceSelector": {"matchExpressions": [_expression("In", sorted(config.cni.namespaces))]},
                "matchConditions": [{"name": "cni", "expression": cni(config.cni)}],
            }
        )
    return [
        _configuration("MutatingWebhookConfiguration", mutating),
        _configuration("ValidatingWebhookConfiguration", [validate]),
    ]


def _expression(operator: str, values: list[str]) -> Object:
    return {"key": _NAMESPACE, "operator": operator, "values": values}


def _configuration(kind: str, webhooks: list[Object]) -> Object:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": NAME},
        "webhooks": webhooks,
    }
