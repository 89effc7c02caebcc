"""Reading calls depends on the text alone, and loses nothing of it."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from evenflow.tokenization.tool_calls import (
    FORMATS,
    ToolCallParser,
    ToolCallStarted,
    assistant_message,
)

FRAGMENTS = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<tool", "[", "]", ";"),
        *('{"name": "f", "arguments": {"a": "<tool_call>"}}', '{"name": "f", "parameters": {}}'),
        *('{"name": "g", "arguments": {}}', '{"name": "f", "arguments": {"a": [1, "\\""', "}", ","),
        *("{", '"', "\\", " ", "\n", "text", "é", "1"),
    ]
)
TEXTS = st.lists(FRAGMENTS, max_size=12).map("".join)
FORMS = st.sampled_from(sorted(FORMATS))


def read(form: str, pieces: list[str], **options: object) -> dict[str, object]:
    parser = ToolCallParser(FORMATS[form], frozenset({"f"}), "seed", **options)
    events = [event for piece in pieces for event in parser.push(piece)] + parser.finish()
    assert parser.num_calls >= sum(isinstance(event, ToolCallStarted) for event in events)
    return assistant_message(events)


@given(FORMS, TEXTS, st.data())
def test_parser_reads_the_same_however_the_text_is_cut(
    form: str, text: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for options in ({}, {"max_calls": 1}, {"is_constrained": True}):
        whole = read(form, [text], **options)
        assert read(form, pieces, **options) == whole
        assert read(form, list(text), **options) == whole


@given(FORMS, TEXTS)
def test_parser_loses_nothing_but_the_writing_of_calls(form: str, text: str) -> None:
    message = read(form, [text])
    calls = message.get("tool_calls", [])
    if not calls:
        assert message["content"] == text
    for call in calls:
        assert call["function"]["name"] == "f"
        assert isinstance(json.loads(call["function"]["arguments"]), dict)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(FORMS, st.lists(st.dictionaries(st.text(), JSON, max_size=3), min_size=1, max_size=3))
def test_parser_reads_back_every_call_a_format_writes(
    form: str, arguments: list[dict[str, object]]
) -> None:
    writer = FORMATS[form]
    text = writer.write(writer.write_call("f", each) for each in arguments)
    for options in ({}, {"is_constrained": True}):
        message = read(form, [text], **options)
        assert message["content"] is None
        found = [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]]
        assert json.dumps(found) == json.dumps(arguments)
