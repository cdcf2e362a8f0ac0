"""How much of one pod is read: what is beyond is refused in one sentence, before anything is computed over it."""

import pytest

from tessera.dialects.reader import MOST_CONTAINERS, MOST_LABELS, MOST_RESOURCES
from tessera.dialects.wished import LONGEST
from tessera.model.errors import RequestError

GPU = {"limits": {"aliyun.com/gpu-mem": 1}}


def pod(*containers, annotations=None, **spec):
    return {
        "metadata": {"name": "p", "annotations": annotations or {}},
        "spec": {"containers": list(containers), **spec},
    }


def asking(**more):
    return {"name": "main", "resources": GPU, **more}


def containers(number):
    return [asking(), *({"name": f"c{at}"} for at in range(number - 1))]


def resources(number):
    return {
        "name": "main",
        "resources": {"limits": {f"example.com/r{at}": 1 for at in range(number - 1)} | GPU["limits"]},
    }


def affinity(*terms):
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}}


def term(expressions=1):
    return {"matchExpressions": [{"key": f"k{at}", "operator": "Exists"} for at in range(expressions)]}


def wish(length):
    return {"nvidia.com/use-gputype": "a" * length}


@pytest.mark.parametrize(
    ("within", "beyond", "said"),
    [
        (pod(*containers(MOST_CONTAINERS)), pod(*containers(MOST_CONTAINERS + 1)), "513 containers"),
        (
            pod(asking(), initContainers=containers(MOST_CONTAINERS - 1)[1:]),
            pod(asking(), initContainers=containers(MOST_CONTAINERS + 1)[1:]),
            "513 containers",
        ),
        (pod(resources(MOST_RESOURCES)), pod(resources(MOST_RESOURCES + 1)), "129 resources"),
        (
            pod(asking(), nodeSelector={f"k{at}": "v" for at in range(MOST_LABELS)}),
            pod(asking(), nodeSelector={f"k{at}": "v" for at in range(MOST_LABELS + 1)}),
            "129 labels",
        ),
        (
            pod(asking(), affinity=affinity(*[term()] * MOST_LABELS)),
            pod(asking(), affinity=affinity(*[term()] * (MOST_LABELS + 1))),
            "129 terms",
        ),
        (
            pod(asking(), affinity=affinity(term(MOST_LABELS))),
            pod(asking(), affinity=affinity(term(MOST_LABELS + 1))),
            "129 expressions",
        ),
        (pod(asking(), annotations=wish(LONGEST)), pod(asking(), annotations=wish(LONGEST + 1)), "4097 characters"),
    ],
    ids=["containers", "init containers", "resources", "labels", "terms", "expressions", "a wish"],
)
def test_at_the_bound_a_pod_is_read_and_beyond_it_is_refused(admit, within, beyond, said):
    assert admit(within)[1].request is not None
    with pytest.raises(RequestError, match=said) as caught:
        admit(beyond)
    assert caught.value.fix
    assert len(str(caught.value)) < 300
