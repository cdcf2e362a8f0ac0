"""A small kube-scheduler: enough of the real one to drive an extender as the real one does, over the same wire."""

from tessera.testing.scheduler.scheduler import FakeScheduler, SchedulerSettings

__all__ = ["FakeScheduler", "SchedulerSettings"]
