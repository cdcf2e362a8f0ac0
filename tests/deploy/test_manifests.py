"""The manifests as kustomize renders them: whole, least in what they grant, and what the code generates and reads.

Rendering is done here, for the few features that they use, so that the test needs no kubectl; where there is one, both have
to agree.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from deviceplugin.main import main as node_main
from images.__main__ import IMAGES, version
from tessera.cli.generate import generate
from tessera.deploy.policies import policies
from tessera.dialects.registry import OPTIONS
from tessera.model.config import Config, parse
from webhook.admission.main import DRAIN
from webhook.admission.main import main as webhook_main
from webhook.extender.main import main as extender_main

ROOT = Path(__file__).resolve().parents[2] / "manifests"
FORMS = ("second-scheduler", "default-scheduler")
OVERLAYS = [f"overlays/{form}" for form in FORMS]
RENDERED = ["base", *OVERLAYS]
KNOWN = {
    "apiVersion", "kind", "labels", "resources", "components", "configMapGenerator", "images", "patches",
}  # fmt: skip
PROGRAMS = {"webhook": webhook_main, "extender": extender_main, "node": node_main}
KUBECTL = shutil.which("kubectl") or next(map(str, Path("~/.cache/tessera").expanduser().glob("*/kubectl")), None)

Object = dict[str, Any]


# Rendering.


def build(folder: Path, found: list[Object] | None = None) -> list[Object]:
    """What `kubectl kustomize` prints of a folder, unsorted."""
    found = [] if found is None else found
    settings = documents(folder / "kustomization.yaml")[0]
    assert not set(settings) - KNOWN, f"{folder}: the test doesn't know {set(settings) - KNOWN}"
    own: list[Object] = []
    for name in settings.get("resources", ()):
        own += build(folder / name) if (folder / name).is_dir() else documents(folder / name)
    found += own
    for name in settings.get("components", ()):
        build(folder / name, found)
    for each in settings.get("configMapGenerator", ()):
        generated(folder, each, found)
    for each in settings.get("patches", ()):
        patched(folder, each, found)
    for each in settings.get("labels", ()):
        for one in found:
            one["metadata"].setdefault("labels", {}).update(each["pairs"])
    for each in settings.get("images", ()):
        for container in (item for one in found for item in containers(one)):
            if container["image"].partition(":")[0] == each["name"]:
                container["image"] = f"{each['name']}:{each['newTag']}"
    return found


def documents(path: Path) -> list[Object]:
    return copy.deepcopy(loaded(path.read_text()))


@functools.cache
def loaded(text: str) -> list[Object]:
    return [each for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each]


def generated(folder: Path, settings: Object, found: list[Object]) -> None:
    data = {name: (folder / name).read_text() for name in settings["files"]}
    if settings.get("behavior") == "merge":
        (there,) = [
            each for each in found if each["kind"] == "ConfigMap" and each["metadata"]["name"] == settings["name"]
        ]
        there["data"] |= data
        return
    name = settings["name"]
    if not settings.get("options", {}).get("disableNameSuffixHash"):
        # kustomize's hash is another one; what matters is that another content has another name, everywhere.
        name = f"{name}-{hashlib.sha256(str(data).encode()).hexdigest()[:10]}"
        for volume in (item for one in found for item in pod_spec(one).get("volumes", ())):
            if volume.get("configMap", {}).get("name") == settings["name"]:
                volume["configMap"]["name"] = name
    metadata = {"name": name, "namespace": settings["namespace"]}
    found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def patched(folder: Path, settings: Object, found: list[Object]) -> None:
    operations = documents(folder / settings["path"])[0]
    (target,) = [
        one for one in found if key(one)[0] == settings["target"]["kind"] and key(one)[2] == settings["target"]["name"]
    ]
    for operation in operations:
        assert (operation["op"], operation["path"]) == ("add", "/webhooks/-")
        target["webhooks"].append(copy.deepcopy(operation["value"]))


def key(one: Object) -> tuple[str, str, str]:
    return one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]


def pod_spec(one: Object) -> Object:
    return one.get("spec", {}).get("template", {}).get("spec", {}) if one["kind"] in ("Deployment", "DaemonSet") else {}


def containers(one: Object) -> list[Object]:
    return pod_spec(one).get("containers", [])


@pytest.fixture(params=RENDERED)
def rendered(request: pytest.FixtureRequest) -> list[Object]:
    return build(ROOT / request.param)


@pytest.fixture
def workloads(rendered: list[Object]) -> list[Object]:
    return [each for each in rendered if pod_spec(each)]


def of(rendered: list[Object], kind: str) -> list[Object]:
    return [each for each in rendered if each["kind"] == kind]


def rules(rendered: list[Object], account: str) -> list[Object]:
    """Every rule that an account has from our own roles."""
    roles = {key(each)[::2]: each["rules"] for each in rendered if each["kind"] in ("Role", "ClusterRole")}
    bindings = [each for each in rendered if each["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    names = [
        (each["roleRef"]["kind"], each["roleRef"]["name"])
        for each in bindings
        if any(subject["name"] == account for subject in each["subjects"])
    ]
    return [rule for name in names for rule in roles.get(name, ())]


# Whole.


@pytest.mark.parametrize("folder", RENDERED)
def test_kubectl_renders_the_same_objects(folder: str) -> None:
    ours = {key(each): each for each in map(unhashed, build(ROOT / folder))}
    assert len(ours) == len(build(ROOT / folder)), "two of one name"
    if KUBECTL is not None:
        done = subprocess.run([KUBECTL, "kustomize", str(ROOT / folder)], capture_output=True, text=True, check=True)
        theirs = {key(each): each for each in map(unhashed, loaded(done.stdout))}
        assert ours.keys() == theirs.keys()
        for name, each in ours.items():
            assert each == theirs[name]


def unhashed(one: Object) -> Object:
    """An object without the hash in a ConfigMap's name, there and in volumes; anywhere else it must not be."""
    one = copy.deepcopy(one)
    named = [volume["configMap"] for volume in pod_spec(one).get("volumes", ()) if "configMap" in volume]
    for each in [*named, *([one["metadata"]] if one["kind"] == "ConfigMap" else [])]:
        each["name"] = re.sub(r"-[a-z0-9]{10}$", "", each["name"])
    return one


