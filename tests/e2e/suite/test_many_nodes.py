"""160 nodes on a real API server and scheduler: the one with room is found wherever it stands, and the IDC comes first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from product.installed import PROFILE, SITE
from product.nodes import UNITS_EACH, FakeNode, FakeNodes, elsewhere
from product.space import is_planned, plan_of

IDC = 110
CLOUD = 50
LAST = f"idc-{IDC - 1:03}"
REGION = "topology.kubernetes.io/region"


@pytest.fixture(scope="module")
def nodes(cluster, product) -> Iterator[None]:
    """A data centre that is full but for its last node, and an empty cloud."""
    del product
    idc = [
        FakeNode(f"idc-{number:03}", labels={SITE: "idc"}, held=0 if number == IDC - 1 else UNITS_EACH)
        for number in range(IDC)
    ]
    cloud = [FakeNode(f"cloud-{number:03}", labels={SITE: "cloud", REGION: "cn-hangzhou"}) for number in range(CLOUD)]
    with FakeNodes(cluster, idc + cloud):
        yield


@pytest.fixture
def afar(nodes, space):
    """A space whose pods never run; they end as a kubelet would end them, so that their slices are free at once."""
    del nodes
    yield space
    for pod in space.all():
        path = f"{space.path}/{pod['metadata']['name']}"
        space.api.patch(f"{path}/status", {"status": {"phase": "Succeeded"}})
        space.api.delete(path, gracePeriodSeconds=0)


def test_room_on_the_last_of_the_data_centre_is_found_and_then_the_cloud(*, afar):
    annotations = {"tessera.dev/placement-profile": PROFILE}
    # Four whole GPUs are on the last node; the fifth pod has to go to the cloud.
    for number in range(5):
        afar.create(elsewhere(f"p{number}", {"gpu": 1}, annotations=annotations))
        pod = afar.until(f"p{number}", is_planned, seconds=30)

        where = pod["spec"]["nodeName"]
        assert where == LAST if number < 4 else where.startswith("cloud-")
        assert pod["metadata"]["labels"]["tessera.dev/unit"] == ("idc" if number < 4 else "cloud")
        (piece,) = plan_of(pod)["main"]
        assert piece["whole"]


def test_every_gpu_of_the_cloud_is_given_once(*, afar):
    names = [f"p{number}" for number in range(CLOUD)]
    wanted = [elsewhere(name, {"gpu": 4}) for name in names]
    for each in wanted:
        each["spec"]["nodeSelector"][SITE] = "cloud"

    afar.create_at_once(*wanted)
    placed = [afar.until(name, is_planned, seconds=60) for name in names]

    assert len({each["spec"]["nodeName"] for each in placed}) == CLOUD
    given = [piece["gpu"] for pod in placed for piece in plan_of(pod)["main"]]
    assert len(given) == len(set(given)) == 4 * CLOUD
