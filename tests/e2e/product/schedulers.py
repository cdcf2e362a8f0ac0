"""The installed scheduler, one replica of it, with its extender and without: what is compared runs under equal conditions.

The other replica stands by on another machine wherever there is one. Here it would take from the same two cores, in one case
only: a second extender reads every change of a pod as the first one does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from cluster.processes import until

from product.installed import SCHEDULER, WORKLOADS, Product
from product.names import NAMESPACE

NAME = WORKLOADS[SCHEDULER][1]
ALONE = f"{NAME}-alone"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
FILE = "scheduler.yaml"


@contextmanager
def one_with_extender(product: Product) -> Iterator[None]:
    """Leave one replica for a while."""
    product.scale_scheduler(1)
    until("one scheduler of ours is left", lambda: len(product.pods(SCHEDULER)) == 1, seconds=60)
    # The one that is left may have to wait for the Lease of the one that went.
    until("it leads", lambda: leads(product), seconds=60)
    try:
        yield
    finally:
        product.own_scheduler()


@contextmanager
def one_without_extender(product: Product) -> Iterator[None]:
    """Run the same Deployment for a while with nothing in its configuration but kube-scheduler itself."""
    api = product.cluster.api
    with product.no_scheduler():
        deployment = api.get(f"{DEPLOYMENTS}/{NAME}")
        api.apply(*alone(deployment, api.get(f"{CONFIG_MAPS}/{config_map(deployment)}")))
        try:
            product.cluster.kubectl("-n", NAMESPACE, "rollout", "status", f"deployment/{ALONE}", "--timeout=90s")
            until("it leads", lambda: leads(product), seconds=60)
            yield
        finally:
            api.delete(f"{DEPLOYMENTS}/{ALONE}", propagationPolicy="Foreground")
            api.delete(f"{CONFIG_MAPS}/{ALONE}")
            api.wait_gone(f"{DEPLOYMENTS}/{ALONE}", seconds=60)


def leads(product: Product) -> bool:
    """Tell whether the Lease is held by a pod that is there."""
    lease = product.cluster.api.get(f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{NAME}")
    holder = lease["spec"]["holderIdentity"] or ""
    pods = product.cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
    return any(holder.startswith(f"{each['metadata']['name']}_") for each in pods)


def config_map(deployment: dict[str, Any]) -> str:
    """The ConfigMap that its scheduler reads."""
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    return str(next(each["configMap"]["name"] for each in volumes if each["name"] == "scheduler"))


def alone(deployment: dict[str, Any], configuration: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same ConfigMap without extenders, and the same Deployment that reads it, without the extender's container."""
    content = yaml.safe_load(configuration["data"][FILE])
    del content["extenders"]
    labels = {"app.kubernetes.io/name": ALONE}
    template: dict[str, Any] = json.loads(json.dumps(deployment["spec"]["template"]))
    template["metadata"] = {"labels": labels}
    spec = template["spec"]
    spec.pop("topologySpreadConstraints", None)
    spec["containers"] = [each for each in spec["containers"] if each["name"] == SCHEDULER]
    spec["volumes"] = [{"name": "scheduler", "configMap": {"name": ALONE}}]
    meta = {"name": ALONE, "namespace": NAMESPACE}
    return (
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {FILE: yaml.safe_dump(content)}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
        },
    )
