"""The language of GPU sharing: names, amounts, requests, inventories and plans.

Pure by rule: no I/O, no event loop, no clock, no logging. Both sides of the pair (what the control plane calls and what
runs on each GPU node) speak it, so a rule that both must agree on lives here once.
"""
