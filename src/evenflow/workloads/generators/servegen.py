"""Mixes of clients with rates, burstiness and lengths of their own, as in ServeGen (2025).

ServeGen's statistics come in two files. `<service>_arrivals`: for each client and window of 600 s
with traffic, its rate and the distribution of its gaps. `<service>_lengths`: for each client and
window of 6 h, quantiles of its lengths.

A client's arrivals are those of `PiecewiseRenewal`, so its rate can be scaled to any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.distributions import Distribution, Gamma, Lengths, Quantiles, Weibull
from evenflow.workloads.generators.times import PiecewiseRenewal
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces.files import Row, numbered_rows
from evenflow.workloads.traces.schema import number, text

WINDOW_S = 600.0
_SHAPES: dict[str, type[Gamma | Weibull]] = {"Gamma": Gamma, "Weibull": Weibull}
_LEVELS = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_SMALLEST = 1e-3  # quantiles are interpolated by their logarithms

_Fields = dict[str, Quantiles]


class ClientMix:
    """The clients of a service.

    Args:
        arrivals: the file of rates, in order of time.
        lengths: the file of lengths; by default the one that belongs to it by name.

    Raises:
        InvalidRequestError: a file cannot be read or is something else.
    """

    def __init__(self, arrivals: Path, lengths: Path | None = None) -> None:
        self._arrivals = arrivals
        if lengths is None:
            lengths = arrivals.with_name(arrivals.name.replace("_arrivals", "_lengths"))
        self._lengths = _LengthTable(lengths)

    def mean_rate(self, start_s: float, end_s: float) -> float:
        """Return how many requests a second there are between two times, all clients together.

        Raises:
            InvalidRequestError: there are none.
        """
        total = sum(
            _number(self._arrivals, row, "rate_rps") * WINDOW_S
            for begin_s, rows in self._windows(start_s, end_s)
            for row in rows
        )
        if total == 0:
            raise InvalidRequestError(
                f"no client asks for anything from {start_s:g} s to {end_s:g} s", param="from"
            )
        return total / (end_s - start_s)

    def requests(
        self, rng: np.random.Generator, *, start_s: float, end_s: float, rate_factor: float = 1.0
    ) -> Iterator[WorkloadRequest]:
        """Yield the requests between two times of the recording, a window at a time.

        Args:
            rng: draws gaps and lengths.
            start_s: becomes time 0; a multiple of the window.
            end_s: where to end.
            rate_factor: multiplies every client's rate.
        """
        processes: dict[str, PiecewiseRenewal] = {}
        arrivals_rng, lengths_rng = rng.spawn(2)
        for begin_s, rows in self._windows(start_s, end_s):
            names = [text(row, "client") for row in rows]
            times = []
            for name, row in zip(names, rows, strict=True):
                if name not in processes:
                    processes[name] = PiecewiseRenewal(arrivals_rng.spawn(1)[0])
                rate = rate_factor * _number(self._arrivals, row, "rate_rps")
                times.append(processes[name].window(rate, self._gaps(row), WINDOW_S))
            pairs = [
                self._lengths.pairs(name, begin_s, len(own), lengths_rng)
                for name, own in zip(names, times, strict=True)
            ]
            merged = begin_s - start_s + np.concatenate(times)
            owners = np.repeat(np.arange(len(names)), [len(own) for own in times])
            for place in np.argsort(merged, kind="stable").tolist():
                owner = int(owners[place])
                num_prompt, num_output = next(pairs[owner])
                yield WorkloadRequest(
                    num_prompt_tokens=num_prompt,
                    num_output_tokens=num_output,
                    arrival_s=round(float(merged[place]), 6),
                    tenant=f"client {names[owner]}",
                )

    def _windows(self, start_s: float, end_s: float) -> Iterator[tuple[float, list[Row]]]:
        """Yield the rows of each window that begins between two times."""
        rows = (row for _, row in numbered_rows(self._arrivals))
        for begin_s, group in groupby(rows, lambda row: _number(self._arrivals, row, "t_s")):
            if begin_s >= end_s:
                return
            if begin_s >= start_s:
                yield begin_s, list(group)

    def _gaps(self, row: Row) -> Distribution:
        """Return the shape of a client's gaps within a window, with a mean of 1."""
        name = str(row.get("iat_dist"))
        if name not in _SHAPES:
            raise _unknown(self._arrivals, f"iat_dist is {name!r}, not Gamma or Weibull")
        return _SHAPES[name](_number(self._arrivals, row, "p1"), 1.0)


class _LengthTable:
    """Quantiles of the lengths of each client over time.

    Clients without any get the medians over the others' quantiles.
    """

    def __init__(self, path: Path) -> None:
        self._windows: dict[str, dict[float, _Fields]] = {}
        levels = (*_LEVELS.values(), 1.0)
        for _, row in numbered_rows(path):
            values = [_number(path, row, name) for name in (*_LEVELS, "max")]
            ascending = np.maximum.accumulate(np.maximum(values, _SMALLEST))
            windows = self._windows.setdefault(text(row, "client"), {})
            fields = windows.setdefault(_number(path, row, "t_s"), {})
            fields[text(row, "field")] = Quantiles(levels, tuple(ascending.tolist()))
        if not self._windows:
            raise _unknown(path, "it has no rows")
        self._typical = self._medians()

    def pairs(
        self, client: str, time_s: float, num: int, rng: np.random.Generator
    ) -> Iterator[tuple[int, int]]:
        """Draw (prompt tokens, output tokens) of `num` requests.

        A prompt with images has its text and, for each image, that many tokens.
        """
        fields = self._fields(client, time_s)
        prompts = self._drawn(fields, "input_tokens", num, rng)
        if "text_tokens" in fields:
            images = self._drawn(fields, "image_count", num, rng)
            prompts = self._drawn(fields, "text_tokens", num, rng)
            prompts = prompts + images * self._drawn(fields, "image_tokens", num, rng)
        outputs = self._drawn(fields, "output_tokens", num, rng)
        return zip(np.maximum(prompts, 1).tolist(), np.maximum(outputs, 1).tolist(), strict=True)

    def _fields(self, client: str, time_s: float) -> _Fields:
        """Return what is known of a client at a time, or nearest to it."""
        windows = self._windows.get(client)
        if windows is None:
            return self._typical
        began = [begin_s for begin_s in windows if begin_s <= time_s]
        return windows[max(began) if began else min(windows)]

    def _drawn(
        self, fields: _Fields, name: str, num: int, rng: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        quantiles = fields.get(name) or self._typical.get(name)
        if quantiles is None:
            return np.zeros(num, dtype=np.int64)
        return np.array(Lengths(quantiles, low=0).draw(num, rng), dtype=np.int64)

    def _medians(self) -> _Fields:
        known: dict[str, list[tuple[float, ...]]] = {}
        for windows in self._windows.values():
            for fields in windows.values():
                for name, quantiles in fields.items():
                    known.setdefault(name, []).append(quantiles.values)
        levels = (*_LEVELS.values(), 1.0)
        return {
            name: Quantiles(levels, tuple(np.median(values, axis=0).tolist()))
            for name, values in known.items()
        }


def _number(path: Path, row: Row, name: str) -> float:
    try:
        return number(row, name)
    except ValueError as error:
        raise _unknown(path, str(error)) from error


def _unknown(path: Path, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{path} is no file of ServeGen's statistics",
        param="clients",
        why=why,
        fix="Name the <service>_arrivals file, with <service>_lengths beside it",
    )
