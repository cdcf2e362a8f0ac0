"""The demo's pods are drawn from the trace's shapes, repeatably, and written in every dialect."""

from random import Random

from tessera.demo.workload import draw, shapes


def test_the_same_seed_draws_the_same_pods():
    assert list(draw(50, rng=Random(7), prefix="a")) == list(draw(50, rng=Random(7), prefix="a"))
    assert list(draw(50, rng=Random(7), prefix="a")) != list(draw(50, rng=Random(8), prefix="a"))


def test_every_dialect_is_spoken_and_most_tasks_are_the_traces():
    names = set()
    for pod in draw(400, rng=Random(1), prefix="a"):
        names |= pod["spec"]["containers"][0]["resources"]["limits"].keys()
    assert {"tessera.dev/gpu", "tessera.dev/gpu-memory", "tessera.dev/gpu-compute"} <= names
    assert {"nvidia.com/gpumem", "nvidia.com/gpumem-percentage", "aliyun.com/gpu-mem"} <= names
    assert sum(shape.tasks for shape in shapes()) > 8000
