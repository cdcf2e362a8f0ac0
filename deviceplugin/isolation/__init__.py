"""How a slice is held to its size: what this node can promise, and what a container is given so that it holds.

`environment` looks at the machine (cgroups, CDI specs, container runtime, NVIDIA's toolkit), `probe` turns that and NVML's
facts into a guarantee for each GPU, one module per mechanism says what it needs, and `injection` writes what a container
gets. Nothing is promised that was not seen: where a fact can't be known, the next weaker guarantee is claimed.
"""
