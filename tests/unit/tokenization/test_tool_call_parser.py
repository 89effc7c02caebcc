"""Calls are read out of text, piece by piece, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from evenflow.tokenization.tool_calls import (
    FORMATS,
    ArgumentsDelta,
    ContentDelta,
    ToolCallParser,
    ToolCallStarted,
    assistant_message,
    chat_delta,
)

NAMES = frozenset({"find", "open"})
CALL = '<tool_call>\n{"name": "find", "arguments": {"q": "a"}}\n</tool_call>'


def parser(form: str = "hermes", **options: object) -> ToolCallParser:
    return ToolCallParser(FORMATS[form], NAMES, "request-1", **options)


def read(text: str, form: str = "hermes", **options: object) -> tuple[str | None, list[tuple]]:
    reader = parser(form, **options)
    message = assistant_message(reader.push(text) + reader.finish())
    calls = message.get("tool_calls", [])
    return message["content"], [
        (call["function"]["name"], call["function"]["arguments"]) for call in calls
    ]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", CALL + '\n<tool_call>\n{"name": "open", "arguments": {}}\n</tool_call>'),
        ("llama3_json", '{"name": "find", "parameters": {"q": "a"}}; {"name": "open"}'),
        ("llama3_json", '<|python_tag|>{"name": "find", "parameters": {"q": "a"}}{"name":"open"}'),
        ("mistral", '[TOOL_CALLS] [{"name": "find", "arguments": {"q": "a"}}, {"name": "open"}]'),
    ],
)
def test_parser_reads_several_calls_in_each_format(form: str, text: str) -> None:
    assert read(text, form) == (None, [("find", '{"q": "a"}'), ("open", "{}")])


@pytest.mark.parametrize("form", FORMATS)
def test_parser_reads_what_the_format_writes(form: str) -> None:
    writer = FORMATS[form]
    calls = [writer.write_call("find", {"q": '}</tool_call>]\\"'}), writer.write_call("open", {})]
    content, found = read(writer.write(calls), form)
    assert content is None
    assert [name for name, _ in found] == ["find", "open"]


def test_parser_keeps_text_around_calls_without_the_space_before_them() -> None:
    content, calls = read(f"Let me look.\n{CALL}\nDone. ")
    assert (content, len(calls)) == ("Let me look.\nDone. ", 1)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", 'a <tool_call> b {"name": "find"}'),
        ("hermes", '<tool_call>{"name": "delete", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "find", "arguments": {"q": }}</tool_call>'),
        ("hermes", '<tool_call>{"name": "find", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "find", "arguments": {"q": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "find", "arguments": {"q": "a'),
        ("hermes", '<tool_call>{"name": 1}</tool_call>  '),
        ("hermes", "<tool_call>{1: 2}</tool_call>"),
        ("hermes", "<tool_call>{]}</tool_call>"),
        ("hermes", "<tool_call>" + '{"a":' * 3000 + "1" + "}" * 3000),
        ("hermes", "ends in half a mark <tool_"),
        ("llama3_json", ' {"answer": 42} '),
        ("llama3_json", 'Not first: {"name": "find", "parameters": {}}'),
        ("llama3_json", "{so} to say"),
        ("mistral", "[TOOL_CALLS][1, 2]"),
        ("mistral", "[TOOL_CALLS]"),
    ],
)
def test_parser_leaves_what_is_no_sound_call_as_content(form: str, text: str) -> None:
    assert read(text, form) == (text, [])


def test_parser_finds_a_call_after_a_malformed_one() -> None:
    broken = '<tool_call>\n{"name": "find", "arguments": {"q": 1}\n</tool_call>'
    assert read(f"{broken}\n{CALL}") == (broken, [("find", '{"q": "a"}')])


def test_parser_unwraps_arguments_written_as_a_text() -> None:
    text = r'<tool_call>{"name": "find", "arguments": "{\"q\": 1}"}</tool_call>'
    assert read(text) == (None, [("find", '{"q": 1}')])


def test_parser_keeps_numbers_of_arguments_as_they_are_written() -> None:
    text = '<tool_call>{"arguments": {"x": 1e400, "y": 1.10}, "name": "find"}</tool_call>'
    assert read(text) == (None, [("find", '{"x": 1e400, "y": 1.10}')])


def test_parser_shows_text_at_once_when_no_mark_can_begin() -> None:
    assert parser().push("Hello <b>") == [ContentDelta("Hello <b>")]


def test_parser_holds_half_a_mark() -> None:
    reader = parser()
    assert reader.push("Hello <tool") == [ContentDelta("Hello")]
    assert reader.push("box>") == [ContentDelta(" <toolbox>")]


def test_parser_holds_a_free_call_until_it_is_whole() -> None:
    reader = parser()
    head, tail = CALL[:-15], CALL[-15:]
    assert reader.push(head) == []
    started, arguments = reader.push(tail)
    assert started == ToolCallStarted(0, started.id, "find")
    assert arguments == ArgumentsDelta(0, '{"q": "a"}')


def test_parser_streams_arguments_when_a_grammar_holds() -> None:
    reader = parser(is_constrained=True)
    assert reader.push('<tool_call>\n{"name": "find", "argu') == []
    started, first = reader.push('ments": {"q": "a')
    assert (started.name, first) == ("find", ArgumentsDelta(0, '{"q": "a'))
    assert reader.push('"}}') == [ArgumentsDelta(0, '"}')]
    assert reader.push("\n</tool_call>") + reader.finish() == []


def test_parser_keeps_the_beginning_of_a_constrained_call_when_the_length_limit_cuts_it() -> None:
    text = '<tool_call>\n{"name": "find", "arguments": {"q": "a\\'
    assert read(text, is_constrained=True) == (None, [("find", '{"q": "a\\')])


@pytest.mark.parametrize("cut", ["", "<tool_", "<tool_call>\n", '<tool_call>\n{"name": "fi'])
def test_parser_shows_no_half_call_when_the_length_limit_cuts_a_forced_one(cut: str) -> None:
    options = {"is_constrained": True, "calls_only": True}
    assert read(f"{CALL}\n{cut}", **options) == (None, [("find", '{"q": "a"}')])
    assert read(cut, **options) == ("", [])


def test_parser_drops_calls_beyond_the_limit() -> None:
    assert read(CALL + "\n" + CALL, max_calls=1) == (None, [("find", '{"q": "a"}')])


def test_parser_gives_calls_distinct_ids_that_repeat_for_the_same_answer() -> None:
    first, again = (
        [e.id for e in parser().push(CALL + CALL) if isinstance(e, ToolCallStarted)]
        for _ in range(2)
    )
    assert first == again
    assert len(set(first)) == 2
    assert all(name.startswith("call_") for name in first)


def test_chat_delta_joins_events_by_call() -> None:
    events = [
        ContentDelta("a"),
        ArgumentsDelta(0, "}"),
        ToolCallStarted(1, "call_1", "open"),
        ArgumentsDelta(1, "{"),
        ContentDelta("b"),
    ]
    function = {"name": "open", "arguments": "{"}
    assert chat_delta(events) == {
        "content": "ab",
        "tool_calls": [
            {"index": 0, "function": {"arguments": "}"}},
            {"index": 1, "id": "call_1", "type": "function", "function": function},
        ],
    }
    assert chat_delta([]) == {}
