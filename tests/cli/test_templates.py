"""Pod templates are found in every kind that has some, in order, and what is changed in them is changed in the object."""

import copy

import pytest

from tessera.cli.templates import templates

SLICE = {"tessera.dev/gpu-memory": "8Gi"}
SPEC = {"containers": [{"name": "main", "resources": {"limits": SLICE}}]}
TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": SPEC}
NAMED = {"spec": {"containers": [SPEC["containers"][0] | {"image": "x"}]}}

KINDS = [
    ("v1", "Pod", {"spec": SPEC}, [""]),
    ("v1", "PodTemplate", {"template": TEMPLATE}, ["template"]),
    ("v1", "ReplicationController", {"spec": {"template": TEMPLATE}}, ["spec.template"]),
    *[("apps/v1", kind, {"spec": {"template": TEMPLATE}}, ["spec.template"])
      for kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet")],
    ("batch/v1", "Job", {"spec": {"template": TEMPLATE}}, ["spec.template"]),
    ("batch/v1", "CronJob", {"spec": {"jobTemplate": {"spec": {"template": TEMPLATE}}}}, ["spec.jobTemplate.spec.template"]),
    ("kubeflow.org/v1", "PyTorchJob",
     {"spec": {"pytorchReplicaSpecs": {"Master": {"template": TEMPLATE}, "Worker": {"replicas": 3, "template": TEMPLATE}}}},
     ["spec.pytorchReplicaSpecs.Master.template", "spec.pytorchReplicaSpecs.Worker.template"]),
    ("kubeflow.org/v1", "TFJob", {"spec": {"tfReplicaSpecs": {"PS": {"template": TEMPLATE}}}}, ["spec.tfReplicaSpecs.PS.template"]),
    ("kubeflow.org/v2beta1", "MPIJob", {"spec": {"mpiReplicaSpecs": {"Launcher": {"template": TEMPLATE}}}},
     ["spec.mpiReplicaSpecs.Launcher.template"]),
    ("argoproj.io/v1alpha1", "Rollout", {"spec": {"template": TEMPLATE}}, ["spec.template"]),
    ("batch.volcano.sh/v1alpha1", "Job", {"spec": {"tasks": [{"name": "a", "template": TEMPLATE}, {"template": TEMPLATE}]}},
     ["spec.tasks[0].template", "spec.tasks[1].template"]),
    ("serving.knative.dev/v1", "Service", {"spec": {"template": {"spec": {"containerConcurrency": 1, **SPEC}}}}, ["spec.template"]),
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet",
     {"spec": {"leaderWorkerTemplate": {"leaderTemplate": TEMPLATE, "workerTemplate": TEMPLATE}}},
     ["spec.leaderWorkerTemplate.leaderTemplate", "spec.leaderWorkerTemplate.workerTemplate"]),
    ("ray.io/v1", "RayCluster",
     {"spec": {"headGroupSpec": {"template": TEMPLATE}, "workerGroupSpecs": [{"template": TEMPLATE}]}},
     ["spec.headGroupSpec.template", "spec.workerGroupSpecs[0].template"]),
    ("ray.io/v1", "RayJob", {"spec": {"rayClusterSpec": {"headGroupSpec": {"template": TEMPLATE}}, "submitterPodTemplate": TEMPLATE}},
     ["spec.rayClusterSpec.headGroupSpec.template", "spec.submitterPodTemplate"]),
    ("jobset.x-k8s.io/v1alpha2", "JobSet",
     {"spec": {"replicatedJobs": [{"template": {"metadata": {}, "spec": {"completions": 1, "template": TEMPLATE}}}]}},
     ["spec.replicatedJobs[0].template.spec.template"]),
    ("example.com/v1", "Inline", {"spec": {"template": {"containers": SPEC["containers"], "nodeSelector": {}}}}, ["spec.template"]),
    ("example.com/v1", "Several", {"spec": {"podTemplates": [TEMPLATE, {"spec": {}}, TEMPLATE]}},
     ["spec.podTemplates[0]", "spec.podTemplates[2]"]),
    ("apps.kruise.io/v1alpha1", "DaemonSet", {"spec": {"template": TEMPLATE}}, ["spec.template"]),
    ("machinelearning.seldon.io/v1", "SeldonDeployment", {"spec": {"predictors": [{"componentSpecs": [NAMED, NAMED]}]}},
     ["spec.predictors[0].componentSpecs[0]", "spec.predictors[0].componentSpecs[1]"]),
    ("serving.kserve.io/v1beta1", "InferenceService", {"spec": {"predictor": NAMED["spec"]}}, ["spec.predictor"]),
    ("serving.kserve.io/v1alpha1", "ServingRuntime", NAMED, [""]),
    ("template.openshift.io/v1", "Template", {"objects": [{"kind": "Pod", **NAMED}, {"kind": "Deployment", "spec": {"template": TEMPLATE}}]},
     ["objects[0]", "objects[1].spec.template"]),
    # A kind that is Kubernetes' own by name only, to a reader without apiVersion.
    (None, "Job", {"spec": {"tasks": [{"template": TEMPLATE}]}}, ["spec.tasks[0].template"]),
]  # fmt: skip


def _object(version, kind, body):
    return copy.deepcopy({"apiVersion": version, "kind": kind, "metadata": {"name": "n"}} | body)


