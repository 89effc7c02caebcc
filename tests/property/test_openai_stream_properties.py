"""The chunks of a stream, put together, say what the whole response body says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.engine.openai import (
    CHAT,
    COMPLETIONS,
    ChunkWriter,
    ParsedRequest,
    parse_request,
    response_body,
)
from evenflow.engine.outputs import CompletionOutput, Delta, RequestMetrics, RequestOutput
from evenflow.scheduling.plan import TokenLogprobs
from evenflow.tokenization.tool_calls import ToolCalling
from support.text_engine import spell, tokenizer

HEAD = {"request_id": "r1", "model": "m", "created": 1_700_000_000}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "find", "arguments": {"what": "a fox", "n": 2}}\n</tool_call>'
PIECES = st.sampled_from(["a", "né", " the ", "😀", "\n", "<tool", CALL, CALL[:30], "}"])
TEXTS = st.lists(PIECES, max_size=3).map("".join)


@st.composite
def requests(draw: st.DrawFn) -> ParsedRequest:
    """Requests of both kinds, with everything that changes the shape of the answer."""
    stream = {"stream": True}
    if draw(st.booleans()):
        stream |= {"stream_options": {"include_usage": draw(st.booleans())}}
    common = {**stream, "n": draw(st.integers(1, 3))}
    if draw(st.booleans()):
        common["prompt_logprobs"] = 0
    if draw(st.booleans()):
        url = CHAT
        body = {**common, "messages": [{"role": "user", "content": "Hi"}]}
        body["logprobs"] = draw(st.booleans())
        if draw(st.booleans()):
            body["tools"] = [TOOL]
    else:
        url = COMPLETIONS
        prompts = draw(st.sampled_from([["Hi"], ["Hé", "the fox"], [[1, 2], [3]]]))
        body = {**common, "prompt": prompts, "echo": draw(st.booleans())}
        body["logprobs"] = draw(st.none() | st.just(1))
    return parse_request(url, body, tokenizer(), ToolCalling(tokenizer()))


@st.composite
def completion_deltas(
    draw: st.DrawFn, parsed: ParsedRequest, position: int, index: int
) -> list[Delta]:
    """What an engine makes of one completion, with text held back for any number of tokens."""
    text = draw(TEXTS)
    finish_reason = draw(st.sampled_from(["stop", "length"]))
    tokens = [*spell(text), tokenizer().eos_token_id]
    cuts = draw(st.lists(st.integers(0, len(text)), min_size=len(tokens) - 1))[: len(tokens) - 1]
    ends = [*sorted(cuts), len(text)]
    deltas = []
    for at, (token_id, start, end) in enumerate(zip(tokens, [0, *ends], ends, strict=False)):
        delta = Delta(f"r1.{position}", index, token_id, text[start:end])
        if parsed.params.logprobs is not None:
            delta.logprobs = TokenLogprobs(token_id, -0.5 * at, 1, ((tokens[0], -0.25),))
        if not at and parsed.params.prompt_logprobs is not None:
            scored = parsed.prompts[position].token_ids[1:] if not index else []
            delta.prompt_logprobs = [TokenLogprobs(token, -1.0, 3, ()) for token in scored]
        deltas.append(delta)
    deltas[-1].finish_reason = finish_reason
    deltas[-1].stop_reason = draw(st.sampled_from([None, "END", 7]))
    num_cached = draw(st.integers(0, 5))
    deltas[-1].metrics = RequestMetrics(0.0, 1.0, 2.0, len(tokens), num_cached, 0)
    return deltas


@st.composite
def answers(draw: st.DrawFn) -> tuple[ParsedRequest, list[tuple[int, Delta]]]:
    """A request and its deltas, those of different completions mixed at random.

    The first token of a prompt's first completion comes first, because the others wait for it.
    """
    parsed = draw(requests())
    queues = [
        (position, draw(completion_deltas(parsed, position, index)))
        for position in range(len(parsed.prompts))
        for index in range(parsed.params.n)
    ]
    mixed = [(position, queue.pop(0)) for position, queue in queues if not queue[0].index]
    while left := [pair for pair in queues if pair[1]]:
        position, queue = draw(st.sampled_from(left))
        mixed.append((position, queue.pop(0)))
    return parsed, mixed


def whole(parsed: ParsedRequest, deltas: Iterable[tuple[int, Delta]]) -> dict[str, Any]:
    outputs = [
        RequestOutput(
            f"r1.{position}",
            prompt.text,
            prompt.token_ids,
            [CompletionOutput(index) for index in range(parsed.params.n)],
        )
        for position, prompt in enumerate(parsed.prompts)
    ]
    for position, delta in deltas:
        outputs[position].add(delta)
    return response_body(parsed, outputs, tokenizer=tokenizer(), **HEAD)


def chunks_of(
    parsed: ParsedRequest, deltas: Iterable[tuple[int, Delta]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the chunks with choices, and those after them."""
    writer = ChunkWriter(parsed, tokenizer=tokenizer(), **HEAD)
    written = [*writer.opening(), *(writer.write(at, delta) for at, delta in deltas)]
    return [chunk for chunk in written if chunk is not None], list(writer.closing())


