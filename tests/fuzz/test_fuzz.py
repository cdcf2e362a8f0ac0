"""A fixed, small share of what `make fuzz` does, the inputs that once broke something, and pods made by hypothesis."""

import json
import logging
from pathlib import Path
from random import Random

import pytest
from fuzzing.driver import fuzz, keep, several
from fuzzing.reviews import CONFIGS, BrokenError, ReviewFuzzer, check, review
from fuzzing.seeds import AMOUNTS, TEXTS, words
from fuzzing.wire import PIECES, WireFuzzer, answered
from hypothesis import given, settings
from hypothesis import strategies as st

REGRESSIONS = sorted((Path(__file__).parent / "regressions").glob("*.json"))


def test_some_inputs():
    found = fuzz(20260, inputs=1500, seconds=60)
    assert found["broken"] == []
    assert (found["reviews"], found["streams"]) == (1300, 200)
    assert found["shapes"] > 200, "what is made is answered in many ways"


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_what_once_broke_does_not(path):
    kept = json.loads(path.read_text(encoding="utf-8"))
    data = kept["input"].encode("latin-1")
    if kept["kind"] == "reviews":
        ReviewFuzzer(0).run(kept["config"], data)
    else:
        for seed in range(20):
            WireFuzzer(seed).run(data)


NAMES = st.sampled_from(words())
VALUES = st.recursive(
    st.sampled_from(AMOUNTS) | st.sampled_from(TEXTS),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(NAMES, below, max_size=2),
    max_leaves=4,
)
AMOUNTS_BY_NAME = st.dictionaries(NAMES, st.sampled_from(AMOUNTS[:32]) | VALUES, max_size=4)
CONTAINER = st.fixed_dictionaries(
    {"name": st.sampled_from(["main", "other", "c"])},
    optional={
        "resources": st.fixed_dictionaries({}, optional={"limits": AMOUNTS_BY_NAME, "requests": AMOUNTS_BY_NAME})
        | VALUES,
        "env": st.lists(st.fixed_dictionaries({"name": NAMES, "value": st.sampled_from(TEXTS)}), max_size=2),
        "restartPolicy": st.sampled_from(["Always", "Never", ""]),
    },
)
POD = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(
            {"name": st.just("p")},
            optional={
                "annotations": st.dictionaries(NAMES, st.sampled_from(TEXTS), max_size=3) | st.none(),
                "labels": st.dictionaries(NAMES, st.sampled_from(TEXTS), max_size=3) | st.none(),
            },
        ),
        "spec": st.fixed_dictionaries(
            {"containers": st.lists(CONTAINER, min_size=1, max_size=3)},
            optional={
                "initContainers": st.lists(CONTAINER, max_size=2) | st.none(),
                "nodeSelector": st.dictionaries(NAMES, st.sampled_from(TEXTS), max_size=2),
                "schedulerName": st.sampled_from(TEXTS),
                "tolerations": st.lists(st.dictionaries(NAMES, VALUES, max_size=2), max_size=2),
                "affinity": VALUES,
            },
        ),
    }
)


@settings(max_examples=150)
@given(POD, st.integers(0, len(CONFIGS) - 1))
def test_pods(handlers, pod, which):
    check(handlers[which], json.dumps(review(pod, Random(0))).encode())


@settings(max_examples=100)
@given(st.dictionaries(NAMES | st.sampled_from(["uid", "object", "operation", "kind"]), VALUES, max_size=5), VALUES)
def test_reviews(handlers, request_, kind):
    body = {"apiVersion": "admission.k8s.io/v1", "kind": kind, "request": request_}
    check(handlers[0], json.dumps(body).encode())
    check(handlers[0], json.dumps(body | {"kind": "AdmissionReview"}).encode())


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=20), max_size=8), st.lists(st.integers(0, 3000), max_size=6)
)
def test_streams(pieces, cuts):
    stream = b"".join(pieces)
    assert answered(stream, sorted(min(cut, len(stream)) for cut in cuts)) == answered(stream, [])


@pytest.fixture(scope="module")
def handlers():
    return ReviewFuzzer(0).handlers


# The fuzzer itself: it finds what is there to be found, and keeps it.


def test_an_answer_that_must_not_be_is_found_and_kept(monkeypatch, tmp_path):
    monkeypatch.setattr("fuzzing.driver.REGRESSIONS", tmp_path / "kept")

    def broken(_self, _which, body):
        raise BrokenError(f"{len(body)} bytes")

    monkeypatch.setattr(ReviewFuzzer, "run", broken)
    found = fuzz(1, inputs=100, seconds=60)
    assert len(found["broken"]) > 0
    kept = json.loads(Path(found["broken"][0]).read_text(encoding="utf-8"))
    assert kept["problem"].endswith("bytes")
    assert kept["kind"] == "reviews"


def test_who_comes_after_is_told_of_trouble_again(caplog):
    fuzz(1, inputs=2, seconds=60)
    logging.getLogger("webhook").error("heard")
    assert caplog.messages == ["heard"]


def test_the_same_seed_makes_the_same_inputs():
    one, two = ReviewFuzzer(5), ReviewFuzzer(5)
    assert [one.input() for _ in range(50)] == [two.input() for _ in range(50)]
    assert WireFuzzer(5).input() == WireFuzzer(5).input()


def test_bytes_are_kept_as_they_are(monkeypatch, tmp_path):
    monkeypatch.setattr("fuzzing.driver.REGRESSIONS", tmp_path)
    data = bytes(range(256))
    assert json.loads(keep("streams", 0, data, "x").read_text(encoding="utf-8"))["input"].encode("latin-1") == data


def test_several_processes_share_the_work():
    found = several(3, inputs=60, seconds=60, jobs=2)
    assert (found["reviews"], found["streams"], found["broken"]) == (60, 0, [])
