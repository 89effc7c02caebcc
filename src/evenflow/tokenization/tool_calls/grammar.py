"""Grammars under which a model can write sound calls only, in llguidance's dialect of lark."""

from __future__ import annotations

import json
from collections.abc import Mapping

from evenflow.tokenization.tool_calls.formats import ToolFormat
from evenflow.tokenization.tool_calls.functions import ToolRequest

MAX_FORCED_CALLS = 16
"""Most calls a grammar lets a model write in one answer; small models know no end."""

# As `json.dumps` writes, which is what models were trained on. Free whitespace invites small
# models to write nothing else.
_SPELLING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def call_grammar(
    form: ToolFormat,
    request: ToolRequest,
    *,
    mark_token_id: int | None = None,
    answer_schema: Mapping[str, object] | None = None,
) -> str | None:
    """Return the grammar of an answer, None if the model may write anything.

    Args:
        form: how the model writes calls.
        request: what may or must be called.
        mark_token_id: the special token that is the format's mark, if the mark is one.
        answer_schema: JSON schema of an answer without calls, for requests that want JSON.
    """
    writer = _Writer(form, request, mark_token_id)
    if request.must_call:
        start = [f"start: {writer.calls(form.prefix)}"]
    elif answer_schema is not None:
        start = [
            f"start: {writer.calls(form.prefix)} | answer",
            f"answer: {_json(answer_schema)}",
        ]
    elif any(function.strict for function in request.functions):
        start = writer.text_with_calls()
    else:
        return None
    return "\n".join([*start, *writer.call_rules()]) + "\n"


class _Writer:
    def __init__(self, form: ToolFormat, request: ToolRequest, mark_token_id: int | None) -> None:
        self._form = form
        self._functions = request.functions
        self._most = request.max_calls or MAX_FORCED_CALLS
        self._mark_token_id = mark_token_id

    def calls(self, prefix: str) -> str:
        """Return the rule for one call or several, with what stands around them."""
        form = self._form
        parts = [self._marked(prefix), "call"]
        if self._most > 1:
            parts.append(f"({self._marked(form.separator)} call){{0,{self._most - 1}}}")
        parts.append(_literal(form.suffix))
        return " ".join(filter(None, parts))

    def text_with_calls(self) -> list[str]:
        """Return rules for free text in which each mark begins sound calls."""
        form = self._form
        if form.is_bare:
            return [f"start: {self.calls(form.prefix)} | PROSE", "PROSE: /([^{\\s](.|\\n)*)?/"]
        calls = self.calls(form.prefix.removeprefix(form.mark))
        if self._mark_token_id is not None:
            before = ["before: TEXT " + self._marked(form.mark)]
        else:
            before = [f"before[suffix={_literal(form.mark)}]: TEXT"]
        return [f"start: (before {calls})* TEXT", *before, "TEXT: /(.|\\n)*/"]

    def call_rules(self) -> list[str]:
        """Return the rules of `call`, one alternative for each function."""
        numbers = range(len(self._functions))
        rules = ["call: " + " | ".join(f"call_{number}" for number in numbers)]
        for number, function in enumerate(self._functions):
            header = f'{{"name": "{function.name}", "{self._form.arguments_key}": '
            rules.append(f'call_{number}: {_literal(header)} {_json(function.parameters)} "}}"')
        return rules

    def _marked(self, text: str) -> str:
        """Write a text that may hold the mark, which may be a token of its own."""
        mark = self._form.mark
        if self._mark_token_id is None or mark not in text:
            return _literal(text)
        before, _, after = text.partition(mark)
        return " ".join(
            filter(None, (_literal(before), f"<[{self._mark_token_id}]>", _literal(after)))
        )


def _json(schema: Mapping[str, object]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": _SPELLING})


def _literal(text: str) -> str:
    return json.dumps(text) if text else ""
