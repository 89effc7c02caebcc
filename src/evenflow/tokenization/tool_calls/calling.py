"""How one model is told of tools and how its calls are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenflow.core.errors import ConfigError
from evenflow.tokenization.tokenizer import Tokenizer
from evenflow.tokenization.tool_calls.formats import FORMATS, HERMES, detect_format
from evenflow.tokenization.tool_calls.functions import ToolRequest
from evenflow.tokenization.tool_calls.grammar import call_grammar
from evenflow.tokenization.tool_calls.parser import ToolCallParser
from evenflow.tokenization.tool_calls.prompts import native_messages, plain_messages


class ToolCalling:
    """Tool calls of one model.

    A model whose chat template teaches no form we know is told of its tools in words.

    Args:
        tokenizer: the model's.
        format_name: the form in which the model writes calls; None: what its template teaches.

    Raises:
        ConfigError: there is no such form.
    """

    def __init__(self, tokenizer: Tokenizer, format_name: str | None = None) -> None:
        if format_name is not None and format_name not in FORMATS:
            raise ConfigError(
                f"there is no tool call format {format_name!r}",
                fix=f"Set --tool-call-parser to one of: {', '.join(FORMATS)}",
            )
        template = tokenizer.chat_template or ""
        taught = detect_format(template)
        self.format = FORMATS[format_name or taught or HERMES.name]
        self.is_native = "tools" in template if format_name else taught is not None
        self._mark_token_id = _special_id(tokenizer, self.format.mark)

    @property
    def needs_special_tokens(self) -> bool:
        """Whether calls can only be seen in text that keeps special tokens."""
        return self._mark_token_id is not None and not self.format.is_bare

    def prompt(
        self, messages: object, request: ToolRequest | None
    ) -> tuple[list[dict[str, Any]], Sequence[Mapping[str, object]] | None]:
        """Return `messages` and `tools` for `Tokenizer.apply_chat_template`.

        Earlier calls and their results are written too, also when the request itself has no tools.

        Raises:
            InvalidRequestError: the messages are malformed.
        """
        tools = request.tools if request else None
        if self.is_native:
            return native_messages(messages, self.format), tools
        return plain_messages(messages, self.format, tools), None

    def grammar(
        self, request: ToolRequest, *, answer_schema: Mapping[str, object] | None = None
    ) -> str | None:
        """Return the lark grammar that the answer must follow, None if it is free.

        Args:
            request: what may or must be called.
            answer_schema: JSON schema of an answer without calls, for requests that want JSON.
        """
        return call_grammar(
            self.format,
            request,
            mark_token_id=self._mark_token_id,
            answer_schema=answer_schema,
        )

    def parser(self, request: ToolRequest, id_seed: str) -> ToolCallParser:
        """Start reading one answer; `id_seed` is unique for it."""
        return ToolCallParser(
            self.format,
            request.names,
            id_seed,
            max_calls=request.max_calls,
            is_constrained=request.is_constrained,
            calls_only=request.must_call,
        )


def _special_id(tokenizer: Tokenizer, mark: str) -> int | None:
    ids = tokenizer.encode(mark, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and ids[0] in tokenizer.special_ids else None
