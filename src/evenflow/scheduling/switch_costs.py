"""What context switches cost on this machine, learnt from what they cost.

A request that has to leave can be copied and loaded again, or computed again; a copy can be made
beside the steps, which slows them, or between them, which stops them. Which is better differs by
orders of magnitude between a GPU behind a bus and a CPU that copies with the cores it computes
with. So nothing is assumed: times are measured, and the choice follows.

Knows: mean times, and how much longer a step takes when something is copied beside it.
Does not know: requests, memory, the time of day.
"""

from __future__ import annotations

from evenflow.memory.transfers import Outcome, Tier

_MEMORY = 32
"""Number of observations after which the first has lost most of its weight (FastSwitch, arXiv
2411.18424, section 3.2, looks back on recent swaps likewise)."""

_ADVANTAGE = 1.25
"""By how much the other way must be better before a choice is changed."""


class RunningMean:
    """A mean in which older observations weigh less and less.

    Args:
        value: the mean before there is any observation; unknown by default.
    """

    __slots__ = ("_num_observations", "value")

    def __init__(self, value: float | None = None) -> None:
        self.value = value
        self._num_observations = 0

    def add(self, value: float) -> None:
        """Take in an observation; the first one replaces what was assumed."""
        self._num_observations = min(self._num_observations + 1, _MEMORY)
        before = 0.0 if self.value is None else self.value
        self.value = before + (value - before) / self._num_observations


class SwitchCosts:
    """Estimates, in seconds.

    Attributes:
        slowdown: seconds by which steps get longer for each second of copying beside them. One
            step alone may seem to get shorter; only the mean has a meaning.
    """

    def __init__(self) -> None:
        self.slowdown = RunningMean()
        self._decode_step_s = RunningMean()
        self._prefill_token_s = RunningMean()
        self._block_s: dict[tuple[Tier, Tier], RunningMean] = {}

    @property
    def step_s(self) -> float:
        """A step in which requests only decode; 0 while unknown."""
        return self._decode_step_s.value or 0.0

    def note_step(self, num_requests: int, num_tokens: int, seconds: float, moved_s: float) -> None:
        """Take in a step.

        Args:
            num_requests: that it computed tokens for.
            num_tokens: that it computed.
            seconds: that it took.
            moved_s: seconds of copying that went on beside it.
        """
        num_prefill_tokens = num_tokens - num_requests
        if moved_s > 0:
            expected_s = self.step_s + num_prefill_tokens * (self._prefill_token_s.value or 0.0)
            if expected_s:
                self.slowdown.add((seconds - expected_s) / moved_s)
        elif num_prefill_tokens:
            self._prefill_token_s.add(max(0.0, seconds - self.step_s) / num_prefill_tokens)
        else:
            self._decode_step_s.add(seconds)

    def note_transfer(self, outcome: Outcome) -> None:
        """Take in how long a transfer took."""
        num_blocks = outcome.ticket.num_blocks
        if outcome.failure is None and num_blocks:
            direction = outcome.ticket.source, outcome.ticket.destination
            mean = self._block_s.setdefault(direction, RunningMean())
            mean.add(outcome.seconds / num_blocks)

    def move_s(self, source: Tier, destination: Tier, num_blocks: int) -> float:
        """Return how long it takes to move blocks; 0 while unknown, so that it is tried."""
        mean = self._block_s.get((source, destination))
        return num_blocks * (mean.value or 0.0) if mean is not None else 0.0

    def recompute_s(self, num_tokens: int) -> float | None:
        """Return how much longer steps get for computing tokens again; None while unknown."""
        each_s = self._prefill_token_s.value
        return None if each_s is None else num_tokens * each_s


class Choice:
    """Between doing something beside the steps or between them, with some inertia.

    Every so often the way that looks worse is tried once, so that its cost stays known.
    """

    def __init__(self) -> None:
        self._is_beside = True
        self._num_choices = 0

    def beside(self, beside_cost: float, between_cost: float) -> bool:
        """Return whether to do it beside the steps."""
        self._num_choices += 1
        costs = (beside_cost, between_cost) if self._is_beside else (between_cost, beside_cost)
        if costs[0] > costs[1] * _ADVANTAGE:
            self._is_beside = not self._is_beside
        return self._is_beside is not (self._num_choices % _MEMORY == 0)


class SwitchBudget:
    """Bounds what switching by rank may cost, so that requests do not oust each other endlessly.

    Args:
        max_share: most seconds per second; what is spent beyond must be made up for first.
    """

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._left_s = 0.0
        self._until_s: float | None = None

    def allows(self, now_s: float) -> bool:
        """Return whether a switch may begin now."""
        if self._until_s is not None:
            earned_s = (now_s - self._until_s) * self._max_share
            self._left_s = min(self._left_s + earned_s, self._max_share)
        self._until_s = now_s
        return self._left_s >= 0

    def spend(self, seconds: float) -> None:
        """Take what a switch is expected to cost."""
        self._left_s -= seconds

    def min_residency_s(self, seconds: float) -> float:
        """Return how long a request that costs so much to switch stays at least."""
        return seconds / self._max_share
