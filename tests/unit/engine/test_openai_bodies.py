from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.core.errors import InvalidRequestError
from evenflow.engine.openai import CHAT, COMPLETIONS, Prompt, parse_request, response_body
from evenflow.engine.outputs import CompletionOutput, RequestMetrics, RequestOutput
from evenflow.scheduling.plan import TokenLogprobs
from evenflow.tokenization.tool_calls import ToolCalling
from support.text_engine import spell, tokenizer

MESSAGES = [{"role": "user", "content": "Hi"}]


def parse_completion(**fields: Any) -> Any:
    return parse_request(
        COMPLETIONS, {"prompt": "Hi", **fields}, tokenizer(), ToolCalling(tokenizer())
    )


def parse_chat(**fields: Any) -> Any:
    return parse_request(
        CHAT, {"messages": MESSAGES, **fields}, tokenizer(), ToolCalling(tokenizer())
    )


def test_parse_request_reads_a_completion() -> None:
    parsed = parse_completion(
        model="m", max_tokens=5, stop=["a", "b"], logit_bias={"7": -1}, logprobs=3, echo=True,
        priority=-2, user=None, top_k=-1, seed=9,
    )  # fmt: skip
    params = parsed.params
    assert parsed.prompts == [Prompt("Hi", tokenizer().encode("Hi"))]
    assert (parsed.echo, parsed.priority) == (True, -2)
    assert (params.max_tokens, params.stop, params.logprobs) == (5, ("a", "b"), 3)
    assert (params.logit_bias, params.top_k, params.seed) == ({7: -1}, 0, 9)


def test_parse_request_takes_prompts_of_token_ids() -> None:
    parsed = parse_completion(prompt=[3, 1, 2])
    assert parsed.prompts == [Prompt(None, [3, 1, 2])]


def test_parse_request_takes_several_prompts() -> None:
    parsed = parse_completion(prompt=["a", "b"])
    assert [prompt.text for prompt in parsed.prompts] == ["a", "b"]
    assert parse_completion(prompt=[[1], [2, 3]]).num_prompt_tokens == 3


def test_parse_request_reads_a_chat_through_the_template() -> None:
    parsed = parse_chat(max_completion_tokens=4, logprobs=True, top_logprobs=2, stop="x")
    assert tokenizer().decode(parsed.prompts[0].token_ids, skip_special_tokens=False) == (
        tokenizer().apply_chat_template(MESSAGES)
    )
    params = parsed.params
    assert (params.max_tokens, params.logprobs, params.stop) == (4, 2, ("x",))
    assert parse_chat(logprobs=True).params.logprobs == 0
    assert parse_chat(top_logprobs=2).params.logprobs is None


@pytest.mark.parametrize(
    ("url", "body", "param"),
    [
        ("/v1/embeddings", {}, "url"),
        (None, {}, "url"),
        (["/v1/completions"], {}, "url"),
        (COMPLETIONS, None, "body"),
        (COMPLETIONS, [], "body"),
        (COMPLETIONS, {}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", [1]] * 600}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", True]}, "prompt"),
        (COMPLETIONS, {"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
        (COMPLETIONS, {"prompt": "a", "priority": "urgent"}, "priority"),
        (COMPLETIONS, {"prompt": [True]}, "prompt"),
        (COMPLETIONS, {"prompt": "\ud800"}, "prompt"),
        (COMPLETIONS, {"prompt": "a", "messages": []}, "messages"),
        (COMPLETIONS, {"prompt": "a", "colour": "red"}, "colour"),
        (COMPLETIONS, {"prompt": "a", "temperature": "hot"}, "temperature"),
        (COMPLETIONS, {"prompt": "a", "logprobs": True}, "logprobs"),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        (COMPLETIONS, {"prompt": "a", "logit_bias": [1]}, "logit_bias"),
        (COMPLETIONS, {"prompt": "a", "priority": 1.5}, "priority"),
        (COMPLETIONS, {"prompt": "a", "echo": "yes"}, "echo"),
        (CHAT, {}, "messages"),
        (CHAT, {"messages": "Hi"}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"content": "no role"}]}, "messages"),
        (CHAT, {"messages": MESSAGES, "prompt": "a"}, "prompt"),
        (CHAT, {"messages": MESSAGES, "logprobs": 5}, "logprobs"),
        (CHAT, {"messages": MESSAGES, "chat_template_kwargs": []}, "chat_template_kwargs"),
        (CHAT, {"messages": MESSAGES, "chat_template_kwargs": {"messages": 1}},
         "chat_template_kwargs"),
        (CHAT, {"messages": MESSAGES, "chat_template_kwargs": {"self": 1}},
         "chat_template_kwargs"),
    ],
)  # fmt: skip
def test_parse_request_names_the_param_of_a_bad_value(url: Any, body: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(url, body, tokenizer(), ToolCalling(tokenizer()))
    assert caught.value.param == param


FIELDS = [
    "prompt", "messages", "logprobs", "top_logprobs", "stop", "stop_token_ids", "logit_bias",
    "echo", "priority", "chat_template_kwargs", "max_completion_tokens", "n", "seed", "model",
]  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "self", "tools", "1"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    url=st.sampled_from([CHAT, COMPLETIONS]),
    body=st.dictionaries(st.sampled_from(FIELDS), json_values),
)
def test_parse_request_refuses_any_json_with_nothing_but_its_own_error(
    url: str, body: dict[str, Any]
) -> None:
    base: dict[str, Any] = {"messages": MESSAGES} if url == CHAT else {"prompt": "Hi"}
    blamed = set()
    try:
        parse_request(url, base | body, tokenizer(), ToolCalling(tokenizer()))
    except InvalidRequestError as error:
        blamed.add(error.param)
    assert None not in blamed


