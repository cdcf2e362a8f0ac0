"""Roll-out of the node agent: the newcomer waits beside the old one and takes the sockets over."""

from __future__ import annotations

import signal

from product import pods
from product.programs import NEXT_NODE, NODE


def test_a_new_agent_takes_over_with_pods_before_and_after(space, product):
    names = [f"p{number}" for number in range(20)]
    wanted = [pods.pod(name, {"gpu-memory": "4Gi", "gpu-compute": 5}) for name in names]
    product.start_node(NEXT_NODE)
    product.wait_warm(NEXT_NODE)

    space.run(*wanted[:10])
    space.cluster.processes.send(NODE, signal.SIGTERM)
    product.wait_serving(NEXT_NODE)
    space.run(*wanted[10:])

    space.just()
    space.nobody_was_refused()
    # And back, so that the next test finds the agent under its usual name.
    space.cluster.processes.stop(NODE)
    product.start_node(NODE)
    product.wait_warm(NODE)
    space.cluster.processes.stop(NEXT_NODE, seconds=20)
    product.wait_serving(NODE)
    space.just()
