"""Tessera on a real cluster, its parts as processes of this machine, with the rights that they need and no others."""