def make_output() -> RequestOutput:
    ids = spell("né")
    entries = [TokenLogprobs(i, -0.5, 1, ((i, -0.5), (ids[0], -2.0))) for i in ids]
    metrics = RequestMetrics(0.0, 1.0, 2.0, len(ids), 3, 0)
    first = CompletionOutput(0, "né", ids, entries, "stop", "END", metrics)
    second = CompletionOutput(1, "n", ids[:1], entries[:1], "length", None, metrics)
    return RequestOutput("r1", "Hi", tokenizer().encode("Hi"), [first, second])


def body_of(parsed: Any) -> dict[str, Any]:
    return response_body(
        parsed,
        [make_output()],
        request_id="r1",
        model="m",
        created=1700000000,
        tokenizer=tokenizer(),
    )


def test_response_body_of_a_completion_is_openais() -> None:
    body = body_of(parse_completion(logprobs=2, n=2))
    num_prompt, num_tokens = len(tokenizer().encode("Hi")), len(spell("né"))
    assert {key: body[key] for key in ("id", "object", "created", "model")} == {
        "id": "r1",
        "object": "text_completion",
        "created": 1700000000,
        "model": "m",
    }
    assert body["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_tokens + 1,
        "total_tokens": num_prompt + num_tokens + 1,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    first, second = body["choices"]
    assert (first["index"], first["text"], first["finish_reason"]) == (0, "né", "stop")
    assert (second["index"], second["text"], second["finish_reason"]) == (1, "n", "length")
    assert first["logprobs"]["tokens"][0] == "n"
    assert first["logprobs"]["token_logprobs"] == [-0.5] * num_tokens
    assert first["logprobs"]["top_logprobs"][0] == {"n": -2.0}


def test_response_body_puts_an_echoed_prompt_first() -> None:
    assert body_of(parse_completion(echo=True))["choices"][0]["text"] == "Hiné"


def test_response_body_of_a_chat_is_openais() -> None:
    body = body_of(parse_chat(logprobs=True, top_logprobs=2))
    assert (body["id"], body["object"]) == ("r1", "chat.completion")
    choice = body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "né", "refusal": None}
    assert choice["finish_reason"] == "stop"
    content = choice["logprobs"]["content"]
    assert bytes(b for entry in content for b in entry["bytes"]).decode() == "né"
    assert [entry["logprob"] for entry in content[0]["top_logprobs"]] == [-0.5, -2.0]


def test_response_body_reports_prompt_logprobs_as_vllm_does() -> None:
    output = make_output()
    (first, second) = spell("Hi")
    output.prompt_logprobs = [None, TokenLogprobs(second, -3.0, 7, ((first, -0.25),))]
    body = response_body(
        parse_completion(prompt_logprobs=1),
        [output],
        request_id="r1",
        model="m",
        created=0,
        tokenizer=tokenizer(),
    )
    assert body["choices"][0]["prompt_logprobs"] == [
        None,
        {
            str(first): {"logprob": -0.25, "rank": 1, "decoded_token": "H"},
            str(second): {"logprob": -3.0, "rank": 7, "decoded_token": "i"},
        },
    ]
