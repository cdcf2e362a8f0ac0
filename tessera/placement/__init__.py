"""Where slices go: the arithmetic of one GPU, the ledger of a cluster, what fits, and which of what fits is best.

Pure, like the model. `holding` (one GPU, plain integers, no numpy) is shared with the node agent, which has to stay small;
the cluster-wide ledger on numpy arrays is for the extender.
"""
