"""Structured output through the whole engine, on a tiny model with made-up weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from evenflow import LLM, SamplingParams
from evenflow.core.errors import GenerationError, InvalidRequestError
from evenflow.core.structured import StructuredOutput, TokenGrammar
from evenflow.engine.batch_file import BatchFile
from evenflow.engine.batch_run import BatchRun
from support.small_tokenizers import byte_level_backend

BACKEND = byte_level_backend()
END = BACKEND.token_to_id("<|begin|>")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["fox", "dog"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["kind", "age", "tags"],
    "additionalProperties": False,
}
JSON = StructuredOutput("json_schema", json.dumps(SCHEMA))
LETTERS = StructuredOutput("regex", "[a-z]{4,8}")
PROMPTS = [f"The quick brown fox, {number}" for number in range(8)]


def is_valid(text: str) -> bool:
    value = json.loads(text)
    return (
        list(value) == ["kind", "age", "tags"]
        and value["kind"] in ("fox", "dog")
        and type(value["age"]) is int
        and 0 <= value["age"] <= 99
        and len(value["tags"]) <= 3
        and all(type(tag) is bool for tag in value["tags"])
    )


def make_llm(path: Path, **settings: Any) -> LLM:
    settings = {"num_blocks_override": 256, **settings}
    return LLM(str(path), load_format="dummy", cache=path / "cache", **settings)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    BACKEND.save(str(path / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": BACKEND.get_vocab_size() + 5,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
        "eos_token_id": END,
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def llm(model: Path) -> LLM:
    return make_llm(model)


def hot(structured: StructuredOutput | None = None, **params: Any) -> SamplingParams:
    params = {"temperature": 1.5, "seed": 7, "max_tokens": 400, **params}
    return SamplingParams(structured=structured, **params)


def test_generate_keeps_to_the_schema_when_sampling_is_hot(llm: LLM) -> None:
    outputs = llm.generate(PROMPTS, [hot(JSON, seed=seed) for seed in range(8)])
    assert [output.outputs[0].finish_reason for output in outputs] == ["stop"] * 8
    texts = [output.outputs[0].text for output in outputs]
    assert all(is_valid(text) for text in texts)
    assert len(set(texts)) > 1


def test_generate_keeps_to_the_schema_when_greedy_and_penalised(llm: LLM) -> None:
    params = hot(JSON, temperature=0.0, repetition_penalty=2.0, logit_bias={END: 100.0})
    [output] = llm.generate(PROMPTS[0], params)
    assert is_valid(output.outputs[0].text)


def test_generate_keeps_to_the_schema_when_the_tail_is_cut(llm: LLM) -> None:
    [output] = llm.generate(PROMPTS[0], hot(JSON, top_k=3, top_p=0.5, min_p=0.1))
    assert is_valid(output.outputs[0].text)


def test_generate_ends_with_the_token_that_completes_the_text(llm: LLM) -> None:
    choice = StructuredOutput("choice", '["ab", "cd"]')
    [output] = llm.generate(PROMPTS[0], hot(choice))
    completion = output.outputs[0]
    assert completion.text in ("ab", "cd")
    assert END not in completion.token_ids
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)


def test_generate_takes_the_end_token_where_the_text_could_go_on(llm: LLM) -> None:
    [output] = llm.generate(PROMPTS[0], hot(LETTERS, logit_bias={END: 100.0}))
    completion = output.outputs[0]
    assert completion.token_ids[-1] == END
    assert len(completion.text) >= 4
    assert re.fullmatch("[a-z]{4,8}", completion.text)


def test_generate_says_stop_when_the_text_is_complete_at_the_length_limit(llm: LLM) -> None:
    choice = StructuredOutput("regex", "a{3}")
    [output] = llm.generate(PROMPTS[0], hot(choice))
    num_tokens = len(output.outputs[0].token_ids)
    [again] = llm.generate(PROMPTS[0], hot(choice, max_tokens=num_tokens))
    assert again.outputs[0].finish_reason == "stop"


def test_generate_says_length_when_max_tokens_cuts_the_text_off(llm: LLM) -> None:
    [output] = llm.generate(PROMPTS[0], hot(JSON, max_tokens=3))
    assert output.outputs[0].finish_reason == "length"


@pytest.mark.parametrize(
    "params",
    [
        {"ignore_eos": True},
        {"min_tokens": 300},
        {"stop": ("a", "e", '"')},
        {"stop_token_ids": tuple(range(3, 200))},
    ],
    ids=str,
)
def test_generate_lets_the_grammar_alone_decide_where_a_text_ends(
    llm: LLM, params: dict[str, Any]
) -> None:
    plain, changed = llm.generate(PROMPTS[:1] * 2, [hot(JSON), hot(JSON, **params)])
    assert changed.outputs[0].token_ids == plain.outputs[0].token_ids
    assert changed.outputs[0].finish_reason == "stop"


def test_generate_gives_each_completion_a_grammar_of_its_own(llm: LLM) -> None:
    [output] = llm.generate(PROMPTS[0], hot(JSON, n=5))
    texts = [completion.text for completion in output.outputs]
    assert all(is_valid(text) for text in texts)
    assert len(set(texts)) > 1


def test_generate_draws_the_same_tokens_after_preemptions(llm: LLM, model: Path) -> None:
    words = StructuredOutput("regex", "([a-z]{3}, ){10}!")
    params = [hot(words, seed=seed) for seed in range(4)]
    small = make_llm(model, num_blocks_override=6, max_model_len=96)
    alone = [llm.generate(PROMPTS[row], params[row])[0] for row in range(4)]
    crowded = small.generate(PROMPTS[:4], params)
    assert small.engine.scheduler.num_preemptions > 0
    for one, other in zip(alone, crowded, strict=True):
        assert re.fullmatch(words.spec, one.outputs[0].text)
        assert one.outputs[0].token_ids == other.outputs[0].token_ids


def test_generate_leaves_free_requests_as_they_are_beside_constrained_ones(llm: LLM) -> None:
    free = [hot(seed=seed, max_tokens=40) for seed in range(4)]
    alone = llm.generate(PROMPTS[:4], free)
    mixed = llm.generate(PROMPTS, [*free, *(hot(JSON, seed=seed) for seed in range(4))])
    for one, other in zip(alone, mixed, strict=False):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
    assert all(is_valid(output.outputs[0].text) for output in mixed[4:])


def test_logprobs_are_those_of_the_unmodified_logits(llm: LLM) -> None:
    greedy = {"temperature": 0.0, "logprobs": 2, "max_tokens": 1}
    digit = StructuredOutput("regex", "[0-9]")
    free, bound = llm.generate(PROMPTS[:1] * 2, [hot(**greedy), hot(digit, **greedy)])
    [at_free], [at_bound] = free.outputs[0].logprobs or (), bound.outputs[0].logprobs or ()
    assert at_bound.token_id != at_free.token_id
    assert at_bound.top == at_free.top
    assert at_bound.rank > 1


class StuckGrammar:
    """Comes to a point from which nothing leads on."""

    def __init__(self, vocab_size: int, *, is_broken: bool) -> None:
        self.vocab_size = vocab_size
        self._is_broken = is_broken
        self._num_accepted = 0

    def fill_mask(self, row: npt.NDArray[np.uint32]) -> None:
        if self._num_accepted == 2 and self._is_broken:
            raise GenerationError("the grammar cannot go on", why="the test says so")
        row[:] = 0
        row[3] = self._num_accepted < 2

    def accept(self, token_id: int) -> bool:
        self._num_accepted += 1
        return token_id == 96

    @property
    def is_complete(self) -> bool:
        return False

    def fork(self) -> TokenGrammar:
        return StuckGrammar(self.vocab_size, is_broken=self._is_broken)


@pytest.mark.parametrize(
    ("is_broken", "why"), [(True, "the test says so"), (False, "allows no token")]
)
def test_request_fails_alone_when_its_grammar_leads_nowhere(
    llm: LLM, is_broken: bool, why: str
) -> None:
    vocab_size = llm.engine.limits.vocab_size
    [alone] = llm.generate(PROMPTS[0], hot(max_tokens=8))
    llm.engine.add_request(
        "stuck", [1, 2, 3], hot(JSON), grammar=StuckGrammar(vocab_size, is_broken=is_broken)
    )
    stuck = []
    tokens = []
    llm.engine.add_request("free", llm.tokenizer.encode(PROMPTS[0]), hot(max_tokens=8))
    while llm.engine.has_work:
        for delta in llm.engine.step():
            (stuck if delta.request_id == "stuck" else tokens).append(delta)
    assert [delta.token_id for delta in stuck] == [96, 96, None]
    assert stuck[-1].finish_reason == "error"
    assert why in (stuck[-1].error or "")
    assert [delta.token_id for delta in tokens] == alone.outputs[0].token_ids


def test_add_request_refuses_params_that_come_without_their_grammar(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="compile_grammar"):
        llm.engine.add_request("none", [1], hot(JSON))


def test_generate_names_structured_when_its_schema_is_wrong(llm: LLM) -> None:
    wrong = StructuredOutput("json_schema", '{"type": "nothing"}')
    with pytest.raises(InvalidRequestError, match="Invalid type") as refused:
        llm.generate(PROMPTS[0], hot(wrong))
    assert refused.value.param == "structured"
    assert not llm.engine.has_work


@pytest.fixture
def answers(llm: LLM, tmp_path: Path) -> dict[str, Any]:
    """Answer a batch file of a sound request and one with a broken schema."""
    bodies = {
        "sound": {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA}},
        "broken": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}},
    }
    lines = [
        {
            "custom_id": name,
            "url": "/v1/completions",
            "body": {"prompt": "fox", "max_tokens": 400, "seed": 1, "response_format": form},
        }
        for name, form in bodies.items()
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    batch = BatchFile(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    list(BatchRun(batch, llm, lambda: 0.0).answer())
    written = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    return {line["custom_id"]: line for line in written}


def test_batch_file_keeps_to_the_schema(answers: dict[str, Any]) -> None:
    assert is_valid(answers["sound"]["response"]["body"]["choices"][0]["text"])


def test_batch_file_answers_400_when_a_schema_is_wrong(answers: dict[str, Any]) -> None:
    assert answers["broken"]["response"]["status_code"] == 400
    assert answers["broken"]["error"]["param"] == "response_format"
