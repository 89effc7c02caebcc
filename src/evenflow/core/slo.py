"""What a request was promised, and whether it was kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from evenflow.core.errors import InvalidRequestError


@dataclass(slots=True, frozen=True)
class Slo:
    """Objectives of one request. None means that there is no such objective.

    Attributes:
        ttft_s: most seconds from arrival to the first token.
        tpot_s: most seconds per token after the first, on average.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 < value < math.inf:
                raise InvalidRequestError(
                    f"{field.name} must be a positive number of seconds",
                    param=field.name,
                    why=f"it is {value!r}",
                )

    def attained(self, ttft_s: float | None, tpot_s: float | None) -> dict[str, bool]:
        """Judge a request that ended, by the name of the objective: "ttft", "tpot".

        An objective that was not set is left out. So is a TPOT without a second token, of which
        there is nothing to measure; but who never got a first token was not served in time. The
        caller leaves out requests that their client gave up.

        Args:
            ttft_s: time to first token; None if none came.
            tpot_s: time per output token; None with fewer than two tokens.
        """
        judged = {}
        if self.ttft_s is not None:
            judged["ttft"] = ttft_s is not None and ttft_s <= self.ttft_s
        if self.tpot_s is not None and tpot_s is not None:
            judged["tpot"] = tpot_s <= self.tpot_s
        return judged
