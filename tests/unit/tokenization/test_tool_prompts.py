"""Tools, calls and results reach the prompt, whether or not the template knows them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from evenflow.core.errors import ConfigError, InvalidRequestError
from evenflow.tokenization.chat_template import CHATML, GEMMA, ChatTemplate
from evenflow.tokenization.tokenizer import SpecialTokens, Tokenizer
from evenflow.tokenization.tool_calls import ToolCalling, detect_format, parse_tool_request
from support.small_tokenizers import byte_level_backend

HERMES = (
    "{% for t in tools or [] %}<tools>{{ t | tojson }}</tools>{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}"
    '<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "</tool_call>{% endfor %}{% endfor %}"
)
LLAMA = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}"
    '{% if tools %}{"name": ..., "parameters": ...}{% endif %}'
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('one call') }}{% endif %}{{ m.tool_calls[0].id }}{% endif %}"
    "{% if m.tool_call_id %}={{ m.name }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}[TOOL_CALLS]{{ c.id }}{% endfor %}"
    "{% if m.tool_call_id %}[TOOL_RESULTS]{{ m.tool_call_id }}{% endif %}{% endfor %}{{ tools }}"
)


def calling(template: str, format_name: str | None = None) -> ToolCalling:
    tokenizer = Tokenizer(byte_level_backend(), SpecialTokens(), template)
    return ToolCalling(tokenizer, format_name)


def call(call_id: str, arguments: object = '{"q": "é"}') -> dict[str, Any]:
    function = {"name": "find", "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def conversation() -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": None, "tool_calls": [call("call_1"), call("call_2")]},
        {"role": "tool", "tool_call_id": "call_1", "content": "R1"},
        {"role": "tool", "tool_call_id": "call_2", "content": "R2"},
    ]


def request() -> Any:
    parameters = {"type": "object", "properties": {"q": {"type": "string"}}}
    function = {"name": "find", "description": "Finds.", "parameters": parameters}
    return parse_tool_request({"tools": [{"type": "function", "function": function}]})


def render(template: str, messages: list[dict[str, Any]], tools: Any = None) -> str:
    prompt, shown = calling(template).prompt(messages, tools)
    return ChatTemplate(template, {"bos_token": ""}).render(prompt, tools=shown)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (HERMES, "hermes"),
        (HERMES.replace('"', '\\"'), "hermes"),
        (LLAMA, "llama3_json"),
        (MISTRAL, "mistral"),
        (CHATML, None),
        (GEMMA, None),
        ("{% if tools %}<tool_call>{{ name }}\n<arg_key>{% endif %}", None),
    ],
)
def test_detect_format_names_what_a_template_teaches(template: str, name: str | None) -> None:
    assert detect_format(template) == name


def test_prompt_gives_objects_to_a_template_that_knows_tools() -> None:
    text = render(HERMES, conversation(), request())
    assert text.count('<tool_call>{"name": "find", "arguments": {"q": "é"}}</tool_call>') == 2
    assert text.startswith('<tools>{"type": "function"')
    assert "[tool]R1[tool]R2" in text
    assert "None" not in text


def test_prompt_spreads_calls_over_turns_when_the_template_takes_one_a_turn() -> None:
    text = render(LLAMA, conversation(), request())
    assert re.findall(r"call_\d|=find", text) == ["call_1", "=find", "call_2", "=find"]


def test_prompt_shortens_ids_alike_when_the_template_wants_nine_characters() -> None:
    text = render(MISTRAL, conversation())
    asked = [part[:9] for part in text.split("[TOOL_CALLS]")[1:]]
    answered = [part[:9] for part in text.split("[TOOL_RESULTS]")[1:]]
    assert asked == answered
    assert len(set(asked)) == 2
    assert all(each.isalnum() for each in asked)


def test_prompt_describes_tools_in_words_when_the_template_knows_none() -> None:
    text = render(CHATML, [{"role": "system", "content": "S"}, *conversation()], request())
    assert text.startswith("<|im_start|>system\nS\n\nYou can call functions.")
    assert '"description": "Finds."' in text
    written = '<tool_call>\n{"name": "find", "arguments": {"q": "é"}}\n</tool_call>'
    assert f"<|im_start|>assistant\n{written}\n{written}<|im_end|>" in text
    results = "".join(f"<tool_response>\n{each}\n</tool_response>\n" for each in ("R1", "R2"))
    assert f"<|im_start|>user\n{results.strip()}<|im_end|>" in text


def test_prompt_keeps_roles_alternating_when_the_user_speaks_after_a_result() -> None:
    messages = [*conversation(), {"role": "user", "content": "And now?"}]
    text = render(GEMMA, messages, request())
    assert text.endswith("</tool_response>\nAnd now?<end_of_turn>\n<start_of_turn>model\n")


def test_prompt_leaves_plain_messages_alone_without_tools() -> None:
    messages = [{"role": "user", "content": "Q"}, {"role": "user", "content": "again"}]
    assert calling(CHATML).prompt(messages, None) == (messages, None)


def test_prompt_drops_empty_lists_of_calls() -> None:
    messages = [{"role": "assistant", "content": "A", "tool_calls": []}]
    assert calling(LLAMA).prompt(messages, None)[0] == [{"role": "assistant", "content": "A"}]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "", "tool_calls": [call("a")]}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": "x"}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [call("a")] * 129}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [call(1)]}, "messages[0].tool_calls[0].id"),
        (
            {"role": "assistant", "tool_calls": [call("a", "{")]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [call("a", "[1]")]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [call("a", '{"a":' * 99 + "1" + "}" * 99)]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"role": "tool", "content": "", "tool_call_id": 1}, "messages[0].tool_call_id"),
    ],
)
def test_prompt_refuses_malformed_calls_by_name(message: dict[str, Any], param: str) -> None:
    for template in (HERMES, CHATML):
        with pytest.raises(InvalidRequestError) as refused:
            calling(template).prompt([message], None)
        assert refused.value.param == param


def test_prompt_takes_empty_arguments_for_none() -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [call("a", "")]}
    (prepared,), _ = calling(HERMES).prompt([message], None)
    assert prepared["tool_calls"][0]["function"]["arguments"] == {}


def test_tool_calling_follows_the_given_format_over_the_template() -> None:
    assert calling(HERMES, "mistral").format.name == "mistral"
    assert (
        calling(CHATML, "llama3_json").prompt([{"role": "user", "content": ""}], request())[1]
        is None
    )


def test_tool_calling_refuses_an_unknown_format() -> None:
    with pytest.raises(ConfigError, match="--tool-call-parser"):
        calling(CHATML, "xml")


def test_tool_calling_needs_special_tokens_when_the_mark_is_one() -> None:
    backend = byte_level_backend()
    assert not ToolCalling(Tokenizer(backend, SpecialTokens(), MISTRAL)).needs_special_tokens
    backend.add_special_tokens(["[TOOL_CALLS]"])
    assert ToolCalling(Tokenizer(backend, SpecialTokens(), MISTRAL)).needs_special_tokens