def test_no_file_is_forgotten() -> None:
    named = set()
    for path in ROOT.rglob("kustomization.yaml"):
        settings = documents(path)[0]
        files = [
            *settings.get("resources", ()),
            *(each["path"] for each in settings.get("patches", ()) if "path" in each),
        ]
        files += [name for each in settings.get("configMapGenerator", ()) for name in each["files"]]
        named |= {(path.parent / name).resolve() for name in files} | {path}
    assert set(ROOT.rglob("*.yaml")) == {each for each in named if each.is_file()}


@pytest.mark.parametrize("form", FORMS)
def test_what_depends_on_the_config_is_what_the_config_gives(form: str) -> None:
    config = parse((ROOT / "components" / form / "config.yaml").read_text(), dialects=OPTIONS)
    for path, text in generate(config).items():
        assert (ROOT / path).read_text() == text, f"{path} is stale: run 'make manifests' and commit it"


def test_every_policy_is_installed_with_its_binding(rendered: list[Object]) -> None:
    wanted = {key(each) for each in policies(parse("", dialects=OPTIONS))}
    assert wanted <= {key(each) for each in rendered}


@pytest.mark.parametrize("path", sorted(str(each.relative_to(ROOT)) for each in ROOT.rglob("config.yaml")))
def test_every_config_is_one_that_the_parts_take(path: str) -> None:
    parse((ROOT / path).read_text(), dialects=OPTIONS)


@pytest.mark.parametrize("form", FORMS)
def test_extenders_watch_the_lease_that_their_scheduler_holds(form: str) -> None:
    folder = ROOT / "components" / form
    config = parse((folder / "config.yaml").read_text(), dialects=OPTIONS)
    scheduler = yaml.safe_load((folder / "scheduler.yaml").read_text())
    election = scheduler["leaderElection"]
    held = (election.get("resourceName", "kube-scheduler"), election.get("resourceNamespace", "kube-system"))
    assert (config.lease.name, config.lease.namespace) == held
    assert scheduler["profiles"] == [{"schedulerName": config.scheduler_name}]
    readable = [
        rule for rule in rules(build(ROOT / "overlays" / form), "tessera-extender") if rule["resources"] == ["leases"]
    ]
    assert any(held[0] in rule.get("resourceNames", ()) and "get" in rule["verbs"] for rule in readable)


def test_a_name_that_is_used_is_there(rendered: list[Object]) -> None:
    there = {key(each) for each in rendered}
    for each in rendered:
        for subject in each.get("subjects", ()):
            assert ("ServiceAccount", subject["namespace"], subject["name"]) in there
        if "roleRef" in each and not each["roleRef"]["name"].startswith(("system:", "extension-apiserver-")):
            assert any(found[::2] == (each["roleRef"]["kind"], each["roleRef"]["name"]) for found in there)
        spec = pod_spec(each)
        if spec:
            namespace = each["metadata"]["namespace"]
            assert ("ServiceAccount", namespace, spec["serviceAccountName"]) in there
            for volume in spec["volumes"]:
                assert "configMap" not in volume or ("ConfigMap", namespace, volume["configMap"]["name"]) in there


