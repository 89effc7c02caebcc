"""A shared link simulated in tiny steps of time: slow, and simple enough to be believed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class FluidFlow:
    """Work that is dispatched evenly from `start_s` to `dispatched_s`."""

    work_s: float
    start_s: float
    dispatched_s: float
    done_s: float = 0.0

    def available_s(self, now_s: float) -> float:
        """Work that is dispatched by now and not done."""
        if now_s >= self.dispatched_s:
            return self.work_s - self.done_s
        if now_s <= self.start_s:
            return 0.0
        share = (now_s - self.start_s) / (self.dispatched_s - self.start_s)
        return self.work_s * share - self.done_s


def finish_times(flows: list[FluidFlow], tick_s: float) -> list[float]:
    """Return when each flow is done. Each tick is divided equally among those with work."""
    finished = [0.0] * len(flows)
    left = set(range(len(flows)))
    tick = 0
    while left:
        tick += 1
        now_s = tick * tick_s
        capacity_s = tick_s
        wants = sorted((flows[index].available_s(now_s), index) for index in left)
        for position, (want_s, index) in enumerate(wants):
            given_s = min(want_s, capacity_s / (len(wants) - position))
            flows[index].done_s += given_s
            capacity_s -= given_s
        for index in tuple(left):
            flow = flows[index]
            if now_s >= flow.dispatched_s and flow.done_s >= flow.work_s - tick_s * 1e-6:
                finished[index] = now_s
                left.remove(index)
    return finished
