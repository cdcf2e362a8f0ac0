"""The last steps of a decision: one node of those that fit, and GPUs there.

A tie goes to the first name: with equal scores broken by a coin the best measures lose five points of packing.
"""

from __future__ import annotations

from tessera.placement.columns import IntArray
from tessera.placement.ledger import Ledger
from tessera.placement.scores import Scores, ShapeRow


def best(ledger: Ledger, scores: Scores, row: ShapeRow, rows: IntArray) -> int:
    """The row of the node to take.

    Args:
        ledger: who holds what.
        scores: the rows' owner.
        row: of the shape, as of now.
        rows: of nodes that may be taken, at least one.
    """
    size = scores.gang_size(row.shape)
    if size:
        rows = scores.unreserved(rows, running=ledger.gangs(size), stays=ledger.stays)
    found = row.score.take(rows)
    rows = rows.take((found == found[found.argmax()]).nonzero()[0])
    if len(rows) == 1:
        return int(rows[0])
    ledger.rank()
    return int(rows[ledger.columns.rank[rows].argmin()])
