"""What a pod says about which GPUs it would like, beside how much: models, UUIDs, guarantee, placement, topology.

Annotations by users, so every value is checked and bounded; admission refuses bad ones with this same code, and the
extender refuses them again, since a pod may have been created while the webhook was away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeVar, get_args

import msgspec

from tessera.model.config import Placement, PolicyName
from tessera.model.errors import RequestError
from tessera.model.guarantee import Guarantee
from tessera.model.names import Names
from tessera.placement.company import ANYBODY, Company, company

Join = Literal["nvlink", "numa", "any"]
"""How the GPUs of one container hang together: all pairs by NVLink, all on one NUMA node, or no matter how."""

V = TypeVar("V", bound=str)

POLICIES: Final[tuple[PolicyName, ...]] = get_args(PolicyName)
_JOINS: Final[dict[str, tuple[Join, ...]]] = {
    "nvlink": ("nvlink",),
    "numa": ("numa",),
    "any": ("nvlink", "numa", "any"),
}
_DEFAULT_JOINS: Final[dict[str, tuple[Join, ...]]] = {
    "nvlink": ("nvlink", "numa", "any"),
    "numa": ("numa", "any"),
    "any": ("nvlink", "numa", "any"),
}
_LONGEST: Final = 4096
_MOST: Final = 64


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """Hashable, so that pods with equal wishes share what was computed for them.

    Attributes:
        models: lower-case parts of product names, any of which has to be in a GPU's; empty means any model.
        not_models: lower-case parts, none of which may be in it.
        uuids: lower-case UUIDs, one of which a GPU has to have; empty means any GPU.
        least: the least memory guarantee accepted.
        policy: how a GPU and a node are chosen among those that fit.
        company: classes of pods that it may share a GPU with.
        joins: how several GPUs of one container should hang together, best first; the last one is what is accepted.
    """

    models: tuple[str, ...] = ()
    not_models: tuple[str, ...] = ()
    uuids: tuple[str, ...] = ()
    least: Guarantee = Guarantee.NONE
    policy: PolicyName = "priced"
    joins: tuple[Join, ...] = ("nvlink", "numa", "any")
    company: Company = ANYBODY

    def takes_model(self, model: str) -> bool:
        """Whether a GPU of this product name will do; labels write its blanks as dashes, so the two are one."""
        if not self.models and not self.not_models:
            return True
        name = model.lower().replace(" ", "-")
        return (not self.models or any(part.replace(" ", "-") in name for part in self.models)) and not any(
            part.replace(" ", "-") in name for part in self.not_models
        )

    def takes_uuid(self, uuid: str) -> bool:
        """Whether this very GPU will do."""
        return not self.uuids or uuid.lower() in self.uuids

    @property
    def models_text(self) -> str:
        """The wish for models as a person would write it: ``a100,-t4``."""
        return ",".join((*self.models, *(f"-{part}" for part in self.not_models)))


def wishes(annotations: Mapping[str, str] | None, names: Names, placement: Placement) -> Wishes:
    """Read a pod's wishes.

    Args:
        annotations: of the pod.
        names: of this installation.
        placement: the config's defaults. Its topology is a preference; the annotation's is a requirement.

    Raises:
        RequestError: a value that means nothing, with what may be written instead.
    """
    found = annotations or {}
    models, not_models = read_models(found.get(names.gpu_models, ""), names.gpu_models)
    policy = _one_of(found.get(names.gpu_placement), POLICIES, names.gpu_placement)
    join = _one_of(found.get(names.gpu_topology), tuple(_JOINS), names.gpu_topology)
    least = _one_of(found.get(names.guarantee), tuple(g.value for g in Guarantee), names.guarantee)
    return Wishes(
        models=models,
        not_models=not_models,
        uuids=tuple(sorted({part.lower() for part in _parts(found.get(names.gpu_uuids, ""), names.gpu_uuids)})),
        least=Guarantee(least) if least else Guarantee.NONE,
        policy=policy or placement.policy,
        joins=_JOINS[join] if join else _DEFAULT_JOINS[placement.topology],
        company=company(found, names),
    )


def read_models(text: str, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read parts of product names, wanted and unwanted: ``A100,-T4``; `name` is what an error calls the text.

    Raises:
        RequestError: a dash without a name, or far too many.
    """
    wanted, unwanted = set(), set()
    for part in _parts(text, name):
        if part == "-":
            raise RequestError(
                f'annotation {name} has a "-" without a model', fix='write a part of its name, as in "-T4"'
            )
        if part.startswith("-"):
            unwanted.add(part[1:].lower())
        else:
            wanted.add(part.lower())
    return tuple(sorted(wanted)), tuple(sorted(unwanted))


def _parts(text: str, name: str) -> list[str]:
    if len(text) > _LONGEST or text.count(",") >= _MOST:
        raise RequestError(
            f"annotation {name} has {len(text)} characters and {text.count(',') + 1} entries",
            fix=f"write at most {_MOST} entries",
        )
    return [part for part in (piece.strip() for piece in text.split(",")) if part]


def _one_of(text: str | None, known: tuple[V, ...], name: str) -> V | None:
    if text is None or not text.strip():
        return None
    for value in known:
        if text.strip() == value:
            return value
    raise RequestError(f"annotation {name} is {text[:64]!r}", fix=f"write one of {', '.join(known)}")
