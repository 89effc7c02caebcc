"""The Python API on a real model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evenflow import LLM, SamplingParams
from evenflow.core.errors import (
    ConfigError,
    ContextLengthError,
    InvalidRequestError,
    KVMemoryError,
)
from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.engine.outputs import CompletionOutput, RequestOutput
from evenflow.execution.torch.model_runner import build_batch
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.scheduling.plan import StepPlan, TokenLogprobs

pytestmark = pytest.mark.model

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
PROMPTS = ["The capital of France is", "def add(a, b):", "One, two, three,"]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@torch.inference_mode()
def full_logprobs(llm: LLM, token_ids: list[int]) -> torch.Tensor:
    """Score every position in one pass, (num_tokens, vocab_size), in the engine's idle memory."""
    assert not llm.engine.has_work
    llm.engine.scheduler.kv.reset_prefix_cache()
    runner: Any = llm.engine._executor
    kv = KVCacheManager(256, 16, enable_prefix_caching=False)
    request = Request(RequestId("r"), token_ids, SamplingParams(), max_num_tokens=2048)
    kv.admit(request, 0)
    plan = StepPlan([request], [len(token_ids)], [kv.table(request.request_id)])
    hidden = runner._model.forward(build_batch(plan, 16), runner._attention)
    return torch.log_softmax(runner._model.logits(hidden), dim=-1)


def check_entries(entries: list[TokenLogprobs], expected: torch.Tensor, num_top: int) -> None:
    """Compare logprobs with rows of the full distribution."""
    assert len(entries) == len(expected)
    for entry, row in zip(entries, expected, strict=True):
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=2e-4)
        order = row.topk(num_top)
        logprobs = [logprob for _, logprob in entry.top]
        assert logprobs == pytest.approx(order.values.tolist(), abs=2e-4)
        assert len({token for token, _ in entry.top}) == num_top
        assert (entry.rank == 1) == (entry.token_id == entry.top[0][0])


def test_generate_returns_results_in_the_order_of_prompts(smollm2: LLM) -> None:
    params = [SamplingParams(temperature=0.0, max_tokens=n) for n in (9, 2, 5)]
    outputs = smollm2.generate(PROMPTS, params)
    assert [output.prompt for output in outputs] == PROMPTS
    assert [len(output.outputs[0].token_ids) for output in outputs] == [9, 2, 5]
    for output in outputs:
        assert isinstance(output, RequestOutput)
        (completion,) = output.outputs
        assert isinstance(completion, CompletionOutput)
        assert output.finished
        assert output.prompt_token_ids == smollm2.tokenizer.encode(output.prompt or "")
        assert completion.text == smollm2.tokenizer.decode(completion.token_ids)
        assert completion.metrics is not None
        assert completion.metrics.num_output_tokens == len(completion.token_ids)
    assert "Paris" in outputs[0].outputs[0].text


def test_generate_takes_one_text_one_list_of_ids_or_nothing(smollm2: LLM) -> None:
    (of_text,) = smollm2.generate(PROMPTS[0], GREEDY)
    (of_ids,) = smollm2.generate(smollm2.tokenizer.encode(PROMPTS[0]), GREEDY)
    assert of_ids.prompt is None
    assert of_ids.outputs[0].token_ids == of_text.outputs[0].token_ids
    assert smollm2.generate([]) == smollm2.chat([]) == []


def test_chat_answers_through_the_template(smollm2: LLM) -> None:
    conversations = [[user("What is 2+2?")], [user("Name a colour.")]]
    outputs = smollm2.chat(conversations, GREEDY)
    (alone,) = smollm2.chat(conversations[1], GREEDY)
    assert len(outputs) == 2
    assert outputs[1].outputs[0].text == alone.outputs[0].text
    assert outputs[0].prompt_token_ids == smollm2.render_chat(conversations[0])


def test_generate_refuses_a_wrong_number_of_params_and_leaves_nothing_behind(smollm2: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="3 prompts came with 1 sampling"):
        smollm2.generate(PROMPTS, [GREEDY])
    with pytest.raises(ContextLengthError):
        smollm2.generate([PROMPTS[0], [1] * 3000], GREEDY)
    assert not smollm2.engine.scheduler.has_work


def test_stream_equals_generate(smollm2: LLM) -> None:
    params = SamplingParams(temperature=0.8, seed=5, n=2, max_tokens=8)
    outputs = smollm2.generate(PROMPTS, params)
    streamed = [[CompletionOutput(0), CompletionOutput(1)] for _ in PROMPTS]
    for position, delta in smollm2.stream(PROMPTS, params):
        streamed[position][delta.index].add(delta)
    for output, completions in zip(outputs, streamed, strict=True):
        assert [c.token_ids for c in completions] == [c.token_ids for c in output.outputs]
        assert [c.text for c in completions] == [c.text for c in output.outputs]
        assert completions[0].token_ids != completions[1].token_ids


def test_streams_interleaved_lose_nothing(smollm2: LLM) -> None:
    expected = [smollm2.generate(prompt, GREEDY)[0].outputs[0].text for prompt in PROMPTS[:2]]
    streams = [smollm2.stream(prompt, GREEDY) for prompt in PROMPTS[:2]]
    texts = ["", ""]
    open_streams = [0, 1]
    for turn in range(100):
        if not open_streams:
            break
        which = open_streams[turn % 3 % len(open_streams)]
        item = next(streams[which], None)
        if item is None:
            open_streams.remove(which)
        else:
            texts[which] += item[1].text
    assert texts == expected


