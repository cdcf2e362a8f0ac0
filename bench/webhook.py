"""The webhook's speed: reviews per second over TLS with keep-alive on one core, and how long one takes.

The real program runs as a process of its own on one core; the load generator, another process, sits on a second one where
there is one (with a single core both share it and the figure is a lower bound). The generator is a plain select loop over
blocking TLS sockets, so that it costs less than what it measures. Beside the rate by the clock stands the server's own
processor time per review: it hardly changes when something else uses the machine.

Beside that the pure part is timed alone, in this process: a review of 6 KB from bytes to bytes, and of that the decision about
the pod; the best of many rounds, since whatever else runs only adds to it.

    python -m bench.webhook [SECONDS]
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from prometheus_client import CollectorRegistry

from tessera.model.config import Config
from webhook.admission.metrics import Metrics
from webhook.admission.mutate import Mutator
from webhook.admission.paths import MUTATE, Paths
from webhook.admission.review import read, read_pod

CONNECTIONS: Final = 8
SECONDS: Final = 5.0
WARM_UP: Final = 0.5
"""Seconds before counting begins: handshakes, first use of everything."""
STARTING: Final = 30.0
ROUNDS: Final = 30
EACH: Final = 200
"""Reviews of one round of the pure part."""
LARGER: Final = 61
"""Settings of a pod whose review has 6 KB."""

Figures: TypeAlias = dict[str, float | int]


def run(*, seconds: float = SECONDS, connections: int = CONNECTIONS) -> Figures:
    """Measure a webhook started for it.

    Returns:
        ``reviews_per_second``, ``p50_ms``, ``p99_ms``, ``max_ms``, ``server_cpu_us`` (per review), ``server_rss_mib``,
        ``client_cpu`` (share of a core), ``review_bytes``, ``connections``; ``handler_us`` and ``mutation_us`` of the pure
        part, for a review of ``pure_bytes``.
    """
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        server, port = _start(folder, core=cores[0])
        try:
            load = [sys.executable, "-m", "bench.webhook", "--load", folder, str(port), str(connections), str(seconds)]
            with subprocess.Popen([*load, str(server.pid)], stdout=subprocess.PIPE, text=True) as client:
                os.sched_setaffinity(client.pid, {cores[-1]})
                out, _ = client.communicate(timeout=seconds + STARTING)
            if client.returncode:
                raise SystemExit(f"the load generator ended with {client.returncode}")
        finally:
            server.kill()
            server.communicate()
    found: Figures = json.loads(out)
    return found | pure()


def pure() -> Figures:
    """Time the pure part."""
    body = review(0, settings=LARGER)
    handler = Paths(Config(), Metrics(CollectorRegistry())).handlers[MUTATE]
    mutator, decoded = Mutator(Config()), read_pod(read(body).object)
    return {
        "handler_us": _best(lambda: handler(body)),
        "mutation_us": _best(lambda: mutator.mutate(decoded, namespace="team")),
        "pure_bytes": len(body),
    }


def _best(call: Callable[[], object]) -> float:
    """Microseconds of processor time of one call, in the best round."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(EACH):
            call()
        rounds.append(time.process_time() - start)
    return round(min(rounds) / EACH * 1e6, 1)


def pod(number: int, *, settings: int = 40) -> dict[str, object]:
    """A pod of a training job as the API server sends it at creation: about 5 KB, half of it environment and tokens."""
    variables = [{"name": f"SETTING_{i:02}", "value": f"value of setting {i} of job {number}"} for i in range(settings)]
    token = {
        "name": "kube-api-access-7xk2p",
        "projected": {
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            ],
            "defaultMode": 420,
        },
    }
    main = {
        "name": "main",
        "image": "registry.example/team/train:1.2.3",
        "command": ["python", "-m", "train", "--epochs", "90"],
        "env": variables,
        "resources": {
            "limits": {"cpu": "4", "memory": "16Gi", "tessera.dev/gpu-memory": "8Gi", "tessera.dev/gpu-compute": "30"},
            "requests": {
                "cpu": "4",
                "memory": "16Gi",
                "tessera.dev/gpu-memory": "8Gi",
                "tessera.dev/gpu-compute": "30",
            },
        },
        "volumeMounts": [
            {
                "name": "kube-api-access-7xk2p",
                "readOnly": True,
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
            }
        ],
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
    }
    evict = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "generateName": f"train-{number}-",
            "namespace": "team",
            "creationTimestamp": None,
            "labels": {"job-name": f"train-{number}", "app": "train"},
            "annotations": {"team.example/owner": "somebody"},
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": f"train-{number}", "uid": "u", "controller": True}
            ],
        },
        "spec": {
            "volumes": [token],
            "containers": [main],
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default",
            "securityContext": {},
            "schedulerName": "default-scheduler",
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", **evict},
                {"key": "node.kubernetes.io/unreachable", **evict},
            ],
            "priority": 0,
            "enableServiceLinks": True,
            "preemptionPolicy": "PreemptLowerPriority",
        },
        "status": {},
    }


