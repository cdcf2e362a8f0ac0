"""The last look, after every other webhook: tickets, request annotation and names have to agree.

A mutating webhook that runs after ours may have changed what was understood; what the extender and the node would then
count is no longer what the user asked, so such a pod is refused here rather than placed wrongly.
"""

from __future__ import annotations

from tessera.dialects.reader import ContainerReader, read_amount
from tessera.dialects.recognise import Dialects, Recognition
from tessera.model.config import Config
from tessera.model.errors import AnnotationError, RequestError
from tessera.model.pod import Manifest
from tessera.model.request import ContainerRequest, PodRequest, decode
from tessera.model.tickets import describe, ticket_counts, tickets

_MIRROR = "kubernetes.io/config.mirror"


class Validator:
    """The checks of one config. Make it once per config."""

    def __init__(self, config: Config) -> None:
        """Prepare the dialects."""
        self._names = config.names
        self._dialects = Dialects(config)

    def validate(self, pod: Manifest) -> None:
        """Check a pod that is being created, in its final state.

        Raises:
            RequestError: a name that should have become tickets, tickets without a request annotation that yields
                them, an annotation without tickets or with other words than admission's, limits and requests that
                differ, or what only our other parts write (the plan comes with the Binding, never with the pod).
        """
        names, annotations = self._names, pod.metadata.annotations or {}
        if _MIRROR in annotations:
            return
        if names.plan in annotations:
            raise RequestError(f"annotation {names.plan} is the extender's to write", fix="remove it")
        for label in (names.unit, names.region):
            if label in (pod.metadata.labels or {}):
                raise RequestError(f"label {label} is the extender's to write", fix="remove it")
        found = self._dialects.recognise(pod)
        if found is None:
            if names.request in annotations:
                raise RequestError(f"carries {names.request} and asks for no GPU", fix="remove the annotation")
            return
        request = self._request(annotations.get(names.request))
        for container in found.containers:
            self._check(container, found, request)
        there = {container.name for container in found.containers}
        for name in request.containers:
            if name not in there:
                raise RequestError(
                    f'annotation {names.request} names the container "{name[:64]}", which the pod does not have',
                    fix="let the webhook that took it away run before Tessera's",
                )
        for name, asked in found.request.containers.items():
            self._compare(name, asked, found.request, request)

    def _compare(self, name: str, asked: ContainerRequest, found: PodRequest, request: PodRequest) -> None:
        """Tickets agree, and yet a container may be read otherwise: annotations that ask, its role, its dialect."""
        fix = "let the webhook that changed it run before Tessera's, or set reinvocationPolicy: IfNeeded"
        known = request.containers.get(name)
        if known is None:
            raise RequestError(
                f"asks for {describe(asked)} by annotations or labels that admission did not see",
                container=name,
                fix=fix,
            )
        if known.init != asked.init:
            raise RequestError(
                f"is {'an' if asked.init else 'no'} init container, and annotation {self._names.request} says otherwise",
                container=name,
                fix=fix,
            )
        if known.amounts() != asked.amounts() or (known.dialect or request.dialect) != (asked.dialect or found.dialect):
            raise RequestError(
                f"annotation {self._names.request} is not what admission wrote "
                f"(dialect {(known.dialect or request.dialect)[:32]!r})",
                container=name,
                fix="another webhook has changed it; leave it alone",
            )

    def _request(self, text: str | None) -> PodRequest:
        if text is None:
            raise RequestError(
                "asks for GPUs but did not pass Tessera's mutating webhook",
                fix="look at its MutatingWebhookConfiguration (tessera doctor)",
            )
        try:
            return decode(text)
        except AnnotationError as error:
            name = self._names.request
            raise RequestError(str(error), fix=f"remove annotation {name}; admission writes it") from error

    def _check(self, container: ContainerReader, found: Recognition, request: PodRequest) -> None:
        """One container: nothing left to translate, its tickets those of the annotation, and the same on both sides."""
        left = [name for name in found.resources.get(container.name, ()) if name in container.resources]
        if left:
            raise RequestError(
                f"{', '.join(left)} should have become tickets; another webhook has written it afterwards",
                container=container.name,
                fix="let that webhook run before Tessera's, or set reinvocationPolicy: IfNeeded",
            )
        counts = ticket_counts(container.container, self._names)
        asked = request.containers.get(container.name)
        wanted = tickets(asked, self._names) if asked is not None else {}
        if counts != wanted:
            raise RequestError(
                f"holds the tickets {counts}, its request annotation means {wanted}",
                container=container.name,
                fix="another webhook has changed one of them; ask for what is meant in one place",
            )
        resources = container.container.resources
        for name in counts:
            for side in () if resources is None else (resources.limits, resources.requests):
                raw = (side or {}).get(name)
                if raw is None or read_amount(raw, name, container=container.name) != counts[name]:
                    raise RequestError(
                        f"{name}: limits and requests differ", container=container.name, fix="write the same in both"
                    )
