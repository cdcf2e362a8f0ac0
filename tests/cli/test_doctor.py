"""`tessera doctor` against an API server: what it reads, what it says where it may not look, and its exit codes."""

import base64
import json
from datetime import UTC, datetime, timedelta
from email.utils import formatdate

import pytest
from aiohttp import web

from tessera.cli.main import main
from tessera.testing.apiserver import status
from tessera.testing.apiserver.access import User
from tessera.testing.apiserver.faults import Cut, on
from webhook.admission.selfmade import make

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil"


def by_id(out):
    return {each["check"]: each for each in json.loads(out)["checks"]}


async def test_an_empty_cluster_has_no_installation(cluster):
    code, out, err = await cluster.run("doctor")
    assert (code, err) == (2, "")
    assert "ERROR webhook-registered" in out
    assert "mend: " in out
    assert all(line == line.rstrip() for line in out.splitlines())


async def test_json_has_every_check(cluster):
    code, out, _ = await cluster.run("doctor", "-o", "json")
    found = json.loads(out)
    assert found["errors"] == sum(len(each["findings"]) for each in found["checks"]) > 0
    assert code == 2
    assert {"api-version", "pod-drift", "quota-foreign"} <= by_id(out).keys()
    assert by_id(out)["api-version"]["result"] == "ok"


async def test_wide_tells_why_and_what_was_looked_at(cluster):
    cluster.node()
    _, out, _ = await cluster.run("doctor", "-o", "wide")
    assert "why: " in out
    assert "Looked at" in out
    assert "auto on 1 GPU node" in out


async def test_nothing_is_changed(cluster):
    cluster.node()
    cluster.pod("one", 10, node="n1")
    before = cluster.api.version
    await cluster.run("doctor")
    assert cluster.api.version == before
    writes = [each.seen for each in cluster.api.requests if each.seen.verb not in ("get", "list")]
    assert [(each.verb, each.plural, each.query) for each in writes] == [("create", "pods", {"dryRun": "All"})]


async def test_no_probe_makes_no_dry_run(cluster):
    _, out, _ = await cluster.run("doctor", "-o", "json", "--no-probe")
    assert {each.seen.verb for each in cluster.api.requests} <= {"get", "list"}
    assert by_id(out)["webhook-answers"]["problem"] == "no dry run was made (--no-probe)"


async def test_before_an_installation_it_tells_what_could_not_be_made_again(cluster, tmp_path):
    cluster.pod("exporter", node="n1", namespace="monitoring")
    tree = cluster.api.get("pods", "exporter", "monitoring")
    tree["spec"]["volumes"] = [{"name": "root", "hostPath": {"path": "/"}}]
    cluster.api.put("pods", tree)
    code, out, err = await cluster.run("doctor", "--only", "api-version,guard-recreation", "-o", "json")
    assert (code, err) == (1, "")
    assert by_id(out).keys() == {"api-version", "guard-recreation"}
    (found,) = by_id(out)["guard-recreation"]["findings"]
    assert found["object"] == "namespace/monitoring"
    assert {each.seen.verb for each in cluster.api.requests} <= {"get", "list"}, "no dry run where none is needed"
    path = tmp_path / "config.yaml"
    path.write_text("guard: {exemptNamespaces: [kube-system, monitoring]}\n")
    code, out, _ = await cluster.run("doctor", "--only", "guard-recreation", "--config", str(path))
    assert code == 0
    assert "1 check found nothing" in out


async def test_a_check_that_there_is_not(cluster):
    code, out, err = await cluster.run("doctor", "--only", "guard-recreaton")
    assert (code, out) == (3, "")
    assert "is guard-recreation meant?" in err
    code, _, err = await cluster.run("doctor", "--only", "x" * 5000)
    assert code == 3
    assert "--list" in err
    assert len(err) < 200


