"""Which examples of a batch a process is given, and how a batch is named for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmcompress.stages._batches import Batches

SHOWN = 4
"""Ids that are named of a batch."""


@dataclass(frozen=True)
class Share(Batches):
    """One process's share of each batch: rows that follow one another; all shares are as large."""

    process: int = 0
    processes: int = 1

    def rows(self, number: int) -> tuple[int, NDArray[np.int64]]:
        """Epoch and this process's examples [b / processes] of a batch."""
        epoch, rows = super().rows(number)
        size = len(rows) // self.processes
        return epoch, rows[self.process * size : (self.process + 1) * size]


def ids_of(batches: Batches, number: int) -> list[str]:
    """Ids of the examples of a whole batch."""
    _, rows = Batches.rows(batches, number)
    return [batches.data.ids[int(row)] for row in rows]


def shortened(ids: Sequence[str]) -> str:
    """The first few ids, and how many more there are."""
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"examples {', '.join(ids[:SHOWN])}{more}"
