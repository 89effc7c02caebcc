from __future__ import annotations

import pytest

from evenflow.workloads.sse import CompletionStream, StreamError
from support.fake_openai import chat_choice, event, text_choice

DONE = "data: [DONE]\n\n"


def read(*pieces: str, keep_text: bool = True) -> CompletionStream:
    """Feed pieces that arrive at seconds 1, 2, 3 ..."""
    stream = CompletionStream(keep_text)
    for second, piece in enumerate(pieces, start=1):
        stream.feed(piece.encode(), float(second))
    return stream


def test_stream_times_every_chunk_with_output() -> None:
    stream = read(
        event(text_choice(" a")), event(text_choice(" b")), event(text_choice("", "stop"))
    )
    assert list(stream.chunk_times) == [1.0, 2.0]
    assert stream.end_s == 3.0
    assert stream.text == " a b"


def test_stream_does_not_count_the_opening_and_the_closing_of_a_chat() -> None:
    stream = read(
        event(chat_choice({"role": "assistant", "content": ""})),
        event(chat_choice({"content": "a"})),
        event(chat_choice({}, "stop")),
    )
    assert list(stream.chunk_times) == [2.0]


def test_stream_counts_tokens_without_text_of_their_own() -> None:
    stream = read(event(text_choice("")), event(chat_choice({"content": ""})))
    assert list(stream.chunk_times) == [1.0, 2.0]


@pytest.mark.parametrize("name", ["reasoning_content", "tool_calls"])
def test_stream_counts_output_that_is_no_content(name: str) -> None:
    stream = read(event(chat_choice({"role": "assistant", name: "x"})))
    assert list(stream.chunk_times) == [1.0]


def test_stream_counts_a_closing_chunk_that_has_text() -> None:
    assert list(read(event(text_choice(" a", "length"))).chunk_times) == [1.0]


def test_stream_puts_events_together_that_arrive_in_parts() -> None:
    whole = event(text_choice(" ä"))
    data = whole.encode().replace(b"\\u00e4", "ä".encode())
    stream = CompletionStream(keep_text=True)
    for second, byte in enumerate(data):
        stream.feed(bytes([byte]), float(second))
    assert stream.text == " ä"
    assert list(stream.chunk_times) == [len(data) - 2.0]


def test_stream_ignores_comments_names_and_carriage_returns() -> None:
    stream = read(": ping\r\n\r\nevent: x\r\n" + event(text_choice("a")).replace("\n", "\r\n"))
    assert stream.text == "a"


def test_stream_remembers_what_the_server_counted() -> None:
    stream = read(event({"choices": [], "usage": {"completion_tokens": 3}}), DONE)
    assert stream.usage == {"completion_tokens": 3}


def test_stream_keeps_no_text_when_nobody_wants_it() -> None:
    stream = read(event(text_choice("a")), keep_text=False)
    assert (stream.text, len(stream.chunk_times)) == ("", 1)


@pytest.mark.parametrize("ending", [DONE, event(text_choice("", "length"))])
def test_stream_is_complete_after_the_mark_or_a_reason(ending: str) -> None:
    read(event(text_choice("a")), ending).close()


def test_stream_is_incomplete_without_either() -> None:
    with pytest.raises(StreamError) as raised:
        read(event(text_choice("a"))).close()
    assert raised.value.kind == "incomplete_stream"


@pytest.mark.parametrize(
    "data", ["data: {\n\n", "data: 7\n\n", 'data: {"choices": 7}\n\n', 'data: {"choices": [7]}\n\n']
)
def test_stream_calls_what_is_no_chunk_malformed(data: str) -> None:
    with pytest.raises(StreamError) as raised:
        read(data)
    assert raised.value.kind == "malformed_stream"


def test_stream_passes_on_what_the_server_says_went_wrong() -> None:
    with pytest.raises(StreamError, match="out of memory") as raised:
        read(event({"error": {"message": "out of memory"}}))
    assert raised.value.kind == "server_error"


def test_stream_refuses_a_line_without_end() -> None:
    with pytest.raises(StreamError, match="longer than"):
        read("data: " + "x" * (16 * 1024 * 1024 + 1))