async def test_a_webhook_that_the_api_server_can_not_call(cluster):
    cluster.api.put(
        "mutatingwebhookconfigurations",
        {
            "metadata": {"name": "tessera-webhook"},
            "webhooks": [
                {
                    "name": "mutate.tessera.dev", "failurePolicy": "Fail", "sideEffects": "None",
                    "clientConfig": {"url": "https://127.0.0.1:1/mutate"}, "admissionReviewVersions": ["v1"],
                    "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                }
            ],
        },
    )  # fmt: skip
    code, out, _ = await cluster.run("doctor", "-o", "json")
    (found,) = by_id(out)["webhook-answers"]["findings"]
    assert "the API server can't call it" in found["seen"]
    assert code == 2


@pytest.mark.parametrize(
    ("message", "result"),
    [
        ('admission webhook "mutate.tessera.dev" denied the request: limit is 0', "ok"),
        ('admission webhook "other.example" denied the request: no', "blind"),
        ('failed calling webhook "other.example": refused', "blind"),
        ("exceeded quota: team", "blind"),
        (f'failed calling webhook "mutate.tessera.dev": {HOSTILE}', "error"),
    ],
)
async def test_what_a_refused_dry_run_says(cluster, message, result):
    cluster.api.faults.add(on("create", "pods"), status.forbidden("", "pods", "x", message), times=None)
    _, out, _ = await cluster.run("doctor", "-o", "json")
    assert by_id(out)["webhook-answers"]["result"] == result


async def test_the_config_is_the_installed_one(cluster):
    data = {"config.yaml": "memoryUnit: 1Gi\n"}
    cluster.api.put("configmaps", {"metadata": {"name": "tessera-config", "namespace": "tessera-system"}, "data": data})
    cluster.node()
    _, out, _ = await cluster.run("doctor", "-o", "json")
    assert by_id(out)["config-readable"]["looked"] == "configmap/tessera-system/tessera-config (config.yaml)"
    assert "256Mi on n1" in by_id(out)["config-units"]["findings"][0]["seen"]


async def test_a_config_file_wins(cluster, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("domain: gpu.example\n")
    _, out, _ = await cluster.run("doctor", "-o", "json", "--config", str(path))
    assert "gpu.example" in by_id(out)["webhook-registered"]["findings"][0]["seen"]
    path.write_text("domian: gpu.example\n")
    code, _, err = await cluster.run("doctor", "--config", str(path))
    assert code == 3
    assert "domain" in err


async def test_the_webhook_s_secret_and_service(cluster):
    service = {"namespace": "tessera-system", "name": "tessera-webhook", "path": "/mutate"}
    entry = {"name": "mutate.tessera.dev", "clientConfig": {"service": service}, "matchConditions": [{"name": "x"}],
             "sideEffects": "None", "rules": []}  # fmt: skip
    cluster.api.put("mutatingwebhookconfigurations", {"metadata": {"name": "tessera-webhook"}, "webhooks": [entry]})
    cluster.api.put(
        "secrets",
        {"metadata": {"name": "tessera-webhook-certificate", "namespace": "tessera-system"}, "data": {"tls.crt": "!"}},
    )
    labels = {"kubernetes.io/service-name": "tessera-webhook"}
    cluster.api.put(
        "endpointslices",
        {
            "metadata": {"name": "a", "namespace": "tessera-system", "labels": labels},
            "endpoints": [{"conditions": {"ready": True}}, {"conditions": {"ready": False}}],
        },
    )
    _, out, _ = await cluster.run("doctor", "-o", "json")
    found = by_id(out)
    assert found["webhook-endpoints"]["findings"][0]["seen"] == "one endpoint is ready"
    assert {each["object"].partition("/")[0] for each in found["certificate-life"]["findings"]} == {
        "secret",
        "mutatingwebhookconfiguration",
    }


async def test_days_are_counted_by_the_api_server_s_clock_and_a_wrong_one_of_our_own_is_said(cluster, caplog):
    server = datetime.now(UTC) + timedelta(days=3650)
    cluster.api.date = lambda: formatdate(server.timestamp(), usegmt=True)
    made = make(["tessera-webhook.tessera-system.svc"], now=server)
    certificate = base64.b64encode(made.certificate.encode()).decode()
    name = {"name": "tessera-webhook-certificate", "namespace": "tessera-system"}
    cluster.api.put("secrets", {"metadata": name, "data": {"tls.crt": certificate}})
    _, out, _ = await cluster.run("doctor", "-o", "json", "--only", "certificate-life")
    assert by_id(out)["certificate-life"]["findings"] == []
    assert "behind the API server's" in caplog.text


async def test_hostile_objects_do_nothing_to_a_terminal(cluster):
    cluster.node("n1", model=f"A10{HOSTILE}", health="sick")
    cluster.node("n2", annotations={"tessera.dev/inventory": HOSTILE, "tessera.dev/drift": HOSTILE})
    cluster.pod("one", 999, annotations={"tessera.dev/gpu-models": HOSTILE, "tessera.dev/request": HOSTILE})
    cluster.pod("two", 9, node="n1", gpu="", annotations={"tessera.dev/plan": HOSTILE}, scheduler="x[bold red]y[/]")
    for output in ("table", "wide", "json"):
        code, out, _ = await cluster.run("doctor", "-o", output)
        assert code == 2
        assert "x[bold red]y[/]" in out
    assert json.loads(out)


async def test_one_object_of_another_form_is_counted_and_the_others_are_looked_at(cluster):
    cluster.node("n1", health="sick")
    cluster.api.put("nodes", {"metadata": {"name": "n2", "annotations": {"tessera.dev/inventory": 7}}})
    _, out, _ = await cluster.run("doctor", "-o", "json")
    assert "1 object could not be decoded" in by_id(out)["objects-readable"]["findings"][0]["seen"]
    assert by_id(out)["gpu-health"]["result"] == "warning"


async def test_what_may_not_be_read_is_said_check_by_check(cluster):
    forbidden = ("secrets", "validatingadmissionpolicies", "configmaps")
    for plural in forbidden:
        cluster.api.faults.add(
            on(plural=plural), status.forbidden("", plural, "", f"User {HOSTILE} cannot"), times=None
        )
    code, out, _ = await cluster.run("doctor", "-o", "json")
    blind = {name: each["problem"] for name, each in by_id(out).items() if each["result"] == "blind"}
    assert {"policies-in-force", "certificate-trust", "scheduler-config"} <= blind.keys()
    assert "not permitted (403)" in blind["policies-in-force"]
    assert code == 2


async def test_an_api_that_is_absent_is_said(cluster):
    for plural in ("validatingadmissionpolicies", "validatingadmissionpolicybindings"):
        cluster.api.faults.add(on(plural=plural), status.no_such_path(), times=None)
    _, out, _ = await cluster.run("doctor", "-o", "json")
    assert by_id(out)["policies-in-force"]["problem"].endswith("not there (404)")


async def test_nothing_may_be_looked_at(cluster, tmp_path):
    nobody = cluster.api.kubeconfig(tmp_path / "nobody", user=User(name="nobody"))
    cluster.api.faults.add(lambda _: True, status.forbidden("", "x", "", "no"), times=None)
    code, out, _ = await cluster.run("doctor", "-o", "json", kubeconfig=nobody)
    assert code == 3
    assert by_id(out)["api-version"]["result"] == "ok"  # which is open to everybody
    assert by_id(out)["pod-drift"]["problem"] == "pods: not permitted (403); x is forbidden: no"


async def test_strict_counts_what_could_not_be_looked_at(cluster):
    """Warnings and errors count first, so the cluster here has none: everything is forbidden but what is well."""
    cluster.api.faults.add(
        lambda seen: seen.plural not in ("nodes", "pods") or seen.verb == "create",
        status.forbidden("", "x", "", "pods is forbidden: User x"), times=None,
    )  # fmt: skip
    assert (await cluster.run("doctor"))[0] == 0
    assert (await cluster.run("doctor", "--strict"))[0] == 3


async def test_an_api_server_that_is_away(cluster):
    await cluster.api.stop()
    code, out, err = await cluster.run("doctor")
    assert (code, out) == (3, "")
    assert err.startswith("tessera doctor: could not look: ")
    assert err.count("\n") == 1


async def test_credentials_that_are_not_accepted(cluster, tmp_path):
    path = tmp_path / "late"
    kubeconfig = cluster.api.kubeconfig(path, user=User(name="late"))
    path.write_text(path.read_text().replace('"token": "', '"token": "x'))
    code, out, err = await cluster.run("doctor", kubeconfig=kubeconfig)
    assert (code, err) == (3, "")
    assert "401" in out


async def test_a_list_of_many_pages_whose_snapshot_expires(cluster):
    for at in range(1200):
        cluster.pod(f"p{at}", 1)
    expired = cluster.api.faults.add(
        lambda seen: seen.plural == "pods" and "continue" in seen.query, status.expired("too old"), times=1
    )
    _, out, _ = await cluster.run("doctor", "-o", "json")
    assert expired.hits == 1
    assert by_id(out)["pod-waiting"]["looked"] == "1200 unbound pods"


async def test_a_connection_that_breaks_is_tried_again(cluster):
    fault = cluster.api.faults.add(on("list", "nodes"), Cut.BEFORE, times=1)
    cluster.node()
    _, out, _ = await cluster.run("doctor", "-o", "json")
    assert fault.hits == 1
    assert by_id(out)["node-closed"]["looked"] == "1 GPU node"


async def test_each_reason_for_not_looking_is_told_once(cluster):
    for plural in ("nodes", "pods"):
        cluster.api.faults.add(on("list", plural), status.forbidden("", plural, "", 'User "x" cannot'), times=None)
    _, out, _ = await cluster.run("doctor")
    assert out.count("nodes: not permitted (403)") == 1
    assert "nodes: not permitted (403) (config-units, " in " ".join(out.split())


def test_the_checks_can_be_listed(capsys):
    assert main(["doctor", "--list"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("objects-readable")
    assert "webhook-answers" in out


@pytest.fixture
async def part(cluster):
    """Serve a part's status port, and put its pod into the installation's namespace."""
    runners = []

    async def start(name, *, metrics=b"", unready="", code=200, **pod):
        async def page(_):
            return web.Response(body=metrics, status=code)

        async def readyz(_):
            return web.Response(text=unready or "ok", status=503 if unready else 200)

        app = web.Application()
        app.router.add_get("/metrics", page)
        app.router.add_get("/readyz", readyz)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        cluster.pod(
            name, namespace="tessera-system", node="n1", ports=[{"name": "status", "containerPort": 9464}], **pod
        )
        cluster.proxied[f"tessera-system/{name}:9464"] = f"127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def test_what_parts_say_of_themselves(cluster, part):
    bad = [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]
    await part("webhook-1", metrics=b"tessera_config_last_reload_successful 0\n", conditions=bad,
               unready=f"certificate: none yet {HOSTILE}")  # fmt: skip
    await part("webhook-2", metrics=b"\xff{}", code=200)
    await part("extender-1", code=500)
    cluster.node()
    cluster.pod(
        "tessera-node-n1", namespace="tessera-system", node="n1", labels={"app.kubernetes.io/name": "tessera-node"}
    )
    _, out, _ = await cluster.run("doctor", "-o", "json")
    found = by_id(out)
    assert "tessera-system/webhook-1" in found["config-in-force"]["findings"][0]["seen"]
    assert len(found["config-in-force"]["notes"]) == 2
    assert "certificate: none yet" in found["part-ready"]["findings"][0]["seen"]
    assert (await cluster.run("doctor"))[0] == 2
