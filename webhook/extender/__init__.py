"""What kube-scheduler asks: which node a pod's slices should go to (filter), and to put them there (bind).

`cluster` turns watches into the ledger of `tessera.placement`; `filter`, `bind` and `preempt` decide by it; `wake` makes
kube-scheduler try again what was rejected; `wire`, `http` and `server` are how it is spoken to.
"""
