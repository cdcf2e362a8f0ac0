"""A stall of the event loop is seen, and remembered for a while."""

import asyncio
import threading

from webhook.admission.metrics import watch_loop


async def test_a_stall_is_seen(metrics, counted, until):
    task = asyncio.create_task(watch_loop(metrics, tick=0.001))
    await until(lambda: counted("tessera_webhook_event_loop_stall_seconds_count") > 2)
    threading.Event().wait(0.2)  # the loop can't turn meanwhile
    seen = counted("tessera_webhook_event_loop_stall_seconds_count")
    await until(lambda: counted("tessera_webhook_event_loop_stall_seconds_count") > seen)
    assert counted("tessera_webhook_event_loop_worst_stall_seconds") > 0.1
    task.cancel()


async def test_an_old_stall_is_forgotten(metrics, counted, until):
    task = asyncio.create_task(watch_loop(metrics, tick=0.001, window=0.0))
    threading.Event().wait(0.2)
    seen = counted("tessera_webhook_event_loop_stall_seconds_count")
    await until(lambda: counted("tessera_webhook_event_loop_stall_seconds_count") > seen + 20)
    assert counted("tessera_webhook_event_loop_worst_stall_seconds") < 0.2
    task.cancel()
