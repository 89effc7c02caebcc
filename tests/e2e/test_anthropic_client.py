"""Anthropic's own client against a real server with a real model."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from evenflow import LLM, SamplingParams
from support.served_model import MAX_MODEL_LEN, get_json

pytestmark = [pytest.mark.model, pytest.mark.slow]

MODEL = "smollm2"
NUM_TOKENS = 6
SYSTEM = "You are terse."
QUESTION: list[Any] = [{"role": "user", "content": "Name three colours."}]
GREEDY: dict[str, Any] = {
    "model": MODEL,
    "messages": QUESTION,
    "max_tokens": NUM_TOKENS,
    "extra_body": {"temperature": 0},  # newer clients have no argument for it
}
TOOLS: list[Any] = [
    {
        "name": "weather",
        "description": "Weather of a city",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
]


@pytest.fixture(scope="module")
def client(smollm2_address: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=f"http://{smollm2_address}", api_key="none", max_retries=0)


def test_stream_equals_whole_message_equals_lone_run(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**GREEDY, system=SYSTEM)
    with client.messages.stream(**GREEDY, system=SYSTEM) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    model = LLM(MODEL, num_blocks_override=256, max_model_len=MAX_MODEL_LEN)
    conversation = [{"role": "system", "content": SYSTEM}, *QUESTION]
    [alone] = model.chat([conversation], SamplingParams(temperature=0, max_tokens=NUM_TOKENS))
    assert whole.content[0].text == text == last.content[0].text == alone.outputs[0].text
    assert whole.stop_reason == last.stop_reason == "max_tokens"
    assert whole.usage.output_tokens == last.usage.output_tokens == NUM_TOKENS
    for usage in (whole.usage, last.usage):
        num_prompt_tokens = usage.input_tokens + usage.cache_read_input_tokens
        assert num_prompt_tokens == len(alone.prompt_token_ids)


async def test_async_client_gets_the_same(
    client: anthropic.Anthropic, smollm2_address: str
) -> None:
    whole = client.messages.create(**GREEDY)
    base_url = f"http://{smollm2_address}"
    async with (
        anthropic.AsyncAnthropic(base_url=base_url, api_key="none") as other,
        other.messages.stream(**GREEDY) as stream,
    ):
        assert "".join([text async for text in stream.text_stream]) == whole.content[0].text


def test_stop_sequence_is_named(client: anthropic.Anthropic) -> None:
    text = client.messages.create(**GREEDY).content[0].text
    stop = text[len(text) // 2 :][:3]
    message = client.messages.create(**GREEDY, stop_sequences=[stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == text[: text.index(stop)]


def test_forced_tool_use_is_sound_whole_and_streamed(client: anthropic.Anthropic) -> None:
    asking = {"messages": [{"role": "user", "content": "What is the weather in Oslo?"}]}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    body = GREEDY | asking | {"tools": TOOLS, "tool_choice": choice, "max_tokens": 40}
    message = client.messages.create(**body)
    with client.messages.stream(**body) as stream:
        last = stream.get_final_message()
    [block], [again] = message.content, last.content
    assert message.stop_reason == last.stop_reason == "tool_use"
    assert (block.name, block.input.keys()) == ("weather", {"city"})
    assert (again.name, again.input) == (block.name, block.input)
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "rain"}
    turns = [
        *asking["messages"],
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    after = client.messages.create(**GREEDY | {"messages": turns, "tools": TOOLS})
    assert after.content


def test_count_tokens_equals_the_usage(client: anthropic.Anthropic) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "system": SYSTEM, "tools": TOOLS}
    count = client.messages.count_tokens(**asked)
    message = client.messages.create(**asked, max_tokens=1)
    usage = message.usage
    assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_message_id_can_be_explained(client: anthropic.Anthropic, smollm2_address: str) -> None:
    message = client.messages.create(**GREEDY | {"max_tokens": 2})
    assert message.id.startswith("msg_")
    assert message._request_id == message.id
    life = get_json(smollm2_address, f"/v1/requests/{message.id}/explain")
    assert life["status"] == "length"


@pytest.mark.parametrize(
    ("wrong", "error", "named"),
    [
        ({"extra_body": {"temperature": -1}}, anthropic.BadRequestError, "temperature"),
        ({"model": "other"}, anthropic.NotFoundError, "other"),
        ({"extra_body": {"no_such": 1}}, anthropic.BadRequestError, "no_such"),
    ],
)
def test_wrong_requests_raise_errors_that_name_the_fault(
    client: anthropic.Anthropic, wrong: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        client.messages.create(**GREEDY | wrong)
