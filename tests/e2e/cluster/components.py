"""Command lines and configuration files of Kubernetes' programs, containerd and etcd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.image import PAUSE
from cluster.machine import CNI_PLUGINS
from cluster.pki import ADMIN
from cluster.settings import Settings

ETCD_PORT = 2379
# Whose requests are written down: those of every account in this namespace.
AUDITED = "system:serviceaccounts:tessera-system"
CONTAINERD = """\
version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Root without CAP_SYS_RESOURCE can't lower it, and then no sandbox starts.
  restrict_oom_score_adj = true
  # Whose network namespaces they are can be seen from where they are.
  netns_mounts_under_state_dir = true
  enable_selinux = false
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{cni}"
  conf_dir = "{conf}/cni"
"""


def etcd(settings: Settings, binaries: Path) -> list[str]:
    """Return etcd's command: one member, on memory."""
    client, peer = f"http://{settings.address}:{ETCD_PORT}", f"http://{settings.address}:{ETCD_PORT + 1}"
    return [
        f"{binaries}/etcd",
        "--name=e2e",
        f"--data-dir={settings.etcd_data}/data",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=e2e={peer}",
        # It is memory; a test cluster never comes back from it.
        "--unsafe-no-fsync=true",
        "--logger=zap",
    ]


def apiserver(settings: Settings, binaries: Path) -> list[str]:
    """Write kube-apiserver's audit policy and return its command."""
    pki = settings.pki
    ours = {"level": "Metadata", "userGroups": [AUDITED], "omitStages": ["RequestReceived"]}
    audit = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [ours, {"level": "None"}]}
    policy = _config(settings, "audit", audit)
    return [
        f"{binaries}/kube-apiserver",
        f"--etcd-servers=http://{settings.address}:{ETCD_PORT}",
        f"--bind-address={settings.address}",
        f"--advertise-address={settings.address}",
        "--secure-port=6443",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--requestheader-client-ca-file={pki}/ca.crt",
        "--requestheader-allowed-names=nobody",
        f"--token-auth-file={pki}/tokens.csv",
        f"--kubelet-client-certificate={pki}/kubelet-client.crt",
        f"--kubelet-client-key={pki}/kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-cluster-ip-range={settings.services}",
        f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        f"--service-account-issuer={settings.api_url}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--cert-dir={settings.home}/apiserver",
        f"--audit-policy-file={policy}",
        f"--audit-log-path={settings.audit_log}",
        "--audit-log-mode=blocking",
        "--shutdown-delay-duration=0s",
    ]


def controller_manager(settings: Settings, binaries: Path, controllers: tuple[str, ...] = ("*",)) -> list[str]:
    """Return kube-controller-manager's command."""
    kubeconfig = settings.kubeconfig("kube-controller-manager")
    return [
        f"{binaries}/kube-controller-manager",
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={settings.address}",
        f"--cert-dir={settings.home}/controller-manager",
        "--leader-elect=false",
        f"--root-ca-file={settings.pki}/ca.crt",
        f"--service-account-private-key-file={settings.pki}/sa.key",
        "--use-service-account-credentials=true",
        f"--controllers={','.join(controllers)}",
    ]


def scheduler(
    settings: Settings,
    binaries: Path,
    extenders: tuple[dict[str, Any], ...],
    profiles: tuple[str, ...] = ("default-scheduler",),
) -> list[str]:
    """Write kube-scheduler's configuration and return its command."""
    kubeconfig = settings.kubeconfig("kube-scheduler")
    content = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"kubeconfig": str(kubeconfig), "qps": 500, "burst": 1000},
        "podMaxBackoffSeconds": 2,
        # An extender that sees only some of the nodes fills the wrong ones.
        "percentageOfNodesToScore": 100,
        "profiles": [{"schedulerName": name} for name in profiles],
        "extenders": list(extenders),
    }
    path = _config(settings, "scheduler", content)
    return [
        f"{binaries}/kube-scheduler",
        f"--config={path}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={settings.address}",
        f"--cert-dir={settings.home}/scheduler",
    ]


def containerd(settings: Settings) -> list[str]:
    """Write containerd's configuration and the pods' network, and return its command."""
    path = settings.conf / "containerd.toml"
    (settings.conf / "cni").mkdir(parents=True, exist_ok=True)
    path.write_text(
        CONTAINERD.format(
            root=settings.containerd_root,
            socket=settings.containerd_socket,
            pause=PAUSE,
            cni=CNI_PLUGINS,
            conf=settings.conf,
        )
    )
    bridge = {
        "type": "bridge",
        "bridge": settings.bridge,
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": f"{settings.own}/addresses",
            "ranges": [[{"subnet": f"{settings.network}.0/24", "gateway": settings.address}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    network = {"cniVersion": "0.4.0", "name": "e2e", "plugins": [bridge]}
    (settings.conf / "cni" / "10-e2e.conflist").write_text(json.dumps(network, indent=1))
    return ["containerd", f"--config={path}", "--log-level=info"]


def kubelet(settings: Settings, binaries: Path) -> list[str]:
    """Write the kubelet's configuration and return its command."""
    settings.manifests.mkdir(parents=True, exist_ok=True)
    content = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": settings.address,
        "healthzBindAddress": settings.address,
        "containerRuntimeEndpoint": f"unix://{settings.containerd_socket}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{settings.pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{settings.cgroup}",
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": ["pods"],
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "nodeStatusUpdateFrequency": settings.status_period,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": False,
        "maxPods": 250,
        "podLogsDir": f"{settings.own}/pod-logs",
        "volumePluginDir": f"{settings.own}/volume-plugins",
        "staticPodPath": str(settings.manifests),
        "resolvConf": "",
    }
    path = _config(settings, "kubelet", content)
    return [
        f"{binaries}/kubelet",
        f"--config={path}",
        f"--kubeconfig={settings.kubeconfig(settings.node)}",
        f"--hostname-override={settings.node}",
        f"--node-ip={settings.address}",
        f"--root-dir={settings.kubelet_dir}",
        "--v=2",
    ]


def proxy(settings: Settings, binaries: Path) -> list[str]:
    """Write kube-proxy's configuration and return its command."""
    content = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(settings.kubeconfig("kube-proxy"))},
        "mode": "nftables",
        "clusterCIDR": f"{settings.network}.0/24",
        "hostnameOverride": settings.node,
        "healthzBindAddress": f"{settings.address}:10256",
        "metricsBindAddress": f"{settings.address}:10249",
        # Leave the machine's connection tracking alone.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    return [f"{binaries}/kube-proxy", f"--config={_config(settings, 'proxy', content)}"]


def proxy_cleanup(settings: Settings, binaries: Path) -> list[str]:
    """Return the command that removes kube-proxy's rules."""
    return [f"{binaries}/kube-proxy", f"--config={settings.conf}/proxy.yaml", "--cleanup"]


def kubectl(settings: Settings, binaries: Path) -> list[str]:
    """Return the beginning of a kubectl command, as the cluster's admin."""
    return [f"{binaries}/kubectl", f"--kubeconfig={settings.kubeconfig(ADMIN)}"]


def _config(settings: Settings, name: str, content: dict[str, Any]) -> Path:
    settings.conf.mkdir(parents=True, exist_ok=True)
    path = settings.conf / f"{name}.yaml"
    path.write_text(json.dumps(content, indent=1))
    return path