def test_generate_inside_a_stream_disturbs_neither(smollm2: LLM) -> None:
    expected = [output.outputs[0].text for output in smollm2.generate(PROMPTS[:2], GREEDY)]
    text = ""
    for _, delta in smollm2.stream(PROMPTS[0], GREEDY):
        text += delta.text
        if delta.finish_reason is None:
            assert smollm2.generate(PROMPTS[1], GREEDY)[0].outputs[0].text == expected[1]
    assert text == expected[0]


def test_stream_left_early_aborts_and_frees_memory(smollm2: LLM) -> None:
    kv = smollm2.engine.scheduler.kv
    stream = smollm2.stream(PROMPTS, SamplingParams(max_tokens=500, ignore_eos=True, n=2))
    next(stream)
    assert smollm2.engine.scheduler.has_work
    stream.close()
    assert not smollm2.engine.scheduler.has_work
    assert smollm2._inbox == {}
    kv.reset_prefix_cache()
    assert kv.stats().num_free == kv.num_blocks
    kv.check_integrity()


def test_stream_never_begun_leaves_nothing_behind(smollm2: LLM) -> None:
    stream = smollm2.stream(PROMPTS, GREEDY)
    stream.close()
    del stream
    assert not smollm2.engine.scheduler.has_work
    assert smollm2._inbox == {}


def test_logprobs_equal_a_full_forward_pass(smollm2: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=12, logprobs=3)
    (output,) = smollm2.generate(PROMPTS[0], params)
    (completion,) = output.outputs
    assert completion.logprobs is not None
    assert [entry.token_id for entry in completion.logprobs] == completion.token_ids
    expected = full_logprobs(smollm2, output.prompt_token_ids + completion.token_ids)
    check_entries(completion.logprobs, expected[len(output.prompt_token_ids) - 1 : -1], 3)


@pytest.mark.parametrize("length", [2, 40, 400], ids=["short", "one step", "several chunks"])
def test_prompt_logprobs_equal_a_full_forward_pass(smollm2: LLM, length: int) -> None:
    prompt = (smollm2.tokenizer.encode(" ".join(PROMPTS)) * 60)[:length]
    smollm2.generate(prompt, GREEDY)  # the prefix cache must not hide any of it
    params = SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=2)
    (output,) = smollm2.generate([prompt], params)
    assert output.prompt_logprobs is not None
    first, *entries = output.prompt_logprobs
    assert first is None
    scored = [entry for entry in entries if entry is not None]
    assert [entry.token_id for entry in scored] == prompt[1:]
    check_entries(scored, full_logprobs(smollm2, prompt)[:-1], 2)


def test_prompt_logprobs_of_a_single_token_are_empty_but_there(smollm2: LLM) -> None:
    (output,) = smollm2.generate([[504]], SamplingParams(max_tokens=1, prompt_logprobs=1))
    assert output.prompt_logprobs == [None]


def test_chat_of_several_turns_reports_cached_tokens(smollm2: LLM) -> None:
    smollm2.engine.scheduler.kv.reset_prefix_cache()
    messages = [user("Tell me a story about a fox and a raven who share a piece of cheese.")]
    (first,) = smollm2.chat(messages, SamplingParams(temperature=0.0, max_tokens=40))
    assert first.num_cached_tokens == 0
    messages += [{"role": "assistant", "content": first.outputs[0].text}, user("And then?")]
    (second,) = smollm2.chat(messages, GREEDY)
    num_first = len(first.prompt_token_ids) + len(first.outputs[0].token_ids)
    assert num_first - 32 < second.num_cached_tokens <= num_first
    smollm2.engine.scheduler.kv.reset_prefix_cache()
    (afresh,) = smollm2.chat(messages, GREEDY)
    assert afresh.outputs[0].token_ids == second.outputs[0].token_ids


def test_seeds_make_sampled_tokens_reproducible(smollm2: LLM) -> None:
    def tokens(**params: Any) -> list[list[int]]:
        sampling = SamplingParams(temperature=1.0, max_tokens=12, **params)
        (output,) = smollm2.generate(PROMPTS[0], sampling)
        return [completion.token_ids for completion in output.outputs]

    assert tokens(seed=3) == tokens(seed=3)
    assert tokens(seed=3) != tokens(seed=4)
    assert tokens(seed=3, n=3) == tokens(seed=3, n=3)
    assert tokens(seed=3, n=3)[0] == tokens(seed=3)[0]
    assert tokens() != tokens()


def test_start_refuses_too_little_kv_memory_with_the_number_that_would_do() -> None:
    with pytest.raises(KVMemoryError) as caught:
        LLM("smollm2", max_model_len=2048, kv_cache_memory="8MiB", kv_cache_dtype="fp32")
    needed = 2048 * 30 * 2 * 3 * 64 * 4  # tokens x layers x K and V x heads x entries x bytes
    assert f"{needed} bytes" in caught.value.why
    assert f"--kv-cache-memory to at least {needed // 2**20}MiB" in caught.value.fix


def test_start_refuses_an_unknown_setting() -> None:
    with pytest.raises(ConfigError, match="max_num_sequences"):
        LLM("smollm2", max_num_sequences=3)
