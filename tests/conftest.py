"""What holds for every test: no verdict of ours hangs on how fast a machine is."""

from hypothesis import settings

# A deadline per example fails where a machine is busy, and says nothing about the code. Speed is bench's.
settings.register_profile("tessera", deadline=None)
settings.load_profile("tessera")
