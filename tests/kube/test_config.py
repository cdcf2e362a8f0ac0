"""Where to connect: in a cluster, by kubeconfig, and credentials that change while we run."""

from __future__ import annotations

import json
import logging
import os
import random
import stat
import subprocess
import sys
import textwrap

import msgspec
import pytest

from tessera.kube.access import Access
from tessera.kube.client import ApiClient
from tessera.kube.config import InClusterConnection, StaticConnection, connect
from tessera.kube.errors import ConnectionConfigError, UnauthorizedError, UnavailableError
from tessera.kube.kubeconfig import KubeconfigConnection
from tessera.kube.resources import NODES
from tessera.testing.apiserver import ADMIN, FakeApiServer, User

TREE = msgspec.json.Decoder(dict)


@pytest.fixture
async def tls():
    async with FakeApiServer(tls=True, anonymous=None) as fake:
        fake.add_node("n1")
        yield fake


async def read_node(connection, clock):
    async with ApiClient(connection, clock=clock, rng=random.Random(1)) as client:
        return await client.get(NODES, "n1", decoder=TREE)


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def kubeconfig_of(**cluster):
    return json.dumps(
        {
            "current-context": "x",
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {}}],
        }
    )


def mount(directory, *, token, ca_file):
    """Lay a service account out as the kubelet does: files behind a symlink that is swapped."""
    version = directory / f"..{len(list(directory.iterdir()))}"
    version.mkdir()
    (version / "token").write_text(token)
    with open(ca_file, encoding="ascii") as file:
        (version / "ca.crt").write_text(file.read())
    fresh = directory / "..fresh"
    fresh.symlink_to(version.name)
    fresh.rename(directory / "..data")
    for name in ("token", "ca.crt"):
        link = directory / name
        if not link.is_symlink():
            link.symlink_to(f"..data/{name}")


def in_cluster(fake, directory, clock):
    host, port = fake.url.removeprefix("https://").split(":")
    environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    return connect(None, environ=environ, clock=clock, directory=str(directory))


async def test_in_a_cluster_the_service_account_is_enough(tls, tmp_path, clock):
    mount(tmp_path, token=tls.token(ADMIN), ca_file=tls.ca_file)
    connection = in_cluster(tls, tmp_path, clock)
    assert isinstance(connection, InClusterConnection)
    assert (await read_node(connection, clock))["metadata"]["name"] == "n1"


async def test_a_rotated_token_is_picked_up_in_time(tls, tmp_path, clock):
    old = tls.token(ADMIN)
    mount(tmp_path, token=old, ca_file=tls.ca_file)
    connection = in_cluster(tls, tmp_path, clock)
    before = await connection.access()
    fresh = tls.token(ADMIN)
    mount(tmp_path, token=fresh, ca_file=tls.ca_file)
    assert await connection.access() is before
    clock.now += 15
    after = await connection.access()
    assert after.headers["Authorization"] == f"Bearer {fresh}"
    # The same CA: connections that are open stay usable.
    assert after.tls is before.tls


async def test_a_refused_token_makes_us_look_at_once(tls, tmp_path, clock):
    old = tls.token(ADMIN)
    mount(tmp_path, token=old, ca_file=tls.ca_file)
    connection = in_cluster(tls, tmp_path, clock)
    tls.revoke(old)
    mount(tmp_path, token=tls.token(ADMIN), ca_file=tls.ca_file)
    assert (await read_node(connection, clock))["metadata"]["name"] == "n1"


async def test_a_token_file_that_is_gone_for_a_moment_leaves_the_old_token(tls, tmp_path, clock):
    mount(tmp_path, token=tls.token(ADMIN), ca_file=tls.ca_file)
    connection = in_cluster(tls, tmp_path, clock)
    (tmp_path / "..data").rename(tmp_path / "..away")
    clock.now += 60
    assert (await read_node(connection, clock))["metadata"]["name"] == "n1"
    assert await connection.renew() is False


async def test_a_server_of_another_authority_is_not_trusted(tls, tmp_path, clock):
    async with FakeApiServer(tls=True) as other:
        mount(tmp_path, token=tls.token(ADMIN), ca_file=other.ca_file)
        connection = in_cluster(tls, tmp_path, clock)
        with pytest.raises(UnavailableError, match="certificate verify failed") as raised:
            await read_node(connection, clock)
        assert raised.value.maybe_done is False


