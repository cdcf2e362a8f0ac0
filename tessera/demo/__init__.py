"""The whole of Tessera on one machine, without a GPU and without a cluster: real programs, shipped fakes, a judge."""
