"""Certificates, tokens and kubeconfigs of one cluster."""

from __future__ import annotations

import json
import os
import secrets
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from cluster.settings import Settings
from tessera.testing.apiserver.certificates import Authority

# Good for every time to which a test sets a part's clock.
DECADES = timedelta(days=20 * 365)
# User -> (name, groups). The API server reads the tokens only at its start.
ADMIN = "admin"
USERS = {
    ADMIN: ("admin", ("system:masters",)),
    "kube-scheduler": ("system:kube-scheduler", ()),
    "kube-controller-manager": ("system:kube-controller-manager", ()),
    "kube-proxy": ("system:kube-proxy", ()),
}


def write(settings: Settings) -> dict[str, str]:
    """Make an authority, certificates, tokens and kubeconfigs; return the token of each user."""
    settings.pki.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.kubeconfig(ADMIN).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = Authority(str(settings.pki), life=DECADES, age=DECADES)
    hosts = (settings.address, settings.kubernetes_service, "127.0.0.1", "localhost", "kubernetes.default.svc")
    authority.server(hosts, file="apiserver")
    authority.client("kube-apiserver", ("system:masters",), file="kubelet-client")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    _secret(
        settings.pki / "sa.key",
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        ).decode(),
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (settings.pki / "sa.pub").write_bytes(public)
    return _tokens(settings)


def write_kubeconfig(settings: Settings, path: Path, token: str) -> None:
    """Write a kubeconfig for one bearer token (JSON is YAML)."""
    cluster = {"server": settings.api_url, "certificate-authority": str(settings.pki / "ca.crt")}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "e2e", "cluster": cluster}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "user"}}],
        "current-context": "e2e",
    }
    _secret(path, json.dumps(content, indent=1))


def token_of(kubeconfig: Path) -> str:
    """Return the token in a kubeconfig that was written here."""
    found: str = json.loads(kubeconfig.read_text())["users"][0]["user"]["token"]
    return found


def _tokens(settings: Settings) -> dict[str, str]:
    nodes = (settings.node, *settings.others)
    users = {**USERS, **{node: (f"system:node:{node}", ("system:nodes",)) for node in nodes}}
    tokens = {user: secrets.token_hex(16) for user in users}
    lines = []
    for user, (name, groups) in users.items():
        quoted = f',"{",".join(groups)}"' if groups else ""
        lines.append(f"{tokens[user]},{name},{name}{quoted}\n")
        write_kubeconfig(settings, settings.kubeconfig(user), tokens[user])
    _secret(settings.pki / "tokens.csv", "".join(lines))
    return tokens


def _secret(path: Path, content: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(content)
