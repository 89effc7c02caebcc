"""What the grammars let a model write, judged by llguidance itself."""

from __future__ import annotations

from typing import Any

import pytest

from evenflow.tokenization.tool_calls import FORMATS, ToolCallParser, parse_tool_request
from evenflow.tokenization.tool_calls.grammar import call_grammar

llguidance = pytest.importorskip("llguidance")

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = '{"name": "weather", "%s": {"city": "Oslo"}}'
CLOCK = '{"name": "clock", "%s": {}}'


def request(*, strict: bool = False, **fields: object) -> Any:
    weather = {"name": "weather", "parameters": CITY, "strict": strict}
    clock = {"name": "clock", "parameters": {"additionalProperties": False}}
    tools = [{"type": "function", "function": each} for each in (weather, clock)]
    return parse_tool_request({"tools": tools, **fields})


def accepts(grammar: str, text: str) -> bool:
    tokenizer = llguidance.LLTokenizer("byte")
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def write(form: str, *calls: str) -> str:
    key = FORMATS[form].arguments_key
    return FORMATS[form].write(call % key for call in calls)


@pytest.mark.parametrize("form", FORMATS)
def test_grammar_of_a_forced_call_takes_calls_only(form: str) -> None:
    grammar = call_grammar(FORMATS[form], request(tool_choice="required"))
    assert grammar is not None
    assert accepts(grammar, write(form, WEATHER))
    assert accepts(grammar, write(form, CLOCK, WEATHER))
    assert not accepts(grammar, "")
    assert not accepts(grammar, "Hello")
    assert not accepts(grammar, write(form, WEATHER).replace("city", "town"))
    assert not accepts(grammar, write(form, WEATHER).replace("weather", "whether"))


@pytest.mark.parametrize("form", FORMATS)
def test_grammar_takes_one_call_without_parallel_calls(form: str) -> None:
    body = {"tool_choice": "required", "parallel_tool_calls": False}
    grammar = call_grammar(FORMATS[form], request(**body))
    assert grammar is not None
    assert accepts(grammar, write(form, WEATHER))
    assert not accepts(grammar, write(form, WEATHER, CLOCK))


def test_grammar_of_a_named_function_takes_no_other() -> None:
    choice = {"type": "function", "function": {"name": "clock"}}
    grammar = call_grammar(FORMATS["hermes"], request(tool_choice=choice))
    assert grammar is not None
    assert accepts(grammar, write("hermes", CLOCK))
    assert not accepts(grammar, write("hermes", WEATHER))


def test_grammar_is_none_when_the_model_may_write_anything() -> None:
    assert call_grammar(FORMATS["hermes"], request()) is None


@pytest.mark.parametrize("form", FORMATS)
def test_grammar_of_strict_functions_leaves_text_free_and_holds_calls(form: str) -> None:
    grammar = call_grammar(FORMATS[form], request(strict=True))
    assert grammar is not None
    assert accepts(grammar, "No call, <b>only</b> text [1].")
    assert accepts(grammar, write(form, WEATHER, CLOCK))
    assert not accepts(grammar, write(form, WEATHER).replace("Oslo", 'Oslo", "x": "y'))
    if not FORMATS[form].is_bare:
        assert accepts(grammar, "Let me see. " + write(form, WEATHER) + " Done.")


def test_grammar_lets_an_answer_without_calls_be_json_only() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    grammar = call_grammar(FORMATS["hermes"], request(), answer_schema=schema)
    assert grammar is not None
    assert accepts(grammar, '{"a": 1}')
    assert accepts(grammar, write("hermes", WEATHER))
    assert not accepts(grammar, "text")


def test_grammar_writes_a_mark_that_is_a_special_token_as_that_token() -> None:
    form = FORMATS["mistral"]
    forced = call_grammar(form, request(tool_choice="required"), mark_token_id=5)
    strict = call_grammar(form, request(strict=True), mark_token_id=5)
    for grammar in (forced, strict):
        assert grammar is not None
        assert "<[5]>" in grammar
        assert "TOOL_CALLS" not in grammar
        assert not llguidance.LLMatcher.validate_grammar(grammar, llguidance.LLTokenizer("byte"))


def test_grammar_holds_whatever_text_stands_in_a_schema() -> None:
    for odd in ("a ::= b", "\u2028", "\nstart: /x/", "// %ignore"):
        parameters = {"properties": {odd: {"const": odd}}, "required": [odd], "description": odd}
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        wanted = parse_tool_request({"tools": [tool], "tool_choice": "required"})
        assert wanted is not None
        grammar = call_grammar(FORMATS["hermes"], wanted)
        assert grammar is not None
        call = FORMATS["hermes"].write_call("f", {odd: odd})
        assert accepts(grammar, FORMATS["hermes"].write([call]))


@pytest.mark.parametrize("form", FORMATS)
def test_parser_reads_what_a_grammar_accepts(form: str) -> None:
    wanted = request(tool_choice="required")
    grammar = call_grammar(FORMATS[form], wanted)
    text = write(form, WEATHER, CLOCK)
    assert grammar is not None
    assert accepts(grammar, text)
    parser = ToolCallParser(FORMATS[form], wanted.names, "seed", is_constrained=True)
    for character in text:
        parser.push(character)
    assert parser.finish() == []
    assert parser.num_calls == 2
