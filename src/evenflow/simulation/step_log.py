"""What the steps of a simulation were like, in bounded memory."""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

from evenflow.execution.costs import StepShape
from evenflow.scheduling.scheduler import Scheduler

COLUMNS = (
    "start_s",
    "duration_s",
    "num_steps",
    "num_tokens",
    "num_prefill_tokens",
    "num_running",
    "num_waiting",
    "num_used_blocks",
)
_SUMMED = ("duration_s", "num_steps", "num_tokens", "num_prefill_tokens")


class StepLog:
    """One row per step; neighbouring rows are merged once there are too many.

    Of a merged row, `start_s` and the gauges `num_running`, `num_waiting` and `num_used_blocks` are
    those of its first step, and the other columns are sums. While steps are taken together, the
    gauges stay what they were before.

    Args:
        scheduler: whose gauges are read.
        max_rows: most rows, even.
    """

    def __init__(self, scheduler: Scheduler, max_rows: int = 20_000) -> None:
        self._scheduler = scheduler
        self._max_rows = max_rows
        self._columns = {name: array("d") for name in COLUMNS}
        self._steps_per_row = 1

    def add(self, start_s: float, duration_s: float, shape: StepShape) -> None:
        """Log a step."""
        columns = self._columns
        num_steps = columns["num_steps"]
        num_prefill = sum(count for count, _ in shape.chunks)
        sums = (duration_s, 1, num_prefill + shape.num_decodes, num_prefill)
        if num_steps and num_steps[-1] < self._steps_per_row:
            for name, value in zip(_SUMMED, sums, strict=True):
                columns[name][-1] += value
            return
        if len(num_steps) == self._max_rows:
            self._halve()
        scheduler = self._scheduler
        kv = scheduler.kv
        row = dict(zip(_SUMMED, sums, strict=True)) | {
            "start_s": start_s,
            "num_running": len(scheduler.running),
            "num_waiting": len(scheduler.waiting),
            "num_used_blocks": kv.num_blocks - kv.num_available_blocks,
        }
        for name, value in row.items():
            columns[name].append(value)

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """Return a column, one entry per row, by its name in `COLUMNS`."""
        return np.array(self._columns[name])

    def _halve(self) -> None:
        """Merge every two rows."""
        for name, values in self._columns.items():
            merged = np.array(values).reshape(-1, 2)
            merged = merged.sum(axis=1) if name in _SUMMED else merged[:, 0]
            self._columns[name] = array("d", merged)
        self._steps_per_row *= 2