def test_what_selects_pods_selects_ours(rendered: list[Object], workloads: list[Object]) -> None:
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in workloads]
    selectors = [each["spec"]["selector"]["matchLabels"] for each in workloads + of(rendered, "PodDisruptionBudget")]
    selectors += [each["spec"]["selector"] for each in of(rendered, "Service")]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in of(rendered, "NetworkPolicy")]
    assert all(any(selector.items() <= each.items() for each in labels) for selector in selectors)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_of_this_version_and_from_no_place(overlay: str) -> None:
    images = {container["image"] for each in build(ROOT / overlay) for container in containers(each)}
    ours = {f"{name}:{version()}" for name, _ in IMAGES.values()}
    assert ours <= images
    assert not [image for image in images if "/" in image]
    assert {image.partition(":")[0] for image in images - ours} <= {"kube-scheduler"}


@pytest.mark.parametrize("component", ["nvidia-runtime", "driver-root", "mps"])
def test_what_a_component_changes_is_there(component: str) -> None:
    there = {key(each) for each in build(ROOT / "base")}
    for each in documents(ROOT / "components" / component / "kustomization.yaml")[0]["patches"]:
        assert (each["target"]["kind"], "tessera-system", each["target"]["name"]) in there
        (patch,) = loaded(each["patch"])
        for operation in patch if isinstance(patch, list) else ():
            assert operation["path"].startswith("/spec/template/spec/")
        if isinstance(patch, dict):
            (container,) = pod_spec(patch)["containers"]
            assert container["name"] in {one["name"] for agent in build(ROOT / "base") for one in containers(agent)}


# Flags and ports.


