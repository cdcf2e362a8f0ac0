"""A node's GPUs as NVML sees them: plain facts in, nothing of NVML's own types out.

`binding` is the only module of the project that touches pynvml (its state is global to the process), `driver` says in its
words what we want to know, `worker` keeps a hung driver from hanging the agent, `source` decides what the node agent is:
idle, not ready with a reason, or serving.
"""