def joined(chunks: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Put the chunks of each choice together, as a client does."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        (part,) = chunk["choices"]
        choice = choices.setdefault(part["index"], {"text": "", "logprobs": None, "calls": {}})
        assert "finish_reason" not in choice, "nothing comes after the end"
        said = part.get("delta", part)
        choice["text"] += said.get("content") or said.get("text") or ""
        for call in said.get("tool_calls", ()):
            known = choice["calls"].setdefault(call["index"], {"arguments": ""})
            known |= {name: call[name] for name in ("id", "type") if name in call}
            known |= {"name": call["function"]["name"]} if "name" in call["function"] else {}
            known["arguments"] += call["function"]["arguments"]
        if part["logprobs"] is not None:
            earlier = choice["logprobs"] or {}
            choice["logprobs"] = {
                name: earlier.get(name, []) + entries for name, entries in part["logprobs"].items()
            }
        for name in ("prompt_logprobs", "role"):
            for place in (chunk, part, said):
                if name in place:
                    assert name not in choice, f"{name} comes once"
                    choice[name] = place[name]
                    break
        if part["finish_reason"] is not None:
            choice |= {name: part[name] for name in ("finish_reason", "stop_reason")}
    return choices


def expected(body: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the choices of a whole body in the form of `joined`."""
    choices = {}
    for choice in body["choices"]:
        message = choice.get("message", {})
        want = {
            "text": message.get("content") or choice.get("text") or "",
            "calls": {
                at: {"id": call["id"], "type": call["type"], **call["function"]}
                for at, call in enumerate(message.get("tool_calls", ()))
            },
            **{name: choice[name] for name in ("logprobs", "finish_reason", "stop_reason")},
        }
        if message:
            want["role"] = message["role"]
        if "prompt_logprobs" in choice:
            want["prompt_logprobs"] = choice["prompt_logprobs"]
        choices[choice["index"]] = want
    if "prompt_logprobs" in body:
        choices[0]["prompt_logprobs"] = body["prompt_logprobs"]
    return choices


@settings(max_examples=150, deadline=None, derandomize=True)
@given(answers())
def test_chunks_put_together_are_the_whole_body(
    answer: tuple[ParsedRequest, list[tuple[int, Delta]]],
) -> None:
    parsed, deltas = answer
    body = whole(parsed, deltas)
    chunks, closing = chunks_of(parsed, deltas)
    assert joined(chunks) == expected(body)
    assert [chunk["usage"] for chunk in closing] == [body["usage"]] * parsed.include_usage
    assert all(("usage" in chunk) == parsed.include_usage for chunk in chunks)
    same = ("id", "created", "model")
    assert {tuple(chunk[name] for name in same) for chunk in [*chunks, *closing]} == {
        tuple(body[name] for name in same)
    }


@settings(max_examples=50, deadline=None, derandomize=True)
@given(answers())
def test_chunks_are_written_only_when_there_is_something_to_say(
    answer: tuple[ParsedRequest, list[tuple[int, Delta]]],
) -> None:
    parsed, deltas = answer
    chunks, _ = chunks_of(parsed, deltas)
    openings = len(parsed.prompts) * parsed.params.n if parsed.url == CHAT or parsed.echo else 0
    for chunk in chunks[openings:]:
        (part,) = chunk["choices"]
        said = part.get("delta", part)
        is_scored = "prompt_logprobs" in chunk or "prompt_logprobs" in part
        is_text = bool(said.get("content") or said.get("text") or said.get("tool_calls"))
        assert is_text or is_scored or part["finish_reason"] is not None