@pytest.mark.parametrize(
    ("token", "ca", "words"),
    [
        (None, "", "token can't be read"),
        ("", "", "holds no bearer token"),
        ("a\nb", "", "holds no bearer token"),
        ("t", None, r"ca\.crt can't be read"),
        ("t", "no certificate", "TLS material"),
        ("t" * (1 << 20) + "x", "", "more than"),
    ],
)
def test_a_mount_that_is_none(tmp_path, clock, *, token, ca, words):
    if token is not None:
        (tmp_path / "token").write_text(token)
    if ca is not None:
        (tmp_path / "ca.crt").write_text(ca)
    with pytest.raises(ConnectionConfigError, match=words):
        InClusterConnection(host="10.0.0.1", port="443", directory=str(tmp_path), clock=clock)


async def test_an_ipv6_service_address_is_bracketed(tls, tmp_path, clock):
    mount(tmp_path, token="t", ca_file=tls.ca_file)
    connection = InClusterConnection(host="fd00::1", port="443", directory=str(tmp_path), clock=clock)
    assert (await connection.access()).url == "https://[fd00::1]:443"


@pytest.mark.parametrize("certificate", [False, True])
async def test_a_kubeconfig_with_token_or_certificate(tls, tmp_path, clock, certificate):
    path = tls.kubeconfig(tmp_path / "config", user=User(name="jane"), certificate=certificate)
    connection = connect(path, environ={}, clock=clock)
    assert isinstance(connection, KubeconfigConnection)
    assert (await read_node(connection, clock))["metadata"]["name"] == "n1"
    assert tls.requests[-1].seen.user.name == "jane"


async def test_plain_http_needs_no_tls(api, tmp_path, clock):
    api.add_node("n1")
    connection = connect(api.kubeconfig(tmp_path / "config"), environ={}, clock=clock)
    assert (await connection.access()).tls is None
    assert (await read_node(connection, clock))["metadata"]["name"] == "n1"


async def test_the_order_of_sources(api, tls, tmp_path, clock):
    named = api.kubeconfig(tmp_path / "named")
    home = tmp_path / "home"
    (home / ".kube").mkdir(parents=True)
    (tmp_path / "mount").mkdir()
    mount(tmp_path / "mount", token="t", ca_file=tls.ca_file)
    cluster = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    where = {"environ": {**cluster, "KUBECONFIG": named, "HOME": str(home)}, "directory": str(tmp_path / "mount")}

    async def url(kubeconfig, environ, directory):
        return (await connect(kubeconfig, environ=environ, clock=clock, directory=directory).access()).url

    assert await url(named, **where) == api.url
    assert await url(None, **where) == "https://10.0.0.1:443"
    assert await url(None, {"KUBECONFIG": named, "HOME": str(home)}, "") == api.url
    tls.kubeconfig(home / ".kube" / "config")
    assert await url(None, {"HOME": str(home)}, "") == tls.url
    (home / ".kube" / "config").unlink()
    with pytest.raises(ConnectionConfigError, match="no API server to talk to") as raised:
        connect(None, environ={"HOME": str(home)}, clock=clock)
    assert "--kubeconfig" in str(raised.value)


async def test_a_kubeconfig_that_is_rewritten_is_read_again(api, tmp_path, clock):
    path = api.kubeconfig(tmp_path / "config")
    connection = connect(path, environ={}, clock=clock)
    before = await connection.access()
    api.kubeconfig(path)
    assert await connection.access() is before
    clock.now += 15
    after = await connection.access()
    assert after.headers != before.headers
    # An unreadable one leaves what we have.
    (tmp_path / "config").write_text("{")
    clock.now += 15
    assert await connection.access() is after


async def test_several_kubeconfigs_are_merged(api, tmp_path, clock):
    whole = read_json(api.kubeconfig(tmp_path / "all"))
    (tmp_path / "users").write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "users": whole.pop("users")}))
    (tmp_path / "rest").write_text(json.dumps(whole))
    listed = os.pathsep.join([str(tmp_path / "rest"), str(tmp_path / "users")])
    connection = connect(None, environ={"KUBECONFIG": listed}, clock=clock)
    assert "Authorization" in (await connection.access()).headers


