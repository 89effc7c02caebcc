"""A session's second turn on the real model finds all of the first, whatever came in between."""

from __future__ import annotations

import pytest

from evenflow import LLM
from evenflow.core.ids import DEFAULT_TENANT
from evenflow.core.sampling import SamplingParams

BLOCK_SIZE = 16


def turn(llm: LLM, tokens: list[int], session_id: str | None = None) -> tuple[list[int], int]:
    """Return the output tokens, and how many prompt tokens were found in the cache."""
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    llm.engine.add_request("r", tokens, params, session_id=session_id)
    output: list[int] = []
    num_cached = 0
    while llm.engine.has_work:
        for delta in llm.engine.step():
            output.append(delta.token_id)
            num_cached = delta.metrics.num_cached_tokens if delta.metrics else 0
    return output, num_cached


@pytest.mark.model
def test_second_turn_finds_the_first_after_a_flood_only_in_a_session() -> None:
    llm = LLM("smollm2", num_blocks_override=16, max_model_len=128, kv_host_memory="0")
    session = llm.engine.sessions.open(DEFAULT_TENANT, 600.0)
    first = llm.tokenizer.encode("The capital of France is Paris. The capital of Italy is" * 3)
    answers = []
    for session_id in (None, session.session_id):
        output, _ = turn(llm, first, session_id)
        for number in range(3):
            turn(llm, [number * 211 + i for i in range(100, 210)])
        second = [*first, *output, *llm.tokenizer.encode(" And then?")]
        answer, num_cached = turn(llm, second, session_id)
        expected = (len(first) + len(output) - 1) // BLOCK_SIZE * BLOCK_SIZE
        assert num_cached == (expected if session_id else 0)
        answers.append(answer)
    assert answers[0] == answers[1]
