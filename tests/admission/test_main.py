"""The whole program: a folder or a Secret, reviews over TLS, a config that changes, and an end that loses nothing."""

import asyncio
import contextlib
import os
import re
import signal
import ssl
import subprocess
import sys

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tessera.daemon.run import Signals
from tessera.testing.apiserver import FakeApiServer
from webhook.admission import main as program

POD = {
    "metadata": {"name": "p", "namespace": "team"},
    "spec": {"containers": [{"name": "main", "resources": {"limits": {"tessera.dev/gpu-memory": "8Gi"}}}]},
}
CNI_POD = {
    "metadata": {
        "name": "terway-x",
        "labels": {"app": "terway"},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "terway", "uid": "u"}],
    },
    "spec": {
        "hostNetwork": True,
        "containers": [{"name": "terway", "image": "terway"}],
        "volumes": [{"name": "cni-bin", "hostPath": {"path": "/opt/cni/bin", "type": "Directory"}}],
    },
}


class Webhook:
    """One running `tessera-webhook`, in this process."""

    def __init__(self, task, signals, clock, caplog, mark):
        self.task = task
        self.signals = signals
        self.clock = clock
        self._caplog = caplog
        self._mark = mark

    @property
    def ports(self):
        """Where it listens (webhook, status), by its own word; None until it does."""
        if self.task.done():
            self.task.result()
        said = "\n".join(r.getMessage() for r in self._caplog.records[self._mark :] if r.name == program.__name__)
        found = re.search(r"listening on 127\.0\.0\.1:(\d+), status 127\.0\.0\.1:(\d+)", said)
        return found and (int(found[1]), int(found[2]))

    async def review(self, session, body, *, path="/mutate"):
        async with session.post(f"https://localhost:{self.ports[0]}{path}", json=body) as answer:
            return answer.status, await answer.json(), answer.headers

    async def status(self, session, path):
        async with session.get(f"http://127.0.0.1:{self.ports[1]}{path}") as answer:
            return answer.status, await answer.text()


@pytest.fixture
async def webhook(caplog, clock, until):
    """Start webhooks with flags; all of them are stopped at the end."""
    caplog.set_level("INFO")
    running = []

    async def start(*arguments, environ=None, wait=True):
        options = program.flags({}).read(
            ["--listen", "127.0.0.1:0", "--status-listen", "127.0.0.1:0", "--namespace", "tessera-system", *arguments]
        )
        signals = Signals()
        task = asyncio.create_task(program.serve(options, signals, clock=clock, environ=environ or {}))
        found = Webhook(task, signals, clock, caplog, len(caplog.records))
        running.append(found)
        if wait:
            await until(lambda: found.ports)
        return found

    yield start
    for each in running:
        each.task.cancel()
    await asyncio.gather(*(each.task for each in running), return_exceptions=True)


@contextlib.asynccontextmanager
async def session(bundle):
    context = ssl.create_default_context(cadata=bundle)
    context.verify_flags |= 0x200000  # X509_V_FLAG_NO_CHECK_TIME: the program runs by the tests' clock
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as found:
        yield found


async def test_outside_a_cluster(webhook, tmp_path, review, patched):
    found = await webhook("--cert-dir", str(tmp_path / "certs"))
    async with session((tmp_path / "certs" / "ca.crt").read_text()) as http:
        status, body, _ = await found.review(http, review(POD))
        assert status == 200
        pod = patched(POD, body["response"])
        assert pod["spec"]["containers"][0]["resources"]["limits"] == {"tessera.dev/gpu-memory.256Mi": "32"}
        status, body, _ = await found.review(http, review(pod), path="/validate")
        assert body["response"]["allowed"] is True
        status, body, _ = await found.review(http, review(POD), path="/validate")
        assert body["response"]["allowed"] is False
        assert (await found.status(http, "/healthz"))[0] == 200
        assert (await found.status(http, "/readyz"))[0] == 200
        _, text = await found.status(http, "/metrics")
        samples = {
            (s.name, *sorted(s.labels.items())): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
        }
        assert samples[("tessera_webhook_reviews_total", ("outcome", "patched"), ("path", "/mutate"))] == 1
        assert samples["tessera_webhook_event_loop_worst_stall_seconds",] >= 0
        assert samples["tessera_webhook_certificate_expiry_timestamp_seconds",] > found.clock.wall()


async def test_a_denied_pod(webhook, tmp_path, review):
    found = await webhook("--cert-dir", str(tmp_path / "certs"))
    pod = {
        "metadata": {},
        "spec": {"containers": [{"name": "main", "resources": {"limits": {"tessera.dev/gpu": "-1"}}}]},
    }
    async with session((tmp_path / "certs" / "ca.crt").read_text()) as http:
        _, body, _ = await found.review(http, review(pod))
    assert body["response"]["allowed"] is False
    assert '"main"' in body["response"]["status"]["message"]


