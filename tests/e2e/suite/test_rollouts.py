"""Updates of the product's own parts while pods come: nothing is lost and nobody refused."""

from __future__ import annotations

import threading

from cluster.processes import until
from product import pods
from product.installed import NODE, SCHEDULER, WEBHOOK

BURST = 40


def test_the_agent_is_rolled_out_in_a_burst(space, product):
    """MaxSurge 1: the newcomer warms up beside the old one, waits for its lock, and takes over."""
    space.run(*(pods.pod(f"old{number}", {"gpu-memory": "8Gi"}) for number in range(4)))
    before = uids(product)
    wanted = [pods.pod(f"p{number}", {"gpu-memory": "2Gi", "gpu-compute": 1}) for number in range(BURST)]

    with space.undisturbed():
        space.create_at_once(*wanted[: BURST // 2])
        product.roll(NODE)
        for each in wanted[BURST // 2 :]:
            space.create(each)
        product.wait_rolled(NODE)
        space.running(*(each["metadata"]["name"] for each in wanted), seconds=120)
        until("the old agent has left", lambda: before.isdisjoint(uids(product)), seconds=40)
        space.just(least=3 * BURST)
    space.nobody_was_refused()


def test_the_webhook_is_rolled_while_pods_are_created_without_a_pause(space, product):
    """Every creation is answered, and every pod has its tickets."""
    rolled = threading.Event()
    answers = []

    def create():
        while not rolled.is_set():
            pod = pods.pod(f"p{len(answers)}", {"gpu-memory": "256Mi"})
            answers.append(space.api.raw("POST", space.path, pod, dryRun="All"))

    creating = threading.Thread(target=create)
    creating.start()
    try:
        product.roll(WEBHOOK)
        product.wait_rolled(WEBHOOK)
    finally:
        rolled.set()
        creating.join()

    assert [body for status, body in answers if status != 201] == []
    assert len(answers) > BURST
    assert [body for _, body in answers if b"tessera.dev/gpu-memory.256Mi" not in body] == []


def test_the_scheduler_is_rolled_in_a_burst(space, product):
    wanted = [pods.pod(f"p{number}", {"gpu-memory": "2Gi", "gpu-compute": 1}) for number in range(BURST)]

    space.create_at_once(*wanted[: BURST // 2])
    product.roll(SCHEDULER)
    for each in wanted[BURST // 2 :]:
        space.create(each)
    product.wait_rolled(SCHEDULER)
    space.running(*(each["metadata"]["name"] for each in wanted), seconds=120)

    space.just(least=3 * BURST)
    space.nobody_was_refused()


def test_without_a_webhook_no_pod_is_created_unmanaged_and_all_others_are(space, product):
    product.cluster.kubectl("-n", "tessera-system", "scale", "deployment/tessera-webhook", "--replicas=0")
    try:
        for each in product.pods(WEBHOOK):
            product.cluster.api.wait_gone(
                f"/api/v1/namespaces/tessera-system/pods/{each['metadata']['name']}", seconds=60
            )
        status, _ = space.api.raw("POST", space.path, pods.pod("p", {"gpu-memory": "8Gi"}))
        space.run(pods.pod("plain"))
    finally:
        product.cluster.kubectl("-n", "tessera-system", "scale", "deployment/tessera-webhook", "--replicas=2")
        product.back(WEBHOOK)

    assert status == 500
    space.run(pods.pod("p", {"gpu-memory": "8Gi"}))
    space.just(least=3)


def uids(product):
    return {each["metadata"]["uid"] for each in product.pods(NODE)}
