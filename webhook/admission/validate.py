"""The last look, after every other webhook: tickets, request annotation and names have to agree.

A mutating webhook that runs after ours may have changed what was understood; what the extender and the node would then
count is no longer what the user asked, so such a pod is refused here rather than placed wrongly.
"""

from __future__ import annotations

from tessera.dialects.reader import PodReader
from tessera.dialects.recognise import Dialects
from tessera.model.config import Config
from tessera.model.errors import AnnotationError, RequestError
from tessera.model.pod import Manifest
from tessera.model.quantity import parse
from tessera.model.request import decode
from tessera.model.tickets import ticket_counts, tickets


class Validator:
    """The checks of one config. Make it once per config."""

    def __init__(self, config: Config) -> None:
        """Prepare the dialects."""
        self._names = config.names
        self._dialects = Dialects(config)

    def validate(self, pod: Manifest) -> None:
        """Check a pod in its final state.

        Raises:
            RequestError: a name of ours that should have become tickets, tickets without a request annotation that yields
                them, limits and requests that differ, or a plan that a user brings.
        """
        found = self._dialects.recognise(pod)
        names = self._names
        if pod.metadata.annotation(names.plan) is not None and not pod.spec.node_name:
            raise RequestError(f"annotation {names.plan} is the extender's to write", fix="remove it")
        if found is None:
            return
        text = pod.metadata.annotation(names.request)
        try:
            request = decode(text) if text is not None else None
        except AnnotationError as error:
            raise RequestError(str(error), fix=f"remove annotation {names.request}; admission writes it") from error
        if request is None:
            raise RequestError(
                "asks for GPUs but did not pass Tessera's mutating webhook",
                fix="look at its MutatingWebhookConfiguration (tessera doctor)",
            )
        for container in PodReader(pod).containers:
            left = [name for name in found.resources.get(container.name, ()) if name in container.resources]
            if left:
                raise RequestError(
                    f"{', '.join(left)} should have become tickets; another webhook has written it afterwards",
                    container=container.name,
                    fix="let that webhook run before Tessera's, or set reinvocationPolicy: IfNeeded",
                )
            counts = ticket_counts(container.container, names)
            asked = request.containers.get(container.name)
            wanted = tickets(asked, names) if asked is not None else {}
            if counts != wanted:
                raise RequestError(
                    f"holds the tickets {counts}, its request annotation means {wanted}",
                    container=container.name,
                    fix="another webhook has changed one of them; ask for what is meant in one place",
                )
            resources = container.container.resources
            for name in counts:
                sides = [
                    None if resources is None else side.get(name)
                    for side in (
                        (resources.limits or {}) if resources else {},
                        (resources.requests or {}) if resources else {},
                    )
                ]
                if None in sides or len({parse(side) for side in sides if side is not None}) > 1:
                    raise RequestError(
                        f"{name}: limits and requests differ", container=container.name, fix="write the same in both"
                    )
