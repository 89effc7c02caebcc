"""A model of a whole trace, from which one can draw as long as one likes.

    rate of each window, shape of the gaps  ->  when sessions begin
    turns, pauses                           ->  how each goes on
    pairs of lengths, shares of tenants     ->  what is asked, and by whom

It follows BurstGPT (section 6): gaps are gamma (or Weibull) within windows, whose rate changes.
Which prompts share a prefix is not part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from evenflow.workloads.analysis.bursts import Windows
from evenflow.workloads.analysis.fits import GAP_KINDS, Fit
from evenflow.workloads.distributions import Distribution, Lengths
from evenflow.workloads.generators import (
    IndependentPairs,
    LengthPairs,
    RecordedPairs,
    piecewise_times,
)
from evenflow.workloads.generators.times import endless
from evenflow.workloads.request import WorkloadRequest

LengthModel = Literal["recorded", "fitted", "zipf"]


@dataclass(slots=True, frozen=True, kw_only=True)
class TrafficModel:
    """What was fitted to a trace.

    Attributes:
        windows: arrivals of sessions (and lone requests) over time.
        gaps: fits to the gaps within windows, each over the mean of its window; best first.
        pairs: (n, 2), a sample of lengths of prompts and answers.
        prompt: fits to the prompts' lengths, best first.
        output: fits to the answers' lengths, best first.
        turns: how many sessions have so many turns; lone requests are sessions of one.
        continues: later turns carry on a conversation; else their prompts are complete.
        pauses: (n, 2), a sample of pauses between turns, and of how much of each tools took, in s.
        think_s: fits to the pauses that are not 0, best first.
        tool_s: fits to the times of tool calls that are not 0, best first.
        tenants: how many sessions each has, those of the least busy under "(others)".
    """

    windows: Windows
    gaps: Sequence[Fit]
    pairs: npt.NDArray[np.int64]
    prompt: Sequence[Fit]
    output: Sequence[Fit]
    turns: dict[int, int]
    continues: bool
    pauses: npt.NDArray[np.float64]
    think_s: Sequence[Fit]
    tool_s: Sequence[Fit]
    tenants: dict[str, int]

    def generate(
        self,
        rng: np.random.Generator,
        *,
        rate_factor: float = 1.0,
        lengths: LengthModel = "recorded",
    ) -> Iterator[WorkloadRequest]:
        """Yield requests without end; after the trace's last window comes the first again.

        Args:
            rng: draws everything.
            rate_factor: multiplies the rate of every window; bursts keep their shape.
            lengths: `recorded` draws pairs as they were seen, `fitted` draws prompts and answers
                apart from the best fits, `zipf` from Zipf's law, as BurstGPT's generator does.
        """
        times_rng, lengths_rng, sessions_rng = rng.spawn(3)
        times = piecewise_times(self._window_cycle(rate_factor), self.windows.window_s, times_rng)
        pairs = endless(self._pairs(lengths).draw, lengths_rng)
        sessions = endless(self._draw_sessions, sessions_rng)
        for index, (arrival_s, (tenant, pauses)) in enumerate(zip(times, sessions, strict=False)):
            for turn, (think_s, tool_s) in enumerate(((0.0, 0.0), *pauses)):
                num_prompt, num_output = next(pairs)
                yield WorkloadRequest(
                    num_prompt_tokens=num_prompt,
                    num_output_tokens=num_output,
                    arrival_s=round(arrival_s, 6),
                    tenant=tenant,
                    session=f"session {index}" if pauses else None,
                    turn=turn,
                    continues=self.continues and turn > 0,
                    think_time_s=think_s,
                    tool_time_s=tool_s,
                )

    def as_dict(self) -> dict[str, Any]:
        """Return parameters and goodness, for JSON."""
        windows = self.windows
        num_windows = int(windows.index[-1]) + 1
        rates = windows.num_requests / windows.window_s
        num_sessions = sum(self.turns.values())
        return {
            "window_s": windows.window_s,
            "num_windows": num_windows,
            "num_windows_without_requests": num_windows - len(windows.index),
            "rate_mean": float(rates.sum() / num_windows),
            "rate_cv": _variation(rates, num_windows),
            "cv_within_windows": windows.typical("cv"),
            "gamma_shape_within_windows": windows.typical("gamma_shape"),
            "weibull_shape_within_windows": windows.typical("weibull_shape"),
            "gaps": [fit.as_dict() for fit in self.gaps],
            "prompt_tokens": [fit.as_dict() for fit in self.prompt],
            "output_tokens": [fit.as_dict() for fit in self.output],
            "log_length_correlation": _log_correlation(self.pairs),
            "sessions": num_sessions,
            "turns_mean": sum(n * times for n, times in self.turns.items()) / num_sessions,
            "one_turn_ratio": self.turns.get(1, 0) / num_sessions,
            "think_s": [fit.as_dict() for fit in self.think_s],
            "tool_s": [fit.as_dict() for fit in self.tool_s],
            "tenants": len(self.tenants),
        }

    def _window_cycle(self, rate_factor: float) -> Iterator[tuple[float, Distribution]]:
        """Yield rate and unit gaps of every window, those without requests included."""
        kind = next((fit.kind for fit in self.gaps if fit.kind in GAP_KINDS), "gamma")
        column = self.windows.gamma_shape if kind == "gamma" else self.windows.weibull_shape
        typical = self.windows.typical(f"{kind}_shape") or 1.0
        idle: Distribution = GAP_KINDS[kind](typical, 1.0)
        windows: list[tuple[float, Distribution]] = [(0.0, idle)] * (
            int(self.windows.index[-1]) + 1
        )
        counts = self.windows.num_requests / self.windows.window_s * rate_factor
        for index, rate, shape in zip(self.windows.index, counts, column, strict=True):
            gaps = idle if np.isnan(shape) else GAP_KINDS[kind](float(shape), 1.0)
            windows[int(index)] = (float(rate), gaps)
        return cycle(windows)

    def _pairs(self, lengths: LengthModel) -> LengthPairs:
        if lengths == "recorded":
            return RecordedPairs(self.pairs)
        prompt, output = (
            next(fit for fit in fits if lengths == "fitted" or fit.kind in (lengths, "constant"))
            for fits in (self.prompt, self.output)
        )
        high_prompt, high_output = self.pairs.max(axis=0).tolist()
        return IndependentPairs(
            Lengths(prompt.distribution, high=high_prompt),
            Lengths(output.distribution, high=high_output),
        )

    def _draw_sessions(
        self, num: int, rng: np.random.Generator
    ) -> Iterator[tuple[str, list[tuple[float, float]]]]:
        """Draw the tenant, and the pauses before the later turns, of `num` sessions."""
        names = list(self.tenants)
        shares = np.array(list(self.tenants.values())) / sum(self.tenants.values())
        lengths = np.array(list(self.turns))
        weights = np.array(list(self.turns.values())) / sum(self.turns.values())
        tenants = rng.choice(len(names), size=num, p=shares).tolist()
        num_turns = rng.choice(lengths, size=num, p=weights)
        num_pauses = int(num_turns.sum()) - num
        chosen = rng.integers(max(len(self.pauses), 1), size=num_pauses)
        pauses = iter([(think_s, tool_s) for think_s, tool_s in self.pauses[chosen].tolist()])
        for tenant, turns in zip(tenants, num_turns.tolist(), strict=True):
            yield names[tenant], [next(pauses) for _ in range(turns - 1)]


def _log_correlation(pairs: npt.NDArray[np.int64]) -> float:
    """Return how far long prompts have long answers, by the logarithms; 0 if all are alike."""
    logs = np.log(pairs)
    if (logs.std(axis=0) == 0).any():
        return 0.0
    return float(np.corrcoef(logs.T)[0, 1])


def _variation(rates: npt.NDArray[np.float64], num_windows: int) -> float:
    """Return deviation over mean of the windows' rates, those without requests included."""
    mean = rates.sum() / num_windows
    return float(np.sqrt((rates**2).sum() / num_windows - mean**2) / mean)
