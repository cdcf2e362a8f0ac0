"""What makes a pod one that is sent, as data, is what the code acts on: for pods that say a bit of everything."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.deploy.conditions import concerned
from tessera.dialects.reader import PodReader
from tessera.dialects.trigger import holds
from webhook.admission.mutate import Mutator


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_every_pod_that_the_code_would_touch_is_sent_and_no_other(make, data):
    pod, config = data.draw(make.pods()), make.config_of(data.draw(make.dialects()))
    sent = holds(concerned(config), PodReader(make.decoded(pod)))
    acted_on = make.acted_on(Mutator(config), pod)
    assert sent or not acted_on
    assert acted_on or not sent or make.idle(pod)