@pytest.mark.parametrize("path", ["/mutate", "/mutate-cni"])
async def test_cni_pods_are_mended_by_both_paths_and_no_others_by_the_second(webhook, tmp_path, review, patched, path):
    found = await webhook("--cert-dir", str(tmp_path / "certs"))
    async with session((tmp_path / "certs" / "ca.crt").read_text()) as http:
        _, body, _ = await found.review(http, review(CNI_POD, namespace="kube-system"), path=path)
        assert patched(CNI_POD, body["response"])["spec"]["volumes"][0]["hostPath"]["type"] == "DirectoryOrCreate"
        _, body, _ = await found.review(http, review(CNI_POD, namespace="team"), path=path)
        assert "patch" not in body["response"]
        _, body, _ = await found.review(http, review(POD), path="/mutate-cni")
        assert "patch" not in body["response"]


async def test_a_changed_config_is_in_force_at_once_and_a_broken_one_never(webhook, tmp_path, review):
    config = tmp_path / "config.yaml"
    config.write_text("limits: {team: {memory: 4Gi}}")
    found = await webhook("--cert-dir", str(tmp_path / "certs"), "--config", str(config))
    async with session((tmp_path / "certs" / "ca.crt").read_text()) as http:
        assert (await found.review(http, review(POD)))[1]["response"]["allowed"] is False
        for text in ("limits: {}", "limitz: {team: {memory: 4Gi}}"):
            config.write_text(text)
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0)
            assert (await found.review(http, review(POD)))[1]["response"]["allowed"] is True
        _, text = await found.status(http, "/metrics")
        assert "tessera_config_last_reload_successful 0.0" in text


async def test_a_stop_drains_first(webhook, tmp_path, review, until):
    found = await webhook("--cert-dir", str(tmp_path / "certs"))
    waiting = found.clock.sleepers
    async with session((tmp_path / "certs" / "ca.crt").read_text()) as http:
        _, _, headers = await found.review(http, review(POD))
        assert "Connection" not in headers
        found.signals.stop.set()
        await until(lambda: found.clock.sleepers > waiting)
        status, text = await found.status(http, "/readyz")
        assert (status, text) == (503, "draining: stopping\n")
        for _ in range(3):
            status, _, headers = await found.review(http, review(POD))
            assert (status, headers["Connection"]) == (200, "close")
        assert not found.task.done()
        found.clock.move(10.0)
        async with asyncio.timeout(20):
            await found.task
        with pytest.raises(aiohttp.ClientConnectorError):
            await found.review(http, review(POD))


async def test_continuous_reviews_survive_a_roll_from_one_replica_to_the_next(webhook, tmp_path, review, until):
    """What a Service does: as soon as a replica is unready, new connections go to the other; old ones live on."""
    one = await webhook("--cert-dir", str(tmp_path / "certs"))
    two = await webhook("--cert-dir", str(tmp_path / "certs"))
    target, answered, failed = [one], [], []

    async def admit(http):
        while len(answered) < 400 and not failed:
            try:
                status, body, _ = await target[0].review(http, review(POD))
                answered.append(status == 200 and body["response"]["allowed"])
            except aiohttp.ClientError as error:
                failed.append(error)

    async with session((tmp_path / "certs" / "ca.crt").read_text()) as http:
        admitting = [asyncio.create_task(admit(http)) for _ in range(4)]
        await until(lambda: len(answered) > 100)
        waiting = one.clock.sleepers
        one.signals.stop.set()
        await until(lambda: one.clock.sleepers > waiting)
        await until(lambda: len(answered) > 200)
        target[0] = two
        one.clock.move(10.0)
        await asyncio.gather(*admitting)
        async with asyncio.timeout(20):
            await one.task
    assert failed == []
    assert all(answered)


