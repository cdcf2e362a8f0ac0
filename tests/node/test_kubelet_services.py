"""The kubelet's own services: PodResources over a socket, and GET /pods, which wants to know who asks."""

from __future__ import annotations

import ssl

import grpc.aio
import pytest

from deviceplugin._proto import podresources_v1_pb2 as pr
from deviceplugin.errors import KubeletError
from deviceplugin.kubeletpods import KubeletPods
from deviceplugin.podresources import PodResources
from tessera.kube.clock import SystemClock
from tessera.kube.config import StaticConnection
from tessera.kube.errors import ConnectionConfigError
from tessera.kube.kubeconfig import KubeconfigConnection
from tessera.model.names import names
from tessera.testing.apiserver.certificates import Authority
from tessera.testing.kubelet.podsserver import PodsServer
from tessera.testing.kubelet.sockets import serve, unary

NAMES = names()
UNITS, PERCENT, COMPUTE = NAMES.tickets
POD = {"metadata": {"name": "p", "namespace": "default", "uid": "u"}}


async def test_pod_resources_are_read_and_a_refused_call_is_tried_again(folder, lister, clock):
    refusals = [3]

    async def list_(_, context):
        if refusals[0]:
            refusals[0] -= 1
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit")
        return lister.message()

    async def get(request, context):
        await context.abort(grpc.StatusCode.UNKNOWN, f"pod {request.pod_name} in namespace x not found")

    async def allocatable(_, __):
        entries = [pr.ContainerDevices(resource_name="r", device_ids=[device]) for device in "ab"]
        return pr.AllocatableResourcesResponse(devices=entries)

    lister.pods = {("default", "p"): {"main": {UNITS: ["a", "b"], "other": ["c"]}}}
    handlers = {
        "List": unary(list_, pr.ListPodResourcesRequest),
        "Get": unary(get, pr.GetPodResourcesRequest),
        "GetAllocatableResources": unary(allocatable, pr.AllocatableResourcesRequest),
    }
    server = await serve(f"{folder}/p.sock", "v1.PodResourcesLister", handlers)
    async with PodResources(f"{folder}/p.sock", clock=clock) as client:
        listing = await client.list()
        assert client.limited == 3
        container = listing.container(("default", "p"), "main")
        assert (container.holds(UNITS), container.ids(UNITS)) == (True, {"a", "b"})
        assert container.devices(NAMES.is_ticket) == {UNITS: {"a", "b"}}
        assert listing.holder(UNITS, ["b"]) == (("default", "p"), "main")
        assert listing.holder(UNITS, ["x"]) is None
        assert await client.get(("x", "q")) is None
        assert await client.allocatable() == {"r": {"a", "b"}}
    await server.stop(None)


async def test_a_kubelet_that_is_away_is_named_after_the_deadline(folder):
    async with PodResources(f"{folder}/none.sock", clock=SystemClock(), deadline=0.2) as client:
        with pytest.raises(KubeletError, match=r"none\.sock within 0\.2 s; is it running"):
            await client.list()


async def test_a_kubelet_that_comes_back_is_found_again(folder, lister):
    async def list_(_, __):
        return lister.message()

    handlers = {"List": unary(list_, pr.ListPodResourcesRequest)}
    async with PodResources(f"{folder}/p.sock", clock=SystemClock()) as client:
        for _ in range(2):
            server = await serve(f"{folder}/p.sock", "v1.PodResourcesLister", handlers)
            assert len(await client.list()) == 0
            await server.stop(None)


# GET /pods.


@pytest.fixture
def authority(tmp_path):
    return Authority(str(tmp_path))


@pytest.fixture
async def make_kubelet(authority):
    """A kubelet's port with a certificate, which wants a token or a client's certificate."""
    started = []

    async def make(*, token=None, certificates=False):
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.ca_file)
        pair = authority.server(("127.0.0.1",))
        tls.load_cert_chain(pair.cert, pair.key)
        tls.verify_mode = ssl.CERT_REQUIRED if certificates else ssl.CERT_NONE
        server = PodsServer(lambda: [POD], token=token, tls=tls)
        await server.start()
        started.append(server)
        return server.url

    yield make
    for server in started:
        await server.stop()


@pytest.fixture
def kubeconfig(tmp_path, clock):
    def make(user):
        path = tmp_path / "kubeconfig"
        lines = "".join(f"    {name}: {value}\n" for name, value in user.items())
        path.write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
            "clusters:\n- name: c\n  cluster: {server: 'https://127.0.0.1:1'}\n"
            f"users:\n- name: u\n  user:\n{lines}"
            "contexts:\n- name: c\n  context: {cluster: c, user: u}\n"
        )
        return KubeconfigConnection(str(path), clock=clock)

    return make


async def pods_at(url, authority, **more):
    async with KubeletPods(url, ca_file=authority.ca_file, deadline=5.0, **more) as kubelet:
        return [pod.metadata.name for pod in await kubelet.pods()]


async def test_the_kubelet_is_shown_the_token_that_the_api_server_is_shown(make_kubelet, authority, kubeconfig):
    url = await make_kubelet(token="s3cret")
    connection = kubeconfig({"token": "s3cret"})
    assert await pods_at(url, authority, access=connection.access) == ["p"]
    with pytest.raises(KubeletError, match="answered 401; may this agent get nodes/pods"):
        await pods_at(url, authority)


async def test_the_kubelet_is_shown_the_certificate_that_the_api_server_is_shown(make_kubelet, authority, kubeconfig):
    url = await make_kubelet(certificates=True)
    pair = authority.client("agent", (), file="agent")
    connection = kubeconfig({"client-certificate": pair.cert, "client-key": pair.key})
    assert await pods_at(url, authority, access=connection.access) == ["p"]
    with pytest.raises(KubeletError, match="did not answer"):
        await pods_at(url, authority)


async def test_credentials_that_cannot_be_read_are_named(make_kubelet, authority):
    async def access():
        raise ConnectionConfigError("token can't be read")

    with pytest.raises(KubeletError, match="token can't be read"):
        await pods_at(await make_kubelet(), authority, access=access)


async def test_another_certificate_than_the_kubelets_is_shown_nothing(make_kubelet, tmp_path):
    (tmp_path / "other").mkdir()
    other = Authority(str(tmp_path / "other"))
    connection = StaticConnection("https://x", token="s3cret")
    with pytest.raises(KubeletError, match="did not answer"):
        await pods_at(await make_kubelet(token="s3cret"), other, access=connection.access)


async def test_on_an_open_port_nobody_is_shown_anything():
    server = PodsServer(lambda: [POD], token="s3cret")
    await server.start()
    connection = StaticConnection("https://x", token="s3cret")
    async with KubeletPods(server.url, access=connection.access) as kubelet:
        with pytest.raises(KubeletError, match="401"):
            await kubelet.pods()
    await server.stop()


@pytest.mark.parametrize("url", ["http://10.0.0.1:10250/pods", "ftp://x", "", "http://127.0.0.1.evil:1/pods"])
def test_a_token_is_never_sent_in_the_open(url):
    with pytest.raises(KubeletError, match="neither https nor on this machine"):
        KubeletPods(url)


def test_a_certificate_that_is_none_is_named(tmp_path):
    (tmp_path / "crt").write_text("x")
    with pytest.raises(KubeletError, match="can't be read"):
        KubeletPods("https://127.0.0.1:10250/pods", ca_file=str(tmp_path / "crt"))