async def test_an_exec_plugin_is_asked_again_when_its_token_is_refused(tls, tmp_path, clock):
    first, second = tls.token(ADMIN), tls.token(ADMIN)
    (tmp_path / "token").write_text(first)
    plugin = tmp_path / "plugin"
    plugin.write_text(
        textwrap.dedent(f"""\
        #!{sys.executable}
        import json
        token = open({str(tmp_path / "token")!r}).read()
        print(json.dumps({{
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": {{"token": token}},
        }}))
        """)
    )
    plugin.chmod(0o700)
    config = read_json(tls.kubeconfig(tmp_path / "config"))
    config["users"][0]["user"] = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(plugin),
            "interactiveMode": "Never",
        }
    }
    (tmp_path / "config").write_text(json.dumps(config))
    connection = connect(str(tmp_path / "config"), environ={}, clock=clock)
    assert (await read_node(connection, clock))["metadata"]["name"] == "n1"
    tls.revoke(first)
    (tmp_path / "token").write_text(second)
    assert (await read_node(connection, clock))["metadata"]["name"] == "n1"


async def test_a_token_that_is_refused_for_good(tls, tmp_path, clock):
    path = tls.kubeconfig(tmp_path / "config")
    connection = connect(path, environ={}, clock=clock)
    tls.revoke((await connection.access()).headers["Authorization"].removeprefix("Bearer "))
    with pytest.raises(UnauthorizedError):
        await read_node(connection, clock)


async def test_proxies_come_from_the_kubeconfig_only(api, tmp_path, clock, monkeypatch):
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    path = api.kubeconfig(tmp_path / "config")
    assert (await connect(path, environ={}, clock=clock).access()).proxy is None
    config = json.loads((tmp_path / "config").read_text())
    config["clusters"][0]["cluster"]["proxy-url"] = "http://127.0.0.1:3128"
    config["clusters"][0]["cluster"]["tls-server-name"] = "kubernetes"
    (tmp_path / "config").write_text(json.dumps(config))
    access = await connect(path, environ={}, clock=clock).access()
    assert (access.proxy, access.server_name) == ("http://127.0.0.1:3128", "kubernetes")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("", "can't be used"),
        ("{", "no valid YAML"),
        ("[]", "can't be used"),
        ("a: b", "can't be used"),
        ('{"current-context":"x","contexts":[],"clusters":[],"users":[]}', "can't be used"),
        (kubeconfig_of(server="ftp://x"), "names no server"),
        (kubeconfig_of(server="https://x", **{"certificate-authority": "/none"}), "can't be used"),
    ],
)
def test_kubeconfigs_that_are_none(tmp_path, clock, content, words):
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConnectionConfigError, match=words) as raised:
        KubeconfigConnection(str(path), clock=clock)
    assert str(path) in str(raised.value)


def test_a_broken_kubeconfig_does_not_spill_its_token(tmp_path, clock):
    path = tmp_path / "config"
    path.write_text("users:\n- name: u\n  user: {token: s3cret-token\n")
    with pytest.raises(ConnectionConfigError) as raised:
        KubeconfigConnection(str(path), clock=clock)
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_credentials_are_not_shown():
    access = Access(url="https://x", headers={"Authorization": "Bearer s3cret"}, proxy="http://u:s3cret@p")
    assert "s3cret" not in repr(access)


async def test_nothing_of_the_credentials_is_logged(tls, tmp_path, clock, caplog):
    caplog.set_level(logging.DEBUG)
    path = tls.kubeconfig(tmp_path / "config")
    connection = connect(path, environ={}, clock=clock)
    token = (await connection.access()).headers["Authorization"].removeprefix("Bearer ")
    await read_node(connection, clock)
    tls.revoke(token)
    with pytest.raises(UnauthorizedError) as raised:
        await read_node(connection, clock)
    assert token not in caplog.text
    assert token not in str(raised.value)


async def test_a_static_connection_stays_what_it_is():
    connection = StaticConnection("http://127.0.0.1:1/", token="t")
    access = await connection.access()
    assert (access.url, access.headers) == ("http://127.0.0.1:1", {"Authorization": "Bearer t"})
    assert await connection.renew() is False


def test_a_daemon_in_a_cluster_loads_no_heavy_package():
    code = (
        "import sys, tessera.kube.client, tessera.kube.config, tessera.kube.watch, tessera.kube.events, "
        "tessera.kube.leases\n"
        "print([m for m in ('kubernetes', 'cryptography', 'numpy', 'yaml', 'google.protobuf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_written_kubeconfig_is_private(tmp_path, api):
    path = api.kubeconfig(tmp_path / "config")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