@pytest.mark.parametrize(("version", "kind", "body", "paths"), KINDS, ids=lambda value: str(value)[:40])
def test_every_kind_with_pod_templates(version, kind, body, paths):
    found = templates(_object(version, kind, body))
    assert [template.path for template in found] == paths
    assert {template.owner for template in found} == {kind}
    for template in found:
        (container,) = template.pod["spec"]["containers"]
        assert container.items() >= SPEC["containers"][0].items()


@pytest.mark.parametrize(("version", "kind", "body", "paths"), KINDS, ids=lambda value: str(value)[:40])
def test_what_is_changed_in_a_template_is_changed_in_its_object_and_nothing_else_is(version, kind, body, paths):
    value = _object(version, kind, body)
    before = str(value)
    for template in templates(value):
        template.pod["spec"]["containers"][0]["resources"]["limits"]["tessera.dev/gpu-memory"] = "9Gi"
        template.pod.setdefault("metadata", {}).setdefault("labels", {})["new"] = "label"
        template.pod["spec"]["schedulerName"] = "tessera-scheduler"
        template.settle()
    after = str(value)
    assert after.count("9Gi") == after.count("tessera-scheduler") == after.count("'new'") == len(paths)
    assert before.count("8Gi") - after.count("8Gi") == len(paths)


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "Service", "spec": {"ports": []}},
        {"kind": "ConfigMap", "data": {"template": "spec: {containers: []}"}},
        {
            "kind": "CustomResourceDefinition",
            "spec": {"schema": {"template": {"properties": {"spec": {"containers": {}}}}}},
        },
        {
            "kind": "ClusterPolicy",
            "spec": {"rules": [{"validate": {"pattern": {"spec": {"containers": [{"name": "*"}]}}}}]},
        },
        {
            "kind": "ClusterPolicy",
            "spec": {"pattern": {"spec": {"containers": [{"name": "*", "image": "registry/*"}]}}},
        },
        {"kind": "PodMetrics", "containers": [{"name": "a", "usage": {"cpu": 1}}]},
        {"kind": "X", "spec": {"template": {"spec": {"containers": []}}}},
        {"kind": "X", "spec": {"template": {"spec": {"containers": "none"}}, "templates": {"spec": 1}}},
        {"kind": "X", "spec": None, "template": None, "templates": None},
        {"kind": "X", "template": {"spec": {"containers": ["text"]}}},
    ],
    ids=str,
)
def test_what_holds_no_pod_has_no_template(value):
    assert templates(value) == []


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("Deployment", {}, "spec is missing"),
        ("Deployment", {"spec": None}, "spec is missing"),
        ("StatefulSet", {"spec": {"template": None}}, "spec.template is missing"),
        ("Job", {"spec": {"template": []}}, "spec.template is a list"),
        ("DaemonSet", {"spec": "x"}, "spec is 'x'"),
        ("CronJob", {"spec": {"jobTemplate": {"spec": {}}}}, "spec.jobTemplate.spec.template is missing"),
        ("CronJob", {"spec": {"jobTemplate": 7}}, "spec.jobTemplate is 7"),
        ("PodTemplate", {"template": "x"}, "template is 'x'"),
        ("Deployment", NAMED, "spec.template is missing"),
    ],
)
def test_kubernetes_own_kinds_say_what_is_wrong_with_their_template(kind, body, words):
    (found,) = templates({"apiVersion": "apps/v1", "kind": kind, "metadata": {}} | body)
    assert words in found.problem
    assert kind in found.problem


# Argo writes one container beside what belongs to the pod.


def _workflow(*steps):
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "spec": {"templates": [*steps]}}


def test_an_argo_template_is_a_pod_of_its_container_and_the_sidecars():
    limits = {"cpu": 1, **SLICE}
    train = {
        "name": "train",
        "container": {"image": "x", "resources": {"limits": limits}},
        "sidecars": [{"name": "log"}],
    }
    script = {
        "name": "s",
        "script": {"image": "x", "source": "…"},
        "initContainers": [{"name": "i"}],
        "nodeSelector": {"a": "b"},
    }
    together = {"name": "t", "containerSet": {"containers": [{"name": "p"}, {"name": "q"}]}}
    steps = {"name": "flow", "steps": [[{"name": "x", "template": "train"}]]}
    found = templates(_workflow(steps, train, script, together))
    assert [each.path for each in found] == ["spec.templates[1]", "spec.templates[2]", "spec.templates[3]"]
    names = [[container["name"] for container in each.pod["spec"]["containers"]] for each in found]
    assert names == [["main", "log"], ["main"], ["p", "q"]]
    assert found[1].pod["spec"]["initContainers"] == [{"name": "i"}]
    assert found[1].pod["spec"]["nodeSelector"] == {"a": "b"}


def test_what_admission_adds_lands_where_argo_has_it():
    value = _workflow({"name": "train", "container": {"image": "x"}, "sidecars": [{"name": "log"}]})
    (template,) = templates(value)
    spec = template.pod["spec"]
    spec["containers"][0]["resources"] = {"limits": {"t": "1"}}
    spec["containers"][1]["resources"] = {"limits": {"t": "2"}}
    spec["schedulerName"] = "tessera-scheduler"
    spec["tolerations"] = [{"key": "k"}]
    template.pod["metadata"] = {"annotations": {"a": "b"}}
    template.settle()
    assert value["spec"]["templates"] == [
        {
            "name": "train",
            "container": {"image": "x", "resources": {"limits": {"t": "1"}}},
            "sidecars": [{"name": "log", "resources": {"limits": {"t": "2"}}}],
            "metadata": {"annotations": {"a": "b"}},
            "schedulerName": "tessera-scheduler",
            "tolerations": [{"key": "k"}],
        }
    ]
