"""Which path answers what.

``/mutate`` does everything, so that one entry is enough in a small cluster; of an UPDATE it only takes back what a
manifest that is applied again has brought back. ``/mutate-cni`` does the CNI repair alone, for
an entry of its own with failurePolicy Ignore beside one with Fail. A pod that both entries send is mended by whichever
comes first, and found mended by the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from tessera.model.config import Config
from tessera.model.pod import Manifest
from tessera.placement.shape import Shape
from webhook.admission.cni import repair
from webhook.admission.connection import Handler
from webhook.admission.limits import LimitError
from webhook.admission.metrics import Metrics
from webhook.admission.mutate import Mutator, unknown_capacity
from webhook.admission.patch import operations
from webhook.admission.review import Request, Reviewer, Verdict, read_pod
from webhook.admission.validate import Validator

MUTATE: Final = "/mutate"
MUTATE_CNI: Final = "/mutate-cni"
VALIDATE: Final = "/validate"


class Paths:
    """The handlers of one process.

    Attributes:
        handlers: by path.
    """

    def __init__(
        self, config: Config, metrics: Metrics, *, capacity: Callable[[Shape], str] = unknown_capacity
    ) -> None:
        """Make the handlers.

        Args:
            config: in force now; see `take` for later ones.
            metrics: of this process.
            capacity: says why no node could hold a shape; see `Mutator`.
        """
        self._capacity = capacity
        self.take(config)
        self.handlers: Mapping[str, Handler] = MappingProxyType(
            {
                MUTATE: Reviewer(MUTATE, self._mutate, metrics, operations=("CREATE", "UPDATE")),
                MUTATE_CNI: Reviewer(MUTATE_CNI, self._repair, metrics),
                VALIDATE: Reviewer(VALIDATE, self._validate, metrics),
            }
        )

    def take(self, config: Config) -> None:
        """Judge by this config from now on."""
        self._cni = config.cni
        self._mutator = Mutator(config, capacity=self._capacity)
        self._validator = Validator(config)

    def _mutate(self, pod: Manifest, request: Request) -> Verdict:
        namespace = request.namespace or ""
        if request.operation == "UPDATE":
            outcome = self._mutator.update(pod, read_pod(request.old_object), namespace=namespace)
        else:
            try:
                outcome = self._mutator.mutate(pod, namespace=namespace)
            except LimitError as error:
                return Verdict(allowed=False, message=str(error), code=HTTPStatus.FORBIDDEN)
        return Verdict(operations=outcome.operations, warnings=outcome.warnings, audit=outcome.audit)

    def _repair(self, pod: Manifest, request: Request) -> Verdict:
        edits = repair(pod, cni=self._cni, namespace=request.namespace or "")
        return Verdict(operations=operations(pod, edits), audit={"cni": "repaired"} if edits else {})

    def _validate(self, pod: Manifest, _: Request) -> Verdict:
        self._validator.validate(pod)
        return Verdict()