@pytest.mark.parametrize("wrong", [0.0, 315_360_000.0, -315_360_000.0], ids=["right", "ahead", "behind"])
async def test_in_a_cluster_two_replicas_share_a_secret_and_the_api_server_trusts_them(
    webhook, tmp_path, until, clock, wrong
):
    """Whatever the replicas' own clocks say: the API server verifies by the real time, which it tells in its answers."""
    clock.now += wrong
    async with FakeApiServer() as api:
        api.add_namespace("tessera-system")
        api.add_namespace("team")
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        one, two = [await webhook("--kubeconfig", kubeconfig) for _ in range(2)]
        hook = {
            "name": "mutate.tessera.dev",
            "clientConfig": {"url": f"https://localhost:{one.ports[0]}/mutate"},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "failurePolicy": "Fail",
        }
        api.put(
            "mutatingwebhookconfigurations",
            {"metadata": {"name": "tessera-webhook"}, "webhooks": [hook]},
        )
        # A third replica finds the configuration without our authority, and mends it.
        await webhook("--kubeconfig", kubeconfig)
        stored = lambda: api.get("mutatingwebhookconfigurations", "tessera-webhook")  # noqa: E731
        await until(lambda: "caBundle" in stored()["webhooks"][0]["clientConfig"])
        body = {"apiVersion": "v1", "kind": "Pod", **POD}
        async with aiohttp.ClientSession() as http:
            for port in (one.ports[0], two.ports[0]):
                configuration = stored()
                configuration["webhooks"][0]["clientConfig"]["url"] = f"https://localhost:{port}/mutate"
                api.put("mutatingwebhookconfigurations", configuration)
                body["metadata"] = {"name": f"p-{port}", "namespace": "team"}
                body["spec"]["containers"][0]["image"] = "example"
                async with http.post(f"{api.url}/api/v1/namespaces/team/pods", json=body) as answer:
                    made = await answer.json()
                    assert answer.status == 201, made
                assert "tessera.dev/request" in made["metadata"]["annotations"]
            _, text = await one.status(http, "/metrics")
        ahead = next(line for line in text.splitlines() if line.startswith("tessera_clock_ahead_seconds "))
        assert float(ahead.split()[1]) == pytest.approx(wrong, abs=60)


async def test_an_api_server_that_is_away_at_start_is_waited_for(webhook, tmp_path):
    async with FakeApiServer() as api:
        api.add_namespace("tessera-system")
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        await api.stop()
        found = await webhook("--kubeconfig", kubeconfig, wait=False)
        async with asyncio.timeout(60):
            # The client's own attempts and ours both wait on the clock.
            while not found.ports:
                if found.clock.sleepers:
                    found.clock.move(5.0)
                    if not api._runner:
                        await api.start()
                await asyncio.sleep(0.001)


async def test_a_stop_before_there_is_a_certificate(webhook, tmp_path, until):
    async with FakeApiServer() as api:
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        await api.stop()
        found = await webhook("--kubeconfig", kubeconfig, wait=False)
        await until(lambda: found.clock.sleepers)
        found.signals.stop.set()
        async with asyncio.timeout(60):
            while not found.task.done():
                found.clock.move(5.0)
                await asyncio.sleep(0.001)
        found.task.result()


def test_names_for_the_certificate():
    options = program.flags({}).read(["--host", "a.example, b.example", "--listen", "10.0.0.7:9443"])
    names = program.names_of_service(options, "gpu")
    assert names[0] == "tessera-webhook.gpu.svc"
    assert {"localhost", "127.0.0.1", "10.0.0.7", "a.example", "b.example"} <= set(names)


def run(*arguments, **environ):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("KUBE", "TESSERA"))}
    return subprocess.Popen(
        [sys.executable, "-m", "webhook.admission.main", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=clean | environ,
    )


@pytest.mark.parametrize(
    ("arguments", "config", "said"),
    [
        pytest.param([], "", "--cert-dir", id="no certificate and no place for one"),
        pytest.param(["--cert-dir", "{dir}/c"], "limitz: {}", "did you mean 'limits'", id="a misspelt key"),
        pytest.param(["--cert-dir", "{dir}/config.yaml"], "", "can't be", id="a file for a folder"),
        pytest.param(["--kubeconfig", "{dir}/absent"], "", "absent", id="no such kubeconfig"),
    ],
)
def test_what_can_not_work_ends_with_one_line(tmp_path, arguments, config, said):
    (tmp_path / "config.yaml").write_text(config)
    filled = [argument.format(dir=tmp_path) for argument in arguments]
    listen = ["--listen", "127.0.0.1:0", "--status-listen", "127.0.0.1:0"]
    with run(*filled, *listen, "--config", str(tmp_path / "config.yaml")) as process:
        _, text = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said in text
    assert "Traceback" not in text


def test_the_real_process_ends_cleanly_at_sigterm(tmp_path):
    environ = {
        "TESSERA_LISTEN": "127.0.0.1:0",
        "TESSERA_STATUS_LISTEN": "127.0.0.1:0",
        "TESSERA_CERT_DIR": str(tmp_path / "certs"),
        "TESSERA_DRAIN": "0",
    }
    with run(**environ) as process:
        assert any("listening on" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert "Traceback" not in text


@pytest.mark.parametrize("text", ["-1", "soon", "100000"])
def test_a_drain_that_is_no_time(text, capsys):
    with pytest.raises(SystemExit):
        program.flags({}).read(["--drain", text])
    assert "--drain" in capsys.readouterr().err
