"""An API server and its etcd alone, on loopback and free ports: all that admission needs, beside any cluster.

The controller manager runs one controller, the one that type-checks ValidatingAdmissionPolicies into their status.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.api import Api, asked
from cluster.processes import until
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tessera.testing.apiserver.certificates import Authority

ADMIN = "admin"
USERS = {
    ADMIN: ("admin", "system:masters"),
    "node-n1": ("system:node:n1", "system:nodes"),
    "alice": ("alice", "system:masters"),
}
"""Token -> user and group; alice may do by RBAC whatever she likes, so what stops her is a policy."""


class Door(Api):
    """One user's door that is kept open: hundreds of requests need no hundreds of handshakes."""

    _kept: http.client.HTTPSConnection | None = None

    def raw(
        self, method: str, path: str, body: object = None, *, kind: str = "application/json", **query: str
    ) -> tuple[int, bytes]:
        """Send one request; return status and body whatever they are."""
        again = self._kept is not None
        self._kept = self._kept or self._connect(30)
        try:
            self._send(self._kept, method, asked(path, query), body, kind=kind)
            response = self._kept.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            self._kept.close()
            self._kept = None
            if not again:
                raise
        # The server may have ended what was idle.
        return self.raw(method, path, body, kind=kind, **query)

    def close(self) -> None:
        """Let the connection go."""
        if self._kept is not None:
            self._kept.close()


class Lone(ExitStack):
    """Starts when entered, and ends its own processes when left."""

    def __init__(self, folder: Path, binaries: Path, logs: Path) -> None:
        """Start nothing yet.

        Args:
            folder: for certificates and data.
            binaries: of Kubernetes and etcd.
            logs: one for each program.
        """
        super().__init__()
        self._folder = folder
        self._binaries = binaries
        self._logs = logs
        self._port = 0
        self._ca = folder / "ca.crt"
        self._doors: dict[str, Door] = {}

    def start(self) -> None:
        """Start the programs and wait until they serve."""
        folder, binaries = self._folder, self._binaries
        client, peer, self._port = (_free_port() for _ in range(3))
        authority = Authority(str(folder))
        authority.server(("127.0.0.1",), file="apiserver")
        _key_pair(folder)
        lines = [f'{token},{name},{name},"{group}"' for token, (name, group) in USERS.items()]
        (folder / "tokens.csv").write_text("\n".join(lines) + "\n")
        etcd, around = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        self._run(
            [
                str(binaries / "etcd"),
                "--name=lone",
                f"--data-dir={folder}/etcd",
                f"--listen-client-urls={etcd}",
                f"--advertise-client-urls={etcd}",
                f"--listen-peer-urls={around}",
                f"--initial-advertise-peer-urls={around}",
                f"--initial-cluster=lone={around}",
                "--unsafe-no-fsync=true",
            ]
        )
        self._run(
            [
                str(binaries / "kube-apiserver"),
                f"--etcd-servers={etcd}",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                "--endpoint-reconciler-type=none",
                f"--secure-port={self._port}",
                f"--tls-cert-file={folder}/apiserver.crt",
                f"--tls-private-key-file={folder}/apiserver.key",
                f"--client-ca-file={folder}/ca.crt",
                f"--token-auth-file={folder}/tokens.csv",
                "--service-cluster-ip-range=10.214.1.0/24",
                f"--service-account-key-file={folder}/sa.pub",
                f"--service-account-signing-key-file={folder}/sa.key",
                f"--service-account-issuer={self.url}",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--disable-admission-plugins=ServiceAccount",
                "--allow-privileged=true",
                f"--cert-dir={folder}/apiserver",
                "--shutdown-delay-duration=0s",
            ]
        )
        until("the API server is ready", self.api(ADMIN).healthy, seconds=60)
        until("default is there", lambda: self.api(ADMIN).exists("/api/v1/namespaces/default"), seconds=60)
        config = folder / "kubeconfig"
        config.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {"name": "c", "cluster": {"server": self.url, "certificate-authority": str(self._ca)}}
                    ],
                    "users": [{"name": "u", "user": {"token": ADMIN}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "c",
                }
            )
        )
        self._run(
            [
                str(binaries / "kube-controller-manager"),
                f"--kubeconfig={config}",
                "--bind-address=127.0.0.1",
                f"--secure-port={_free_port()}",
                f"--cert-dir={folder}/controllers",
                "--leader-elect=false",
                "--controllers=validatingadmissionpolicy-status-controller",
            ]
        )

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    def api(self, token: str) -> Api:
        """Return the door of the user of a token."""
        if token not in self._doors:
            door = self._doors[token] = Door(self.url, ca_file=self._ca, token=token)
            self.callback(door.close)
        return self._doors[token]

    def as_account(self, name: str, *, node: str | None = None, namespace: str = "tessera-system") -> Api:
        """Return the door of a service account, by a token that its API server has made.

        Args:
            name: of the account, which is made where it is absent.
            node: the token is bound to a pod there, as a kubelet's is; None: bound to nothing.
            namespace: of the account.
        """
        admin = self.api(ADMIN)
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        if not admin.exists(f"{accounts}/{name}"):
            admin.post(accounts, {"metadata": {"name": name}})
            role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
            subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
            admin.post(
                "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
                {"metadata": {"name": f"{namespace}-{name}"}, "roleRef": role, "subjects": [subject]},
            )
        spec: dict[str, Any] = {"audiences": [self.url], "expirationSeconds": 3600}
        if node is not None:
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": self._pod_of(name, node, namespace)}
        found = admin.post(f"{accounts}/{name}/token", {"spec": spec})
        return self.api(found["status"]["token"])

    def _pod_of(self, account: str, node: str, namespace: str) -> str:
        """The pod of an account on a node: what a token has to be bound to, to carry the node's name."""
        admin = self.api(ADMIN)
        name, pods = f"{account}-{node}", f"/api/v1/namespaces/{namespace}/pods"
        if not admin.exists(f"/api/v1/nodes/{node}"):
            admin.post("/api/v1/nodes", {"metadata": {"name": node}})
        if not admin.exists(f"{pods}/{name}"):
            container = {"name": "main", "image": "x"}
            spec = {"serviceAccountName": account, "nodeName": node, "containers": [container]}
            admin.post(pods, {"metadata": {"name": name}, "spec": spec})
        return name

    def _run(self, command: list[str]) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self.enter_context((self._logs / f"{Path(command[0]).name}.log").open("wb"))
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder)
        self.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _key_pair(folder: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "sa.key").write_bytes(private)
    (folder / "sa.pub").write_bytes(public)
