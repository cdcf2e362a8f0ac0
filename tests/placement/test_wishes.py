"""What a pod's annotations wish for, and what is refused with the fix."""

from __future__ import annotations

import pytest

from tessera.model.config import Placement
from tessera.model.errors import RequestError
from tessera.model.guarantee import Guarantee
from tessera.model.names import names
from tessera.placement.wishes import Wishes, wishes

NAMES = names()


def read(placement=None, **annotations):
    given = {f"tessera.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
    return wishes(given, NAMES, placement or Placement())


def test_no_annotations_wish_for_nothing():
    assert wishes(None, NAMES, Placement()) == Wishes()


def test_models_are_parts_of_names_whatever_their_case():
    found = read(gpu_models=" A100, h100 ,-T4,")
    assert (found.models, found.not_models, found.models_text) == (("a100", "h100"), ("t4",), "a100,h100,-t4")
    assert [found.takes_model(m) for m in ("NVIDIA A100-SXM4-80GB", "NVIDIA H100", "Tesla T4", "L20")] == [
        True,
        True,
        False,
        False,
    ]


def test_only_unwanted_models_leave_all_others():
    assert [read(gpu_models="-T4").takes_model(m) for m in ("A100", "Tesla T4")] == [True, False]


def test_uuids_are_compared_whatever_their_case():
    found = read(gpu_uuids="GPU-AB,GPU-cd")
    assert [found.takes_uuid(u) for u in ("gpu-ab", "GPU-CD", "GPU-ef")] == [True, True, False]


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("nvlink", "any", ("nvlink",)),
        ("numa", "any", ("numa",)),
        ("any", "numa", ("nvlink", "numa", "any")),
        (None, "numa", ("numa", "any")),
        (None, "nvlink", ("nvlink", "numa", "any")),
        ("", "any", ("nvlink", "numa", "any")),
    ],
)
def test_an_annotation_requires_and_the_config_prefers(text, default, expected):
    given = {} if text is None else {"gpu_topology": text}
    assert read(Placement(topology=default), **given).joins == expected


def test_placement_of_the_pod_wins_over_the_configs():
    assert read(Placement(policy="spread")).policy == "spread"
    assert read(Placement(policy="spread"), gpu_placement="pack").policy == "pack"


def test_least_guarantee():
    assert read(guarantee="process").least is Guarantee.PROCESS


@pytest.mark.parametrize(
    ("annotations", "fix"),
    [
        ({"gpu_placement": "tight"}, "pack, spread"),
        ({"gpu_topology": "pcie"}, "nvlink, numa, any"),
        ({"guarantee": "iron"}, "kernel, process, watched, none"),
        ({"gpu_models": "A100,-"}, '"-T4"'),
        ({"gpu_models": "a," * 64}, "at most 64"),
        ({"gpu_uuids": "x" * 5000}, "at most 64"),
    ],
)
def test_a_wish_that_means_nothing_is_refused(annotations, fix):
    with pytest.raises(RequestError, match=r"annotation tessera\.dev/") as caught:
        read(**annotations)
    assert fix in str(caught.value)
    assert len(str(caught.value)) < 400