@pytest.fixture
def helps(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    found = {}
    for name, main in PROGRAMS.items():
        with pytest.raises(SystemExit):
            main(["--help"])
        found[name] = capsys.readouterr().out
    return found


def test_every_flag_and_variable_is_one_that_the_program_has(workloads: list[Object], helps: dict[str, str]) -> None:
    ours = [each for one in workloads for each in containers(one) if each["name"] in helps]
    assert ours
    for container in ours:
        for argument in container["args"]:
            assert f"{argument.partition('=')[0]} " in helps[container["name"]]
        for variable in (each["name"] for each in container.get("env", ())):
            assert not variable.startswith("TESSERA_") or f"[{variable}]" in re.sub(
                r"\s+", "", helps[container["name"]]
            )


def test_probes_ask_where_the_program_listens(workloads: list[Object], helps: dict[str, str]) -> None:
    for container in (each for one in workloads for each in containers(one)):
        ports = {each["name"]: each["containerPort"] for each in container.get("ports", ())}
        asked = [container[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
        numbers = {ports.get(each["port"], each["port"]) for each in asked}
        assert len(numbers) == 1
        if container["name"] in helps:
            assert f":{numbers.pop()})" in helps[container["name"]]
            assert [each["path"] for each in asked] == ["/healthz", "/readyz", "/healthz"]


def test_the_service_leads_to_the_port_that_admission_listens_on(rendered: list[Object]) -> None:
    (service,) = of(rendered, "Service")
    assert service["spec"]["ports"][0]["port"] == 443
    (webhook,) = [each for each in rendered if key(each) == ("Deployment", "tessera-system", "tessera-webhook")]
    ports = {each["name"]: each["containerPort"] for each in containers(webhook)[0]["ports"]}
    assert ports[service["spec"]["ports"][0]["targetPort"]] == 9443


# Running.


def test_nobody_is_killed_while_draining(workloads: list[Object]) -> None:
    assert all(pod_spec(each)["terminationGracePeriodSeconds"] > float(DRAIN) + 5 for each in workloads)


def test_a_roll_out_leaves_nobody_without_an_answer(rendered: list[Object]) -> None:
    updates = {
        key(each)[2]: each["spec"].get("strategy") or each["spec"].get("updateStrategy")
        for each in rendered
        if pod_spec(each)
    }
    for name in ("tessera-webhook", "tessera-node"):
        assert updates[name]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_nobody_waits_for_the_clusters_dns(workloads: list[Object]) -> None:
    assert {pod_spec(each)["dnsPolicy"] for each in workloads} == {"Default"}


def test_every_container_says_what_it_needs(workloads: list[Object]) -> None:
    for container in (each for one in workloads for each in containers(one)):
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


def test_no_container_has_more_than_it_needs(workloads: list[Object]) -> None:
    for each in workloads:
        pod = pod_spec(each)["securityContext"]
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.get("runAsNonRoot") is True or each["metadata"]["name"] == "tessera-node"
        for container in containers(each):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not context.get("privileged")


def test_only_the_agent_sees_the_machine_and_writes_in_one_place(workloads: list[Object]) -> None:
    for each in workloads:
        spec = pod_spec(each)
        paths = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
        if each["metadata"]["name"] != "tessera-node":
            assert not paths
            assert not spec.get("hostPID")
            continue
        mounts = containers(each)[0]["volumeMounts"]
        assert {paths[mount["name"]] for mount in mounts if not mount.get("readOnly")} == {
            "/var/lib/kubelet/device-plugins"
        }
        assert "/" not in paths.values()


def test_a_token_is_mounted_where_it_is_used_and_nowhere_else(rendered: list[Object]) -> None:
    assert all(each["automountServiceAccountToken"] is False for each in of(rendered, "ServiceAccount"))
    assert all(pod_spec(each)["automountServiceAccountToken"] is True for each in rendered if pod_spec(each))


# Rights.


def test_no_right_is_for_everything(rendered: list[Object]) -> None:
    for rule in itertools.chain.from_iterable(each["rules"] for each in rendered if "rules" in each):
        assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]


def test_no_secret_but_the_certificate_can_be_read(rendered: list[Object]) -> None:
    secrets = [rule for each in rendered if "rules" in each for rule in each["rules"] if "secrets" in rule["resources"]]
    assert [rule["resourceNames"] for rule in secrets] == [["tessera-webhook-certificate"]]
    assert ("Secret", "tessera-system", "tessera-webhook-certificate") in {key(each) for each in rendered}


def test_the_agent_writes_no_pod(rendered: list[Object]) -> None:
    written = {
        resource
        for rule in rules(rendered, "tessera-node")
        if not set(rule["verbs"]) <= {"get", "list", "watch"}
        for resource in rule["resources"]
    }
    assert written == {"nodes", "events"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_the_extender_binds(overlay: str) -> None:
    found = build(ROOT / overlay)
    accounts = {key(each)[2] for each in of(found, "ServiceAccount")}
    able = {name for name in accounts if any("pods/binding" in rule["resources"] for rule in rules(found, name))}
    assert able == {"tessera-extender"}


def test_the_webhook_touches_its_own_registrations(rendered: list[Object]) -> None:
    registrations = [
        rule for rule in rules(rendered, "tessera-webhook") if "admissionregistration.k8s.io" in rule["apiGroups"]
    ]
    assert [rule["resourceNames"] for rule in registrations] == [["tessera-webhook"]]
    names = {key(each)[2] for each in rendered if each["kind"].endswith("WebhookConfiguration")}
    assert names == {"tessera-webhook"}


def test_scale_pods_have_the_class_and_the_rights_that_the_config_names() -> None:
    found = build(ROOT / "components" / "cluster-autoscaler")
    wanted = Config().autoscaler
    (priority,) = of(found, "PriorityClass")
    assert priority["metadata"]["name"] == wanted.priority_class_name
    assert (priority["value"], priority["preemptionPolicy"]) == (-10, "Never")
    (role,) = of(found, "Role")
    assert role["metadata"]["namespace"] == wanted.namespace
    assert {verb for rule in rules(found, "tessera-extender") for verb in rule["verbs"]} == {"create", "delete"}


def test_the_cni_repair_waits_for_nobody() -> None:
    for overlay in OVERLAYS:
        (registration,) = of(build(ROOT / overlay), "MutatingWebhookConfiguration")
        failing = {each["clientConfig"]["service"]["path"]: each["failurePolicy"] for each in registration["webhooks"]}
        assert failing == {"/mutate": "Fail", "/mutate-cni": "Ignore"}


# Generating.


def test_another_config_gives_other_files() -> None:
    config = parse("domain: gpu.example.com\nschedulerName: default-scheduler\n", dialects=OPTIONS)
    made = generate(config)
    assert "components/second-scheduler/scheduler.yaml" not in made
    text = "".join(made.values())
    assert "gpu.example.com/gpu" in text
    assert "tessera.dev/" not in text


def test_a_switched_off_repair_has_no_entry() -> None:
    config = parse("cni: {enabled: false}\n", dialects=OPTIONS)
    assert yaml.safe_load(generate(config, "webhooks")["components/cni-repair/entry.yaml"]) == []


def test_files_are_the_same_each_time() -> None:
    config = parse("", dialects=OPTIONS)
    assert generate(config) == generate(msgspec.structs.replace(config))
