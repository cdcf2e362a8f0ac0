"""What the demo says on the terminal: progress while it runs, and at the end who landed where, and what was refused."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from tessera.cli.inspect import show as show_gpus
from tessera.demo.evidence import Json, alive
from tessera.demo.play import Scene
from tessera.demo.stage import NODES
from tessera.report.cluster import ClusterView
from tessera.report.mosaic import fill


class Progress:
    """One line that changes on a terminal; a line for each new stage of the plot elsewhere."""

    def __init__(self, console: Console) -> None:
        """Show on `console`, from the first `tell` on."""
        self._console = console
        self._status = Status("", console=console)
        self._last = ""

    def stop(self) -> None:
        """End; the terminal is left clean."""
        self._status.stop()

    def tell(self, what: str, scene: Scene | None = None) -> None:
        """Say what is going on, with the numbers of the moment."""
        counts = f" ({_counts(scene)})" if scene is not None and scene.pods else ""
        if self._console.is_terminal:
            self._status.update(escape(what + counts))
            self._status.start()
        elif what != self._last:
            self._console.print(f"  {escape(what + counts)}")
        self._last = what


def _counts(scene: Scene) -> str:
    phases = Counter(pod.get("status", {}).get("phase", "Pending") for pod in scene.pods)
    waiting = sum(1 for pod in scene.pods if not pod["spec"].get("nodeName"))
    return f"{phases['Running']} running, {waiting} waiting, {len(scene.refused)} refused of {scene.submitted}"


def report(console: Console, scene: Scene, view: ClusterView, reasons: dict[str, str]) -> None:
    """Print the end of the demo."""
    console.print("\n[bold]Who landed where[/bold]")
    show_gpus(view, console, waiting=False)
    console.print("\n[bold]By node[/bold]")
    console.print(_nodes(scene.pods, view))
    console.print("\n[bold]Refused at admission[/bold]")
    for name, why in sorted(scene.refused.items()):
        console.print(f"  {escape(name)}: {escape(why)}", highlight=False)
    waiting = Counter(
        reasons.get(f"{pod['metadata']['namespace']}/{pod['metadata']['name']}", "not tried yet")
        for pod in scene.pods
        if not pod["spec"].get("nodeName")
    )
    if waiting:
        console.print("\n[bold]Waiting, and why[/bold]")
    for why, count in waiting.most_common(8):
        console.print(f"  {count} x {escape(why)}", highlight=False)
    if len(waiting) > 8:
        console.print(f"  and {len(waiting) - 8} other reasons")
    console.print("\n[bold]Judged by code that shares nothing with the programs above[/bold]")
    for check in scene.checks.values():
        mark = "[green]ok  [/green]" if check.passed else "[red]FAIL[/red]"
        console.print(f"  {mark} {check.title} ({check.looked_at} looks)", highlight=False)
        for problem in check.problems[:5]:
            console.print(f"       {escape(problem)}", highlight=False)


def _nodes(pods: list[Json], view: ClusterView) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("NODE", "SITE", "PODS", "MEMORY", "COMPUTE"):
        table.add_column(title)
    landed = Counter(pod["spec"]["nodeName"] for pod in pods if alive(pod))
    filled = {node.name: fill(node.gpus) for node in view.nodes}
    for node in NODES:
        memory, compute = filled.get(node.name, (0.0, 0.0))
        table.add_row(node.name, node.region, str(landed[node.name]), f"{memory:.0%}", f"{compute:.0%}")
    return table
