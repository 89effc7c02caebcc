"""Data sets: functions that return the requests of a workload, without arrival times.

All take the number of requests and a random generator. Lengths are in tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.distributions import Lengths, LogNormal
from evenflow.workloads.request import Segment, WorkloadRequest
from evenflow.workloads.text import TokenCounter
from evenflow.workloads.traces import numbered_rows

# Mean and deviation of the logarithms of the ShareGPT lengths published with NanoFlow
# (efeslab/Nanoflow, datasets/traces/sharegpt.csv, Llama-2 tokens), after the usual filter: both
# parts at least 4 tokens, the prompt at most 1,024, together at most 2,048. The two are nearly
# independent there (correlation of the logarithms 0.10), so they are drawn apart.
SHAREGPT_PROMPT = Lengths(LogNormal(median=42.0, sigma=1.31), low=4, high=1024)
SHAREGPT_OUTPUT = Lengths(LogNormal(median=229.0, sigma=1.00), low=4, high=1024)
_SHAREGPT_MAX_TOTAL_TOKENS = 2048


def random_requests(
    num: int,
    rng: np.random.Generator,
    *,
    input_len: int,
    output_len: int,
    range_ratio: float = 0.0,
    prefix_len: int = 0,
) -> list[WorkloadRequest]:
    """Return prompts of random words.

    Args:
        num: how many.
        rng: where randomness comes from.
        input_len: mean length of a prompt, without the prefix.
        output_len: mean length of an answer.
        range_ratio: lengths are uniform in [mean * (1 - ratio), mean * (1 + ratio)].
        prefix_len: length of a prefix that all prompts share, in front of `input_len`.
    """
    inputs = _uniform(num, input_len, range_ratio, rng)
    outputs = _uniform(num, output_len, range_ratio, rng)
    prefix = (Segment("prefix", prefix_len),) if prefix_len else ()
    return [
        _of_segments((*prefix, Segment(f"random {index}", inputs[index])), outputs[index])
        for index in range(num)
    ]


def _uniform(num: int, mean: int, ratio: float, rng: np.random.Generator) -> list[int]:
    low, high = max(1, round(mean * (1 - ratio))), max(1, round(mean * (1 + ratio)))
    return [int(n) for n in rng.integers(low, high, size=num, endpoint=True)]


def prefix_repetition_requests(
    num: int,
    rng: np.random.Generator,
    *,
    prefix_len: int,
    suffix_len: int,
    num_prefixes: int,
    output_len: int,
) -> list[WorkloadRequest]:
    """Return prompts of a few prefixes, each repeated equally often, in random order."""
    return [
        _of_segments(
            (
                Segment(f"prefix {index % num_prefixes}", prefix_len),
                Segment(f"suffix {index}", suffix_len),
            ),
            output_len,
        )
        for index in rng.permutation(num)
    ]


def lognormal_requests(
    num: int,
    rng: np.random.Generator,
    *,
    prompt: Lengths = SHAREGPT_PROMPT,
    output: Lengths = SHAREGPT_OUTPUT,
    output_len: int | None = None,
) -> list[WorkloadRequest]:
    """Return prompts and answers of log-normal lengths, by default those of ShareGPT.

    `output_len` replaces the lengths of answers by one.
    """
    inputs = prompt.draw(num, rng)
    outputs = output.draw(num, rng) if output_len is None else [output_len] * num
    return [
        _of_segments((Segment(f"sharegpt {index}", inputs[index]),), outputs[index])
        for index in range(num)
    ]


def sharegpt_requests(
    num: int,
    rng: np.random.Generator,
    *,
    path: Path,
    count_tokens: TokenCounter,
    num_turns: int = 1,
    output_len: int | None = None,
) -> list[WorkloadRequest]:
    """Return questions of the real ShareGPT file, with the lengths of the answers given there.

    Args:
        num: how many requests.
        rng: chooses the conversations.
        path: a JSON list of {"conversations": [{"from": "human" or "gpt", "value"}, ...]}.
        count_tokens: measures questions and answers.
        num_turns: take so many questions of a conversation, as a session.
        output_len: ask for this many tokens instead.

    Raises:
        InvalidRequestError: the file cannot be read, or nothing in it passes the length filter.
    """
    conversations = _conversations(path)
    requests: list[WorkloadRequest] = []
    for index in rng.permutation(len(conversations)):
        pairs = list(_pairs(conversations[index]))[:num_turns]
        if len(pairs) < num_turns:
            continue
        turns = [
            WorkloadRequest(
                num_prompt_tokens=count_tokens(question),
                num_output_tokens=count_tokens(answer) if output_len is None else output_len,
                prompt=question,
            )
            for question, answer in pairs
        ]
        if all(map(_is_usual_length, turns)):
            requests += turns
        if len(requests) >= num:
            break
    return _repeated(requests, num, path)


def custom_requests(
    num: int, *, path: Path, count_tokens: TokenCounter, output_len: int | None
) -> list[WorkloadRequest]:
    """Return the prompts of a JSONL file in their order, from the start again if there are fewer.

    Args:
        num: how many requests.
        path: lines of {"prompt": text or token ids} or {"messages": [...]}, optionally with
            "output_tokens".
        count_tokens: measures prompts.
        output_len: length of the answers whose line has no "output_tokens".

    Raises:
        InvalidRequestError: the file cannot be read, or a line has no prompt or no length.
    """
    requests: list[WorkloadRequest] = []
    for number, row in numbered_rows(path):
        if len(requests) == num:
            break
        prompt, messages = row.get("prompt"), row.get("messages")
        num_output = row.get("output_tokens", output_len)
        if (prompt is None and messages is None) or num_output is None:
            missing = "output_tokens" if num_output is None else "prompt"
            raise InvalidRequestError(
                f'line {number} of {path} has no "{missing}"', param="dataset_path"
            )
        request = WorkloadRequest(
            num_prompt_tokens=_length(prompt if messages is None else messages, count_tokens),
            num_output_tokens=int(num_output),
            prompt=tuple(prompt) if isinstance(prompt, list) else prompt,
            messages=None if messages is None else tuple(messages),
        )
        requests.append(request)
    return _repeated(requests, num, path)


def as_sessions(
    requests: Sequence[WorkloadRequest], num_turns: int, think_time_s: float
) -> list[WorkloadRequest]:
    """Make every `num_turns` consecutive requests one conversation."""
    if num_turns == 1:
        return list(requests)
    return [
        replace(
            request,
            session=f"session {index // num_turns}",
            turn=index % num_turns,
            continues=index % num_turns > 0,
            think_time_s=think_time_s if index % num_turns else 0.0,
        )
        for index, request in enumerate(requests)
    ]


def with_tenants(
    requests: Sequence[WorkloadRequest], shares: dict[str, float], rng: np.random.Generator
) -> list[WorkloadRequest]:
    """Give requests to tenants in random order; a session belongs to one of them.

    Args:
        requests: those of a session count as one.
        shares: by tenant, its share of the requests, in any unit. Met exactly but for rounding.
        rng: chooses the order.
    """
    keys = list(dict.fromkeys(_owner(index, request) for index, request in enumerate(requests)))
    bounds = np.cumsum(list(shares.values())) / sum(shares.values())
    tenants = list(shares)
    places = rng.permutation((np.arange(len(keys)) + 0.5) / len(keys))
    chosen = dict(zip(keys, np.searchsorted(bounds, places), strict=True))
    return [
        replace(request, tenant=tenants[chosen[_owner(index, request)]])
        for index, request in enumerate(requests)
    ]


def _owner(index: int, request: WorkloadRequest) -> str | int:
    return index if request.session is None else request.session


def _of_segments(segments: tuple[Segment, ...], num_output: int) -> WorkloadRequest:
    return WorkloadRequest(
        num_prompt_tokens=sum(segment.num_tokens for segment in segments),
        num_output_tokens=num_output,
        segments=segments,
    )


def _conversations(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequestError(
            f"{path} cannot be read", param="dataset_path", why=str(error)
        ) from error
    return content if isinstance(content, list) else []


def _pairs(entry: Any) -> Iterator[tuple[str, str]]:
    """Yield (question, answer) of a conversation."""
    messages = entry.get("conversations", ()) if isinstance(entry, dict) else ()
    for question, answer in zip(messages[::2], messages[1::2], strict=False):
        yield str(question["value"]), str(answer["value"])


def _is_usual_length(request: WorkloadRequest) -> bool:
    num_prompt, num_output = request.num_prompt_tokens, request.num_output_tokens
    return (
        min(num_prompt, num_output) >= SHAREGPT_PROMPT.low
        and num_prompt <= SHAREGPT_PROMPT.high
        and num_prompt + num_output <= _SHAREGPT_MAX_TOTAL_TOKENS
    )


def _length(prompt: Any, count_tokens: TokenCounter) -> int:
    """Return the tokens of a text, of token ids, or of the contents of a chat."""
    if isinstance(prompt, str):
        return count_tokens(prompt)
    if prompt and isinstance(prompt[0], dict):
        return sum(count_tokens(str(message.get("content", ""))) for message in prompt)
    return len(prompt)


def _repeated(requests: list[WorkloadRequest], num: int, path: Path) -> list[WorkloadRequest]:
    if not requests:
        raise InvalidRequestError(
            f"{path} holds no usable prompt",
            param="dataset_path",
            why="nothing in it has the shape and the lengths that this kind of data set needs",
        )
    return [requests[index % len(requests)] for index in range(num)]
