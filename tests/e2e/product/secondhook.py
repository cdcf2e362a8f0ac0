"""A second mutating webhook beside the product's: it adds a sidecar that asks for a slice, so that ours is called again."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cluster import Cluster

from product import pods
from tessera.testing.apiserver.certificates import Authority

NAME = "tessera-test-second"


class _Hook(BaseHTTPRequestHandler):
    """Adds one container to each pod that has none of that name."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer one review."""
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = review["request"]
        names = {each["name"] for each in request["object"]["spec"]["containers"]}
        operations: list[dict[str, Any]] = []
        if "added" not in names:
            added = pods.container("added", {"gpu-memory": "1Gi"})
            operations.append({"op": "add", "path": "/spec/containers/-", "value": added})
        response = {
            "uid": request["uid"],
            "allowed": True,
            "patchType": "JSONPatch",
            "patch": base64.b64encode(json.dumps(operations).encode()).decode(),
        }
        answer = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class' name
        """Say nothing."""


@contextmanager
def second_webhook(cluster: Cluster, namespace: str, folder: Path) -> Iterator[None]:
    """Register it for pods of one namespace, behind ours in the order of names."""
    authority = Authority(str(folder))
    authority.server(("127.0.0.1",), file="hook")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "hook.crt", folder / "hook.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hook)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    cluster.api.apply(_registration(server.server_port, namespace, (folder / "ca.crt").read_bytes()))
    try:
        yield
    finally:
        cluster.api.raw("DELETE", f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{NAME}")
        server.shutdown()
        server.server_close()
        thread.join()


def _registration(port: int, namespace: str, authority: bytes) -> dict[str, Any]:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": NAME},
        "webhooks": [
            {
                "name": "second.tessera.test",
                "clientConfig": {
                    "url": f"https://127.0.0.1:{port}/",
                    "caBundle": base64.b64encode(authority).decode(),
                },
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                "failurePolicy": "Fail",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "timeoutSeconds": 5,
            }
        ],
    }
