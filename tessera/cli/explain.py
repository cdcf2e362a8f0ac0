"""`tessera explain POD`: the life of one pod, and what helps it on."""

from __future__ import annotations

import argparse
import asyncio
import difflib
import sys
from typing import Final

from rich.console import Console

from tessera.cli.looking import Looker
from tessera.cli.terminal import (
    Progress,
    add_common,
    add_installation,
    client,
    console,
    hanging,
    installed,
    text,
    write_json,
)  # fmt: skip
from tessera.doctor import refusing
from tessera.doctor.advice import Surroundings
from tessera.doctor.evidence import Evidence, Look
from tessera.doctor.finding import several
from tessera.doctor.objects import ConfigMap, Event, LookedNode, LookedPod
from tessera.doctor.scheduling import served
from tessera.doctor.story import SliceTold, Story, tell
from tessera.doctor.times import ago
from tessera.kube.clock import SystemClock
from tessera.kube.resources import CONFIGMAPS, EVENTS, NODES, PODS
from tessera.kube.servertime import ServerClock
from tessera.model.errors import TesseraError

NO_SUCH_POD: Final = 2
COULD_NOT_LOOK: Final = 3
_LABEL: Final = 9
_MOST_NODES: Final = 6


class NoSuchPodError(TesseraError):
    """There is no pod of that name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `tessera explain`."""
    parser.epilog = "Exit code: 0 told, 2 no such pod, 3 could not look."
    add_common(parser)
    add_installation(parser)
    parser.add_argument("--namespace", "-n", default="default", help="of the pod (default %(default)s)")
    parser.add_argument("pod", help="name, or NAMESPACE/NAME")


def run(arguments: argparse.Namespace) -> int:
    """Tell the story of one pod."""
    namespace, _, name = arguments.pod.rpartition("/")
    try:
        found = asyncio.run(_read(arguments, namespace or arguments.namespace, name))
    except NoSuchPodError as error:
        sys.stderr.write(f"tessera explain: {text(str(error))}\n")
        return NO_SUCH_POD
    except TesseraError as error:
        sys.stderr.write(f"tessera explain: could not look: {text(str(error))}\n")
        return COULD_NOT_LOOK
    if arguments.output == "json":
        write_json(found)
    else:
        show(found, console(arguments), wide=arguments.output == "wide")
    return 0


async def _read(arguments: argparse.Namespace, namespace: str, name: str) -> Story:
    clock = ServerClock(SystemClock())
    with Progress() as progress:
        async with client(arguments.kubeconfig, clock) as api:
            looker = Looker(api, tell=progress)
            maps, nodes, pods = await asyncio.gather(
                looker.all(CONFIGMAPS, ConfigMap, namespace=arguments.system_namespace),
                looker.all(NODES, LookedNode),
                looker.all(PODS, LookedPod),
            )
            pod = await _find(looker, pods, namespace, name)
            fields = f"involvedObject.kind=Pod,involvedObject.name={name}"
            events, refusals = await asyncio.gather(
                looker.all(EVENTS, Event, namespace=namespace, fields=fields),
                looker.all(EVENTS, Event, namespace=refusing.NAMESPACE, fields=refusing.FIELDS),
            )
    settings = installed(maps, arguments)
    mine = None if events.value is None else tuple(e for e in events.value if _about(e, pod))
    evidence = Evidence(now=clock.wall(), settings=settings, namespace=arguments.system_namespace, config_maps=maps)
    around = Surroundings(
        config=settings.config,
        now=evidence.now,
        nodes=nodes.value,
        pods=pods.value,
        events=mine,
        refusals=refusals.value or (),
        served=served(evidence),
    )
    return tell(pod, around)


def _about(event: Event, pod: LookedPod) -> bool:
    """Whether an Event is about this pod and not about an earlier one of its name; kubelets leave the UID of static pods out."""
    return event.involved_object.uid in ("", pod.metadata.uid)


