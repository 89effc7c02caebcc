"""The tokeniser as the rest of evenflow sees it.

Knows: ids, their text and bytes, special tokens, the chat template.
Does not know: where it was loaded from, models, requests.

Invariants:
    Reading is thread-safe: nothing that a method returns depends on an earlier call.
    `decode(ids)` is the joined output of `stream()` over `ids`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import tokenizers

from evenflow.core.errors import InvalidRequestError
from evenflow.tokenization.chat_template import CHATML, GEMMA, ChatTemplate
from evenflow.tokenization.detokenizer import IncrementalDetokenizer, PieceTable
from evenflow.tokenization.special_text import Piece, SpecialText
from evenflow.tokenization.spelling import Spelling

_SHORT_CHARS = 2048
"""Texts up to this length take well under a millisecond."""


@dataclass(slots=True, frozen=True, kw_only=True)
class SpecialTokens:
    """The tokens with a role.

    Attributes:
        bos_id: begins a text, when the model wants that.
        eos_id: ends a text.
        names: written forms under the names that chat templates use, such as `bos_token`.
    """

    bos_id: int | None = None
    eos_id: int | None = None
    names: Mapping[str, str] = field(default_factory=dict)


class Tokenizer:
    """Text to token ids and back.

    Args:
        backend: the tokeniser of the `tokenizers` library, complete with decoder and added tokens.
        special: the tokens with a role.
        chat_template: the model's jinja template. Without one, ChatML or Gemma's format is used
            if the vocabulary has their turn tokens.

    Raises:
        UnsupportedModelError: the backend decodes in a way that cannot be streamed.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special: SpecialTokens,
        chat_template: str | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special = special
        self._own_template = chat_template
        self._special_text = {
            token_id: token.content
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        }
        self.special_ids = frozenset(self._special_text)
        spelling = Spelling.of(backend)
        self._all_pieces = PieceTable(spelling, backend.id_to_token, frozenset())
        self._pieces = PieceTable(spelling, backend.id_to_token, self.special_ids)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a text, if the model has one."""
        return self._special.bos_id

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text, if the model has one."""
        return self._special.eos_id

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Turn text into ids.

        Args:
            text: any text.
            add_special_tokens: put in front (and behind) what the model expects around a text. A
                rendered chat already has it, see `encode_chat`.
            parse_special: a special token written in the text becomes that token; otherwise it is
                text like any other, so that a user cannot forge a turn.

        Raises:
            InvalidRequestError: the text holds lone surrogates, which no encoding can carry.
        """
        backend = self._backend
        if not parse_special and self._special_written.is_in(text):
            backend = self._blind_backend
        try:
            if len(text) <= _SHORT_CHARS:
                return backend.encode(text, add_special_tokens=add_special_tokens).ids
            # Unlike `encode` this lets other threads run meanwhile.
            [encoding] = backend.encode_batch([text], add_special_tokens=add_special_tokens)
            return encoding.ids
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequestError(
                "the prompt cannot be encoded",
                param="prompt",
                why="it must be a string without halves of surrogate pairs",
            ) from error

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        **kwargs: object,
    ) -> list[int]:
        """Turn chat messages into ids; arguments as for `apply_chat_template`.

        Special tokens are those that the template writes. Where a message has one it stays text,
        so that nobody can forge a turn.
        """
        return self.encode_pieces(
            self.render_chat(
                messages, add_generation_prompt=add_generation_prompt, tools=tools, **kwargs
            )
        )

    def encode_pieces(self, pieces: Iterable[Piece]) -> list[int]:
        """Turn what `render_chat` returned into ids."""
        return [
            token_id
            for piece in pieces
            for token_id in self.encode(
                piece.text, add_special_tokens=False, parse_special=not piece.is_plain
            )
        ]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Turn ids into text. Ids without a token add nothing."""
        stream = self.stream(skip_special_tokens)
        text = "".join(map(stream.push, ids))
        return text + stream.finish()

    def stream(
        self, skip_special_tokens: bool = True, *, after_text: bool = False
    ) -> IncrementalDetokenizer:
        """Start turning a stream of ids into text.

        Args:
            skip_special_tokens: leave special tokens out of the text.
            after_text: the stream continues a text that is shown before it. Sentencepiece
                tokenisers that drop the first space of a text then keep it.
        """
        table = self._pieces if skip_special_tokens else self._all_pieces
        return IncrementalDetokenizer(table, after_text=after_text)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token adds to a text, special tokens as they are written."""
        piece = self._all_pieces[token_id]
        return piece.encode() if isinstance(piece, str) else piece

    @cached_property
    def max_token_chars(self) -> int:
        """Characters of the longest token: n tokens never have more than n times as many."""
        return max(len(self.token_text(token_id)) for token_id in range(self.vocab_size))

    def token_text(self, token_id: int) -> str:
        """Return a token as text, with replacement characters for parts of characters."""
        return self.token_bytes(token_id).decode(errors="replace")

    @property
    def chat_template(self) -> str | None:
        """The jinja text that `apply_chat_template` uses, None if there is none."""
        if self._own_template is not None:
            return self._own_template
        for mark, template in (("<|im_start|>", CHATML), ("<start_of_turn>", GEMMA)):
            if self._backend.token_to_id(mark) is not None:
                return template
        return None

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        **kwargs: object,
    ) -> str:
        """Write chat messages as one prompt, special tokens included.

        Args:
            messages: OpenAI's shape: role and content, text only.
            add_generation_prompt: end with the opening of the assistant's turn.
            tools: JSON schemas of functions, for templates that know tools.
            **kwargs: further names for the template, such as `enable_thinking`.

        Raises:
            InvalidRequestError: the messages are malformed, the template refuses them, or there
                is no template.
        """
        pieces = self.render_chat(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, **kwargs
        )
        return "".join(piece.text for piece in pieces)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        **kwargs: object,
    ) -> list[Piece]:
        """Write chat messages as one prompt in pieces, for `encode_pieces`.

        Arguments and errors are those of `apply_chat_template`.
        """
        disguise = self._special_written.disguise()
        rendered = self._compiled_template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            rewrite=disguise.put_on,
            **kwargs,
        )
        return disguise.take_off(rendered)

    @cached_property
    def _compiled_template(self) -> ChatTemplate:
        if self.chat_template is None:
            raise InvalidRequestError(
                "this model has no chat template",
                param="messages",
                why="its files carry none and its vocabulary has no turn tokens we know",
                fix="Pass one with --chat-template, or send a plain prompt instead of messages",
            )
        return ChatTemplate(self.chat_template, self._special.names)

    @cached_property
    def _special_written(self) -> SpecialText:
        return SpecialText(self._special_text.values())

    @cached_property
    def _blind_backend(self) -> tokenizers.Tokenizer:
        """A copy that takes special tokens in a text for text.

        The setting belongs to a backend as a whole; a second one keeps `encode` thread-safe.
        """
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.encode_special_tokens = True
        return backend
