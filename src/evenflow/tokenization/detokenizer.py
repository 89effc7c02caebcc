"""From token ids back to text, one id at a time, for hundreds of requests per step.

Knows: the bytes of each token and where characters end.
Does not know: requests, stop strings, how text became ids.

Invariants:
    No piece ends inside a character: the bytes of an unfinished one wait for the next token.
    The pieces of a stream, `finish()` included, joined are `Tokenizer.decode` of all its ids.

Almost every token is whole characters, so a table from id to finished text answers almost every
push. Only a token that begins, continues or breaks a character takes the slow way:

    push(id) ──▶ table ── text, nothing held ──▶ out
                   └───── bytes, or bytes held ──▶ join, decode what is complete, hold the rest
"""

from __future__ import annotations

from collections.abc import Callable

from evenflow.tokenization.spelling import Spelling, decode_utf8


class PieceTable(dict[int, str | bytes]):
    """What each token id adds to a text: whole characters as str, anything else as bytes.

    Filled on first use of an id. Skipped and unknown ids add the empty string. Two threads that
    meet the same new id store the same value.

    Args:
        spelling: how tokens spell bytes.
        token_of: the written form of an id, None for an id that has none.
        skipped_ids: ids that add nothing.
    """

    def __init__(
        self,
        spelling: Spelling,
        token_of: Callable[[int], str | None],
        skipped_ids: frozenset[int],
    ) -> None:
        super().__init__()
        self.spelling = spelling
        self._token_of = token_of
        self._skipped_ids = skipped_ids

    def __missing__(self, token_id: int) -> str | bytes:
        token = None if token_id in self._skipped_ids else self._token_of(token_id)
        data = b"" if token is None else self.spelling.to_bytes(token)
        try:
            piece: str | bytes = data.decode()
        except UnicodeDecodeError:
            piece = data
        self[token_id] = piece
        return piece


class IncrementalDetokenizer:
    """The text of one stream of token ids.

    Args:
        table: what each id adds.
        after_text: the stream continues a text, so its first space is not stripped.
    """

    __slots__ = ("_held", "_is_ordinary", "_num_strippable", "_table")

    def __init__(self, table: PieceTable, *, after_text: bool = False) -> None:
        self._table = table
        self._held = b""
        self._num_strippable = 0 if after_text else table.spelling.num_stripped_spaces
        self._is_ordinary = self._num_strippable == 0

    def push(self, token_id: int) -> str:
        """Return the characters that `token_id` completes; perhaps none."""
        piece = self._table[token_id]
        if self._is_ordinary and type(piece) is str:
            return piece
        return self._push_slowly(piece) if piece else ""

    def finish(self) -> str:
        """Return what is still held: an unfinished character, as replacement characters."""
        text = self._decode(self._held, final=True)
        self._held = b""
        return text

    def _push_slowly(self, piece: str | bytes) -> str:
        data = self._held + (piece.encode() if isinstance(piece, str) else piece)
        text = self._decode(data, final=False)
        if self._num_strippable and text:
            stripped = text.lstrip(" ")
            num_spaces = min(len(text) - len(stripped), self._num_strippable)
            text = text[num_spaces:]
            self._num_strippable = 0 if text else self._num_strippable - num_spaces
        self._is_ordinary = not self._held and not self._num_strippable
        return text

    def _decode(self, data: bytes, *, final: bool) -> str:
        text, self._held = decode_utf8(
            data, marks_each_byte=self._table.spelling.marks_each_byte, final=final
        )
        return text