async def _find(looker: Looker, pods: Look[tuple[LookedPod, ...]], namespace: str, name: str) -> LookedPod:
    """The pod, from the list of all where that could be read.

    Raises:
        NoSuchPodError: with the nearest names.
        NotLookedError: pods can't be read.
    """
    if pods.value is None:
        one = await looker.one(PODS, LookedPod, name, namespace=namespace)
        if one.value is None and "(404)" in one.problem:
            raise NoSuchPodError(
                f"no pod {namespace}/{name}; pods can't be listed with these rights, so no name is near"
            )
        return one.need()
    found = next((p for p in pods.value if (p.metadata.namespace, p.metadata.name) == (namespace, name)), None)
    if found is not None:
        return found
    elsewhere = [p.key for p in pods.value if p.metadata.name == name]
    here = [p.metadata.name for p in pods.value if p.metadata.namespace == namespace]
    near = elsewhere or [f"{namespace}/{each}" for each in difflib.get_close_matches(name, here, n=3, cutoff=0.5)]
    if near:
        hint = f"did you mean {several(near, most=3)}?"
    elif here:
        hint = f"namespace {namespace} has {several(sorted(here))}"
    else:
        hint = f"namespace {namespace} has no pods"
    raise NoSuchPodError(f"no pod {namespace}/{name}; {hint}")


def show(found: Story, out: Console, *, wide: bool = False) -> None:
    """Print a story: a line or two for each stage of the pod's life."""
    where = f", on {found.node}" if found.node else ""
    _say(out, "pod", f"{found.pod}: {found.state}{where}{f' (unit {found.unit})' if found.unit else ''}", style="bold")
    if found.asked:
        asked = "; ".join(f"{container}: {what}" for container, what in found.asked.items())
        _say(out, "asked", asked + (f"  (dialect {found.dialect})" if found.dialect else ""))
    else:
        _say(out, "asked", "no GPU of Tessera's")
    if found.wishes:
        _say(out, "wishes", ", ".join(f"{name}={value}" for name, value in found.wishes.items()))
    if found.tickets:
        tickets = "; ".join(
            f"{container}: " + ", ".join(f"{count} x {name}" for name, count in counts.items())
            for container, counts in found.tickets.items()
        )
        _say(out, "written", f"{tickets}  (scheduler {found.scheduler})")
        _plan(found, out)
    if found.guarantee:
        least = f" (at least {found.least} asked)" if found.least else ""
        _say(out, "held by", f"{found.guarantee}{least}")
    if found.why_not or found.fits or found.scheduler_says or found.refusing:
        _waits(found, out, wide=wide)
    for at, event in enumerate(found.events if wide else found.events[:4]):
        times = f" x{event.count}" if event.count > 1 else ""
        _say(out, "" if at else "events", f"{ago(event.age)} ago{times}: {event.reason}: {event.message}",
             style="yellow" if event.type == "Warning" else "")  # fmt: skip
    for at, step in enumerate(found.next):
        _say(out, "" if at else "next", step, style="bold")


def _plan(found: Story, out: Console) -> None:
    if found.plan_problem:
        _say(out, "plan", f"written and not believed: {found.plan_problem}", style="red")
    elif found.planned:
        _say(out, "plan", _told(found.planned))
    else:
        _say(out, "plan", "none" if found.node else "none yet: it is written when a node is found")
    if found.drifted:
        how = "not as planned" if found.planned else "by its node, without a plan"
        _say(out, "given", f"{_told(found.given)}  ({how})", style="yellow")
    elif found.given:
        _say(out, "given", "as planned")


def _told(slices: tuple[SliceTold, ...]) -> str:
    return "; ".join(
        f"{each.container}: {each.amount} on GPU {each.gpu}" + (f" ({each.model})" if each.model else "")
        for each in slices
    )


def _waits(found: Story, out: Console, *, wide: bool) -> None:
    first = "why"
    for why in found.why_not:
        shown = several(why.nodes, most=100 if wide else _MOST_NODES)
        never = "; no pod's end changes that" if why.never else ""
        _say(out, first, f"{why.reason}: {shown}{never}")
        first = ""
    if found.fits:
        _say(out, first, f"room by GPUs alone: {several(found.fits, most=100 if wide else _MOST_NODES)}")
        first = ""
    if found.scheduler_says:
        _say(out, first, f"kube-scheduler says: {found.scheduler_says}")
        first = ""
    for node, said in list(found.refusing.items())[: 100 if wide else _MOST_NODES]:
        _say(out, first, f"{node}: {said}", style="yellow")
        first = ""


def _say(out: Console, label: str, said: str, *, style: str = "") -> None:
    hanging(out, said, indent=0, label=f"{label:<{_LABEL}}", style=style)
