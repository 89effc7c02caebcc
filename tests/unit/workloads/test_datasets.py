from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads import datasets
from evenflow.workloads.request import WorkloadRequest


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def count_words(text: str) -> int:
    return len(text.split())


def plain(num: int) -> list[WorkloadRequest]:
    return [WorkloadRequest(num_prompt_tokens=1, num_output_tokens=1) for _ in range(num)]


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_random_requests_have_exact_lengths_without_a_range() -> None:
    requests = datasets.random_requests(5, rng(), input_len=30, output_len=9, prefix_len=4)
    assert {(r.num_prompt_tokens, r.num_output_tokens) for r in requests} == {(34, 9)}
    assert {r.segments[0] for r in requests} == {("prefix", 4)}


def test_random_requests_fill_the_range_of_lengths_evenly() -> None:
    requests = datasets.random_requests(9000, rng(), input_len=10, output_len=20, range_ratio=0.2)
    counts = Counter(r.num_prompt_tokens for r in requests)
    assert sorted(counts) == [8, 9, 10, 11, 12]
    assert min(counts.values()) > 1600
    assert {r.num_output_tokens for r in requests} == set(range(16, 25))


def test_prefix_repetition_uses_each_prefix_equally_often() -> None:
    requests = datasets.prefix_repetition_requests(
        40, rng(), prefix_len=8, suffix_len=2, num_prefixes=4, output_len=5
    )
    prefixes = [r.segments[0].key for r in requests]
    assert set(Counter(prefixes).values()) == {10}
    assert len({r.segments[1].key for r in requests}) == 40
    assert len(set(pairwise(prefixes))) > 4, "prefixes come in random order"


def test_lognormal_requests_have_the_medians_of_sharegpt() -> None:
    requests = datasets.lognormal_requests(20_000, rng())
    prompts, outputs = np.array([(r.num_prompt_tokens, r.num_output_tokens) for r in requests]).T
    assert np.median(prompts) == pytest.approx(42, rel=0.05)
    assert np.median(outputs) == pytest.approx(229, rel=0.05)
    assert (prompts.min(), prompts.max(), outputs.max()) == (4, 1024, 1024)


def conversation(num_turns: int, length: int, mark: str) -> dict[str, object]:
    text = " ".join([mark] * length)
    turn = [{"from": "human", "value": text}, {"from": "gpt", "value": f"{text} {mark}"}]
    return {"conversations": turn * num_turns}


def test_sharegpt_takes_conversations_of_usual_length(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    lengths = [conversation(1, 3, "short"), conversation(1, 50, "fit"), conversation(1, 1025, "x")]
    path.write_text(json.dumps(lengths))
    requests = datasets.sharegpt_requests(2, rng(), path=path, count_tokens=count_words)
    assert [(r.num_prompt_tokens, r.num_output_tokens) for r in requests] == [(50, 51)] * 2


def test_sharegpt_takes_whole_conversations_when_there_are_turns(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([conversation(1, 9, "one"), conversation(3, 9, "three")]))
    requests = datasets.sharegpt_requests(
        2, rng(), path=path, count_tokens=count_words, num_turns=2, output_len=7
    )
    assert [str(r.prompt)[:5] for r in requests] == ["three", "three"]
    assert {r.num_output_tokens for r in requests} == {7}


def test_custom_requests_come_in_order_and_start_again(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "custom.jsonl",
        {"prompt": "one two", "output_tokens": 3},
        {"prompt": [5, 6, 7]},
        {"messages": [{"role": "user", "content": "a b c d"}]},
    )
    requests = datasets.custom_requests(4, path=path, count_tokens=count_words, output_len=8)
    assert [(r.num_prompt_tokens, r.num_output_tokens) for r in requests] == [
        (2, 3),
        (3, 8),
        (4, 8),
        (2, 3),
    ]
    assert requests[1].prompt == (5, 6, 7)


def test_custom_requests_name_the_line_that_has_no_prompt(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "custom.jsonl", {"prompt": "a"}, {"text": "b"})
    with pytest.raises(InvalidRequestError, match=r'line 2 .* has no "prompt"'):
        datasets.custom_requests(2, path=path, count_tokens=count_words, output_len=8)


def test_sessions_are_consecutive_requests() -> None:
    sessions = datasets.as_sessions(plain(5), 2, think_time_s=1.5)
    assert [r.session for r in sessions] == [f"session {index}" for index in (0, 0, 1, 1, 2)]
    assert [r.continues for r in sessions] == [False, True, False, True, False]
    assert [r.think_time_s for r in sessions] == [0.0, 1.5, 0.0, 1.5, 0.0]


def test_tenants_get_their_shares_in_random_order() -> None:
    tenants = [r.tenant for r in datasets.with_tenants(plain(300), {"a": 2, "b": 1}, rng())]
    assert Counter(tenants) == {"a": 200, "b": 100}
    assert tenants != sorted(tenants)


def test_tenants_own_whole_sessions() -> None:
    sessions = datasets.as_sessions(plain(40), 4, 0.0)
    owners = {
        (r.session, r.tenant) for r in datasets.with_tenants(sessions, {"a": 1, "b": 1}, rng())
    }
    assert len(owners) == 10
    assert Counter(tenant for _, tenant in owners) == {"a": 5, "b": 5}