def review(number: int, *, settings: int = 40) -> bytes:
    """A review of such a pod."""
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    resource = {"group": "", "version": "v1", "resource": "pods"}
    request = {
        "uid": f"705ab4f5-6393-11e8-b7cc-{number:012x}",
        "kind": kind,
        "resource": resource,
        "requestKind": kind,
        "requestResource": resource,
        "namespace": "team",
        "operation": "CREATE",
        "userInfo": {
            "username": "system:serviceaccount:kube-system:job-controller",
            "groups": ["system:authenticated"],
        },
        "object": pod(number, settings=settings),
        "oldObject": None,
        "dryRun": False,
        "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
    }
    body = {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request}
    return json.dumps(body, separators=(",", ":")).encode()


def _start(folder: str, *, core: int) -> tuple[subprocess.Popen[str], int]:
    """Start the program and wait until it says where it listens."""
    arguments = ["--listen", "127.0.0.1:0", "--status-listen", "127.0.0.1:0", "--cert-dir", folder]
    server = subprocess.Popen(
        [sys.executable, "-m", "webhook.admission.main", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith(("KUBE", "TESSERA_"))},
    )
    os.sched_setaffinity(server.pid, {core})
    said = []
    for line in server.stderr or ():
        said.append(line)
        if "listening on " in line:
            return server, int(line.partition("listening on ")[2].partition(",")[0].rpartition(":")[2])
    raise SystemExit(f"the webhook did not start: {''.join(said)}")


# The load generator.


@dataclass(slots=True)
class _Client:
    """One connection and what it waits for."""

    socket: ssl.SSLSocket
    request: bytes
    sent: float = 0.0
    answer: bytes = b""
    length: int = -1

    def send(self) -> None:
        self.answer, self.length = b"", -1
        self.sent = time.perf_counter()
        self.socket.setblocking(True)
        self.socket.sendall(self.request)
        self.socket.setblocking(False)

    def receive(self) -> bool:
        """Take what has come; True where the answer is complete."""
        while True:
            try:
                data = self.socket.recv(65536)
            except ssl.SSLWantReadError:
                return False
            if not data:
                raise SystemExit("the webhook closed a connection")
            self.answer += data
            if self.length < 0 and (end := self.answer.find(b"\r\n\r\n")) >= 0:
                head = self.answer[:end].lower()
                self.length = end + 4 + int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if 0 <= self.length <= len(self.answer):
                return True


def _load(folder: str, port: int, connections: int, seconds: float, server: int) -> Figures:
    context = ssl.create_default_context(cafile=os.path.join(folder, "ca.crt"))
    clients = [_connect(context, port, number) for number in range(connections)]
    selector = selectors.DefaultSelector()
    for client in clients:
        selector.register(client.socket, selectors.EVENT_READ, client)
        client.send()
    _drive(selector, WARM_UP)
    before, began, own = _busy(server), time.perf_counter(), time.process_time()
    times = _drive(selector, seconds)
    elapsed = time.perf_counter() - began
    spent, own = _busy(server) - before, time.process_time() - own
    for client in clients:
        client.socket.close()
    times.sort()
    return {
        "reviews_per_second": round(len(times) / elapsed),
        "p50_ms": round(times[len(times) // 2] * 1e3, 3),
        "p99_ms": round(times[len(times) * 99 // 100] * 1e3, 3),
        "max_ms": round(times[-1] * 1e3, 3),
        "server_cpu_us": round(spent / 1e3 / len(times), 1),
        "server_rss_mib": _resident(server),
        "client_cpu": round(own / elapsed, 2),
        "review_bytes": len(review(0)),
        "connections": connections,
    }


def _connect(context: ssl.SSLContext, port: int, number: int) -> _Client:
    plain = socket.create_connection(("127.0.0.1", port))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    body = review(number)
    head = (
        "POST /mutate?timeout=10s HTTP/1.1\r\nHost: tessera-webhook.tessera-system.svc:443\r\n"
        f"User-Agent: kube-apiserver-admission\r\nContent-Length: {len(body)}\r\nAccept: application/json, */*\r\n"
        "Content-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n"
    )
    return _Client(context.wrap_socket(plain, server_hostname="localhost"), head.encode() + body)


def _drive(selector: selectors.BaseSelector, seconds: float) -> list[float]:
    """Keep one request in flight on each connection; return the seconds that each took."""
    times = []
    end = time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        for key, _ in selector.select(end - now):
            client: _Client = key.data
            if client.receive():
                times.append(time.perf_counter() - client.sent)
                if not client.answer.startswith(b"HTTP/1.1 200 ") or b'"allowed":true' not in client.answer:
                    raise SystemExit(f"unexpected answer: {client.answer[:300]!r}")
                client.send()
    return times


def _busy(pid: int) -> int:
    """Nanoseconds that a process has run (its one thread that matters; Linux' schedstat)."""
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
        return int(file.read().split()[0])


def _resident(pid: int) -> float:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        kib = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
    return round(kib / 1024, 1)


def main(arguments: list[str]) -> None:
    """Print the figures, or be the load generator."""
    if arguments[:1] == ["--load"]:
        folder, port, connections, seconds, server = arguments[1:]
        figures = _load(folder, int(port), int(connections), float(seconds), int(server))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("seconds", nargs="?", type=float, default=SECONDS, help="(%(default)s)")
        figures = run(seconds=parser.parse_args(arguments).seconds)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
