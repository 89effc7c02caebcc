"""Published traces whose rows need more than other names for the columns.

Each class here takes the rows of one file in their order and returns the request of each, or None
for failed requests and for rows that are part of another's request.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from evenflow.workloads.request import Segment, WorkloadRequest
from evenflow.workloads.traces import schema
from evenflow.workloads.traces.blocks import segments_of
from evenflow.workloads.traces.files import Row, numbered_rows
from evenflow.workloads.traces.recent import Recent

_BEYOND_MICROSECONDS = re.compile(r"(\.\d{6})\d+")
_LMCACHE_BLOCK_TOKENS = 64


class RowReader(Protocol):
    """Reads the rows of one file."""

    @property
    def is_timed(self) -> bool:
        """The rows say when requests arrive; else all arrive at 0."""
        ...

    def __call__(self, row: Row) -> WorkloadRequest | None:
        """Read the next row.

        Raises:
            ValueError: it says nothing sensible.
        """
        ...


class SchemaRows:
    """Rows in our schema, and in the many that differ in names only."""

    def __init__(self, first: Row) -> None:
        self.is_timed = any(name in first for name in schema.ARRIVALS)

    def __call__(self, row: Row) -> WorkloadRequest | None:
        """Read a row."""
        return schema.request_of(row)


class AzureRows:
    """The Azure LLM inference traces as published: TIMESTAMP, ContextTokens, GeneratedTokens.

    Time starts with the first row.
    """

    COLUMNS = frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"})
    is_timed = True

    def __init__(self) -> None:
        self._start: datetime | None = None

    def __call__(self, row: Row) -> WorkloadRequest | None:
        """Read a row."""
        stamp = schema.text(row, "TIMESTAMP")
        time = datetime.fromisoformat(_BEYOND_MICROSECONDS.sub(r"\1", stamp))
        self._start = self._start or time
        if (time.tzinfo is None) != (self._start.tzinfo is None):
            raise ValueError(f"TIMESTAMP {stamp!r} and the first one are not both with a time zone")
        return schema.request_of(
            {
                "arrival_s": (time - self._start).total_seconds(),
                "input_length": row["ContextTokens"],
                "output_length": row["GeneratedTokens"],
            }
        )


class BurstGPTRows:
    """BurstGPT (arXiv 2401.17644): model and kind of log become the tenant.

    Only its third file has sessions. A session's pauses follow from `Elapsed time`, which is how
    long the recorded request took.
    """

    COLUMNS = frozenset({"Timestamp", "Model", "Request tokens", "Response tokens", "Log Type"})
    is_timed = True

    def __init__(self) -> None:
        self._sessions: Recent[str, _Turn] = Recent()

    def __call__(self, row: Row) -> WorkloadRequest | None:
        """Read a row."""
        request = schema.request_of(row)
        if request is None:
            return None
        request = replace(request, tenant=f"{row['Model']}, {row['Log Type']}")
        session = row.get("Session ID")
        if session in (None, ""):
            return request
        elapsed_s = schema.duration_s(row, "Elapsed time") if row.get("Elapsed time") else 0.0
        last = self._sessions.get(str(session))
        turn = 0 if last is None else last.number + 1
        self._sessions.set(str(session), _Turn(turn, request.arrival_s + elapsed_s))
        pause_s = 0.0 if last is None else max(0.0, request.arrival_s - last.end_s)
        return replace(request, session=str(session), turn=turn, think_time_s=round(pause_s, 6))


class _Turn(NamedTuple):
    """The last turn seen of a session, and when its answer was complete."""

    number: int
    end_s: float


class ShareGPTTurnRows:
    """Lengths of the turns of conversations, the slices of a chain joined to one session.

    What stands between two answers of the assistant is one prompt. There are no times.
    """

    COLUMNS = frozenset({"conversation", "chain", "slice", "turn", "role", "tokens"})
    is_timed = False

    def __init__(self) -> None:
        self._chains: Recent[str, tuple[int, int]] = Recent()

    def __call__(self, row: Row) -> WorkloadRequest | None:
        """Take in a turn; an answer makes a request of it and of what came before."""
        chain = schema.text(row, "chain")
        num_tokens = schema.count(row, ("tokens",))
        turn, num_unanswered = self._chains.get(chain) or (0, 0)
        if row["role"] != "assistant" or num_unanswered == 0 or num_tokens == 0:
            self._chains.set(chain, (turn, num_unanswered + num_tokens))
            return None
        self._chains.set(chain, (turn + 1, 0))
        return WorkloadRequest(
            num_prompt_tokens=num_unanswered,
            num_output_tokens=num_tokens,
            session=f"chain {chain}",
            turn=turn,
            continues=turn > 0,
        )


class LMCacheAgentRows:
    """LMCache's agent traces: one session per task, prompts in full, by hashes of 64 tokens.

    The recording does not say how long answers took, so the pause before a request is the whole gap
    to the request before it. Agents whose answers were not logged get one token.
    """

    COLUMNS = frozenset({"session", "agent", "seq", "t_s", "shared_prefix_tokens", "hash_ids"})
    is_timed = False

    def __init__(self) -> None:
        self._sessions: Recent[str, _Turn] = Recent()

    def __call__(self, row: Row) -> WorkloadRequest | None:
        """Read a row."""
        session = schema.text(row, "session")
        num_prompt_tokens = schema.count(row, ("input_tokens",))
        if num_prompt_tokens == 0:
            return None
        time_s = schema.duration_s(row, "t_s")
        last = self._sessions.get(session)
        turn = 0 if last is None else last.number + 1
        self._sessions.set(session, _Turn(turn, time_s))
        pause_s = 0.0 if last is None else max(0.0, time_s - last.end_s)
        return WorkloadRequest(
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=max(1, schema.count(row, ("output_tokens",))),
            tenant=schema.text(row, "agent"),
            session=session,
            turn=turn,
            think_time_s=round(pause_s, 6),
            segments=segments_of(schema.hash_ids(row), num_prompt_tokens, _LMCACHE_BLOCK_TOKENS),
        )


@dataclass(slots=True)
class _Run:
    """What is known of a run of an agent after one of its calls.

    Attributes:
        turn: the number of the call.
        start_s: when the call was sent.
        end_s: when its answer was complete.
        context_tokens: by whether it is a side chain, length of the last prompt.
        context: by whether it is a side chain, the number of its text.
    """

    turn: int = -1
    start_s: float = 0.0
    end_s: float = 0.0
    context_tokens: tuple[int, int] = (0, 0)
    context: tuple[int, int] = (0, 0)


class ClaudeCodeRows:
    """Calls of Claude Code agents (arXiv 2602.09345), prompts in full.

    Prompts of a run, and of its side chains, are one text that grows; one that is shorter than the
    one before starts another text. The time of tools comes from the file of tool calls beside that
    of model calls, which is held in memory; without it there is none. Answers are a lower bound.

    Args:
        path: the file of model calls.
    """

    COLUMNS = frozenset({"run", "seq", "start_s", "dur_s", "cache_read_tokens", "is_sidechain"})
    is_timed = False

    def __init__(self, path: Path) -> None:
        self._runs: Recent[str, _Run] = Recent()
        self._tools = _tool_spans(path.with_name(path.name.replace("llm_calls", "tool_calls")))

    def __call__(self, row: Row) -> WorkloadRequest | None:
        """Read a row."""
        run_id = schema.text(row, "run")
        prompt_parts = ("input_tokens", "cache_write_tokens", "cache_read_tokens")
        num_prompt_tokens = sum(schema.count(row, (name,)) for name in prompt_parts)
        if num_prompt_tokens == 0:
            return None
        start_s = schema.duration_s(row, "start_s")
        last = self._runs.get(run_id) or _Run()
        side = schema.count(row, ("is_sidechain",))
        context = list(last.context)
        context[side] += num_prompt_tokens < last.context_tokens[side]
        context_tokens = list(last.context_tokens)
        context_tokens[side] = num_prompt_tokens
        pause_s = max(0.0, start_s - last.end_s) if last.turn >= 0 else 0.0
        tool_end_s = self._tool_end_s(run_id, last.start_s, start_s)
        now = _Run(
            turn=last.turn + 1,
            start_s=start_s,
            end_s=start_s + schema.duration_s(row, "dur_s"),
            context_tokens=(context_tokens[0], context_tokens[1]),
            context=(context[0], context[1]),
        )
        self._runs.set(run_id, now)
        name = f"{run_id} {'side' if side else 'main'} {context[side]}"
        return WorkloadRequest(
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=max(1, schema.count(row, ("output_tokens",))),
            session=run_id,
            turn=now.turn,
            think_time_s=round(pause_s, 6),
            tool_time_s=round(min(pause_s, max(0.0, tool_end_s - last.end_s)), 6),
            segments=(Segment(name, num_prompt_tokens),),
        )

    def _tool_end_s(self, run_id: str, since_s: float, until_s: float) -> float:
        """Return when the last tool ended that began between two calls; 0 if none did."""
        spans = self._tools.get(run_id, [])
        begun = spans[bisect_left(spans, (since_s, 0.0)) : bisect_left(spans, (until_s, 0.0))]
        return max((end_s for _, end_s in begun), default=0.0)


def _tool_spans(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Read when tools of each run began and ended, in order."""
    spans: dict[str, list[tuple[float, float]]] = {}
    if not path.exists():
        return spans
    for _, row in numbered_rows(path):
        start_s = schema.duration_s(row, "start_s")
        span = (start_s, start_s + schema.duration_s(row, "dur_s"))
        spans.setdefault(schema.text(row, "run"), []).append(span)
    for run_spans in spans.values():
        run_spans.sort()
    return spans


def reader_for(path: Path, first: Row) -> RowReader:
    """Return what reads the rows of a file, told by the columns of the first."""
    columns = first.keys()
    if columns >= ClaudeCodeRows.COLUMNS:
        return ClaudeCodeRows(path)
    for kind in (AzureRows, BurstGPTRows, ShareGPTTurnRows, LMCacheAgentRows):
        if columns >= kind.COLUMNS:
            return kind()
    return SchemaRows(first)
