"""One node and its control plane: start, use, stop, and clean up after a run that was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from cluster import components, image, kernel, machine, pki
from cluster.api import Api, plain
from cluster.errors import ClusterError
from cluster.leftovers import FOLDERS, Snapshot, look
from cluster.phases import Phases
from cluster.processes import Processes, ended, marked, send, until
from cluster.record import Record, boot_id
from cluster.settings import Settings

ETCD, API_SERVER, CONTROLLERS, SCHEDULER = "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"
CONTAINERD, KUBELET, PROXY = "containerd", "kubelet", "kube-proxy"
CRI_SERVES = "Start streaming server"
COMPONENTS = (KUBELET, PROXY, SCHEDULER, CONTROLLERS, API_SERVER, CONTAINERD, ETCD)


class Cluster(AbstractContextManager["Cluster"]):
    """A real cluster of one node. `with` starts it and stops it; `attach` takes one that was left running."""

    def __init__(self, settings: Settings | None = None, *, phases: Phases | None = None) -> None:
        """Change nothing yet.

        Args:
            settings: where it lives.
            phases: shows progress.
        """
        self.settings = settings or Settings()
        self._phases = phases or Phases(quiet=True)
        self._record = Record(path=self.settings.record)
        self.processes = Processes(self._record, self.settings.logs)
        self.before = Snapshot(frozenset())
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        """Start, or leave nothing."""
        machine.check()
        self._take_lock()
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    @contextmanager
    def kept(self) -> Iterator[Self]:
        """Start, and leave it running after the block, also where the block fails; only a failed start is undone."""
        self.__enter__()
        try:
            yield self
        finally:
            self._release_lock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    @classmethod
    def attach(cls, settings: Settings | None = None) -> Cluster:
        """Return the cluster that runs now, as another program started it.

        Raises:
            ClusterError: none runs.
        """
        cluster = cls(settings)
        record = Record.load(cluster.settings.record)
        if record is None or not record.processes:
            raise ClusterError("no cluster runs here (start one with `tests/e2e/run.py --keep`)")
        cluster._adopt(record)
        return cluster

    def beside(self, settings: Settings) -> Cluster:
        """Return a view of another node of this cluster: the same control plane, record and processes."""
        view = Cluster(settings)
        view._adopt(self._record)
        view.processes = self.processes
        return view

    def make_network(self) -> None:
        """Make the node's bridge and cgroup."""
        kernel.make_bridge(self._record, self.settings.bridge, self.settings.address)
        kernel.make_cgroup(self._record, self.settings.cgroup)

    def start(self) -> None:
        """Start everything and wait for a Ready node; called by `with`.

        Raises:
            ClusterError: what didn't start, with the end of its log.
        """
        phase = self._phases.phase
        if (record := Record.load(self.settings.record)) is not None:
            with phase("cleaning up after an earlier run"):
                self._adopt(record)
                self._undo()
        with phase("packages from Debian"):
            machine.install_packages()
        with phase("Kubernetes' programs"):
            self.binaries = machine.binaries()
        self.before = look()
        with phase("certificates, folders, bridge, cgroup"):
            self._prepare()
        with phase("etcd, API server"):
            self._start_api_server()
        with phase("controllers, scheduler, containerd"):
            self._start_others()
        with phase("kubelet until Ready"):
            self._start_kubelet()

    def stop(self) -> None:
        """Stop everything that was started and undo everything that was changed. The logs stay."""
        if self._lock is None:
            self._take_lock()
        # Others may have started and stopped processes meanwhile: the file is the truth.
        if (record := Record.load(self.settings.record)) is not None:
            self._adopt(record)
            with self._phases.phase("stopping the cluster"):
                self._undo()
        self._release_lock()

    @cached_property
    def binaries(self) -> Path:
        """The folder of Kubernetes' programs."""
        return machine.binaries()

    @cached_property
    def api(self) -> Api:
        """The API server, as its admin."""
        return self.api_of(pki.ADMIN)

    def api_of(self, user: str) -> Api:
        """Return the API server's door for one of the users that have a kubeconfig."""
        token = pki.token_of(self.settings.kubeconfig(user))
        return Api(self.settings.api_url, ca_file=self.settings.pki / "ca.crt", token=token)

    @property
    def kubelet_api(self) -> Api:
        """The kubelet's own HTTPS port, as the API server's admin."""
        return Api(f"https://{self.settings.address}:10250", ca_file=None, token=self.api.token)

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl as the cluster's admin; return what it printed."""
        done = subprocess.run(
            [*components.kubectl(self.settings, self.binaries), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout + ("" if check else done.stderr)

    def node(self) -> dict[str, Any]:
        """Return the Node."""
        found: dict[str, Any] = self.api.get(f"/api/v1/nodes/{self.settings.node}")
        return found

    def run_scheduler(self, *extenders: dict[str, Any], profiles: tuple[str, ...] = ("default-scheduler",)) -> None:
        """Start kube-scheduler anew with these extenders, under these names."""
        self.processes.stop(SCHEDULER)
        self.processes.start(SCHEDULER, components.scheduler(self.settings, self.binaries, extenders, profiles))
        self.processes.ready(SCHEDULER, lambda: self._healthy(10259))

    def run_controllers(self, *controllers: str) -> None:
        """Start kube-controller-manager anew with these controllers only, or with all."""
        self.processes.stop(CONTROLLERS)
        command = components.controller_manager(self.settings, self.binaries, controllers or ("*",))
        self.processes.start(CONTROLLERS, command)
        self.processes.ready(CONTROLLERS, lambda: self._healthy(10257))

    def start_node(self) -> None:
        """Start the kubelet and the scheduler if they don't run, and wait until the node is Ready."""
        if not self.processes.alive(SCHEDULER):
            self.run_scheduler(*self.settings.extenders)
        if not self.processes.alive(KUBELET):
            self.processes.start(KUBELET, components.kubelet(self.settings, self.binaries))
        self.processes.ready(KUBELET, lambda: self._kubelet_serves() and self.node_ready(), seconds=60)

    def restart_kubelet(self, *, between: Callable[[], None] | None = None) -> None:
        """End the kubelet, do something, and start it again; return when it serves."""
        self.processes.stop(KUBELET)
        try:
            if between is not None:
                between()
        finally:
            self.processes.start(KUBELET, components.kubelet(self.settings, self.binaries))
            self.processes.ready(KUBELET, self._kubelet_serves)

    def restart_api_server(self, *, between: Callable[[], None] | None = None) -> None:
        """Kill the API server, do something, and start it again; return when it is ready."""
        self.processes.kill(API_SERVER)
        try:
            if between is not None:
                between()
        finally:
            self.processes.start(API_SERVER, components.apiserver(self.settings, self.binaries))
            self.processes.ready(API_SERVER, self.api.healthy)

    def reboot_node(self, *others: str, start: Callable[[], None] | None = None) -> None:
        """End everything on the node at once, as a power cut does, and start it again; return when the kubelet serves.

        The control plane stands on another machine, as it were. What a reboot takes away is taken away: processes,
        network namespaces, mounts, cgroups, and containerd's folder of what runs.

        Args:
            others: processes that belong to the node too.
            start: starts what a machine's service manager would, beside containerd and the kubelet.
        """
        node = (KUBELET, CONTAINERD, *others)
        for name in node:
            self.processes.send(name, signal.SIGKILL)
        rest = self._own_pids() - {self.processes.pid(name) for name in node if name in self.processes.names()}
        ending = [each for each in marked(self._record.marker) if each.pid not in rest]
        ending += kernel.cgroup_processes(self.settings.cgroup)
        for each in ending:
            send(each, signal.SIGKILL)
        for each in ending:
            ended(each, 10)
        kernel.forget_cgroups(self.settings.cgroup)
        kernel.remove_ports(self.settings.bridge)
        state = self.settings.containerd_root / "state"
        kernel.unmount_below(str(state), str(self.settings.kubelet_dir / "pods"))
        shutil.rmtree(state, ignore_errors=True)
        self.processes.start(CONTAINERD, components.containerd(self.settings))
        if start is not None:
            start()
        # Its socket is there before what the kubelet asks for, and a kubelet that is told so ends.
        self.processes.ready(CONTAINERD, lambda: CRI_SERVES in self.processes.said(CONTAINERD))
        self.processes.start(KUBELET, components.kubelet(self.settings, self.binaries))
        self.processes.ready(KUBELET, self._kubelet_serves)

    def ctr(self, *arguments: str) -> str:
        """Run containerd's own client in Kubernetes' namespace."""
        command = ["ctr", "-a", str(self.settings.containerd_socket), "-n", "k8s.io", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"ctr {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _adopt(self, record: Record) -> None:
        self._record = record
        self.processes = Processes(record, self.settings.logs)

    def _healthy(self, port: int) -> bool:
        return Api(f"https://{self.settings.address}:{port}", ca_file=None, token="").healthy("/healthz")

    def _prepare(self) -> None:
        settings = self.settings
        for folder in (settings.home, settings.kubelet_dir):
            if folder.exists() and any(folder.iterdir()) and folder != settings.home:
                raise ClusterError(f"{folder} is not empty: does a kubelet of your own run on this machine?")
        if settings.logs.exists():
            shutil.rmtree(settings.logs)
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._adopt(Record(path=settings.record, boot=boot_id(), marker=uuid.uuid4().hex))
        self._record.save()
        kernel.keep_sysctls(self._record)
        for name in FOLDERS:
            if not os.path.exists(name):
                self._record.note("folders", name)
        kernel.make_folder(self._record, settings.kubelet_dir)
        self._record.note("mounts", str(settings.kubelet_dir))
        self._record.note("mounts", str(settings.home))
        kernel.mount_tmpfs(self._record, settings.etcd_data, "512m")
        self.make_network()
        pki.write(settings)
        self.__dict__.pop("api", None)

    def _start_api_server(self) -> None:
        self.processes.start(ETCD, components.etcd(self.settings, self.binaries))
        self.processes.start(API_SERVER, components.apiserver(self.settings, self.binaries))
        self.processes.ready(API_SERVER, self.api.healthy)

    def _start_others(self) -> None:
        settings, binaries = self.settings, self.binaries
        self.processes.start(CONTROLLERS, components.controller_manager(settings, binaries))
        self.processes.start(SCHEDULER, components.scheduler(settings, binaries, settings.extenders))
        self.processes.start(CONTAINERD, components.containerd(settings))
        self.processes.ready(CONTAINERD, settings.containerd_socket.exists)
        archive = settings.home / "busybox.tar"
        image.write_busybox(archive)
        self.ctr("images", "import", str(archive))

    def _start_kubelet(self) -> None:
        settings = self.settings
        self.processes.start(KUBELET, components.kubelet(settings, self.binaries))
        if settings.proxy:
            self.processes.start(PROXY, components.proxy(settings, self.binaries))
        self.processes.ready(KUBELET, self.node_ready, seconds=60)
        # Pods are refused before their namespace's account exists.
        until(
            "the default service account exists",
            lambda: self.api.exists("/api/v1/namespaces/default/serviceaccounts/default"),
            seconds=30,
        )
        self.processes.ready(SCHEDULER, lambda: self._healthy(10259))

    def _kubelet_serves(self) -> bool:
        if not (self.settings.kubelet_dir / "device-plugins" / "kubelet.sock").exists():
            return False
        try:
            # Asked on its own port: the API server may be away.
            return plain(self.settings.address, 10248, "/healthz")[0] == 200
        except OSError:
            return False

    def node_ready(self) -> bool:
        """Tell whether the Node is Ready."""
        if not self.api.exists(f"/api/v1/nodes/{self.settings.node}"):
            return False
        conditions = self.node()["status"].get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def _undo(self) -> None:
        """Take away what the record says, each step whether or not it was reached."""
        strangers = [name for name in self.processes.names() if name not in COMPONENTS]
        # They would serve on for a while, for clients that end together with them here.
        self.processes.stop(*strangers, seconds=1)
        if PROXY in self.processes.names():
            self.processes.stop(PROXY)
            subprocess.run(components.proxy_cleanup(self.settings, self.binaries), capture_output=True, check=False)
        self.processes.stop(KUBELET, SCHEDULER, CONTROLLERS, API_SERVER)
        if self.processes.alive(CONTAINERD):
            self.delete_containers()
        self.processes.stop(CONTAINERD)
        # containerd's shims outlive it, and so do the containers of one that was killed.
        for process in marked(self._record.marker):
            if process.pid not in self._own_pids():
                send(process, signal.SIGKILL)
                ended(process, 5)
        kernel.remove_cgroups(self._record)
        self.processes.stop(ETCD)
        kernel.unmount(self._record)
        kernel.remove_links(self._record)
        kernel.restore_sysctls(self._record)
        kernel.remove_folders(self._record)
        for path in self.settings.home.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self.settings.record:
                path.unlink()
        # The record goes last: without it nothing would be undone.
        shutil.rmtree(self.settings.home)

    def _own_pids(self) -> set[int]:
        return {self.processes.pid(name) for name in self.processes.names()}

    def delete_containers(self) -> None:
        """End and delete what containerd runs."""
        try:
            if tasks := self.ctr("tasks", "ls", "-q").split():
                self.ctr("tasks", "delete", "-f", *tasks)
            if containers := self.ctr("containers", "ls", "-q").split():
                self.ctr("containers", "delete", *containers)
        except ClusterError:
            # What is left ends with the shims and the cgroup.
            return

    def _take_lock(self) -> None:
        lock = open(f"/run/{self.settings.home.name}.lock", "w")  # noqa: SIM115 - held until the cluster stops
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise ClusterError("another run works with the cluster of this machine now") from error
        self._lock = lock

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
