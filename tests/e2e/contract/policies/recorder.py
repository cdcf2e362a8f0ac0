"""A webhook that remembers which pods it was asked about, and lets all of them pass, or answers with the product's code."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tessera.testing.apiserver.certificates import Authority
from webhook.admission.connection import Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        request = json.loads(sent)["request"]
        path = self.path.partition("?")[0]
        self.server.asked.setdefault(path, []).append(request)
        if path in self.server.handlers:
            body = self.server.handlers[path](sent).body
        else:
            response = {"uid": request["uid"], "allowed": True}
            answer = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
            body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: dict[str, list[dict[str, Any]]] = {}
        self.handlers: dict[str, Handler] = {}


class Recorder(AbstractContextManager["Recorder"]):
    """Serves while it is entered.

    Attributes:
        ca_bundle: for a webhook's clientConfig.
    """

    def __init__(self, folder: Path) -> None:
        """Listen, and answer nobody yet.

        Args:
            folder: for certificates.
        """
        authority = Authority(str(folder))
        pair = authority.server(("127.0.0.1",))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pair.cert, pair.key)
        self.ca_bundle = base64.b64encode(Path(authority.ca_file).read_bytes()).decode()
        self._server = _Server()
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        """Answer."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def client(self, path: str) -> dict[str, str]:
        """A webhook's clientConfig that leads to a path here."""
        return {"url": f"https://127.0.0.1:{self._server.server_address[1]}{path}", "caBundle": self.ca_bundle}

    def answer(self, path: str, handler: Handler) -> None:
        """Let the product's code answer what comes to a path."""
        self._server.handlers[path] = handler

    def taken(self, path: str) -> list[dict[str, Any]]:
        """The requests that came to a path since this was asked last."""
        return self._server.asked.pop(path, [])
