"""Traces of workloads: one schema to write, and the published ones to read, row by row.

Knows: files of rows, our schema, the columns of published traces, how prompts become hash ids.
Does not know: what traces are used for, statistics, where randomness comes from.

A trace is JSON lines (`.jsonl`) or CSV with a header (`.csv`), either also gzipped (`.gz`). Columns
go by these names, of which the first is the one that is written. The first four are those of
Mooncake's traces (FAST 2025), so that tools for one read the other:

    timestamp            arrival in ms; also timestamp_ms; in seconds: arrival_s, Timestamp
    input_length         tokens of the prompt; also num_prompt_tokens, prompt_tokens
    output_length        tokens of the answer; also num_output_tokens, output_tokens
    hash_ids             one id per started block of the prompt, equal ids mean equal text from the
                         start up to there
    hash_block_tokens    tokens of such a block, if not 512
    segments             [[key, tokens], ...], see `request.py`, where hash_ids say too little
    tenant, priority, session (also session_id), turn, continues, think_time_s, tool_time_s
    prompt, messages     the text, the token ids or the chat

Invariants:
    Reading holds one row at a time, and a bounded number of open sessions.
    What is written reads back as it was.
    Rows with an empty prompt or answer are failed requests of the recording and are left out.
    A row that cannot be understood is never dropped in silence: it is reported by its line.
"""

from evenflow.workloads.traces.files import BadRow, numbered_rows
from evenflow.workloads.traces.reading import TraceRows, iter_trace, read_trace
from evenflow.workloads.traces.writing import Layout, write_trace

__all__ = [
    "BadRow",
    "Layout",
    "TraceRows",
    "iter_trace",
    "numbered_rows",
    "read_trace",
    "write_trace",
]
